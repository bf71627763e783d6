// Filters, the evidence drawer and deep links of the report. Data of the run reaches the page as text nodes only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const LIST_STEP = 200;
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  const one = (selector, root = document) => root.querySelector(selector);
  const slugs = data.outcomes.map((o) => o.slug);
  const notRun = slugs.indexOf("not-run");
  const form = one(".filters"), drawer = one("#drawer"), shown = one(".shown"), clear = one(".clear");
  const buttons = [];
  for (const button of all("button.cell")) buttons[Number(button.dataset.i)] = button;
  const chips = all(".chip"), selects = all("select", form), search = one("input[type=search]", form);
  const state = { outcomes: new Set(), picks: {}, q: "", group: null, cell: null };
  const texts = data.cells.map((cell) => [cell.id, cell.r, ...(cell.c || []).flatMap((c) => [c.r, c.g, ...(c.x || []).slice(0, 2)])]
    .filter(Boolean).join("\n").toLowerCase());
  const byId = new Map(data.cells.map((cell, i) => [cell.id, i]));
  const checksOf = data.cells.map((cell) => new Map((cell.c || []).map((c) => [c.n, c.o])));
  const usual = new Set(data.cells.map((cell) => slugs[cell.o]));
  let matches = data.cells.map((_, i) => i), listed = LIST_STEP, lens = -1, opener = null;

  function make(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key.includes("-")) node.setAttribute(key, value); else node[key] = value;
    }
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }
  const mark = (outcome) => make("span", { className: "mark o-" + slugs[outcome] }, data.outcomes[outcome].mark);
  const outcomeOf = (i) => lens < 0 ? data.cells[i].o : checksOf[i].get(lens) ?? notRun;

  // Filters
  function apply() {
    const before = lens;
    lens = state.picks.check ? data.checks.indexOf(state.picks.check) : -1;
    if (lens !== before) repaint();
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const picks = Object.entries(state.picks).filter(([name]) => name !== "check").map(([name, value]) => [data.axes.indexOf(name.slice(3)), value]);
    const counts = new Array(slugs.length).fill(0);
    matches = [];
    data.cells.forEach((cell, i) => {
      const kept = picks.every(([axis, value]) => cell.a[axis] === value) && words.every((word) => texts[i].includes(word))
        && (state.group === null || (cell.g || []).includes(state.group));
      const outcome = outcomeOf(i);
      if (kept) counts[outcome] += 1;
      const match = kept && (!state.outcomes.size || state.outcomes.has(slugs[outcome]));
      if (match) matches.push(i);
      buttons[i].classList.toggle("off", !match);
    });
    const filtered = matches.length !== data.cells.length;
    for (const chip of chips) {
      const slug = chip.dataset.outcome;
      chip.setAttribute("aria-pressed", String(state.outcomes.has(slug)));
      chip.hidden = !usual.has(slug) && !counts[slugs.indexOf(slug)] && !state.outcomes.has(slug);
      one("b", chip).textContent = counts[slugs.indexOf(slug)].toLocaleString("en");
    }
    for (const row of all(".grid tbody tr")) row.hidden = filtered && !one("button.cell:not(.off)", row);
    for (const box of all(".panel .scroll")) box.hidden = filtered && !one("tbody tr:not([hidden])", box);
    for (const panel of all(".panel")) panel.hidden = filtered && !one(".scroll:not([hidden])", panel);
    one(".nothing").hidden = matches.length > 0 || !data.cells.length;
    shown.textContent = (filtered ? matches.length.toLocaleString("en") + " of " : "") + data.cells.length.toLocaleString("en") + " cells";
    clear.disabled = !(state.outcomes.size || state.q || state.group !== null || Object.keys(state.picks).length);
    const banner = one(".group-filter");
    banner.hidden = state.group === null;
    if (state.group !== null) {
      const drop = make("button", { type: "button" }, "Show all causes");
      drop.addEventListener("click", () => { state.group = null; changed(); });
      banner.replaceChildren("Only cells with this cause: ", make("b", {}, data.groups[state.group]), drop);
    }
    listed = LIST_STEP;
    list();
  }
  function repaint() {
    data.cells.forEach((cell, i) => {
      const outcome = outcomeOf(i), button = buttons[i];
      for (const slug of slugs) button.classList.remove("o-" + slug);
      button.classList.add("o-" + slugs[outcome]);
      button.textContent = data.outcomes[outcome].mark;
      const check = lens < 0 ? null : (cell.c || []).find((c) => c.n === lens);
      const reason = lens < 0 ? cell.r : check && check.r;
      button.title = cell.id + ": " + (lens < 0 ? "" : data.checks[lens] + " ") + data.outcomes[outcome].word + (reason ? ": " + reason : "");
    });
  }
  function list() {
    const box = one(".list");
    if (!box.open) return;
    const rows = matches.slice(0, listed).map((i) => {
      const link = make("button", { type: "button" }, data.cells[i].id);
      link.addEventListener("click", () => { opener = link; show(i); });
      return make("tr", {}, make("td", {}, mark(outcomeOf(i))), make("td", {}, link), make("td", {}, data.cells[i].r || ""));
    });
    const more = make("button", { type: "button" }, "Show more");
    more.addEventListener("click", () => { listed += LIST_STEP; list(); });
    one(".rows", box).replaceChildren(make("table", {}, make("tbody", {}, ...rows)), matches.length > listed ? more : "");
  }

  // Addresses: #matrix stays an anchor; everything else is name=value pairs
  function address() {
    const pairs = new URLSearchParams();
    if (state.cell !== null) pairs.set("cell", data.cells[state.cell].id);
    if (state.outcomes.size) pairs.set("outcome", Array.from(state.outcomes).join(","));
    for (const [name, value] of Object.entries(state.picks)) pairs.set(name, value);
    if (state.q) pairs.set("q", state.q);
    if (state.group !== null) pairs.set("cause", String(state.group + 1));
    return pairs.toString();
  }
  function remember() {
    const hash = address();
    try { history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search); } catch { /* a sandboxed frame */ }
  }
  function changed() { apply(); remember(); }
  function follow() {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=") && document.getElementById(hash)) return;
    const pairs = new URLSearchParams(hash);
    let id = pairs.get("cell");
    try { if (id === null && hash && !hash.includes("=")) id = decodeURIComponent(hash); } catch { id = null; }
    state.outcomes = new Set((pairs.get("outcome") || "").split(",").filter((slug) => slugs.includes(slug)));
    state.q = pairs.get("q") || "";
    const cause = Number(pairs.get("cause")) - 1;
    state.group = Number.isInteger(cause) && cause >= 0 && cause < data.groups.length ? cause : null;
    state.picks = {};
    for (const select of selects) {
      select.value = pairs.get(select.name) || "";
      if (select.selectedIndex < 0) select.value = "";
      if (select.value) state.picks[select.name] = select.value;
    }
    search.value = state.q;
    apply();
    if (byId.has(id)) show(byId.get(id)); else if (state.cell !== null) hide();
  }

  // Evidence of one cell
  function show(i) {
    const cell = data.cells[i];
    if (state.cell !== null) buttons[state.cell].classList.remove("now");
    state.cell = i;
    buttons[i].classList.add("now");
    const title = make("h2", { id: "drawer-title", tabIndex: -1 }, cell.id);
    const previous = make("button", { type: "button", "aria-label": "Previous matching cell" }, "Previous");
    const next = make("button", { type: "button", "aria-label": "Next matching cell" }, "Next");
    const close = make("button", { type: "button" }, "Close");
    previous.addEventListener("click", () => step(-1));
    next.addEventListener("click", () => step(1));
    close.addEventListener("click", hide);
    const badge = mark(cell.o);
    badge.append(" " + data.outcomes[cell.o].word);
    const top = make("div", { className: "top" }, make("div", { className: "bar" }, badge, previous, next, close), title);
    drawer.replaceChildren(top, make("p", {}, cell.r || "", make("span", { className: "note" }, (cell.r ? " " : "") + "(" + (cell.s || "no time recorded") + ")")), axes(cell),
      ...(cell.c || []).map(check), (cell.c || []).length ? "" : make("p", { className: "note" }, "No check was recorded."));
    if (drawer.hidden) buttons[i].scrollIntoView({ block: "nearest", inline: "nearest" });
    drawer.hidden = false;
    drawer.scrollTop = 0;
    title.focus({ preventScroll: true });
    remember();
  }
  function hide() {
    if (state.cell === null) return;
    const button = buttons[state.cell];
    button.classList.remove("now");
    state.cell = null;
    drawer.hidden = true;
    (opener && opener.isConnected ? opener : button).focus();
    opener = null;
    remember();
  }
  function step(by) {
    const at = matches.indexOf(state.cell);
    const to = matches[at < 0 ? 0 : at + by];
    if (to === undefined) return;
    opener = null;
    show(to);
    buttons[to].scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  function table(head, rows) {
    return make("table", {}, make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...rows));
  }
  function axes(cell) {
    const rows = data.axes.map((name, i) => [name, cell.a[i], (cell.e || [])[i] || ""]).filter((row) => row[1] || row[2])
      .concat((cell.x || []).map(([name, value]) => [name, "", value]));
    return table(["axis", "requested", "effective"], rows.map(([name, asked, got]) => make("tr", { className: asked && got && asked !== got ? "differs" : "" },
      make("th", { scope: "row" }, name), make("td", {}, asked || "-"), make("td", {}, got || "not recorded"))));
  }
  function pairs(title, head, rows) {
    return [make("h4", {}, title), table(head, rows.map(([key, value]) => make("tr", {}, make("th", { scope: "row" }, String(key)), make("td", {}, String(value)))))];
  }
  function command(text) {
    const button = make("button", { type: "button", className: "copy" }, "Copy");
    return make("div", { className: "command" }, make("pre", {}, text), button);
  }
  function check(c) {
    const word = data.outcomes[c.o].word;
    const box = make("details", { className: "check", open: !["pass", "not-run"].includes(slugs[c.o]) },
      make("summary", {}, mark(c.o), " ", make("b", {}, data.checks[c.n]), " " + word, make("span", { className: "time" }, (c.t ? c.t + " attempts, " : "") + (c.s || ""))));
    if (c.r) box.append(make("p", {}, c.r));
    if (c.d) box.append(make("p", {}, "First module that leaves the yardstick: ", make("code", {}, c.d[0]), c.d[1]));
    if (c.i) box.append(make("p", {}, "Smallest failing call: " + c.i + (c.v ? "; kernels " + c.v : "")));
    if (c.w) box.append(make("p", {}, "Shown alone by ", make("code", {}, c.w)));
    if (c.m) {
      box.append(make("h4", {}, "Measurements"), table(["name", "value", "95% interval", "samples"], c.m.map(([metric, value, interval, count, at]) => {
        const [name, better, method] = data.metrics[metric];
        return make("tr", { title: [better, method].filter(Boolean).join("; ") }, make("th", { scope: "row" }, name + (at ? " at " + at : "")),
          make("td", { className: "num" }, value), make("td", { className: "num" }, interval || "-"), make("td", { className: "num" }, String(count || "-")));
      })));
    }
    if (c.k) box.append(...pairs("Kernels seen in one forward", ["operator", "times"], c.k));
    if (c.x) {
      box.append(make("h4", {}, "Exception"), make("p", {}, make("code", {}, c.x[0]), " ", c.x[1]));
      if (c.x[3]) box.append(make("p", { className: "note" }, "Recognised as refusal " + c.x[3]));
      if (c.x[2]) box.append(make("pre", { tabIndex: 0 }, c.x[2]));
    }
    if (c.f) box.append(...pairs("Facts", ["what", "value"], c.f));
    const small = [c.g ? "signature: " + c.g : "", c.z ? "seed " + c.z : ""].filter(Boolean).join("; ");
    if (small) box.append(make("p", { className: "note" }, small));
    box.append(c.p ? make("h4", {}, "Run this check again") : "", c.p ? command(c.p) : make("p", { className: "note" }, "No command was recorded."));
    return box;
  }
  async function copy(button) {
    const source = one("pre", button.parentElement);
    let done = true;
    try { await navigator.clipboard.writeText(source.textContent); } catch {
      getSelection().selectAllChildren(source);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  // Keys: arrows walk a grid (one tab stop for each), Escape closes, arrows in the drawer go to the next cell
  function walk(event, button) {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!by) return;
    const rows = all("tbody tr:not([hidden])", button.closest("table"));
    let row = rows.indexOf(button.closest("tr")), column = button.parentElement.cellIndex;
    for (;;) {
      row += by[0]; column += by[1];
      const place = rows[row] && rows[row].cells[column];
      if (!place) return;
      const target = one("button.cell", place);
      if (target) {
        event.preventDefault();
        button.tabIndex = -1; target.tabIndex = 0;
        target.focus();
        return;
      }
    }
  }
  for (const grid of all(".grid")) all("button.cell", grid).forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.cell !== null) { hide(); return; }
    const target = event.target;
    if (target.matches("button.cell")) walk(event, target);
    else if (state.cell !== null && drawer.contains(target) && !target.matches("pre, input") && !event.altKey && !event.metaKey && !event.ctrlKey) {
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.matches(".cell")) { opener = button; show(Number(button.dataset.i)); }
    else if (button.matches(".copy")) copy(button);
    else if (button.matches(".chip")) {
      const slug = button.dataset.outcome;
      if (!state.outcomes.delete(slug)) state.outcomes.add(slug);
      changed();
    } else if (button.matches(".pick")) {
      state.group = Number(button.dataset.group);
      changed();
      one("#matrix").scrollIntoView();
    }
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", () => { state.q = search.value.trim(); changed(); });
  for (const select of selects) select.addEventListener("change", () => {
    if (select.value) state.picks[select.name] = select.value; else delete state.picks[select.name];
    changed();
  });
  clear.addEventListener("click", () => {
    Object.assign(state, { outcomes: new Set(), picks: {}, q: "", group: null });
    for (const select of selects) select.value = "";
    search.value = "";
    changed();
  });
  one(".list").addEventListener("toggle", list);
  addEventListener("hashchange", follow);
  const tools = one("#tools");
  for (const node of all(".js")) if (!node.matches(".group-filter, .nothing")) node.hidden = false;
  new ResizeObserver(() => document.documentElement.style.setProperty("--tools", tools.offsetHeight + "px")).observe(tools);
  follow();
})();
