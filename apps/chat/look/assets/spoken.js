// Tells a screen reader that the model is thinking, and then the answer, sentence by sentence.
// Gradio's chatbot is one live region, which would read thoughts aloud word by word, so it is silenced here.
const last = (selector) => [...document.querySelectorAll(selector)].at(-1);
const spoken = document.createElement("div");
spoken.id = "spoken"; spoken.setAttribute("role", "status"); spoken.setAttribute("aria-live", "polite");
const say = (text) => spoken.append(Object.assign(document.createElement("p"), { textContent: text }));
let rows = 0, said = 0, thinking = false, due = 0;
const speak = () => {
  due = 0;
  if (document.body && !spoken.isConnected) document.body.append(spoken);
  document.querySelectorAll("#chat [role=log][aria-live]").forEach((log) => log.removeAttribute("aria-live"));
  document.querySelectorAll("#chat [role=log]").forEach((log) => log.setAttribute("role", "region"));
  for (const arrow of document.querySelectorAll("#chat .arrow button:not([aria-label^=Show])"))
    arrow.setAttribute("aria-label", "Show or hide the thought");
  const running = !!last("#question .stop-button"), asked = document.querySelectorAll("#chat .user-row").length;
  if (asked !== rows) { rows = asked; said = 0; thinking = false; spoken.replaceChildren(); }
  const row = last("#chat .user-row ~ .bot-row");
  if (!row || !asked) return;
  if (row.querySelector(".thought-group")) { if (running && !thinking) { thinking = true; say("Thinking"); } return; }
  const written = row.querySelector(".message-content")?.innerText ?? "", tail = row.querySelector(".tail");
  const text = written.slice(0, written.length - (tail?.innerText.length ?? 0)).trim();
  const end = running ? Math.max(text.lastIndexOf("\n"), text.lastIndexOf(". ") + 1) : text.length;
  if ((running || said || thinking) && end > said) { say(text.slice(said, end)); said = end; }
};
const later = () => { due ||= setTimeout(speak, 400); };
new MutationObserver(later).observe(document, { subtree: true, childList: true, characterData: true });
