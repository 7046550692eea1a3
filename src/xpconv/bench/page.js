"use strict";
// The page says all that matters without this: here it gets a theme, tips, a legend that singles out, sorting, a filter.
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  document.documentElement.classList.add("scripts");

  // --- light or dark ---

  const theme = byId("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  systemDark.addEventListener("change", nameTheme);
  nameTheme();

  // --- tips: the title of each point, beside it while it is pointed at or has the focus ---

  const tip = byId("tip");
  const factsOf = new Map();

  function show(point) {
    const [first, ...rest] = factsOf.get(point);
    const lines = [Object.assign(document.createElement("b"), { textContent: first })];
    for (const line of rest) lines.push(Object.assign(document.createElement("span"), { textContent: line }));
    tip.replaceChildren(...lines);
    tip.hidden = false;
    const at = point.getBoundingClientRect(), own = tip.getBoundingClientRect(), width = document.body.clientWidth;
    const left = Math.max(16, Math.min(at.left + at.width / 2 - own.width / 2, width - own.width - 16));
    const top = at.top > own.height + 8 ? at.top - own.height - 6 : at.bottom + 6;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  }
  const hide = () => { tip.hidden = true; };

  for (const group of all(".points")) {
    const points = all(".point", group);
    points.forEach((point, place) => {
      const title = point.querySelector("title");
      factsOf.set(point, title.textContent.split("\n"));
      point.setAttribute("aria-label", title.textContent);
      title.remove();  // or the browser shows a tip of its own too
      point.setAttribute("tabindex", place ? -1 : 0);  // one stop of the Tab key; arrows go from point to point
      for (const [event, action] of [["mouseenter", () => show(point)], ["focus", () => show(point)],
                                     ["mouseleave", hide], ["blur", hide]]) point.addEventListener(event, action);
    });
    group.addEventListener("keydown", (event) => {
      const place = points.indexOf(document.activeElement);
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      const next = { Home: 0, End: points.length - 1 }[event.key] ?? (step && place + step);
      if (event.key === "Escape") hide();
      if (next === undefined || !points[next]) return;
      event.preventDefault();
      points[place].setAttribute("tabindex", -1);
      points[next].setAttribute("tabindex", 0);
      points[next].focus();
    });
  }

  // --- the legend singles a network out ---

  const choices = all(".legend button");
  for (const choice of choices) choice.addEventListener("click", () => {
    const chosen = choice.getAttribute("aria-pressed") === "false" && choice.dataset.network;
    for (const other of choices) other.setAttribute("aria-pressed", other === choice && chosen !== false);
    for (const point of all(".point")) {
      point.classList.toggle("away", chosen !== false && point.dataset.network !== chosen);
    }
  });

  // --- the table: sorted by a column, filtered by words ---

  const table = byId("all-rows");
  if (table) {
    const body = table.tBodies[0], lines = [...body.rows], heads = all("thead th", table);
    const said = byId("shown"), filter = byId("filter");
    const words = new Intl.Collator("en", { numeric: true });
    let order = "";

    function valueOf(line, column) {
      const { dataset: { value }, textContent } = line.cells[column];
      return value === undefined ? textContent : value === "" ? null : Number(value);
    }
    function sortBy(column) {
      const downward = heads[column].getAttribute("aria-sort") === "ascending";
      const sign = downward ? -1 : 1;
      lines.sort((one, other) => {
        const a = valueOf(one, column), b = valueOf(other, column);
        if (a === null || b === null) return (a === null) - (b === null);  // what is not known comes last either way
        return sign * (typeof a === "number" ? a - b : words.compare(a, b));
      });
      body.append(...lines);
      for (const head of heads) head.removeAttribute("aria-sort");
      heads[column].setAttribute("aria-sort", downward ? "descending" : "ascending");
      order = `, by ${heads[column].textContent}, ${downward ? "descending" : "ascending"}`;
      say();
    }
    function say() {
      const wanted = filter.value.toLowerCase().split(/\s+/);
      for (const line of lines) {
        const text = line.textContent.toLowerCase();
        line.hidden = !wanted.every((word) => text.includes(word));
      }
      const left = lines.filter((line) => !line.hidden).length;
      said.textContent = (left === lines.length ? `${left} rows` : `${left} of ${lines.length} rows`) + order;
    }
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => sortBy(column)));
    filter.addEventListener("input", say);
    addEventListener("hashchange", () => {
      if (!document.querySelector(":target")?.hidden) return;
      filter.value = "";  // or a link would lead to a row that is filtered away
      say();
    });
    byId("save").addEventListener("click", () => {
      const file = new Blob([byId("record").textContent], { type: "application/json" });
      const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "bench.json" });
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
}
