"""What is copied from a page is what the model wrote, not what the page shows of it; one script in the page's head.

The marks of `apps.chat.view.markup` are taken back. Of a thought, the chatbot component copies its title and an indented first
line: both go.
"""

from __future__ import annotations

import json

from apps.chat.view.markup import EXCLAMATION, JOINER, LESS_THAN, LONG_FENCE

CLIPBOARD_SCRIPT = rf"""<script>
const named = (text) => text.replace(/&#(\d+);/g, (_, code) => String.fromCodePoint(code));
const asWritten = (text) => text.startsWith('<div class="typed"') ? named(text.replace(/^<div[^>]*>|<\/div>$/g, "")) : text.replace({json.dumps(LONG_FENCE)}, "")
  .replace(/<span class="remote" title="([^"]*)">[^<]*<\/span>/g, (_, title) => named(title))
  .replace(/ <span class="host">[^<]*<\/span>/g, "").replace(/([<!\]`~ \/.$]){JOINER}/g, "$1").replace(/{JOINER}(?=\$)/g, "")
  .replaceAll("{LESS_THAN}", "<").replaceAll("{EXCLAMATION}", "!");
const withoutTitle = (thought) => thought.replace(/^[^\n]*\n {{2}}/, "").slice(0, -1);
let copiesThought = false;
document.addEventListener("click", (event) => {{
  copiesThought = !!event.target.closest(".bot-row:has(.thought-group) .message-buttons button");
}}, true);
if (navigator.clipboard) {{
  const write = navigator.clipboard.writeText.bind(navigator.clipboard);
  navigator.clipboard.writeText = (text) => write(asWritten(copiesThought ? withoutTitle(text) : text));
}}
document.addEventListener("copy", (event) => {{
  const selected = getSelection().toString();
  if (!selected.includes("{JOINER}")) return;
  event.clipboardData.setData("text/plain", asWritten(selected));
  event.preventDefault();
}});
</script>"""
