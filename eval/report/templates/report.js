"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // Sorting: numbers by value, text by language; pressing again turns the order round.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    table.tHead.querySelectorAll("button").forEach((button, column) => {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.v;
        const compare = (a, b) => key(a) === undefined
          ? a.cells[column].textContent.localeCompare(b.cells[column].textContent)
          : Number(key(a)) - Number(key(b));
        const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b));
        body.append(...rows);
      });
    });
  }

  // A table that does not fit becomes a list of cards, so that nothing hides behind an edge.
  for (const table of document.querySelectorAll(".scroll > table")) {
    const heads = [...table.tHead.querySelectorAll("th")].map((head) => head.textContent.trim());
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, column) => { cell.dataset.label = heads[column]; });
    }
    let width = -1;
    new ResizeObserver(() => {
      const room = table.parentElement.clientWidth;
      if (room === width) return;
      width = room;
      table.classList.remove("stacked");
      table.classList.toggle("stacked", table.scrollWidth > room);
    }).observe(table.parentElement);
  }

  // Gallery filter.
  const filter = $("filter");
  filter.addEventListener("change", () => {
    for (const article of document.querySelectorAll(".prompt")) {
      article.hidden = filter.value !== "" && !article.dataset.metrics.split(" ").includes(filter.value);
    }
  });

  // The viewer shows the pictures of the gallery, so nothing is stored twice.
  const viewer = $("viewer"), which = $("which"), against = $("against"), slide = $("slide"), flip = $("flip");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  let timer = 0;
  const say = () => {
    const other = against.selectedOptions[0].textContent, view = viewer.dataset.view;
    const texts = {
      slider: `left of the line: baseline; right of it: ${other}`,
      flicker: `showing ${viewer.dataset.side === "baseline" ? "baseline" : other}`,
      difference: `baseline minus ${other}: black where they agree`,
    };
    $("showing").textContent = texts[view];
    $("asked").textContent = which.selectedOptions[0].title;
  };
  const turn = () => {
    viewer.dataset.side = viewer.dataset.side === "baseline" ? "other" : "baseline";
    say();
  };
  const show = () => {
    const source = (arm) => $(`p${which.value}-${arm}`);
    $("under").src = source("baseline").src;
    $("over").src = source(against.value).src;
    viewer.style.aspectRatio = `${source("baseline").naturalWidth || 1} / ${source("baseline").naturalHeight || 1}`;
    say();
  };
  const setView = (view) => {
    clearInterval(timer);
    viewer.dataset.view = view;
    viewer.dataset.side = "other";
    $("slide-control").hidden = view !== "slider";
    flip.hidden = view !== "flicker";
    if (view === "flicker" && !calm.matches) timer = setInterval(turn, 600);
    say();
  };
  slide.addEventListener("input", () => viewer.style.setProperty("--cut", `${slide.value}%`));
  which.addEventListener("change", show);
  against.addEventListener("change", show);
  flip.addEventListener("click", () => { clearInterval(timer); turn(); });
  for (const radio of document.querySelectorAll("input[name=view]")) {
    radio.addEventListener("change", () => setView(radio.value));
  }
  for (const button of document.querySelectorAll("button.open")) {
    button.addEventListener("click", () => {
      which.value = button.dataset.index;
      if (button.dataset.arm !== "baseline") against.value = button.dataset.arm;
      show();
      $("closer").scrollIntoView();
      slide.focus({ preventScroll: true });
    });
  }
  // Closed parts would be missing on paper.
  window.addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
  if (which.options.length) { setView("slider"); show(); }
})();
