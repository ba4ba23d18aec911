"""What one browser tab shows: a conversation, which other tabs may show as well, and what belongs to this tab alone.

The server keeps one for each tab and changes it in place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from apps.conversation import Conversation, Turn

POLL_S = 0.1


@dataclass(kw_only=True, eq=False)
class Tab:
    """See the module."""

    conversation: Conversation = field(default_factory=Conversation)
    edited: Turn | None = None
    """The turn whose question stands in the box; the next question takes its place."""
    corrected: Turn | None = None
    """The turn whose correction stands in the form."""

    @property
    def is_writing(self) -> bool:
        """Whether a turn that was asked or continued here is running."""
        return self.conversation.writer is self

    def open(self, conversation: Conversation) -> None:
        """Show another conversation; a turn that runs from here is ended before, one that runs from elsewhere is not."""
        while self.is_writing:
            self.conversation.turns[-1].stop_requested = True
            time.sleep(POLL_S)
        self.conversation, self.edited = conversation, None
