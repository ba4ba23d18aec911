// The badge: asks our own server every few seconds whether anything has left this machine, and shows what it says.
// Where the server does not answer, the badge says that too: the page is then a picture of the past.
// settings: route.
const show = (said) => {
  const badge = document.querySelector("#badge p");
  if (badge && !(badge.dataset.state === said.state && badge.textContent === said.text)) {
    Object.assign(badge, { role: "status", title: said.detail, textContent: said.text });
    badge.dataset.state = said.state;
  }
  return badge;
};
const lost = { state: "lost", text: "The chat has ended", detail: "Its server does not answer any more" };
const ask = async () => {
  let said = lost;
  try { said = await (await fetch(settings.route)).json(); } catch { }
  setTimeout(ask, show(said) ? 3000 : 200);  // the page builds itself after this script has begun
};
ask();
