// A file to import is read in the browser and sent as the text of a box.
document.addEventListener("change", async (event) => {
  if (event.target.id !== "import-file" || !event.target.files.length) return;
  const box = document.querySelector("#import-text textarea");
  box.value = await event.target.files[0].text();
  event.target.value = "";
  box.dispatchEvent(new Event("input", { bubbles: true }));
});
