// Charts by Plotly: drawn when they come into sight, with their data and pictures to download.
const charts = new Map(); // element -> {key, make, caption, title}
const shown = new Map(); // element -> what has been drawn
const visible = new Set();
const stale = new Set();
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) visible.add(target);
    else visible.delete(target);
    if (isIntersecting && stale.has(target)) draw(target);
  }
}, { rootMargin: "300px" });

// The layout of every chart in the theme of the page.
function themed(layout) {
  const dark = state.dark ? "dark" : "light";
  return {
    template: templates[dark], autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false, hovermode: "closest", hoverlabel: { align: "left", namelength: -1 }, uirevision: "kept",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", ...layout,
    margin: { l: 45, r: 15, t: 10, b: 40, ...layout.margin },
  };
}

// Plotly is loaded when the first chart comes into sight.
let plotly = null;
async function loadPlotly() {
  const script = make("script", { src: await library("plotly.js") });
  await new Promise((on, fail) => {
    script.addEventListener("load", on);
    script.addEventListener("error", fail);
    document.head.append(script);
  });
}

const draw = (chart) => (window.Plotly ? drawNow(chart) : (plotly ??= loadPlotly()).then(() => drawNow(chart)));

function drawNow(chart) {
  const own = charts.get(chart);
  if (!own) return; // it was removed meanwhile
  stale.delete(chart);
  const figure = own.make();
  if (shown.has(chart) && shown.get(chart).kind !== figure.kind) Plotly.purge(chart); // another kind keeps nothing of the last
  const first = !chart.classList.contains("js-plotly-plot");
  shown.set(chart, figure);
  chart.setAttribute("aria-label", figure.sentence);
  chart.dataset.drawn = "true";
  own.caption.textContent = [own.text, figure.note].filter(Boolean).join(" ");
  Plotly.react(chart, figure.data, themed(figure.layout), { responsive: true, displayModeBar: false });
  if (first) {
    chart.on("plotly_hover", ({ points }) => highlight(points?.[0].data.meta ?? null));
    chart.on("plotly_unhover", () => highlight(null));
    chart.on("plotly_click", ({ points }) => points?.[0].data.meta && select(points[0].data.meta));
    chart.on("plotly_relayout", (changes) => own.limited?.(changes, chart));
  }
  if (figure.lines) lightUp(chart);
  own.drawn?.(chart);
}

// A chart with its title, tools, caption and downloads. `make()` gives {data, layout, sentence}, and if it has them {lines,
// note, kind, table}; `tools` are elements above it; `drawn` is called with the chart each time that it has been drawn.
function showChart(place, { key, title, text = "", tools = [], make: makeFigure, limits = false, drawn }) {
  const chart = make("div", { class: "chart", role: "img", "data-key": key, "aria-label": title });
  const caption = make("figcaption", {}, text);
  const name = () => `${key} ${title}`.replace(/[^\w.-]+/g, "_").replace(/^_|_$/g, "");
  const save = (format, act) => make("button", { type: "button", onclick: () => act(chart, name(), format), "aria-label": `${format.toUpperCase()} of ${title}` }, format.toUpperCase());
  const downloads = make("p", { class: "tools downloads" }, make("span", {}, "Download"), save("png", savePicture), save("svg", savePicture), save("csv", saveTable));
  const figure = make("figure", { class: "plot" }, make("h3", {}, title), ...tools.map((tool) => make("p", { class: "tools" }, tool)), chart, caption, downloads);
  const own = { key, title, text, caption, make: makeFigure, drawn };
  if (limits) {
    downloads.append(limitsOf(key, title, chart));
    own.limited = storeLimits;
  }
  charts.set(chart, own);
  stale.add(chart);
  place.append(figure);
  sight.observe(chart);
  return chart;
}

// Fields for the ends of both axes.
function limitsOf(key, title, chart) {
  const fields = ["x", "y"].flatMap((axis) => [0, 1].map((end) => make("label", {}, `${axis} ${end ? "to" : "from"} `, make("input", {
    type: "number", step: "any", "data-limit": `${axis}${end}`, "aria-label": `${axis} ${end ? "to" : "from"}, ${title}`,
    onchange: () => {
      const typed = (axis) => {
        const ends = [0, 1].map((end) => box.querySelector(`[data-limit=${axis}${end}]`).valueAsNumber);
        const now = chart._fullLayout?.[`${axis}axis`];
        const automatic = now ? now.range.map((value) => (now.type === "log" ? 10 ** value : value)) : [];
        const both = ends.map((value, end) => (Number.isFinite(value) ? value : automatic[end]));
        return ends.some(Number.isFinite) && both[0] < both[1] ? both : undefined;
      };
      state.limits[key] = { x: typed("x"), y: typed("y") };
      draw(chart);
    },
  }))));
  const box = make("details", { class: "limits" }, make("summary", {}, "Axes"), ...fields);
  return box;
}

// Keeps the part of a chart to which its reader has zoomed.
function storeLimits(changes, chart) {
  const { key } = charts.get(chart);
  const limits = (state.limits[key] ??= {});
  let changed = false;
  for (const axis of ["x", "y"]) {
    const ends = changes[`${axis}axis.range`] ?? [changes[`${axis}axis.range[0]`], changes[`${axis}axis.range[1]`]];
    const log = chart._fullLayout[`${axis}axis`].type === "log";
    if (changes[`${axis}axis.autorange`]) limits[axis] = undefined;
    else if (ends.every(Number.isFinite)) limits[axis] = ends.map((value) => Number((log ? 10 ** value : value).toPrecision(6))).sort((a, b) => a - b);
    else continue;
    changed = true;
    for (const end of [0, 1]) {
      const field = chart.parentElement.querySelector(`[data-limit=${axis}${end}]`);
      if (field) field.value = limits[axis]?.[end] ?? "";
    }
  }
  if (changed) draw(chart);
}

// The chart as a file, with title and legend, on the color of the page.
async function savePicture(chart, name, format) {
  if (stale.has(chart) || !shown.has(chart)) await draw(chart);
  const { data, layout } = shown.get(chart);
  const named = data.filter((trace) => trace.name && trace.showlegend !== false).length;
  const legend = named > 1 && named <= LOOKS + 4;
  Plotly.downloadImage({ data, layout: {
    ...themed(layout), paper_bgcolor: getComputedStyle(document.body).backgroundColor, showlegend: legend,
    title: { text: plotText(charts.get(chart).title), font: { size: 16 } }, margin: { l: 70, r: 30, t: 50, b: 60 },
  } }, { format, filename: name, width: legend ? 1200 : 1000, height: 640, scale: format === "png" ? 2 : 1 });
}

// The data of the chart: a row per point of its lines, or per cell of its map.
async function saveTable(chart, name) {
  if (stale.has(chart) || !shown.has(chart)) await draw(chart);
  const text = tableOf(shown.get(chart)).map((row) => row.map(quoted).join(",")).join("\r\n");
  const address = URL.createObjectURL(new Blob([`${text}\r\n`], { type: "text/csv" }));
  make("a", { href: address, download: `${name}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// A cell of a CSV file; no text is a formula of a spreadsheet.
function quoted(value) {
  const text = typeof value === "string" ? value.replace(/^[=+\-@\t\r]/, "'$&") : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function tableOf({ data, layout, lines, table }) {
  if (table) return table;
  const [x, y] = ["xaxis", "yaxis"].map((axis) => plainText(layout[axis]?.title?.text || axis[0]));
  if (lines) {
    const more = ["raw", "errors", "low", "high", "n", "nfe"].filter((name) => lines.some((line) => line[name]));
    const rows = lines.flatMap((line) => line.x.map((place, k) => [line.name, place, line.y[k], ...more.map((name) => line[name]?.[k])]));
    return [["line", x, "value", ...more.map((name) => (name === "errors" ? "two standard errors" : name))], ...rows];
  }
  const [first] = data;
  if (first?.z) return [[y, ...first.x], ...first.y.map((place, k) => [place, ...(first.customdata ?? first.z)[k]])];
  return [["line", x, y], ...data.flatMap((trace) => (trace.x ?? []).map((place, k) => [plainText(trace.name ?? ""), place, trace.y[k]]))];
}

function drop(chart) {
  sight.unobserve(chart);
  for (const each of [charts, shown, visible, stale]) each.delete(chart);
  if (chart.dataset.drawn) Plotly.purge(chart);
}

// Empties a place with charts.
function clear(place) {
  for (const chart of place.querySelectorAll(".chart")) drop(chart);
  place.replaceChildren();
}

// Takes away what a section shows.
function forget(section) {
  for (const body of section.querySelectorAll(".body")) {
    clear(body);
    body.remove();
  }
}

// Draws again: what is in sight now, what is near it soon, the rest when it comes into sight.
function redrawCharts() {
  for (const chart of charts.keys()) {
    stale.add(chart);
    delete chart.dataset.drawn;
  }
  const inside = (chart) => {
    const { top, bottom } = chart.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  };
  const near = [...visible].map((chart) => [chart, inside(chart)]).sort(([, one], [, other]) => other - one);
  let end = performance.now() + 40; // a frame is drawn in between, so that the page answers at once
  const drawNext = () => {
    for (let [chart] = near.shift() ?? []; chart; [chart] = near.shift() ?? []) {
      if (stale.has(chart)) draw(chart);
      if (performance.now() > end) break;
    }
    end = performance.now() + 40;
    if (near.length) setTimeout(drawNext);
  };
  drawNext();
}
