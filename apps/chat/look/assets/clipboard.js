// Copying from a page gives what the model wrote: the marks of `view/markup.py` are removed.
// The chatbot component copies a thought with its title and an indented first line, which are removed too.
// settings: joiner, lessThan, exclamation, longFence.
const afterMark = new RegExp("([<!\\]`~ /.$])" + settings.joiner, "g");
const beforeDollar = new RegExp(settings.joiner + "(?=\\$)", "g");
const named = (text) => text.replace(/&#(\d+);/g, (_, code) => String.fromCodePoint(code));
const asWritten = (text) => text.startsWith('<div class="typed"')
  ? named(text.replace(/^<div[^>]*>|<\/div>$/g, ""))
  : text.replace(settings.longFence, "")
    .replace(/<span class="remote" title="([^"]*)">[^<]*<\/span>/g, (_, title) => named(title))
    .replace(/ <span class="host">[^<]*<\/span>/g, "").replace(afterMark, "$1").replace(beforeDollar, "")
    .replaceAll(settings.lessThan, "<").replaceAll(settings.exclamation, "!");
const withoutTitle = (thought) => thought.replace(/^[^\n]*\n {2}/, "").slice(0, -1);
let copiesThought = false;
document.addEventListener("click", (event) => {
  copiesThought = !!event.target.closest(".bot-row:has(.thought-group) .message-buttons button");
}, true);
if (navigator.clipboard) {
  const write = navigator.clipboard.writeText.bind(navigator.clipboard);
  navigator.clipboard.writeText = (text) => write(asWritten(copiesThought ? withoutTitle(text) : text));
}
document.addEventListener("copy", (event) => {
  const selected = getSelection().toString();
  if (!selected.includes(settings.joiner)) return;
  event.clipboardData.setData("text/plain", asWritten(selected));
  event.preventDefault();
});
