"use strict";
// Tables marked "sortable": a click on a header's button sorts the body; the foot (the average) stays where it is.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      const numeric = header.classList.contains("number");
      const keyed = Array.from(body.rows, (row) => [row.cells[column].dataset.value, row]);
      keyed.sort(([a], [b]) => {
        // What was not measured stays at the end whichever way the rest is sorted.
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = numeric ? Number(a) - Number(b) : a.localeCompare(b);
        return descending ? -order : order;
      });
      headers.forEach((other) => { if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none"); });
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
// Paper cannot be unfolded: print what is folded away, then restore the page.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = Array.from(document.querySelectorAll("details:not([open])"));
  folded.forEach((details) => { details.open = true; });
});
window.addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
