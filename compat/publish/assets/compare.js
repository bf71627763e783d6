// Two runs side by side: what changed, in the words of `compatWords.kinds`, put together from the data of both.
"use strict";
(() => {
  const { load, make, all, one, count, keys, reveal } = compatSite;
  const { kinds, changes, outcomes, absent } = compatWords;
  const STEP = 300;
  const form = one(".pair"), told = one(".told"), box = one(".differences"), rowsBox = one(".rows", box), search = one("input[type=search]", box);
  const base = form.elements.base, head = form.elements.head, chips = one(".kinds");
  const state = { kinds: new Set(), q: "", rows: [], listed: STEP };
  const mark = (letter) => make("span", { className: "mark o-" + (outcomes[letter] || absent).slug }, (outcomes[letter] || absent).mark);
  reveal();
  if (!base.options.length) { told.textContent = "No run was published."; return; }

  function cells(run) {
    const reason = (n) => run.reason[n] < 0 ? "" : run.reasons[run.reason[n]];
    return new Map(keys(run).map((cell, n) => [cell.key, { id: cell.id, letter: run.outcomes[n], reason: reason(n), letters: run.letters[n] }]));
  }
  // Checks that both runs asked, with another outcome
  function checks(first, a, second, b) {
    const at = new Map(second.checks.map((name, n) => [name, b.letters[n] || "."]));
    return first.checks.map((name, n) => ({ name, from: a.letters[n] || ".", to: at.get(name) || "." }))
      .filter((check) => check.from !== "." && check.to !== "." && check.from + check.to in changes)
      .map((check) => ({ ...check, kind: changes[check.from + check.to] }));
  }
  const number = (word) => kinds.findIndex((kind) => kind.word === word);
  const regressed = number("regressed"), fixed = number("fixed"), mixed = number("mixed");
  function together(found) {
    if (found.has(regressed) && found.has(fixed)) return mixed;
    return found.has(regressed) ? regressed : found.has(fixed) ? fixed : Array.from(found)[0];
  }
  async function put() {
    let first, second;
    try { [first, second] = await Promise.all([load("runs/" + base.value), load("runs/" + head.value)]); } catch (error) {
      told.textContent = "The data of a run did not load (" + error.message + ").";
      return;
    }
    const before = cells(first), after = cells(second), rows = [];
    for (const key of new Set([...after.keys(), ...before.keys()])) {
      const a = before.get(key), b = after.get(key), pair = (a ? a.letter : ".") + (b ? b.letter : ".");
      const turned = a && b ? checks(first, a, second, b) : [];
      const found = new Set([...(pair in changes ? [changes[pair]] : []), ...turned.map((check) => check.kind)]);
      if (found.size) rows.push({ kind: together(found), id: (b || a).id, from: pair[0], to: pair[1], turned, reason: (b && b.reason) || (a && a.reason ? "was: " + a.reason : "") });
    }
    rows.sort((a, b) => a.kind - b.kind);
    const same = Array.from(after.keys()).filter((key) => before.has(key)).length;
    state.rows = rows;
    told.textContent = first.digest === second.digest ? "Both are the same run." : count(rows.length) + " cells differ; both runs hold " + count(same) + " cells."
      + (first.stack.name === second.stack.name && first.device === second.device && first.matrix.name === second.matrix.name ? "" : " They are of different stacks, devices or matrices.");
    chips.replaceChildren(...kinds.map((kind, n) => {
      const number = rows.filter((row) => row.kind === n).length;
      const chip = make("button", { type: "button", className: "chip k-" + kind.slug, title: kind.meaning, hidden: !number, "aria-pressed": "false" }, make("span", { className: "mark" }, kind.sign), " " + kind.word + " ", make("b", {}, count(number)));
      chip.addEventListener("click", () => {
        if (!state.kinds.delete(n)) state.kinds.add(n);
        chip.setAttribute("aria-pressed", String(state.kinds.has(n)));
        state.listed = STEP;
        list();
      });
      return chip;
    }));
    state.kinds.clear();
    packages(first, second);
    list();
    try { window.history.replaceState(null, "", "#" + new URLSearchParams({ base: base.value, head: head.value })); } catch { /* a sandboxed frame */ }
  }
  function list() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = state.rows.filter((row) => (!state.kinds.size || state.kinds.has(row.kind)) && words.every((word) => (row.id + "\n" + row.reason).toLowerCase().includes(word)));
    one(".shown", box).textContent = state.rows.length ? count(kept.length) + " of " + count(state.rows.length) + " changes" : "";
    if (!kept.length) { rowsBox.replaceChildren(make("p", { className: "note" }, state.rows.length ? "No change matches." : "No cell has another outcome.")); return; }
    const more = make("button", { type: "button" }, "Show more");
    more.addEventListener("click", () => { state.listed += STEP; list(); });
    const line = (row) => make("tr", {},
      make("td", {}, make("span", { className: "kind k-" + kinds[row.kind].slug }, kinds[row.kind].sign + " " + kinds[row.kind].word)),
      make("th", { scope: "row" }, row.id), make("td", { className: "turn" }, mark(row.from), " to ", mark(row.to), make("span", { className: "vh" }, " " + (outcomes[row.from] || absent).word + " to " + (outcomes[row.to] || absent).word)),
      make("td", {}, row.turned.length ? make("span", { className: "turned" }, row.turned.map((check) => check.name + ": " + outcomes[check.from].word + " to " + outcomes[check.to].word).join("; ")) : "", row.reason));
    rowsBox.replaceChildren(make("table", { className: "list" }, make("caption", { className: "vh" }, "Cells whose outcome differs"),
      make("thead", {}, make("tr", {}, ...["change", "cell", "outcome", "reason"].map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...kept.slice(0, state.listed).map(line))), kept.length > state.listed ? more : "");
  }
  function packages(first, second) {
    const a = new Map(first.packages), b = new Map(second.packages);
    const names = Array.from(new Set([...a.keys(), ...b.keys()])).sort().filter((name) => a.get(name) !== b.get(name));
    one(".packages").replaceChildren(make("h2", {}, "Packages"), names.length
      ? make("table", { className: "list" }, make("caption", { className: "vh" }, "Packages whose versions differ"), make("thead", {}, make("tr", {}, ...["package", "older run", "newer run"].map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, ...names.map((name) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, a.get(name) || "-"), make("td", {}, b.get(name) || "-")))))
      : make("p", { className: "note" }, "The same versions in both."));
  }
  function follow() {
    const pairs = new URLSearchParams(location.hash.slice(1));
    const has = (select, value) => Array.from(select.options).some((option) => option.value === value);
    const places = all("optgroup", base).find((group) => group.children.length > 1) || one("optgroup", base);
    head.value = has(head, pairs.get("head")) ? pairs.get("head") : places.children[0].value;
    base.value = has(base, pairs.get("base")) ? pairs.get("base") : (places.children[1] || base.options[base.options.length - 1]).value;
    put();
  }
  one(".swap").addEventListener("click", () => { [base.value, head.value] = [head.value, base.value]; put(); });
  for (const select of [base, head]) select.addEventListener("change", put);
  for (const one of all("form")) one.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", () => { state.q = search.value.trim(); state.listed = STEP; list(); });
  addEventListener("hashchange", follow);
  follow();
})();
