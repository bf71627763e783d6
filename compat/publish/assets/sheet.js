// The big table: models down, quantization x backend across. Only the rows in view are in the document, so that ten
// thousand cells filter within a keystroke; rows and columns keep their numbers for assistive technology.
"use strict";
function compatSheet(box, history, act) {
  const { make, one } = compatSite;
  const { outcomes, absent } = compatWords;
  const axis = Object.fromEntries(["model", "dtype", "attention", "quantization"].map((name) => [name, history.axes.indexOf(name)]));
  const AROUND = 4;
  const value = (numbers, name) => numbers[axis[name]] < 0 ? "" : history.values[axis[name]][numbers[axis[name]]];
  const plan = laid();
  let columns = [], rows = [], height = 27, from = -1, to = -1, state = null, active = null, open = null, top = 0, tall = 900;
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

  // `next`: {letters: cell -> letter, match: cell -> true or false, word: cell -> text}
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
  function firstCell(after = 0) {
    for (const row of rows.slice(after)) for (const column of columns) if (row.at.has(column.key)) return { row, column };
    return null;
  }
  function draw(anew) {
    top = Math.min(top, Math.max(0, rows.length * height - tall + 200));
    const first = Math.max(0, Math.floor(top / height) - AROUND);
    const last = Math.min(rows.length, Math.ceil((top + tall) / height) + AROUND);
    if (!anew && first >= from && last <= to && from >= 0) return;
    const low = anew ? first : Math.max(0, first - AROUND), high = anew ? last : Math.min(rows.length, last + AROUND);
    const held = body.contains(document.activeElement);
    from = low; to = high;
    // Tab reaches the table at a cell in view, unless the focus is on another already
    const place = active ? rows.indexOf(active.row) : -1;
    if (!held && (place < low || place >= high)) active = firstCell(Math.ceil(top / height)) || firstCell();
    body.replaceChildren(gap(low), ...rows.slice(low, high).map((row, n) => line(row, low + n)), gap(rows.length - high));
    if (held) { const back = at(active); if (back) back.focus({ preventScroll: true }); else box.focus({ preventScroll: true }); }
  }
  function gap(count) {
    const cell = make("td", { colSpan: columns.length + 1 });
    const row = make("tr", { className: "gap", "aria-hidden": "true" }, cell);
    row.style.height = count * height + "px";
    row.hidden = !count;
    return row;
  }
  // Cells are copies of one element for each look
  const looks = new Map();
  function look(letter, off) {
    const key = letter + (off ? " off" : "");
    if (!looks.has(key)) {
      const shown = outcomes[letter] || absent;
      looks.set(key, make("td", {}, make("button", { type: "button", tabIndex: -1, className: "cell o-" + shown.slug + (off ? " off" : "") }, shown.mark)));
    }
    return looks.get(key).cloneNode(true);
  }
  const none = make("td", {}, make("span", { className: "cell o-absent" }, absent.mark));
  function line(row, number) {
    const name = make("th", { scope: "row", title: [row.model, row.dtype, row.more].filter(Boolean).join(" ") },
      make("span", { className: row.starts ? "model" : "model again" }, row.model), make("span", { className: "dtype" }, [row.dtype, row.more].filter(Boolean).join(" ")));
    const made = make("tr", { className: row.starts ? "row starts" : "row" }, name);
    made.setAttribute("aria-rowindex", String(number + 3));
    const places = columns.map((column) => {
      const i = row.at.get(column.key);
      const place = i === undefined ? none.cloneNode(true) : look(state.letters[i], !state.match[i]);
      if (column.first) place.className = "first";
      if (i !== undefined) {
        const button = place.firstChild;
        button.dataset.i = i;
        button.setAttribute("aria-label", state.word(i));
        if (active && active.row === row && active.column === column) button.tabIndex = 0;
        if (i === open) button.classList.add("now");
      }
      return place;
    });
    made.append(...places);
    return made;
  }
  function at(place) {
    return place && place.row.at.has(place.column.key) ? one('button[data-i="' + place.row.at.get(place.column.key) + '"]', body) : null;
  }
  function reach(place) {
    const begins = rows.indexOf(place.row) * height, headed = heads.offsetHeight;
    if (begins < box.scrollTop) box.scrollTop = begins;
    else if (begins + height > box.scrollTop + box.clientHeight - headed) box.scrollTop = begins + height - box.clientHeight + headed;
    top = box.scrollTop;
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
  // Where the box is scrolled to and how tall it and a row are is read when it changes, so that drawing never waits for
  // a layout of its own
  box.addEventListener("scroll", () => { top = box.scrollTop; draw(false); }, { passive: true });
  new ResizeObserver(() => {
    const sample = one("tr.row", body);
    tall = Math.max(box.clientHeight, 200);
    top = box.scrollTop;
    if (sample && sample.offsetHeight) height = sample.offsetHeight;
    if (state) draw(false);
  }).observe(box);
  body.addEventListener("keydown", walk);
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    active = place(Number(button.dataset.i));
    act(Number(button.dataset.i));
  });
  body.addEventListener("mouseover", (event) => {
    const button = event.target.closest("button");
    if (button && !button.title) button.title = button.getAttribute("aria-label");
  });
  addEventListener("beforeprint", () => { from = 0; to = rows.length; body.replaceChildren(...rows.map(line)); });
  addEventListener("afterprint", () => draw(true));
  return {
    show,
    open(i) {
      open = i;
      const now = one(".now", body), next = i === null ? null : one('button[data-i="' + i + '"]', body);
      if (now) now.classList.remove("now");
      if (next) next.classList.add("now");
    },
    focus(i) { const found = place(i); if (found) reach(found); else box.focus(); },
    order() { return rows.flatMap((row) => columns.map((column) => row.at.get(column.key)).filter((i) => i !== undefined && state.match[i])); },
  };
}
