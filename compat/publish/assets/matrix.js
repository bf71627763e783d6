// The page of a place: filters over the big table, runs to look back at, the story of a cell, addresses that can be sent.
"use strict";
(async () => {
  const { load, make, all, one, count, day, keys, reveal } = compatSite;
  const { outcomes, order, absent } = compatWords;
  const place = document.body.dataset.history;
  const problem = (what) => { const note = one(".nothing"); note.textContent = what; note.hidden = false; };
  let history, run;
  try {
    history = await load("histories/" + place);
    run = await load("runs/" + history.runs[history.shown].name);
  } catch (error) {
    problem("The data of this page did not load (" + error.message + "): it lies in the folder data/ beside the pages.");
    return;
  }
  reveal();
  const named = keys(history), byKey = new Map(named.map((cell, i) => [cell.key, i]));
  const drawer = one("#drawer"), form = one("#tools form"), search = one("input[type=search]", form), since = one(".since", form);
  const clear = one(".clear", form), told = one("output", form), chips = one(".chips"), asof = one(".asof");
  const state = { run: history.shown, outcomes: new Set(), picks: new Map(), q: "", changed: false, cell: null };
  let view = viewed(run), later = 0;
  const sheet = compatSheet(one("#sheet"), history, (i) => show(i));
  const selects = [];

  // A run, seen from the cells of the history: where each cell stands in it, and the text that is searched
  function viewed(run) {
    const from = new Array(named.length).fill(-1);
    keys(run).forEach((cell, n) => from[byKey.get(cell.key)] = n);
    const reasons = from.map((n) => n < 0 || run.reason[n] < 0 ? "" : run.reasons[run.reason[n]]);
    return { run, from, reasons, texts: named.map((cell, i) => (cell.id + "\n" + reasons[i]).toLowerCase()) };
  }
  const before = () => { for (let n = state.run - 1; n >= 0; n -= 1) if (history.runs[n].whole) return n; return -1; };
  function letterOf(i) {
    const check = state.picks.get("check");
    if (check === undefined) return history.history[i][state.run];
    const n = view.from[i];
    return n < 0 ? "." : (view.run.letters[n][check] || ".");
  }
  function word(i) {
    const check = state.picks.get("check"), letter = letterOf(i), reason = view.reasons[i];
    return named[i].id + ": " + (check === undefined ? "" : view.run.checks[check] + " ") + compatStory.of(letter).word + (reason && check === undefined ? ": " + reason.slice(0, 160) : "");
  }

  // Filters
  function apply() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const picks = Array.from(state.picks).filter(([name]) => name !== "check");
    const last = before(), counts = new Map(Array.from(order, (letter) => [letter, 0]));
    const letters = new Array(named.length), match = new Array(named.length);
    let kept = 0, held = 0;
    for (let i = 0; i < named.length; i += 1) {
      const letter = letters[i] = letterOf(i), numbers = history.cells[i], past = history.history[i];
      match[i] = false;
      if (history.history[i][state.run] === ".") continue;
      held += 1;
      if (!picks.every(([axis, number]) => numbers[axis] === number) || !words.every((text) => view.texts[i].includes(text))) continue;
      if (state.changed && (last < 0 || past[last] === past[state.run])) continue;
      if (counts.has(letter)) counts.set(letter, counts.get(letter) + 1);
      match[i] = !state.outcomes.size || state.outcomes.has(letter);
      if (match[i]) kept += 1;
    }
    sheet.show({ letters, match, word });
    for (const chip of chips.children) {
      const letter = chip.dataset.letter;
      chip.setAttribute("aria-pressed", String(state.outcomes.has(letter)));
      chip.hidden = !counts.get(letter) && !state.outcomes.has(letter) && !usual.has(letter);
      one("b", chip).textContent = count(counts.get(letter));
    }
    told.textContent = (kept === held ? "" : count(kept) + " of ") + count(held) + (held === 1 ? " cell" : " cells");
    one(".nothing").hidden = kept > 0;
    one("#sheet").hidden = !kept;
    clear.disabled = !(state.outcomes.size || state.picks.size || state.q || state.changed);
    since.hidden = last < 0;
    asof.hidden = state.run === history.shown;
    if (!asof.hidden) {
      const back = make("button", { type: "button" }, "Back to the latest");
      back.addEventListener("click", () => turn(history.shown));
      asof.replaceChildren("As it was in the run of ", make("b", {}, day(history.runs[state.run].started)), ". Full evidence is kept for the latest run. ", back);
    }
  }
  const usual = new Set(history.history.map((past) => past[history.shown]));
  for (const letter of order) {
    const chip = make("button", { type: "button", className: "chip o-" + outcomes[letter].slug, title: outcomes[letter].meaning },
      make("span", { className: "mark" }, outcomes[letter].mark), " " + outcomes[letter].word + " ", make("b", {}, "0"));
    chip.dataset.letter = letter;
    chip.addEventListener("click", () => { if (!state.outcomes.delete(letter)) state.outcomes.add(letter); changed(); });
    chips.append(chip);
  }
  function picker(name, text, choices, first) {
    const select = make("select", {}, make("option", { value: "" }, first), ...choices.map(([number, label]) => make("option", { value: String(number) }, label)));
    select.addEventListener("change", () => {
      if (select.value) state.picks.set(name, Number(select.value)); else state.picks.delete(name);
      changed();
    });
    one(".picks", form).append(make("label", {}, make("span", {}, text), select));
    selects.push([name, select]);
  }
  history.axes.forEach((axis, a) => {
    const used = Array.from(new Set(history.cells.map((numbers) => numbers[a]))).filter((n) => n >= 0).sort((x, y) => x - y);
    if (used.length > 1) picker(a, axis, used.map((n) => [n, history.values[a][n]]), "all");
  });
  picker("check", "check", run.checks.map((name, n) => [n, name]), "cell as a whole");
  const times = make("select", {}, ...history.runs.map((one, n) => make("option", { value: String(n) }, day(one.started) + " " + one.name.slice(0, 6) + (n === history.shown ? " (latest)" : ""))).reverse());
  times.addEventListener("change", () => turn(Number(times.value)));
  if (history.runs.length > 1) one(".picks", form).append(make("label", {}, make("span", {}, "as of"), times));

  async function turn(number) {
    const next = await load("runs/" + history.runs[number].name).catch(() => null);
    if (!next) { problem("The data of that run did not load."); return; }
    state.run = number;
    state.picks.delete("check");
    view = viewed(next);
    const select = selects.find(([name]) => name === "check")[1];
    select.replaceChildren(select.firstChild, ...next.checks.map((name, n) => make("option", { value: String(n) }, name)));
    changed();
    if (state.cell !== null) show(state.cell);
  }

  // Addresses
  function remember() {
    const pairs = new URLSearchParams();
    if (state.cell !== null) pairs.set("cell", named[state.cell].id);
    if (state.run !== history.shown) pairs.set("run", history.runs[state.run].name);
    if (state.outcomes.size) pairs.set("outcome", Array.from(state.outcomes, (letter) => outcomes[letter].slug).join(","));
    for (const [name, number] of state.picks) pairs.set(name === "check" ? name : history.axes[name], name === "check" ? view.run.checks[number] : String(number));
    if (state.q) pairs.set("q", state.q);
    if (state.changed) pairs.set("changed", "1");
    const hash = pairs.toString();
    try { window.history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search); } catch { /* a sandboxed frame */ }
  }
  function changed() {
    for (const [name, select] of selects) select.value = state.picks.has(name) ? String(state.picks.get(name)) : "";
    times.value = String(state.run);
    one("input", since).checked = state.changed;
    apply();
    remember();
  }
  async function follow() {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=") && document.getElementById(hash)) return;
    const pairs = new URLSearchParams(hash);
    const letters = new Map(Array.from(order, (letter) => [outcomes[letter].slug, letter]));
    state.outcomes = new Set((pairs.get("outcome") || "").split(",").map((slug) => letters.get(slug)).filter(Boolean));
    state.q = search.value = pairs.get("q") || "";
    state.changed = pairs.get("changed") === "1";
    state.picks = new Map();
    const number = history.runs.findIndex((one) => one.name === pairs.get("run"));
    if (number >= 0 && number !== state.run) await turn(number);
    history.axes.forEach((axis, a) => {
      const picked = pairs.get(axis);
      if (picked !== null && /^\d+$/.test(picked) && Number(picked) < history.values[a].length) state.picks.set(a, Number(picked));
    });
    const check = view.run.checks.indexOf(pairs.get("check"));
    if (check >= 0) state.picks.set("check", check);
    changedQuietly();
    const i = byKey.get(pairs.get("cell"));
    if (i !== undefined) show(i); else if (state.cell !== null) hide();
  }
  function changedQuietly() {
    for (const [name, select] of selects) select.value = state.picks.has(name) ? String(state.picks.get(name)) : "";
    times.value = String(state.run);
    one("input", since).checked = state.changed;
    apply();
  }

  // The story
  async function show(i) {
    state.cell = i;
    sheet.open(i);
    const letter = history.history[i][state.run], n = view.from[i], latest = state.run === history.shown;
    const title = make("h2", { id: "drawer-title", tabIndex: -1 }, named[i].id);
    const button = (text, label, action) => { const made = make("button", { type: "button", "aria-label": label }, text); made.addEventListener("click", action); return made; };
    const badge = compatStory.mark(letter);
    badge.append(" " + compatStory.of(letter).word);
    const evidence = make("div", { className: "evidence" });
    const link = make("p", { className: "note" }, "Run of " + day(history.runs[state.run].started) + ", digest " + history.runs[state.run].name + ". The address of this page names this cell.");
    drawer.replaceChildren(
      make("div", { className: "top" }, make("div", { className: "bar" }, badge, button("Previous", "Previous matching cell", () => step(-1)), button("Next", "Next matching cell", () => step(1)), button("Close", "Close", hide)), title),
      make("p", {}, view.reasons[i] || (letter === compatWords.pass ? "Every check that was asked passed." : "")),
      ...compatStory.history(history.history[i], history.runs, state.run, turn), make("h3", {}, "Evidence"), evidence, link);
    const asked = history.cells[i].map((number, a) => number < 0 ? "" : history.values[a][number]);
    const letters = n < 0 ? "" : view.run.letters[n];
    const fill = (chunk, number) => evidence.replaceChildren(compatStory.axes(history.axes, asked, chunk && chunk.cells[number]),
      ...(letters ? compatStory.checks(view.run.checks, letters, chunk, number, order) : [make("p", { className: "note" }, n < 0 ? "This run does not hold the cell." : "No check was recorded.")]));
    fill(null, 0);
    drawer.hidden = false;
    document.body.classList.add("opened");
    drawer.scrollTop = 0;
    title.focus({ preventScroll: true });
    remember();
    if (!latest || n < 0) return;
    try {
      const chunk = await load("evidence/" + history.runs[state.run].name + "/" + Math.floor(n / history.chunk));
      if (state.cell === i) fill(chunk, n % history.chunk);
    } catch {
      evidence.append(make("p", { className: "note" }, "The evidence of this cell did not load."));
    }
  }
  function hide() {
    if (state.cell === null) return;
    const i = state.cell;
    state.cell = null;
    drawer.hidden = true;
    document.body.classList.remove("opened");
    sheet.open(null);
    sheet.focus(i);
    remember();
  }
  function step(by) {
    const cells = sheet.order(), at = cells.indexOf(state.cell), to = cells[at < 0 ? 0 : at + by];
    if (to === undefined) return;
    sheet.focus(to);
    show(to);
  }
  document.addEventListener("keydown", (event) => {
    if (state.cell === null) return;
    if (event.key === "Escape") { hide(); return; }
    if (!drawer.contains(event.target) || event.target.matches("pre, input") || event.altKey || event.metaKey || event.ctrlKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", () => { state.q = search.value.trim(); apply(); clearTimeout(later); later = setTimeout(remember, 300); });
  one("input", since).addEventListener("change", (event) => { state.changed = event.target.checked; changed(); });
  clear.addEventListener("click", () => {
    Object.assign(state, { outcomes: new Set(), picks: new Map(), q: "", changed: false });
    search.value = "";
    changed();
    search.focus();
  });
  addEventListener("hashchange", follow);
  follow();
})();
