// How a conversation is read while it grows: the page stays at its end until the reader leaves it, and each block of
// text runs in the direction of its own letters.
//
//     at the end ── the reader scrolls up, or opens something ──► where they are, whatever is written below
//          ▲                                                                      │
//          └────────── they come back to the end, ask or open a chat ─────────────┘
//
// The chatbot component goes to the end 300 ms after it has looked where the reader is, who may have left by then; its
// own following is off. Sizes are looked at when the browser has laid the page out, so that nothing is laid out twice.
const NEAR_PX = 32; // so near to the end, a reader who scrolls down has come back to it
const OPENED_PX = 100; // so far from the end after a click, its reader has opened something, and reads that
const STILL_MS = 300; // so long after a hand moved, nothing scrolls by itself: what the hand did shows by then

const boxes = new Map(), seen = new WeakSet();
const follow = (box) => {
  let follows = true, top = 0, stillUntil = 0;
  const below = () => box.scrollHeight - box.clientHeight - box.scrollTop;
  const look = () => {
    const now = box.scrollTop;
    if (Math.abs(now - top) <= 0.5) return;
    if (now < top && below() <= 1) { // what is written became shorter; the reader's place comes back with it
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
