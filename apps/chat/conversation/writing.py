"""A turn that is being written: by a thread of its own, for all tabs that follow it.

    model ── piece ── store ── Writing ─┬─ the tab that asked
                                        ├─ that tab, loaded again
                                        └─ another one that shows the same chat

A tab that is loaded again is gone for a while. What nobody follows for `PATIENCE_S` is closed.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import Generic, TypeVar

from apps.chat.conversation.latest import Latest
from toolkit.errors import InputError

Item = TypeVar("Item")

PATIENCE_S = 10.0
"""A page takes some seconds to load while the model has all cores."""


class Writing(Generic[Item]):
    """See the module. Items are what a page shows of the turn."""

    def __init__(self, work: Generator[Item, None, None]) -> None:
        """`work`: writes the turn once `start` is called; its last item comes when the turn has ended."""
        self.trouble = ""
        """Why the turn broke off; empty where it did not."""
        self.followers: list[object] = []
        """The tabs."""
        self._left_at = time.monotonic()
        self._latest = Latest(self._while_followed(work))

    def start(self) -> None:
        """Let the turn be written, whether somebody follows already or not."""
        self._latest.start()

    def follow(self, tab: object, first: Item) -> Generator[Item, None, None]:
        """The first item, then what is newest each time, until the turn has ended."""
        self.followers.append(tab)
        try:
            yield first
            yield from self._latest
        finally:
            self._left_at = time.monotonic()
            self.followers.remove(tab)

    def _while_followed(self, work: Generator[Item, None, None]) -> Generator[Item, None, None]:
        try:
            with closing(work):
                for item in work:
                    yield item
                    if not self.followers and time.monotonic() - self._left_at > PATIENCE_S:
                        return
        except InputError as error:
            self.trouble = str(error)
