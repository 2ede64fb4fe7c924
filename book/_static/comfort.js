/* Comfort on every page: a link to an equation shows it on hover and focus; what scrolls can be reached by keyboard; a figure
   opens in full size; a long table has a filter; the search shows formulas as words; on paper everything is open. Offline. */
"use strict";
const SIGNS = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", eta: "η", theta: "θ", lambda: "λ", mu: "μ", xi: "ξ", pi: "π", rho: "ρ",
  sigma: "σ", tau: "τ", phi: "φ", varphi: "φ", psi: "ψ", omega: "ω", Delta: "Δ", Phi: "Φ", Psi: "Ψ", Omega: "Ω", partial: "∂", sum: "Σ",
  cdot: "·", times: "×", to: "→", le: "≤", ge: "≥", ne: "≠", approx: "≈", in: "∈", infty: "∞", odot: "⊙", circ: "∘", circledast: "⊛",
  otimes: "⊗", lVert: "‖", rVert: "‖", Vert: "‖", dots: "…", ldots: "…", cdots: "…", pm: "±", nabla: "∇",
};
/** TeX as plain text: signs and Greek letters; nothing for what only says how something looks. */
const plain = (tex) => tex
  .replace(/\\tag\*?\s*\{([^{}]*)\}/g, " ($1)")
  .replace(/\\[dt]?frac\s*\{((?:[^{}]|\{[^{}]*\})*)\}\s*\{((?:[^{}]|\{[^{}]*\})*)\}/g, "$1/$2")
  .replace(/\\(?:begin|end)\s*\{[^{}]*\}/g, "")
  .replace(/\\([a-zA-Z]+)/g, (_, name) => SIGNS[name] ?? "")
  .replace(/\\[^a-zA-Z]|[{}$&]/g, "").replace(/_\\?/g, "_").replace(/\s+/g, " ").trim();
document.addEventListener("DOMContentLoaded", () => {
  const pages = new Map(); // address → parsed page, read once
  let shown; // the preview on the page
  const hide = () => {
    shown?.remove();
    shown = undefined;
  };
  const page = (address) => {
    if (address === location.href.split("#")[0]) return Promise.resolve(document);
    const read = () => fetch(address).then((answer) => answer.text()).then((text) => new DOMParser().parseFromString(text, "text/html"));
    if (!pages.has(address)) pages.set(address, read().catch(() => null)); // a page opened from a folder may read no other
    return pages.get(address);
  };
  async function preview(link) {
    hide();
    const [address, name] = link.href.split("#");
    const source = (await page(address))?.getElementById(name);
    if (!source || !(link.matches(":hover") || link === document.activeElement)) return;
    hide();
    shown = document.createElement("div");
    shown.className = "equation-preview";
    shown.setAttribute("role", "tooltip");
    const block = source.cloneNode(true);
    block.removeAttribute("id");
    // A page read by fetch holds TeX; without its tag, which this page may have already.
    if (!block.querySelector("mjx-container")) block.textContent = block.textContent.replace(/\\tag\*?\s*\{[^{}]*\}/g, "");
    shown.append(block);
    document.body.append(shown);
    if (!block.querySelector("mjx-container")) await MathJax.typesetPromise([block]);
    if (!shown) return;
    const box = link.getBoundingClientRect(), width = shown.offsetWidth;
    shown.style.left = `${scrollX + Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
    const above = box.bottom + shown.offsetHeight + 8 > innerHeight;
    shown.style.top = `${scrollY + (above ? box.top - shown.offsetHeight - 6 : box.bottom + 6)}px`;
  }
  for (const link of document.querySelectorAll('article a[href*="#eq-"]')) {
    for (const event of ["mouseenter", "focus"]) link.addEventListener(event, () => preview(link));
    for (const event of ["mouseleave", "blur"]) link.addEventListener(event, hide);
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  // Figures in full size.
  const full = document.createElement("dialog");
  full.className = "figure-full";
  full.innerHTML = '<button type="button">Close</button><div tabindex="0" role="group" aria-label="Figure in full size"><img alt=""></div>';
  full.addEventListener("click", () => full.close());
  document.body.append(full);
  for (const image of document.querySelectorAll("article .cell_output img")) {
    const link = document.createElement("a");
    link.href = image.src;
    link.className = "figure-link";
    link.title = "Open the figure in full size";
    image.replaceWith(link);
    link.append(image);
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      Object.assign(full.querySelector("img"), { src: image.src, alt: image.alt });
      full.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      full.showModal();
    });
  }
  // A table of many rows can be filtered: every word must be in a row.
  for (const table of document.querySelectorAll("article table")) {
    const rows = [...table.tBodies[0]?.rows ?? []];
    if (rows.length < 25) continue;
    const texts = rows.map((row) => {
      const copy = row.cloneNode(true);
      for (const math of copy.querySelectorAll(".math")) math.textContent = ` ${plain(math.textContent)} `;
      return copy.textContent.toLowerCase();
    });
    const box = document.createElement("p");
    box.className = "table-filter";
    box.innerHTML = '<label>Show only rows with <input type="search" autocomplete="off" spellcheck="false"></label> <span role="status"></span>';
    const field = box.querySelector("input"), status = box.querySelector("[role]");
    const filter = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row, i) => { row.hidden = !words.every((word) => texts[i].includes(word)); });
      status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    };
    field.addEventListener("input", filter);
    filter();
    (table.closest(".pst-scrollable-table-container") ?? table).before(box);
  }
  // The search: its excerpts show words in the place of TeX, and an equation by the text before it.
  if (typeof Search !== "undefined") {
    const titles = Object.entries(Search._index?.alltitles ?? {});
    if (titles.length) Search._index.alltitles = Object.fromEntries(titles.map(([t, where]) => [t.includes("\\") ? plain(t) : t, where]));
    Search.htmlToText = (text, anchor) => {
      const page = new DOMParser().parseFromString(text, "text/html"), main = page.querySelector("article");
      if (!main) return "";
      for (const node of main.querySelectorAll(".headerlink, script, style, details.setup, .fold > summary")) node.remove();
      for (const math of main.querySelectorAll("span.math")) math.textContent = plain(math.textContent);
      const found = anchor ? page.getElementById(anchor.slice(1)) : null; // a name may start with a digit
      if (found?.matches("div.math")) return `${found.previousElementSibling?.textContent ?? ""} ${plain(found.textContent)}`;
      for (const math of main.querySelectorAll("div.math")) math.textContent = ` ${plain(math.textContent)} `;
      return (found || main).textContent;
    };
  }
  // A link that is a formula is called by its signs.
  for (const math of document.querySelectorAll("article a .math")) {
    const link = math.closest("a");
    if (link.textContent.trim() === math.textContent.trim()) link.setAttribute("aria-label", plain(math.textContent));
  }
  // The theme's arrows beside pages that have pages under them say nothing to those who do not see them.
  for (const arrow of document.querySelectorAll(".bd-sidebar summary")) {
    const name = arrow.closest("li")?.querySelector("a")?.textContent.trim();
    if (!arrow.textContent.trim()) arrow.setAttribute("aria-label", `Pages under ${name}`);
  }
  // On paper every fold is open but the setup.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("article details:not([open], .setup)")];
    for (const fold of folded) fold.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const fold of folded) fold.open = false;
  });
  const reachable = () => {
    for (const area of document.querySelectorAll("article :is(div.math, pre, table, td, .heat-frame, .method-figure)")) {
      const scrolls = area.scrollWidth > area.clientWidth + 1;
      if (scrolls && !area.hasAttribute("tabindex")) area.tabIndex = 0;
      area.classList.toggle("scrolls", scrolls);
    }
  };
  (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reachable);
  window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(reachable) ?? reachable());
  window.addEventListener("resize", reachable);
});
