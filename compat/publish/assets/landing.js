// The search of the first page: rows of models that hold the words.
"use strict";
(() => {
  const form = document.querySelector("form.filters");
  if (!form) return;
  const rows = Array.from(document.querySelectorAll(".models tbody tr"));
  const names = rows.map((row) => row.cells[0].textContent.toLowerCase());
  const search = form.querySelector("input"), told = form.querySelector("output");
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => names[i].includes(word));
      kept += row.hidden ? 0 : 1;
    });
    told.textContent = words.length ? kept.toLocaleString("en") + " of " + rows.length.toLocaleString("en") + " models" : "";
  });
})();
