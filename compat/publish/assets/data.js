// What all pages share: data files on demand, and elements made of text nodes only. Nothing of a run is ever read as
// markup or as code: data arrives as JSON in a string, names are values in arrays and maps.
"use strict";
const compatSite = (() => {
  const root = document.body.dataset.root;
  const found = new Map(), asked = new Map();

  // The content of data/KEY.js, once
  function load(key) {
    if (!asked.has(key)) {
      asked.set(key, new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = root + "data/" + key + ".js";
        script.onload = () => found.has(key) ? done(found.get(key)) : failed(new Error(key));
        script.onerror = () => { asked.delete(key); failed(new Error(key)); };
        document.head.append(script);
      }));
    }
    return asked.get(key);
  }
  function make(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value); else node[name] = value;
    }
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }
  const all = (selector, inside = document) => Array.from(inside.querySelectorAll(selector));
  const one = (selector, inside = document) => inside.querySelector(selector);
  const count = (number) => number.toLocaleString("en");
  const day = (time) => time ? time.slice(0, 10) : "no date";

  // Ids of the cells of a table (a run or a history): written out, or values joined by slashes; repeats are numbered
  function keys(table) {
    const written = new Map(table.ids), seen = new Map();
    return table.cells.map((numbers, i) => {
      const id = written.has(i) ? written.get(i)
        : numbers.map((n, axis) => n < 0 ? null : table.values[axis][n]).filter((text) => text !== null).join("/");
      const before = seen.get(id) || 0;
      seen.set(id, before + 1);
      return { id, key: before ? id + "\n" + before : id };
    });
  }
  function reveal() { for (const node of all(".js")) if (!node.matches(".asof, .nothing")) node.hidden = false; }
  return { root, found, load, make, all, one, count, day, keys, reveal };
})();
function compatData(key, text) { compatSite.found.set(key, JSON.parse(text)); }
