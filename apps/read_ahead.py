"""Reads what a question will be sent with while it is typed, so that its first token comes sooner.

    typing ─ context ledger ─ offer(messages) ─ thread ─ whole chunks of it, whenever no turn needs the model

The newest offer takes the place of those before it. A turn that comes waits for one chunk at most, which it needs
itself. What is read is kept by the decoder, whose `start` then goes on from there. A prompt that cannot be read is left
to its turn, which says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from toolkit.records import Message

GAP_S = 0.002
"""Between two chunks, in which a turn that waits for the model gets it."""


class ReadAhead:
    """One decoder's reader; its thread lives as long as the process."""

    def __init__(
        self,
        prompt_ids: Callable[[Sequence[Message]], list[int]],
        read: Callable[[Sequence[int]], bool],
        lock: threading.Lock,
    ) -> None:
        """`prompt_ids`: the prompt of messages. `read`: reads one more chunk of a prompt, False where none is left.

        `lock`: held by who uses the decoder.
        """
        self._prompt_ids, self._read, self._lock = prompt_ids, read, lock
        self._offered: list[int] | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="read-ahead", daemon=True).start()

    def offer(self, messages: Sequence[Message]) -> None:
        """What would be sent now."""
        prompt = self._prompt_ids(messages)
        with self._changed:
            self._offered = prompt
            self._changed.notify()

    def forget(self) -> None:
        """A turn reads for itself: nothing is offered any more."""
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
        except Exception:  # noqa: BLE001 – whatever it is, the turn that reads the same meets it and tells the user
            return False
