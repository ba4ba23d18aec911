"""The page's keyboard shortcuts, the list of them, and what a screen reader is told; one script in the page's head.

    SHORTCUTS ──► the list under `?` (a native dialog: it keeps the focus, and Esc closes it)
             └──► keys ──► a click on the control that does the same for the pointer, so each has one owner

Gradio's chatbot is a live region as a whole, which would read the thoughts aloud word by word. The script silences it
and speaks through a region of its own: that the model thinks, and then the answer, sentence by sentence.
"""

from __future__ import annotations

import json
from html import escape

SHORTCUTS = (
    ("Enter", "Send the question", ""),
    ("Shift+Enter", "Start a new line", ""),
    ("Escape", "Stop the answer", "#question .stop-button"),
    ("Alt+N", "Start a new chat", "#new-chat"),
    ("Alt+Q", "Go to the question", "#question textarea"),
    ("Alt+S", "Open or close the settings", "#settings > button"),
    ("Alt+C", "Copy the last answer", "#chat .bot-row:not(:has(.thought-group)) [aria-label='Copy message']"),
    ("Alt+B", "Show or hide the conversations", ".sidebar .toggle-button"),
    ("?", "Show this list (Alt+? while typing)", ""),
)
"""Key, what it does, and the control that it presses (the last one that matches); the text box does the first two."""

STAND_INS = {"ask-anew": "#new-chat", "shorten": "#question textarea"}
"""Buttons that press another control; Gradio's own `js=` would need a policy that lets pages evaluate strings."""


def _shortcut_list() -> str:
    rows = "".join(
        f'<tr data-control="{escape(control)}"><td>{escape(does)}</td><td><kbd>{escape(key)}</kbd></td></tr>'
        for key, does, control in SHORTCUTS
    )
    return f"<h2>Keyboard shortcuts</h2><table>{rows}</table><button autofocus>Close</button>"


SHORTCUT_SCRIPT = """<script>
(() => {
  const pressed = CONTROLS, content = CONTENT, standIns = STAND_INS;
  const last = (selector) => [...document.querySelectorAll(selector)].at(-1);

  const press = (control) => control.matches("textarea") ? control.focus() : control.click();

  const list = document.createElement("dialog");
  list.id = "shortcuts"; list.setAttribute("aria-label", "Keyboard shortcuts"); list.innerHTML = content;
  list.querySelector("button").onclick = () => list.close();
  const attach = () => { if (document.body && !list.isConnected) document.body.append(list, spoken); };
  const showList = () => {
    for (const row of list.querySelectorAll("tr"))
      row.hidden = row.dataset.control.startsWith(".sidebar") && !last(row.dataset.control);
    attach();
    list.showModal();
  };

  document.addEventListener("keydown", (event) => {
    if (list.open || event.ctrlKey || event.metaKey || event.isComposing) return;
    const typing = event.target.matches("input, textarea, select, [contenteditable]");
    if (event.key === "?" && (!typing || event.altKey)) { event.preventDefault(); return showList(); }
    const letter = event.code.startsWith("Key") ? event.code.slice(3) : event.key;
    const control = last(pressed[(event.altKey ? "Alt+" : "") + letter] ?? "never");
    if (!control || event.shiftKey) return;
    event.preventDefault();
    press(control);
  });
  document.addEventListener("click", (event) => {
    const control = last(standIns[event.target.closest("button")?.id] ?? "never");
    if (control) press(control);
  });

  const spoken = document.createElement("div");
  spoken.id = "spoken"; spoken.setAttribute("role", "status"); spoken.setAttribute("aria-live", "polite");
  const say = (text) => spoken.append(Object.assign(document.createElement("p"), { textContent: text }));
  let rows = 0, said = 0, thinking = false, due = 0;
  const speak = () => {
    due = 0;
    attach();
    document.querySelectorAll("#chat [role=log][aria-live]").forEach((log) => log.removeAttribute("aria-live"));
    document.querySelectorAll("#chat [role=log]").forEach((log) => log.setAttribute("role", "region"));
    for (const arrow of document.querySelectorAll("#chat .arrow button:not([aria-label^=Show])"))
      arrow.setAttribute("aria-label", "Show or hide the thought");
    const running = !!last("#question .stop-button"), asked = document.querySelectorAll("#chat .user-row").length;
    if (asked !== rows) { rows = asked; said = 0; thinking = false; spoken.replaceChildren(); }
    const row = last("#chat .user-row ~ .bot-row");
    if (!row || !asked) return;
    if (row.querySelector(".thought-group")) { if (running && !thinking) { thinking = true; say("Thinking"); } return; }
    const written = row.querySelector(".message-content")?.innerText ?? "", tail = row.querySelector(".tail");
    const text = written.slice(0, written.length - (tail?.innerText.length ?? 0)).trim();
    const end = running ? Math.max(text.lastIndexOf("\\n"), text.lastIndexOf(". ") + 1) : text.length;
    if ((running || said || thinking) && end > said) { say(text.slice(said, end)); said = end; }
  };
  const later = () => { due ||= setTimeout(speak, 400); };
  new MutationObserver(later).observe(document, { subtree: true, childList: true, characterData: true });
})();
</script>"""
for _name, _value in (
    ("CONTROLS", {key: control for key, _, control in SHORTCUTS if control}),
    ("CONTENT", _shortcut_list()),
    ("STAND_INS", STAND_INS),
):
    SHORTCUT_SCRIPT = SHORTCUT_SCRIPT.replace(_name, json.dumps(_value))
