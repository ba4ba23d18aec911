// Keeps a growing conversation readable: the page stays at the end until the reader leaves it, and each block of text
// runs in the direction of its own letters.
//
//     at the end ── the reader scrolls up, or opens something ──► where they are, whatever is written below
//          ▲                                                                      │
//          └────────── they come back to the end, ask or open a chat ─────────────┘
//
// The chatbot component scrolls to the end 300 ms after it has checked where the reader is, who may have left by then;
// its own autoscroll is off. Sizes are read after the browser has laid the page out, so that nothing is laid out twice.
const NEAR_PX = 32; // a reader who scrolls down and gets this near to the end has come back to it
const OPENED_PX = 100; // a reader this far from the end after a click has opened something and reads it
const STILL_MS = 300; // time after an input in which nothing scrolls by itself; its effect shows by then

const boxes = new Map(), seen = new WeakSet();
const follow = (box) => {
  let follows = true, top = 0, stillUntil = 0;
  const below = () => box.scrollHeight - box.clientHeight - box.scrollTop;
  const look = () => {
    const now = box.scrollTop;
    if (Math.abs(now - top) <= 0.5) return;
    if (now < top && below() <= 1) { // the text became shorter; as it grows, the reader's place returns
      if (follows) top = now;
      return;
    }
    follows = now > top && (follows || below() < NEAR_PX);
    top = now;
  };
  const settle = () => {
    look();
    if (performance.now() < stillUntil) return;
    if (follows) {
      box.scrollTop = box.scrollHeight;
      top = box.scrollTop;
    } else if (box.scrollTop < top) box.scrollTop = top;
  };
  const hold = () => { stillUntil = performance.now() + STILL_MS; setTimeout(settle, STILL_MS + 1); };
  box.addEventListener("scroll", look, { passive: true });
  for (const hand of ["wheel", "touchstart", "touchmove", "pointerdown"])
    box.addEventListener(hand, hold, { passive: true });
  for (const hand of ["click", "keydown"]) box.addEventListener(hand, () => {
    setTimeout(() => { if (below() > OPENED_PX) follows = false; }, STILL_MS);
    hold();
  }, true);
  return { again: () => { follows = true; settle(); }, sizes: new ResizeObserver(settle) };
};
const again = () => { for (const box of boxes.values()) box.again(); };
let ran = false;
new MutationObserver(() => {
  for (const box of document.querySelectorAll(".panel-wrap")) {
    if (!boxes.has(box)) boxes.set(box, follow(box));
    for (const part of [box, ...box.children])
      if (!seen.has(part)) { seen.add(part); boxes.get(box).sizes.observe(part); }
  }
  const runs = !!document.querySelector("#question .stop-button");
  if (runs && !ran) again();
  ran = runs;
  for (const block of document.querySelectorAll(".message-content .md > :not([dir], .code_wrap)")) block.dir = "auto";
  const question = document.querySelector("#question textarea");
  if (question) question.dir = "auto";
}).observe(document, { subtree: true, childList: true });
document.addEventListener("change", (event) => { if (event.target.closest("#conversations")) again(); });
