// A tab that is loaded again opens the chat that it had.
addEventListener("pagehide", () => {
  const unlisted = document.querySelector("#chat .user-row") ? "newest" : ""; // a chat that began a moment ago
  sessionStorage.setItem("chat", document.querySelector("#conversations input:checked")?.value ?? unlisted);
});
const returningTo = sessionStorage.getItem("chat");
const itsRow = returningTo === "newest" ? "#conversations input" : `#conversations input[value="${returningTo}"]`;
let tries = returningTo ? 300 : 0; // a minute: a slow machine takes long to make the page whole
for (const done of ["pointerdown", "keydown"])
  addEventListener(done, () => { tries = 0; }, { once: true }); // the user first
const returning = setInterval(() => { // what is clicked before the page is whole is lost
  if (tries-- <= 0 || document.querySelector("#chat .user-row")) return clearInterval(returning);
  document.querySelector(itsRow)?.click();
}, 200);
