// Turns a click on a link that acts on a turn, or on a question's pencil, into the value of a hidden text box.
// settings: word (the beginning of such a link's fragment, a secret of this process that no model can guess).
const mark = "#" + settings.word + "/";
document.addEventListener("click", (event) => {
  const link = event.target.closest(`a[href*="${mark}"]`);
  const pencil = event.target.closest("#chat .user-row .message-buttons button:last-of-type");
  if (!link && !pencil) return;
  const rows = [...document.querySelectorAll("#chat .user-row")];
  const chosen = link ? link.getAttribute("href").split(mark)[1] : "edit/" + rows.indexOf(pencil.closest(".user-row"));
  event.preventDefault();
  event.stopPropagation();
  const box = document.querySelector("#chosen textarea, #chosen input");
  box.value = chosen + "/" + Date.now();
  box.dispatchEvent(new Event("input", { bubbles: true }));
  if (pencil) document.querySelector("#question textarea").focus();
}, true);
