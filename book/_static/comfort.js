/* Comfort on every page: a link to an equation shows it on hover and focus; what scrolls can be reached by keyboard. Offline. */
"use strict";
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
  const reachable = () => {
    for (const area of document.querySelectorAll("article :is(div.math, pre, table, .heat-frame, .method-figure)")) {
      const scrolls = area.scrollWidth > area.clientWidth + 1;
      if (scrolls && !area.hasAttribute("tabindex")) area.tabIndex = 0;
      area.classList.toggle("scrolls", scrolls);
    }
  };
  (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reachable);
  window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(reachable) ?? reachable());
  window.addEventListener("resize", reachable);
});
