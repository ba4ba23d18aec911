// Reopens a tab's chat after the tab is reloaded.
addEventListener("pagehide", () => {
  const unlisted = document.querySelector("#chat .user-row") ? "newest" : ""; // a chat that has just begun
  sessionStorage.setItem("chat", document.querySelector("#conversations input:checked")?.value ?? unlisted);
});
const returningTo = sessionStorage.getItem("chat");
const itsRow = returningTo === "newest" ? "#conversations input" : `#conversations input[value="${returningTo}"]`;
let tries = returningTo ? 300 : 0; // a minute: a slow machine takes long to complete the page
for (const done of ["pointerdown", "keydown"])
  addEventListener(done, () => { tries = 0; }, { once: true }); // the user takes precedence
const returning = setInterval(() => { // a click before the page is complete is lost
  if (tries-- <= 0 || document.querySelector("#chat .user-row")) return clearInterval(returning);
  document.querySelector(itsRow)?.click();
}, 200);
