// What benchmarks/site_walk.py asks of a page: texts with too little contrast, structure that is wrong, where the focus is.
"use strict";
const lookAt = {
  contrast: () => {
    const rgb = (text) => { const n = text.match(/[0-9.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
    const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
    const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const page = rgb(getComputedStyle(document.body).backgroundColor);
    const low = new Map();
    for (const node of document.querySelectorAll("body *")) {
      const own = Array.from(node.childNodes).some((child) => child.nodeType === 3 && child.textContent.trim());
      if (!own || !node.getClientRects().length || node.closest("svg, noscript, .vh, .again")) continue;
      const style = getComputedStyle(node);
      if (style.visibility === "hidden") continue;
      const behind = [];
      for (let at = node; at; at = at.parentElement) { const c = rgb(getComputedStyle(at).backgroundColor); behind.push(c); if (c[3] === 1) break; }
      const ground = behind.reverse().reduce((below, c) => over(c, below), page);
      const ink = over(rgb(style.color), ground);
      const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < 4.5) low.set(node.tagName + "." + node.className, ratio.toFixed(2) + " " + node.textContent.trim().slice(0, 30));
    }
    return Array.from(low, (pair) => pair.join(": "));
  },
  structure: () => {
    const wrong = [];
    if (document.documentElement.lang !== "en") wrong.push("no language");
    if (!document.title) wrong.push("no title");
    if (document.querySelectorAll("main").length !== 1) wrong.push("not one main");
    if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
    let last = 0;
    for (const h of document.querySelectorAll("main h1, main h2, main h3, main h4")) {
      const level = Number(h.tagName[1]);
      if (level > last + 1) wrong.push("heading level jumps at " + h.textContent.slice(0, 40));
      last = level;
    }
    for (const table of document.querySelectorAll("table")) {
      if (!table.caption || !table.caption.textContent.trim()) wrong.push("a table without caption: " + table.className);
      for (const th of table.querySelectorAll("th")) if (!th.scope) wrong.push("th without scope: " + th.textContent.slice(0, 30));
    }
    for (const field of document.querySelectorAll("input, select")) if (!field.labels.length) wrong.push("a field without label");
    for (const button of document.querySelectorAll("button")) if (!(button.getAttribute("aria-label") || button.textContent).trim()) wrong.push("a button without name");
    for (const image of document.querySelectorAll("svg[role=img]")) if (!image.getAttribute("aria-label") && !image.getAttribute("aria-labelledby")) wrong.push("a picture without name");
    for (const node of document.querySelectorAll("*")) for (const a of node.attributes) if (a.name.startsWith("on") || a.name === "style" && node.tagName !== "TR") wrong.push("attribute " + a.name);
    return Array.from(new Set(wrong));
  },
  focus: () => {
    const node = document.activeElement, style = getComputedStyle(node);
    const box = node.getBoundingClientRect();
    return {name: (node.getAttribute("aria-label") || node.textContent || node.id).trim().slice(0, 60), tag: node.tagName, id: node.id,
      kind: node.className, seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && box.width > 0};
  },
};
