"""What one browser tab shows: a conversation, which other tabs may show as well, and what belongs to this tab alone.

The server keeps one for each tab and changes it in place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from apps.chat.conversation.author import POLL_S
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.turn import Turn


@dataclass(kw_only=True, eq=False)
class Tab:
    """See the module."""

    conversation: Conversation = field(default_factory=Conversation)
    edited: Turn | None = None
    """The turn whose question stands in the box; the next question takes its place."""
    corrected: Turn | None = None
    """The turn whose correction stands in the form."""

    opened: int = 0
    """How many conversations were shown here before this one."""

    def open(self, conversation: Conversation) -> None:
        """Show another conversation; a turn that only this tab follows is ended before."""
        feed = self.conversation.feed
        if feed and all(tab is self for tab in feed.followers):
            self.end_turn()
        self.conversation, self.edited = conversation, None
        self.opened += 1

    def end_turn(self) -> None:
        """End a turn that is being written, whoever follows it."""
        while self.conversation.busy:
            self.conversation.turns[-1].stop_requested = True
            time.sleep(POLL_S)
