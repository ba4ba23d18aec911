"""Links that act on a turn, inside the conversation or below it: go on, answer now, show another version, edit the question.

The chatbot component shows text alone, so that an action is a link with a fragment; a script of the page turns a click
into the value of a hidden text box. The fragment begins with a word of this process, which no model can know. The
component's own editor would show a question as it was made harmless, so its pencil is taken over.
"""

from __future__ import annotations

import secrets
from typing import Literal, get_args

Action = Literal["go-on", "answer", "go-on-without", "answer-without", "show", "edit"]
"""Without: after the oldest turns have left the context."""

BOX = "chosen"
"""Id of the hidden text box."""
_WORD = secrets.token_hex(8)

SCRIPT = f"""<script>
document.addEventListener("click", (event) => {{
  const link = event.target.closest('a[href*="#{_WORD}/"]');
  const pencil = event.target.closest("#chat .user-row .message-buttons button:last-of-type");
  if (!link && !pencil) return;
  const rows = [...document.querySelectorAll("#chat .user-row")];
  const chosen = link
    ? link.getAttribute("href").split("#{_WORD}/")[1]
    : "edit/" + rows.indexOf(pencil.closest(".user-row"));
  event.preventDefault();
  event.stopPropagation();
  const box = document.querySelector("#{BOX} textarea, #{BOX} input");
  box.value = chosen + "/" + Date.now();
  box.dispatchEvent(new Event("input", {{ bubbles: true }}));
  if (pencil) document.querySelector("#question textarea").focus();
}}, true);
</script>"""
CSS = (
    f"#{BOX} {{ display: none; }}"
    + """
#chat a[href*="/go-on/"], #chat a[href*="/answer/"], #chat a[href*="/show/"] {
  display: inline-block; padding: 2px 12px; margin: 2px 2px 2px 0; border-radius: 999px; text-decoration: none;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color); font-size: 13px;
}
#chat a[href*="/go-on/"]:hover, #chat a[href*="/answer/"]:hover, #chat a[href*="/show/"]:hover {
  background: var(--background-fill-secondary);
}
#chat .bot-row:has(a[href*="/show/"]) [data-testid=bot] { text-align: right !important; padding-bottom: 8px; }
#chat .bot-row:has(a[href*="/show/"]) p { font-size: 13px; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
#chat .bot-row:has(a[href*="/show/"]) .message-buttons { display: none; }
#chat .message-content p:has(a[href*="/go-on/"]) em { font-size: 13.5px; color: var(--body-text-color-subdued); }
"""
)


def link(label: str, action: Action, number: int | None) -> str:
    """Markdown of a link that does something with a stored turn; `edit` takes the turn's place in the path instead."""
    return f"[{label}](#{_WORD}/{action}/{number})"


def action_of(value: str) -> tuple[Action, int] | None:
    """What the script wrote into the box; None for anything else."""
    parts = value.split("/")
    for action in get_args(Action):
        if len(parts) == 3 and parts[0] == action and parts[1].isdecimal():
            return action, int(parts[1])
    return None
