// The badge: asks our own server every few seconds whether anything has left this machine, and shows what it says.
// If the server does not answer, the badge says so: the page is then out of date.
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
const ask = async () => {
  let said = lost;
  try { said = await (await fetch(settings.route)).json(); } catch { }
  setTimeout(ask, show(said) ? 3000 : 200);  // until the page is built, which happens after this script starts
};
ask();
