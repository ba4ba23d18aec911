// Opens the sidebar if there is room, and closes it on a small screen once a chat is chosen.
document.addEventListener("change", (event) => {
  if (innerWidth <= 768 && event.target.closest("#conversations"))
    document.querySelector(".sidebar.open .toggle-button")?.click();
});
const opening = new MutationObserver(() => {
  const sidebar = document.querySelector(".sidebar-parent .sidebar");
  if (!sidebar) return;
  opening.disconnect();
  if (innerWidth >= 1100) requestAnimationFrame(() => sidebar.querySelector(".toggle-button").click());
});
opening.observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] });
