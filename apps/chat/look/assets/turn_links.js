// Links that act on a turn, and the pencil at a question: a click becomes the value of a hidden text box.
// settings: word (what the fragment of such a link begins with, of this process, which no model can know).
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
