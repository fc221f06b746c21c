"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const each = (entry) => Object.fromEntries(DATA.metrics.map(entry));
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const METRICS = each((m) => [m.column, m]);
const LABELS = { bytes: "size on disk", params: "parameters", latency_p50_ms: "latency, ms", ...each((m) => [m.column, `${m.title}, ${m.unit}`]) };
const PARTS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"];
const SHAPES = [
  "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0", "M-5-5H5V5H-5Z", "M0-7L6.5 5H-6.5Z", "M0-7L7 0L0 7L-7 0Z", "M0 7L6.5-5H-6.5Z",
  "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z", "M-6-3L-3-6L0-3L3-6L6-3L3 0L6 3L3 6L0 3L-3 6L-6 3L-3 0Z", "M0-7L2-2H7L3 1L5 6L0 3L-5 6L-3 1L-7-2H-2Z",
];
const COLUMNS = [
  ["chosen", "chosen", "text"], ["name", "model", "text"], ["precision", "precision", "text"], ["kind", "kind", "text"],
  ["params", "parameters"], ["bytes", "size"], ...DATA.metrics.map((m) => [m.column, `${m.title} ${m.unit}`]),
  ...DATA.metrics.map((m) => [`${m.name}_drop`, `${m.short} drop (95 %)`]), ["latency_p50_ms", "latency, ms"],
  ["note", "note", "text long"], ["run", "folder", "text long"],
];
const state = { sort: DATA.groups[0].metric, down: true, chosen: new Set(), group: 0 };
const group = () => DATA.groups[state.group];

/* Small helpers. Text goes in as text, never as markup. */
function node(tag, attributes = {}, text = "", space = null) {
  const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== "") made.textContent = text;
  return made;
}
const draw = (tag, attributes, text) => node(tag, attributes, text, SVG);
const known = (value) => value !== null && value !== undefined;
const unique = (values) => [...new Set(values)];
function size(bytes) {
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (bytes >= scale) return `${+(bytes / scale).toPrecision(3)} ${unit}`;
  return `${bytes} B`;
}
function count(number) {
  for (const [unit, scale] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (number >= scale) return `${+(number / scale).toPrecision(3)} ${unit}`;
  return `${+number.toPrecision(3)}`;
}
const fixed = (value, digits) => (+value.toFixed(digits) + 0).toFixed(digits);
const FORMATS = {
  bytes: size, params: count, latency_p50_ms: (v) => fixed(v, 1), "train/loss": count,
  ...each((m) => [m.column, (v) => fixed(m.scale * v, 1)]), ...each((m) => [`val/${m.column}`, (v) => fixed(m.scale * v, 1)]),
};
function cell(run, key) {
  if (!known(run[key])) return "–";
  if (key.endsWith("_drop")) {
    const low = run[key + "_low"], high = run[key + "_high"];
    return fixed(run[key], 2) + (known(low) && known(high) ? ` (${fixed(low, 2)} to ${fixed(high, 2)})` : "");
  }
  return FORMATS[key] ? FORMATS[key](run[key]) : String(run[key]);
}

/* Colour by precision and shape by family, the same in every group. */
const ALL = DATA.groups.flatMap((g, i) => g.runs.map((run, j) => Object.assign(run, { id: `${i}-${j}`, family: run.name ?? "unknown", precision: run.precision ?? "unknown" })));
const COLORS = {};
{
  let spare = 0;
  for (const name of unique(ALL.map((run) => run.precision))) {
    const color = DATA.colors.known[name.split(/[_-]/)[0].toLowerCase()];
    COLORS[name] = color && !Object.values(COLORS).includes(color) ? color : DATA.colors.other[spare++ % DATA.colors.other.length];
  }
}
const FAMILIES = unique(ALL.map((run) => run.family));
const shape = (family) => SHAPES[FAMILIES.indexOf(family) % SHAPES.length];

/* What is shown. */
const ticked = (id) => new Set([...$(id).querySelectorAll("input:checked")].map((box) => box.value));
function shown() {
  const [precision, family, kind] = ["precision", "family", "kind"].map(ticked);
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  return group().runs.filter((run) => precision.has(run.precision) && family.has(run.family) && kind.has(run.kind) &&
    words.every((word) => [run.command, run.run, run.note, run.name, run.precision].join(" ").toLowerCase().includes(word)));
}
function plotted(runs) {
  const [cost, metric] = [$("cost").value, $("metric").value];
  const ok = runs.filter((run) => run[cost] > 0 && known(run[metric]));
  return cost === "latency_p50_ms" ? ok.filter((run) => run.machine === $("machine").value) : ok;
}
function front(runs, cost, metric) {
  let best = null;
  const score = (run) => METRICS[metric].sign * run[metric];
  const sorted = [...runs].sort((a, b) => a[cost] - b[cost] || score(b) - score(a));
  return sorted.filter((run) => {
    if (best && !(score(run) > score(best)) && !(score(run) === score(best) && run[cost] === best[cost])) return false;
    best = run;
    return true;
  });
}

/* The tip, on hover and on focus. */
function describe(run) {
  const choices = Object.entries(run.choices).map(([key, value]) => `${key}=${value}`).join(" ");
  return [`${run.family} ${run.precision} (${run.kind})`,
    DATA.metrics.map((m) => `${m.title} ${cell(run, m.column)} ${m.unit}`).join(", ") + `, drop ${cell(run, `${METRICS[group().metric].name}_drop`)}`,
    `${cell(run, "bytes")}, ${cell(run, "params")} parameters, ${cell(run, "latency_p50_ms")} ms`,
    choices, run.command, run.run, run.note].filter(Boolean).join("\n");
}
function showTip(run, target) {
  const tip = $("tip"), at = target.getBoundingClientRect();
  tip.textContent = describe(run);
  tip.hidden = false;
  const left = Math.min(at.right + 10, innerWidth - tip.offsetWidth - 8);
  const below = at.bottom + 8 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, below ? at.bottom + 8 : at.top - tip.offsetHeight - 8)}px`;
}
const hideTip = () => { $("tip").hidden = true; };

/* Axes shared by both plots. */
function frame(width, height, label) {
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  return { svg, left: 56, right: width - 16, top: 12, bottom: height - 44 };
}
function steps(low, high) {
  const raw = (high - low) / 5, base = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map((k) => k * base).find((s) => s >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high + 1e-9; i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}
function logSteps(low, high) {
  const of = (digits) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) for (const k of digits) ticks.push(+(k * 10 ** power).toPrecision(12));
    return ticks.filter((t) => t >= low && t <= high);
  };
  const fitting = [[1, 2, 3, 4, 6, 8], [1, 2, 5], [1]].map(of).find((ticks) => ticks.length <= 7);
  return fitting && fitting.length > 1 ? fitting : steps(low, high);
}
function axes(f, xs, ys, x, y, xText, yText, xLabel, yLabel) {
  for (const t of ys) {
    f.svg.append(draw("line", { class: "grid", x1: f.left, x2: f.right, y1: y(t), y2: y(t) }));
    f.svg.append(draw("text", { x: f.left - 6, y: y(t) + 4, "text-anchor": "end" }, yText(t)));
  }
  for (const t of xs) {
    f.svg.append(draw("line", { class: "grid", x1: x(t), x2: x(t), y1: f.top, y2: f.bottom }));
    f.svg.append(draw("text", { x: x(t), y: f.bottom + 17, "text-anchor": "middle" }, xText(t)));
  }
  f.svg.append(draw("text", { x: (f.left + f.right) / 2, y: f.bottom + 37, "text-anchor": "middle" }, xLabel));
  f.svg.append(draw("text", { x: 13, y: (f.top + f.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 13 ${(f.top + f.bottom) / 2})` }, yLabel));
}
const scale = (low, high, from, to) => (v) => from + ((v - low) / (high - low || 1)) * (to - from);

function drawPlot(runs) {
  const [cost, metric] = [$("cost").value, $("metric").value];
  $("plot-title").textContent = `${LABELS[metric].split(",")[0]} against ${LABELS[cost].split(",")[0]}`;
  $("plot").replaceChildren();
  $("legend").replaceChildren();
  const points = plotted(runs);
  if (!points.length) { $("plot").append(node("p", {}, "No run shown has both values.")); return; }
  const best = front(points, cost, metric);
  const width = Math.max(320, $("plot").clientWidth), f = frame(width, width < 600 ? 320 : 420, `${$("plot-title").textContent}: ${points.length} runs, ${best.length} on the Pareto front`);
  const costs = points.map((run) => run[cost]), values = points.map((run) => run[metric]);
  const low = Math.min(...costs) / 1.15, high = Math.max(...costs) * 1.15;
  const pad = Math.max(0.12 * (Math.max(...values) - Math.min(...values)), 0.005);
  const bottom = Math.min(...values) - pad, top = Math.max(...values) + pad;
  const lx = scale(Math.log(low), Math.log(high), f.left, f.right), x = (v) => lx(Math.log(v)), y = scale(bottom, top, f.bottom, f.top);
  axes(f, logSteps(low, high), steps(bottom, top), x, y, FORMATS[cost] === fixed ? count : cost === "bytes" ? size : count, (t) => `${+(METRICS[metric].scale * t).toFixed(2)}`, `${LABELS[cost]} (log scale)`, LABELS[metric]);
  f.svg.append(draw("path", { class: "front", d: best.map((run, i) => (i ? `H${x(run[cost])}V${y(run[metric])}` : `M${x(run[cost])} ${y(run[metric])}`)).join("") }));
  for (const run of [...points].sort((a, b) => a[cost] - b[cost])) {
    const point = draw("path", { class: state.chosen.has(run.id) ? "point chosen" : "point", d: shape(run.family), fill: COLORS[run.precision], transform: `translate(${x(run[cost])} ${y(run[metric])})`,
      tabindex: 0, role: "button", "data-id": run.id, "aria-pressed": state.chosen.has(run.id), "aria-label": `${run.family} ${run.precision}: ${LABELS[metric].split(",")[0]} ${cell(run, metric)} ${METRICS[metric].unit}, ${cell(run, cost)}${best.includes(run) ? ", on the Pareto front" : ""}` });
    for (const event of ["mouseenter", "focus"]) point.addEventListener(event, () => showTip(run, point));
    for (const event of ["mouseleave", "blur"]) point.addEventListener(event, hideTip);
    point.addEventListener("click", () => choose(run));
    point.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hideTip();
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(run); }
    });
    f.svg.append(point);
  }
  $("plot").append(f.svg);
  const key = (path, fill, text) => {
    const span = node("span"), icon = draw("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" });
    icon.append(draw("path", { d: path, fill }));
    span.append(icon, text);
    $("legend").append(span);
  };
  for (const name of unique(points.map((run) => run.precision))) key("M-7-4H7V4H-7Z", COLORS[name], name);
  for (const name of unique(points.map((run) => run.family))) key(shape(name), "currentColor", name);
}

function choose(run) {
  state.chosen.has(run.id) ? state.chosen.delete(run.id) : state.chosen.add(run.id);
  const active = document.activeElement, key = active && active.dataset ? active.dataset.id : null, tag = active ? active.tagName : "";
  update();
  if (key) [...document.querySelectorAll(`[data-id="${key}"]`)].find((item) => item.tagName === tag)?.focus();
}

function drawTable(runs) {
  const row = node("tr");
  for (const [key, title, kind] of COLUMNS) {
    const head = node("th", { scope: "col", class: kind ?? "" });
    if (key === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    const button = node("button", { type: "button", "data-sort": key }, title);
    button.addEventListener("click", () => {
      state.down = state.sort === key ? !state.down : !(kind ?? "").startsWith("text");
      state.sort = key;
      update();
      document.querySelector(`[data-sort="${key}"]`).focus();
    });
    head.append(button);
    row.append(head);
  }
  $("table").tHead.replaceChildren(row);
  const value = (run) => (state.sort === "chosen" ? +state.chosen.has(run.id) : run[state.sort]);
  const sorted = [...runs].sort((a, b) => {
    const [p, q] = [value(a), value(b)];
    if (!known(p) || !known(q)) return known(q) - known(p); // what is not known comes last in both directions
    return (p < q ? -1 : p > q ? 1 : 0) * (state.down ? -1 : 1);
  });
  $("table").tBodies[0].replaceChildren(...sorted.map(tableRow));
}
function tableRow(run) {
  const row = node("tr", { class: [run.status === "finished" ? "" : "failed", run.conflict ? "conflict" : ""].join(" ").trim(), "data-run": run.run });
  for (const [key, , kind] of COLUMNS) {
    const data = node("td", { class: kind ?? "" }, key === "chosen" ? "" : cell(run, key));
    if (key === "chosen") {
      const box = node("input", { type: "checkbox", "data-id": run.id, "aria-label": `choose ${run.family} ${run.precision} in ${run.run}` });
      box.checked = state.chosen.has(run.id);
      box.addEventListener("change", () => choose(run));
      data.append(box);
    }
    row.append(data);
  }
  return row;
}

/* Below the table: the chosen runs, or else the front. */
function picked(runs, usable) {
  const chosen = runs.filter((run) => state.chosen.has(run.id));
  const wanted = chosen.length ? chosen : [...front(plotted(runs), $("cost").value, $("metric").value), ...runs];
  return unique(wanted.filter(usable)).slice(0, 8);
}
function keys(entries) {
  const box = node("div", { class: "keys" });
  for (const [color, text] of entries) {
    const span = node("span"), icon = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
    icon.append(draw("rect", { width: 16, height: 10, y: 3, fill: color }));
    span.append(icon, text);
    box.append(span);
  }
  return box;
}
function drawParts(runs) {
  const seen = new Set(), box = $("parts"), unit = $("unit").value;
  const title = (run) => (unit === "bytes" ? `${run.family} ${run.precision}, ${size(run.bytes)}` : `${run.family}, ${count(run.params)}`);
  const text = unit === "bytes" ? size : count;
  // One bar for runs that look the same: parameters do not depend on the precision.
  const models = picked(runs, (run) => run[unit] && Object.keys(run.parts[unit]).length && !seen.has(title(run)) && seen.add(title(run)));
  box.replaceChildren();
  if (!models.length) { box.append(node("p", {}, unit === "bytes" ? "No run shown says its bytes by part: older records do not." : "No run shown says its parts.")); return; }
  const names = unique(models.flatMap((run) => Object.keys(run.parts[unit]))), most = Math.max(...models.map((run) => run[unit]));
  for (const run of models) {
    const said = Object.entries(run.parts[unit]).map(([part, n]) => `${part} ${text(n)}`).join(", ");
    const bar = node("div", { class: "bar", role: "img", "aria-label": `${title(run)}: ${said}`, title: said });
    for (const part of names) bar.append(node("i", { style: `width:${(100 * (run.parts[unit][part] ?? 0)) / most}%;background:${PARTS[names.indexOf(part) % PARTS.length]}` }));
    box.append(node("div", {}, title(run)), bar);
  }
  box.append(keys(names.map((part, i) => [PARTS[i % PARTS.length], part])));
}

/* Ground truth and what the models found, image by image. */
function drawGallery(runs) {
  const gallery = group().gallery, box = $("gallery");
  $("gallery-section").hidden = !gallery;
  box.replaceChildren();
  if (!gallery) return;
  const able = runs.filter((run) => gallery.runs[run.run]).sort((a, b) => b.bytes - a.bytes);
  const chosen = able.filter((run) => state.chosen.has(run.id)), views = chosen.length ? chosen : able;
  const missing = runs.filter((run) => state.chosen.has(run.id) && !gallery.runs[run.run]).length;
  $("gallery-note").textContent = `Looked for: ${gallery.phrases.join(", ")}. Scores from 0.5 on. ` +
    (chosen.length ? "Shown: ground truth and the chosen runs" : "Shown: ground truth and all runs with pictures; choose some in the table or the plot to see those alone") +
    (missing ? `; ${missing} of the chosen have no pictures (give them to --gallery-of).` : ".");
  gallery.names.forEach((name, i) => {
    const row = node("div", { class: "views" }), image = node("section", { class: "image" });
    const show = (picture, caption) => {
      const figure = node("figure");
      figure.append(node("img", { src: picture.src, alt: picture.alt, decoding: "async" }), node("figcaption", {}, caption));
      row.append(figure);
    };
    show(gallery.truth[i], gallery.heading);
    for (const run of views) show(gallery.runs[run.run][i], `${run.family} ${run.precision}, ${size(run.bytes)}`);
    image.append(node("h3", {}, name), row);
    box.append(image);
  });
}
function drawCurves(runs) {
  const name = $("curve").value, box = $("curves");
  const lines = picked(runs, (run) => (run.curves[name] ?? []).length > 1);
  box.replaceChildren();
  if (!lines.length) { box.append(node("p", {}, "No run shown has this curve: only training runs with a metrics.csv do.")); return; }
  const all = lines.flatMap((run) => run.curves[name]), xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const f = frame(Math.max(300, box.clientWidth), 280, `${name}: ${lines.length} runs`);
  const high = Math.max(...ys), low = Math.min(...ys), x = scale(0, Math.max(...xs), f.left, f.right), y = scale(low, high, f.bottom, f.top);
  axes(f, steps(0, Math.max(...xs)), high > low ? steps(low, high) : [low], x, y, count, FORMATS[name], "step", $("curve").selectedOptions[0].text);
  lines.forEach((run, i) => {
    const line = draw("polyline", { class: "curve", stroke: PARTS[i], points: run.curves[name].map(([s, v]) => `${x(s)},${y(v)}`).join(" ") });
    line.append(draw("title", {}, run.run));
    f.svg.append(line);
  });
  box.append(f.svg, keys(lines.map((run, i) => [PARTS[i], run.run])));
}

function update() {
  hideTip();
  const runs = shown(), latency = $("cost").value === "latency_p50_ms";
  $("machine-label").hidden = !latency;
  $("plot-section").hidden = !group().measured;
  $("count").textContent = `${runs.length} of ${group().runs.length} runs shown`;
  if (group().measured) drawPlot(runs);
  drawTable(runs);
  drawGallery(runs);
  drawParts(runs);
  drawCurves(runs);
}
function fill(id, values) {
  const set = $(id), legend = set.querySelector("legend");
  set.replaceChildren(legend, ...values.map((value) => {
    const label = node("label"), box = node("input", { type: "checkbox", value });
    box.checked = true;
    label.append(box, value);
    return label;
  }));
}
function options(id, values) {
  $(id).replaceChildren(...values.map(([value, text]) => node("option", { value }, text)));
}
function changeGroup() {
  state.group = +$("group").value;
  state.chosen.clear();
  const runs = group().runs;
  fill("precision", unique(runs.map((run) => run.precision)));
  fill("family", unique(runs.map((run) => run.family)));
  fill("kind", unique(runs.map((run) => run.kind)));
  const machines = unique(runs.map((run) => run.machine).filter(known));
  options("machine", machines.map((name) => [name, name]));
  $("unit").value = runs.some((run) => Object.keys(run.parts.bytes).length) ? "bytes" : "params";
  $("metric").value = group().metric;
  update();
}
options("metric", [...DATA.metrics].reverse().map((m) => [m.column, m.title]));
options("curve", [...[...DATA.metrics].reverse().map((m) => [`val/${m.column}`, m.title]), ["train/loss", "training loss"]]);
options("group", DATA.groups.map((g, i) => [i, `${g.title} (${g.runs.length} ${g.runs.length === 1 ? "run" : "runs"})`]));
$("groups-note").textContent = DATA.groups.length > 1
  ? `The runs fall into ${DATA.groups.length} groups of equal data and protocol. Numbers of different groups do not compare, so one group is shown at a time.`
  : "All runs have the same data and protocol.";
if (DATA.unread.length) {
  $("unread").hidden = false;
  $("unread").querySelector("ul").append(...DATA.unread.map((line) => node("li", {}, line)));
}
$("group").addEventListener("change", changeGroup);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("controls").addEventListener("input", update);
$("curve").addEventListener("change", update);
$("unit").addEventListener("change", update);
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
let wait = 0;
addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(update, 100); });
$("cost").value = DATA.cost;
changeGroup();
