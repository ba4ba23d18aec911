// Lets a page rest: nothing slides, and an endless chain of animation frames is slowed down to one a second.
// Must run before Gradio's scripts, which capture `requestAnimationFrame` when they load; `frames.py` ensures that.
const frame = requestAnimationFrame.bind(window), cancel = cancelAnimationFrame.bind(window);
let running = null;
window.requestAnimationFrame = (callback) => {
  const source = String(callback), now = performance.now();
  const since = running?.source === source ? running.since : now; // requested by its own callback: a chain
  const run = (time) => {
    running = { source, since };
    try { callback(time); } finally { running = null; }
  };
  return now - since < 2000 ? frame(run) : -setTimeout(() => run(performance.now()), 1000);
};
window.cancelAnimationFrame = (handle) => handle < 0 ? clearTimeout(-handle) : cancel(handle);
const animate = Element.prototype.animate;
Element.prototype.animate = function (keyframes, options) {
  return animate.call(this, keyframes, { ...options, delay: 0, duration: 0 });
};
