// The badge: asks our own server every few seconds whether anything has left this machine, and shows what it says.
// If the server does not answer, the badge says so: the page is then out of date. Gradio's message that it reconnects,
// which it cannot, makes the badge ask at once, and is then hidden.
// settings: route.
const show = (said) => {
  const badge = document.querySelector("#badge p");
  if (badge && !(badge.dataset.state === said.state && badge.textContent === said.text)) {
    Object.assign(badge, { role: "status", title: said.detail, textContent: said.text });
    badge.dataset.state = said.state;
  }
  return badge;
};
const lost = { state: "lost", text: "The chat has ended", detail: "The server no longer answers" };
const messages = new MutationObserver(() => ask());
let next = 0;
const ask = async () => {
  let said = lost;
  try { said = await (await fetch(settings.route)).json(); } catch { }
  const built = show(said), box = document.querySelector(".toast-wrap");  // built after this script starts
  if (box) messages.observe(box, { childList: true });
  clearTimeout(next);
  next = setTimeout(ask, built ? 3000 : 200);
};
ask();
