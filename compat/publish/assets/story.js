// The story of one cell: what was asked, what came out, figures against bounds, kernels, exception, how to see it again.
"use strict";
const compatStory = (() => {
  const { make, one, day } = compatSite;
  const { outcomes, absent } = compatWords;
  const of = (letter) => outcomes[letter] || absent;
  const mark = (letter) => make("span", { className: "mark o-" + of(letter).slug }, of(letter).mark);

  function table(title, head, rows) {
    return make("table", {}, make("caption", { className: "vh" }, title), make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...rows));
  }
  function pairs(title, head, rows) {
    return [make("h4", {}, title), table(title, head, rows.map(([key, value]) => make("tr", {}, make("th", { scope: "row" }, String(key)), make("td", {}, String(value)))))];
  }
  function command(text) {
    const button = make("button", { type: "button", className: "copy" }, "Copy");
    const source = make("pre", { tabIndex: 0 }, text);
    button.addEventListener("click", async () => {
      let done = true;
      try { await navigator.clipboard.writeText(text); } catch {
        getSelection().selectAllChildren(source);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    return make("div", { className: "command" }, source, button);
  }

  // One mark a run, the oldest first; `go` shows the matrix as it was then
  function history(letters, runs, now, go) {
    const list = make("ol", { className: "past" }, ...Array.from(letters, (letter, n) => {
      const text = day(runs[n].started) + ": " + of(letter).word;
      const button = make("button", { type: "button", className: "cell o-" + of(letter).slug + (n === now ? " now" : ""), title: text, "aria-label": text }, of(letter).mark);
      if (n === now) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => go(n));
      return make("li", {}, button);
    }));
    const changed = Array.from(letters).map((letter, n) => n && letter !== letters[n - 1] ? n : 0).filter(Boolean).pop();
    const since = changed ? "Last change: " + of(letters[changed - 1]).word + " to " + of(letters[changed]).word + " in the run of " + day(runs[changed].started) + "."
      : letters.length > 1 ? "The same in all " + letters.length + " runs." : "One run so far.";
    return [make("h3", {}, "History"), list, make("p", { className: "note" }, since)];
  }
  function axes(names, asked, cell) {
    const rows = names.map((name, i) => [name, asked[i], (cell && cell.e || [])[i] || ""]).filter((row) => row[1] || row[2])
      .concat((cell && cell.x || []).map(([name, value]) => [name, "", value]));
    return table("What was asked and what held", ["axis", "requested", "effective"], rows.map(([name, asked, got]) => make("tr", { className: asked && got && asked !== got ? "differs" : "" },
      make("th", { scope: "row" }, name), make("td", {}, asked || "-"), make("td", {}, got || (cell ? "not recorded" : "-")))));
  }
  function figures(c, { metrics, sources }) {
    const bounds = new Map((c.b || []).map(([name, bound, letter, source]) => [name, { bound, letter, source: sources[source] }]));
    const judged = (row) => bounds.has(metrics[row[0]][0]);
    const line = ([metric, value, interval, count, at]) => {
      const [name, better, method] = metrics[metric], bound = bounds.get(name);
      return make("tr", { title: [better, method, count ? count + " samples" : "", bound ? bound.source : ""].filter(Boolean).join("; ") },
        make("th", { scope: "row" }, name + (at ? " at " + at : "")), make("td", { className: "num" }, value + (interval ? " (" + interval + ")" : "")),
        make("td", { className: "num" }, bound ? mark(bound.letter) : "", bound ? " " + bound.bound : "-"));
    };
    const first = c.m.filter(judged), rest = c.m.filter((row) => !judged(row));
    const head = ["name", "value (95% interval)", "bound"];
    const parts = [make("h4", {}, "Figures against their bounds")];
    if (first.length) parts.push(table("Figures that a criterion judges", head, first.map(line)));
    else parts.push(make("p", { className: "note" }, "No criterion speaks of these figures."));
    if (rest.length) parts.push(make("details", { className: "more" }, make("summary", {}, rest.length + (rest.length > 1 ? " more figures" : " more figure")), table("Further figures", head, rest.map(line))));
    return parts;
  }
  function check(c, name, letter, evidence) {
    const box = make("details", { className: "check", open: !["pass", "not-run"].includes(of(letter).slug) },
      make("summary", {}, mark(letter), " ", make("b", {}, name), " " + of(letter).word, make("span", { className: "time" }, c ? (c.t ? c.t + " attempts, " : "") + (c.s || "") : "")));
    if (!c) return box;
    if (c.r) box.append(make("p", {}, c.r));
    if (c.d) box.append(make("p", {}, "First module that leaves the yardstick: ", make("code", {}, c.d[0]), c.d[1]));
    if (c.i) box.append(make("p", {}, "Smallest failing call: " + c.i + (c.v ? "; kernels " + c.v : "")));
    if (c.m) box.append(...figures(c, evidence));
    if (c.k) box.append(...pairs("Kernels seen in one forward", ["operator", "times"], c.k));
    if (c.x) {
      box.append(make("h4", {}, "Exception"), make("p", {}, make("code", {}, c.x[0]), " ", c.x[1]));
      if (c.x[3]) box.append(make("p", { className: "note" }, "Recognised as refusal " + c.x[3]));
      if (c.x[2]) box.append(make("details", { className: "more" }, make("summary", {}, "Traceback"), make("pre", { tabIndex: 0 }, c.x[2])));
    }
    if (c.f) box.append(make("details", { className: "more" }, make("summary", {}, "Facts"), ...pairs("Facts", ["what", "value"], c.f)));
    const small = [c.g ? "signature: " + c.g : "", c.z ? "seed " + c.z : ""].filter(Boolean).join("; ");
    if (small) box.append(make("p", { className: "note" }, small));
    if (c.w) box.append(make("p", {}, "A script that shows it without compat: ", make("code", {}, "compat reproduce RUN"), " prints it (" + c.w + ")."));
    if (c.p) box.append(make("h4", {}, "Ask again"), command(c.p));
    return box;
  }
  // Checks by their letters, with the evidence of each where it is known
  function checks(names, letters, evidence, number, order) {
    const cell = evidence && evidence.cells[number];
    const told = new Map((cell && cell.c || []).map((c) => [evidence.checks[c.n], c]));
    const rows = Array.from(letters).map((letter, n) => ({ letter, name: names[n] })).filter((row) => row.letter !== ".");
    rows.sort((a, b) => rank(a.letter, order) - rank(b.letter, order));
    return rows.map((row) => check(told.get(row.name), row.name, row.letter, evidence));
  }
  const rank = (letter, order) => letter === compatWords.pass ? order.length : order.indexOf(letter);
  return { mark, of, history, axes, checks, one };
})();
