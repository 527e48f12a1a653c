"use strict";
(() => {
  const said = document.getElementById("said");

  function compare(a, b, numeric) {
    if (a === "" || b === "") return 0;
    return numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
  }

  function sort(table, index, numeric) {
    const heads = table.tHead.rows[0].cells;
    const head = heads[index];
    const before = head.getAttribute("aria-sort");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = before === first ? other : first;
    for (const cell of heads) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const value = (row) => row.cells[index].dataset.value;
    const rows = Array.from(body.rows);
    rows.sort((x, y) => {
      const a = value(x), b = value(y);
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // unknown is last either way
      return sign * compare(a, b, numeric);
    });
    body.append(...rows);
    table.classList.add("sorted"); // the rules between groups belong to the first order
    said.textContent = `Sorted by ${head.textContent}, ${order}`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, index, head.dataset.sort === "number"));
      head.append(button);
    });
  }

  for (const block of document.querySelectorAll(".code")) {
    if (!navigator.clipboard) break;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.querySelector("code").textContent + "\n");
        button.textContent = "Copied";
        said.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    block.append(button);
  }

  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
