// How runs look in every figure: color, dash and marker differ for 40 lines; the legend; the highlighted run.
const DASHES = { solid: "", dash: "8 6", dot: "2 4", dashdot: "8 4 2 4", longdash: "14 5" };
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x"];
const LOOKS = 40;
const LISTED = 100; // runs in a legend

function look(k) {
  const { colors } = state.data;
  const round = Math.floor(k / colors.length) % SYMBOLS.length;
  return { color: colors[k % colors.length], dash: Object.keys(DASHES)[round], symbol: SYMBOLS[round] };
}

// Text for Plotly, which interprets some HTML.
const plotText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const plainText = (text) => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

// A long text without its middle.
const shortened = (text, most = 40) =>
  text.length <= most ? text : `${text.slice(0, most / 2 - 1)}…${text.slice(1 - most / 2)}`;

// A number as a reader expects it, with four digits; below a million no digit before the point is lost.
function number(value, digits = 4) {
  if (!Number.isFinite(value)) return "unknown";
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
  return size >= 10 ** digits ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
}

// A number with three digits; nothing if it is unknown.
const MINUS = "\u2212";
const short = (value) => (Number.isFinite(value) ? number(value, 3).replace(/^-/, MINUS) : "");

// A value with two standard errors, to the second digit of these.
function withErrors(value, error) {
  const twice = 2 * error;
  if (!Number.isFinite(value) || !(twice > 0)) return short(value);
  const digits = Math.max(1 - Math.floor(Math.log10(twice)), 0);
  if (digits > 6) return `${short(value)} ± ${short(twice)}`;
  return `${value.toFixed(digits).replace("-", MINUS)} ± ${twice.toFixed(digits)}`;
}

// A function whose result is kept as long as the data are the same, and one of a run.
const perData = (make) => {
  const once = perRun(make);
  return () => once(state.data);
};

function perRun(make) {
  const kept = new WeakMap();
  return (run) => {
    if (!kept.has(run)) kept.set(run, make(run));
    return kept.get(run);
  };
}

// The names of the settings in which runs differ, those of the model first.
const differing = perData(() => {
  const values = new Map();
  for (const { settings } of state.data.runs)
    for (const [name, value] of Object.entries(settings ?? {})) {
      if (!values.has(name)) values.set(name, new Set());
      values.get(name).add(JSON.stringify(value));
    }
  const known = state.data.runs.filter(({ settings }) => settings && Object.keys(settings).length);
  const parts = ["model", "data", "ema", "trainer", "seed_everything"];
  const rank = (name) => (parts.indexOf(name.split(".")[0]) + parts.length + 1) % (parts.length + 1);
  return [...values].filter(([name, found]) => !["output", "runs", "name", "ckpt_path", "config"].includes(name) &&
    (found.size > 1 || known.some(({ settings }) => !(name in settings)))).map(([name]) => name)
    .sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
});

function settingText(value) {
  if (value === undefined || value === null) return "none";
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// The first settings of a run that others do not share.
const brief = (run) => differing().slice(0, 4).filter((name) => name in (run.settings ?? {}))
  .map((name) => `${name.split(".").at(-1)} ${shortened(settingText(run.settings[name]), 24)}`).join(", ");

// The items of a legend: a button per line.
function legendOf(lines) {
  const unique = [...new Map(lines.map((line) => [line.id, line])).values()];
  const items = unique.slice(0, LISTED).map(({ id, name, label, look: { color, dash, symbol } }) => {
    const sign = { circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", x: "✖" }[symbol];
    return `<li><button type="button" aria-pressed="${state.selected === id}" title="${escaped(name)}" data-line="${escaped(id)}">` +
      `<svg viewBox="0 0 34 12" width="34" height="12" aria-hidden="true"><path d="M0 6H34" stroke="${color}" stroke-width="2.5" ` +
      `stroke-dasharray="${DASHES[dash]}"/><text x="17" y="10" fill="${color}" text-anchor="middle" font-size="11">${sign}</text></svg>` +
      `<span>${escaped(label ?? name)}</span></button></li>`;
  });
  if (unique.length > LISTED) items.push(`<li class="note">and ${unique.length - LISTED} more: the table chooses runs</li>`);
  return items.join("");
}

// A legend, empty at first: a line stands out while its button has the pointer or the focus, and stays so after a click.
function emptyLegend() {
  const lineOf = ({ target }) => target.closest("[data-line]")?.dataset.line ?? null;
  return make("ul", {
    class: "legend", "aria-label": "Lines", onmouseover: (event) => highlight(lineOf(event)), onmouseleave: () => highlight(null),
    onfocusin: (event) => highlight(lineOf(event)), onfocusout: () => highlight(null),
    onclick: (event) => lineOf(event) !== null && select(lineOf(event)),
  });
}

// Lets one line stand out and the others fade, until the next call; null: back to the selected one.
let lit = null;
let asked = false;
function highlight(id) {
  lit = id;
  if (!asked) requestAnimationFrame(() => {
    asked = false;
    for (const chart of visible) lightUp(chart);
  });
  asked = true;
}

function select(id) {
  state.selected = state.selected === id ? null : id;
  for (const button of document.querySelectorAll(".legend [data-line]"))
    button.setAttribute("aria-pressed", String(state.selected === button.dataset.line));
  highlight(null);
}

// Draws the highlighted line of a chart above the others.
function lightUp(chart) {
  const id = lit ?? state.selected;
  const lines = (shown.get(chart)?.lines ?? []).filter((line) => line.id === id);
  chart.classList.toggle("faded", lines.length > 0);
  for (const path of chart.querySelectorAll("path.lit")) path.remove();
  const layer = chart.querySelector(".scatterlayer")?.parentElement;
  if (!lines.length || !layer) return;
  const { xaxis, yaxis } = chart._fullLayout;
  for (const line of lines) {
    let pen = "M";
    let d = "";
    line.y.forEach((value, k) => {
      const [x, y] = value === null || (yaxis.type === "log" && value <= 0) ? [] : [xaxis.d2p(line.x[k]), yaxis.d2p(value)];
      if (Number.isFinite(x) && Number.isFinite(y)) d += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = Number.isFinite(y) && Number.isFinite(x) ? "L" : "M";
    });
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", "lit");
    path.setAttribute("d", line.y.length === 1 ? `${d}h.01` : d);
    path.setAttribute("stroke", line.look.color);
    layer.append(path);
  }
}
