"""The server's record of a browser tab, changed in place: the conversation that it shows, which other tabs may show as
well, and what belongs to this tab alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from apps.chat.conversation.author import POLL_S
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.turn import Turn


@dataclass(kw_only=True, eq=False)
class Tab:
    """One browser tab: which conversation it shows and edits."""

    conversation: Conversation = field(default_factory=Conversation)
    edited: Turn | None = None
    """The turn whose question is in the box; the next question replaces it."""
    corrected: Turn | None = None
    """The turn whose correction is in the form."""

    opened: int = 0
    """How many conversations were shown here before this one."""

    def open(self, conversation: Conversation) -> None:
        """Show another conversation, after ending a turn that only this tab follows."""
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
