// The study's page: sorting, filtering, millilitres or z-scores, and from a mark in a chart to its row.
"use strict";
(() => {
  const table = document.getElementById("scans");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const names = rows.map((row) => row.cells[0].textContent.trim());
  const verdicts = rows.map((row) => row.cells[2].querySelector(".badge").textContent);
  const RANK = ["fail", "check", "pass"];
  const FIRST = 3, volumes = heads.filter((head) => head.dataset.sort === "volume").length; // columns of volumes
  const ml = rows.map((row) => [...row.cells].slice(FIRST, FIRST + volumes).map((cell) => cell.textContent));
  const text = new Intl.Collator(undefined, { numeric: true }).compare;

  function keyOf(kind, column) { // NaN sorts last, whichever way
    if (kind === "text") return (k) => names[k];
    if (kind === "verdict") return (k) => (RANK.indexOf(verdicts[k]) + 1 || NaN);
    return (k) => parseFloat(rows[k].cells[column].firstChild.textContent);
  }

  function sort(column, direction) {
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const kind = heads[column].dataset.sort;
    const keys = rows.map((_, k) => k).map(keyOf(kind, column));
    const order = rows.map((_, k) => k).sort((a, b) => {
      if (kind === "text") return direction * text(keys[a], keys[b]);
      if (Number.isNaN(keys[a]) || Number.isNaN(keys[b])) return Number.isNaN(keys[a]) - Number.isNaN(keys[b]);
      return direction * (keys[a] - keys[b]) || text(names[a], names[b]);
    });
    body.append(...order.map((k) => rows[k]));
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    sort(column, head.getAttribute("aria-sort") === "ascending" ? -1 : 1);
  }));

  function filter() {
    const part = document.getElementById("filter").value.trim().toLowerCase();
    const only = document.getElementById("only").value;
    let shown = 0;
    rows.forEach((row, k) => {
      row.hidden = !(names[k].toLowerCase().includes(part) && (!only || verdicts[k] === only));
      shown += !row.hidden;
    });
    document.getElementById("shown").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
  }
  document.getElementById("filter").addEventListener("input", filter);
  document.getElementById("only").addEventListener("input", filter);

  document.querySelectorAll("[name=unit]").forEach((radio) => radio.addEventListener("input", () => {
    rows.forEach((row, k) => ml[k].forEach((text, number) => {
      const cell = row.cells[FIRST + number];
      cell.textContent = radio.value === "z" ? cell.dataset.z : text;
    }));
    const column = heads.findIndex((head) => head.dataset.sort === "volume" && head.hasAttribute("aria-sort"));
    if (column >= 0) sort(column, heads[column].getAttribute("aria-sort") === "ascending" ? 1 : -1);
  }));

  let opened = []; // for the print alone
  addEventListener("beforeprint", () => {
    opened = [...table.querySelectorAll("details:not([open])")];
    opened.forEach((folded) => { folded.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((folded) => { folded.open = false; }));

  // Charts: the mark nearest to the pointer.
  const weeks = rows.map((row) => parseFloat(row.dataset.weeks));
  const tip = document.getElementById("tip");
  document.querySelectorAll(".chart").forEach((chart, number) => {
    const line = (given) => given.split(" ").map(Number);
    const [across, up] = [line(chart.dataset.weeksToX), line(chart.dataset.mlToY)];
    function nearest(event) {
      const box = chart.getBoundingClientRect();
      const scale = chart.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      let best = -1, closest = 8 ** 2;
      rows.forEach((row, k) => {
        const volume = parseFloat(ml[k][number]);
        const distance = (across[0] * weeks[k] + across[1] - x) ** 2 + (up[0] * volume + up[1] - y) ** 2;
        if (distance < closest) [best, closest] = [k, distance];
      });
      return best;
    }
    chart.addEventListener("pointermove", (event) => {
      const k = nearest(event);
      tip.hidden = k < 0;
      if (k < 0) return;
      tip.textContent = `${names[k]}: ${ml[k][number]} mL`;
      tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${event.clientY + 14}px`;
    });
    chart.addEventListener("pointerleave", () => { tip.hidden = true; });
    chart.addEventListener("click", (event) => {
      const k = nearest(event);
      if (k < 0) return;
      body.querySelectorAll(".chosen").forEach((row) => row.classList.remove("chosen"));
      rows[k].hidden = false;
      rows[k].classList.add("chosen");
      rows[k].scrollIntoView({ block: "center" });
      (rows[k].querySelector("a") || rows[k]).focus();
    });
  });
})();
