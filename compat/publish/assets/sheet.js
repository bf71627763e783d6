// The big table: models down, quantization x backend across. Only the rows in view are in the document, so that ten
// thousand cells filter within a keystroke; rows and columns keep their numbers for assistive technology.
"use strict";
function compatSheet(box, history, act) {
  const { make, one } = compatSite;
  const { outcomes, absent } = compatWords;
  const axis = Object.fromEntries(["model", "dtype", "attention", "quantization"].map((name) => [name, history.axes.indexOf(name)]));
  const AROUND = 12;
  const value = (numbers, name) => numbers[axis[name]] < 0 ? "" : history.values[axis[name]][numbers[axis[name]]];
  const plan = laid();
  let columns = [], rows = [], height = 27, from = -1, to = -1, state = null, active = null;
  const heads = make("thead"), group = make("colgroup"), body = make("tbody");
  const table = make("table", { className: "sheet" }, make("caption", { className: "vh" }, "Outcome of every cell: models and dtypes down, quantizations and attention backends across"), group, heads, body);
  box.replaceChildren(table);

  // Every cell gets a row (model, dtype, further axes) and a column (quantization, attention); a second cell of one
  // place gets a row of its own
  function laid() {
    const rows = [], places = new Map(), columns = new Map();
    history.cells.forEach((numbers, i) => {
      const across = numbers[axis.quantization] + "," + numbers[axis.attention];
      if (!columns.has(across)) columns.set(across, { key: across, quantization: numbers[axis.quantization], attention: numbers[axis.attention] });
      const extras = numbers.map((n, a) => Object.values(axis).includes(a) || n < 0 ? "" : history.values[a][n]).filter(Boolean);
      const down = [numbers[axis.model], numbers[axis.dtype], ...numbers.filter((_, a) => !Object.values(axis).includes(a))].join(",");
      let repeat = 0, row;
      for (;; repeat += 1) {
        row = places.get(down + ";" + repeat);
        if (!row || !row.at.has(across)) break;
      }
      if (!row) {
        row = { model: value(numbers, "model"), dtype: value(numbers, "dtype"), more: [...extras, ...(repeat ? ["again " + repeat] : [])].join(" "), at: new Map() };
        places.set(down + ";" + repeat, row);
        rows.push(row);
      }
      row.at.set(across, i);
    });
    const ordered = Array.from(columns.values()).sort((a, b) => a.quantization - b.quantization || a.attention - b.attention);
    return { rows, columns: ordered };
  }

  function head() {
    const groups = [];
    for (const column of columns) {
      const last = groups[groups.length - 1];
      if (last && last.quantization === column.quantization) last.span += 1; else groups.push({ quantization: column.quantization, span: 1 });
    }
    const text = (name, number) => number < 0 ? "" : history.values[axis[name]][number];
    const first = make("tr", {}, make("th", { scope: "col", rowSpan: 2, className: "corner" }, "model, dtype"),
      ...groups.map((g) => make("th", { scope: "colgroup", colSpan: g.span, className: "quantization", title: text("quantization", g.quantization) }, make("span", {}, text("quantization", g.quantization)))));
    const second = make("tr", {}, ...columns.map((column) => {
      const name = text("attention", column.attention);
      return make("th", { scope: "col", className: column.first ? "head first" : "head", title: name }, make("span", {}, name));
    }));
    first.setAttribute("aria-rowindex", "1");
    second.setAttribute("aria-rowindex", "2");
    heads.replaceChildren(first, second);
    group.replaceChildren(make("col", { className: "names" }), ...columns.map(() => make("col", { className: "one" })));
  }

  // `next`: {letters: cell -> letter, match: cell -> true or false, keep: column -> true or false, word: cell -> text}
  function show(next) {
    state = next;
    const used = new Set();
    rows = plan.rows.filter((row) => {
      let any = false;
      for (const [across, i] of row.at) if (state.match[i]) { any = true; used.add(across); }
      return any;
    });
    const kept = plan.columns.filter((column) => used.has(column.key));
    if (kept.length !== columns.length || kept.some((column, n) => column.key !== columns[n].key)) {
      columns = kept;
      columns.forEach((column, n) => { column.first = n > 0 && columns[n - 1].quantization !== column.quantization; });
      head();
    }
    table.setAttribute("aria-rowcount", String(rows.length + 2));
    table.setAttribute("aria-colcount", String(columns.length + 1));
    rows.forEach((row, n) => { row.starts = !n || rows[n - 1].model !== row.model; });
    if (!active || !rows.includes(active.row) || !columns.includes(active.column)) active = firstCell();
    draw(true);
  }
  function firstCell() {
    for (const row of rows) for (const column of columns) if (row.at.has(column.key)) return { row, column };
    return null;
  }
  function draw(anew) {
    const first = Math.max(0, Math.floor(box.scrollTop / height) - AROUND);
    const last = Math.min(rows.length, Math.ceil((box.scrollTop + box.clientHeight) / height) + AROUND);
    if (!anew && first >= from && last <= to && from >= 0) return;
    const low = anew ? first : Math.max(0, first - AROUND), high = anew ? last : Math.min(rows.length, last + AROUND);
    const held = body.contains(document.activeElement);
    from = low; to = high;
    body.replaceChildren(gap(low), ...rows.slice(low, high).map((row, n) => line(row, low + n)), gap(rows.length - high));
    const sample = one("tr.row", body);
    if (sample && sample.offsetHeight && Math.abs(sample.offsetHeight - height) > 0.5) height = sample.offsetHeight;
    if (held) { const back = at(active); if (back) back.focus({ preventScroll: true }); else box.focus({ preventScroll: true }); }
  }
  function gap(count) {
    const cell = make("td", { colSpan: columns.length + 1 });
    const row = make("tr", { className: "gap", "aria-hidden": "true" }, cell);
    row.style.height = count * height + "px";
    row.hidden = !count;
    return row;
  }
  function line(row, number) {
    const name = make("th", { scope: "row", title: [row.model, row.dtype, row.more].filter(Boolean).join(" ") },
      make("span", { className: row.starts ? "model" : "model again" }, row.model), make("span", { className: "dtype" }, [row.dtype, row.more].filter(Boolean).join(" ")));
    const made = make("tr", { className: row.starts ? "row starts" : "row" }, name);
    made.setAttribute("aria-rowindex", String(number + 3));
    for (const column of columns) {
      const i = row.at.get(column.key);
      const place = document.createElement("td");
      if (column.first) place.className = "first";
      if (i === undefined) {
        const none = document.createElement("span");
        none.className = "cell o-absent";
        none.textContent = absent.mark;
        place.append(none);
      } else place.append(button(i, row, column));
      made.append(place);
    }
    return made;
  }
  function button(i, row, column) {
    const letter = state.letters[i], shown = outcomes[letter] || absent;
    const made = document.createElement("button");
    made.type = "button";
    made.className = "cell o-" + shown.slug + (state.match[i] ? "" : " off") + (i === state.open ? " now" : "");
    made.textContent = shown.mark;
    made.dataset.i = i;
    made.tabIndex = active && active.row === row && active.column === column ? 0 : -1;
    made.setAttribute("aria-label", state.word(i));
    made.title = state.word(i);
    return made;
  }
  function at(place) {
    return place && place.row.at.has(place.column.key) ? one('button[data-i="' + place.row.at.get(place.column.key) + '"]', body) : null;
  }
  function reach(place) {
    const top = rows.indexOf(place.row) * height, headed = heads.offsetHeight;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + height > box.scrollTop + box.clientHeight - headed) box.scrollTop = top + height - box.clientHeight + headed;
    draw(false);
    for (const other of body.querySelectorAll('button[tabindex="0"]')) other.tabIndex = -1;
    active = place;
    const button = at(place);
    if (button) { button.tabIndex = 0; button.focus({ preventScroll: true }); aside(button); }
  }
  // Sideways scrolling, past the names that stay in place
  function aside(button) {
    const names = one("th", heads).offsetWidth, frame = box.getBoundingClientRect(), here = button.getBoundingClientRect();
    if (here.left < frame.left + names) box.scrollLeft -= frame.left + names - here.left + 4;
    if (here.right > frame.right) box.scrollLeft += here.right - frame.right + 18;
  }
  function place(i) {
    for (const row of rows) for (const column of columns) if (row.at.get(column.key) === i) return { row, column };
    return null;
  }
  function walk(event) {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -1e9], End: [0, 1e9] }[event.key];
    if (!by || !active || event.altKey || event.metaKey) return;
    event.preventDefault();
    let row = rows.indexOf(active.row), column = columns.indexOf(active.column);
    if (Math.abs(by[1]) > 1) column = by[1] < 0 ? -1 : columns.length;
    const step = Math.abs(by[1]) > 1 ? [0, by[1] < 0 ? 1 : -1] : [Math.sign(by[0]), by[1]];
    if (event.ctrlKey && Math.abs(by[1]) > 1) row = by[1] < 0 ? 0 : rows.length - 1;
    else if (Math.abs(by[0]) > 1) row = Math.min(Math.max(row + by[0] - step[0], -1), rows.length);
    for (;;) {
      row += step[0]; column += step[1];
      if (!rows[row] || !columns[column]) return;
      if (rows[row].at.has(columns[column].key)) { reach({ row: rows[row], column: columns[column] }); return; }
    }
  }
  box.addEventListener("scroll", () => draw(false), { passive: true });
  new ResizeObserver(() => draw(false)).observe(box);
  body.addEventListener("keydown", walk);
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    active = place(Number(button.dataset.i));
    act(Number(button.dataset.i));
  });
  addEventListener("beforeprint", () => { from = 0; to = rows.length; body.replaceChildren(...rows.map(line)); });
  addEventListener("afterprint", () => draw(true));
  return {
    show,
    open(i) { state.open = i; draw(true); },
    focus(i) { const found = place(i); if (found) reach(found); else box.focus(); },
    order() { return rows.flatMap((row) => columns.map((column) => row.at.get(column.key)).filter((i) => i !== undefined && state.match[i])); },
  };
}
