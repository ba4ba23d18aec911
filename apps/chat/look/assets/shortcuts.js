// The page's keyboard shortcuts and their list under `?` (a native dialog: it keeps the focus, and Esc closes it).
// A key clicks the control that a pointer would click, so each action is implemented once.
// settings: pressed (key → selector), content (HTML of the list), standIns (id of a button → what it presses).
const last = (selector) => [...document.querySelectorAll(selector)].at(-1);
const press = (control) => control.matches("textarea") ? control.focus() : control.click();

const list = document.createElement("dialog");
list.id = "shortcuts"; list.setAttribute("aria-label", "Keyboard shortcuts"); list.innerHTML = settings.content;
list.querySelector("button").onclick = () => list.close();
const showList = () => {
  for (const row of list.querySelectorAll("tr"))
    row.hidden = row.dataset.control.startsWith(".sidebar") && !last(row.dataset.control);
  if (!list.isConnected) document.body.append(list);
  list.showModal();
};

document.addEventListener("keydown", (event) => {
  if (list.open || event.ctrlKey || event.metaKey || event.isComposing) return;
  const typing = event.target.matches("input, textarea, select, [contenteditable]");
  if (event.key === "?" && (!typing || event.altKey)) { event.preventDefault(); return showList(); }
  const letter = event.code.startsWith("Key") ? event.code.slice(3) : event.key;
  const control = last(settings.pressed[(event.altKey ? "Alt+" : "") + letter] ?? "never");
  if (!control || event.shiftKey) return;
  event.preventDefault();
  press(control);
});
document.addEventListener("click", (event) => {
  const control = last(settings.standIns[event.target.closest("button")?.id] ?? "never");
  if (control) press(control);
});
