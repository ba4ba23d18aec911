"""Reads the prompt of a question while it is being typed, so that its first token comes sooner.

    typing ─ context ledger ─ offer(messages) ─ thread ─ whole chunks of it, whenever no turn needs the model

The newest offer replaces those before it. A turn that begins waits for one chunk at most, which it needs anyway. The
decoder keeps what is read, and its `start` continues from there. If a prompt cannot be read, its turn says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from toolkit.records import Message

GAP_S = 0.002
"""Pause between two chunks, in which a turn that waits for the model gets it."""


class ReadAhead:
    """Reads ahead for one decoder; its thread lives as long as the process."""

    def __init__(
        self,
        prompt_ids: Callable[[Sequence[Message]], list[int]],
        read: Callable[[Sequence[int]], bool],
        lock: threading.Lock,
    ) -> None:
        """`prompt_ids`: makes the prompt of messages. `read`: reads one more chunk of a prompt; False if none is left.

        `lock`: held by whoever uses the decoder.
        """
        self._prompt_ids, self._read, self._lock = prompt_ids, read, lock
        self._offered: list[int] | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="read-ahead", daemon=True).start()

    def offer(self, messages: Sequence[Message]) -> None:
        """Offer the messages that would be sent now."""
        prompt = self._prompt_ids(messages)
        with self._changed:
            self._offered = prompt
            self._changed.notify()

    def forget(self) -> None:
        """Drop the offer, because a turn begins, which reads for itself."""
        with self._changed:
            self._offered = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._offered is not None)
                prompt = self._offered
            with self._lock:
                if prompt is None or prompt is not self._offered:
                    continue
                has_more = self._has_more(prompt)
            if not has_more:
                with self._changed:
                    self._offered = None if self._offered is prompt else self._offered
            time.sleep(GAP_S)

    def _has_more(self, prompt: Sequence[int]) -> bool:
        try:
            return self._read(prompt)
        except Exception:  # noqa: BLE001 – any failure recurs, and is reported, when the turn reads this prompt
            return False
