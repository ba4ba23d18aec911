// Appends the running turn's newest text as plain text, from a stream of its own, between two renderings of the page.
// The mark in the status line says which turn runs, and how far its thought and answer are rendered (`view/live.py`).
// settings: route, signs (control character → what is shown of it).
let turn = "", source = null, known = ["", ""], tail = null, shownAt = "";
const signs = (text) => [...text].map((sign) => settings.signs[sign] ?? sign).join("");
const follow = (number) => {
  source?.close();
  [turn, source, known] = [number, null, ["", ""]];
  if (!number) return;
  source = new EventSource(settings.route + "/" + number);
  source.addEventListener("end", () => source?.close());
  source.onmessage = (event) => {
    JSON.parse(event.data).forEach(([at, text], kind) => { known[kind] = known[kind].slice(0, at) + text; });
    show();
  };
};
const placeOf = (answers) => {
  const kind = answers ? "#chat .bot-row:not(:has(.thought-group))" : "#chat .thought-group";
  const block = "p, ul, ol, li, pre, code, blockquote, div, .md, .prose";
  let place = [...document.querySelectorAll(kind + " .message-content")].at(-1);
  while (place?.lastElementChild?.matches(block)) place = place.lastElementChild;
  return place;
};
const show = () => {
  const mark = document.querySelector("#status .live")?.title ?? "";
  const [number, ...rendered] = mark.split("/");
  if (number !== turn) follow(number);
  const answers = !!rendered[1], kind = answers ? 1 : 0;
  const text = turn && rendered[kind] ? signs(known[kind].slice(rendered[kind])) : "";
  if (mark !== shownAt || !tail?.isConnected) {
    shownAt = mark;
    tail?.remove();
    tail = Object.assign(document.createElement("span"), { className: "tail" });
    tail.append("");
    if (text) placeOf(answers)?.append(tail);
  }
  if (tail.firstChild.data !== text) tail.firstChild.data = text; // no new node, whose styles would be computed again
};
let due = false;
new MutationObserver(() => {
  if (due) return;
  due = true;
  queueMicrotask(() => { due = false; show(); });
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["title"], childList: true });
