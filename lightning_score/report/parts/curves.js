// Lines of runs: from the data of the page to the traces of Plotly.
const OVER = { steps: "training steps", hours: "hours since the start of the run", epochs: "epochs" };

// The places of a curve's points on the horizontal axis; null where unknown.
function placesOf(run, curve, x) {
  if (x === "hours") return curve.hours;
  if (x === "epochs") return curve.steps.map((step) => (run.epoch_steps ? step / run.epoch_steps : null));
  return curve.steps;
}

// The lines of runs in one figure; `found(run)` gives curves {steps, hours, values} with, if known, {means, errors, n, nfe,
// kind}. `options` are those of the page: x, smoothing, width (per cent of the axis), group, band.
function linesOf(runs, found, options) {
  const lines = runs.flatMap((run) => found(run).map((curve) => {
    const places = placesOf(run, curve, options.x);
    const kept = places.map((_, k) => k).filter((k) => places[k] !== null);
    const pick = (values) => values && kept.map((k) => values[k]);
    const name = `${run.name}${curve.kind ? ` ${curve.kind}` : ""}`;
    return {
      id: run.name, run, kind: curve.kind ?? "", name, label: shortened(run.name), look: look(run.order), x: pick(places),
      y: pick(curve.values), means: pick(curve.means ?? curve.values), errors: pick(curve.errors), n: pick(curve.n),
      nfe: pick(curve.nfe), brief: brief(run),
    };
  })).filter((line) => line.x.length);
  const ends = lines.flatMap(({ x }) => [Math.min(...x), Math.max(...x)]);
  const width = (options.width / 100) * (Math.max(...ends) - Math.min(...ends));
  if (options.smoothing !== "none" && width > 0)
    for (const line of lines)
      if (!line.errors) Object.assign(line, { raw: line.y, y: smoothed(line.x, line.means, options.smoothing, width) });
  return options.group ? grouped(lines, options) : lines;
}

// The labels of the groups that a run belongs to.
function groupsOf(run, by) {
  if (by === "tags") return run.tags?.length ? run.tags : ["no tag"];
  if (by === "objective") return [run.objective || "objective not known"];
  return [`${by.split(".").at(-1)} ${settingText(run.settings?.[by])}`];
}

// What runs can be grouped by: settings and objectives in which they differ, and tags.
const groupings = perData(() => {
  const { runs } = state.data;
  const more = [];
  if (runs.some(({ tags }) => tags?.length)) more.push(["tags", "tag"]);
  if (new Set(runs.map(({ objective }) => objective)).size > 1) more.push(["objective", "objective"]);
  return [["", "nothing"], ...more, ...differing().map((name) => [name, name])];
});

// One line per group: the mean of its lines with its band.
function grouped(lines, options) {
  const groups = new Map();
  for (const line of lines.filter(({ kind }) => !kind))
    for (const label of groupsOf(line.run, options.group)) {
      if (!groups.has(label)) groups.set(label, []);
      groups.get(label).push(line);
    }
  const labels = [...groups.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return labels.map((label, k) => {
    const members = groups.get(label);
    const name = `${label} (n = ${members.length})`;
    const mean = meanOf(members.map(({ x, y }) => [x, y]), options.band);
    return { id: label, kind: "", name, label: shortened(name, 60), look: look(k), brief: "", ...mean };
  });
}

// A line for each run that has the metric.
const curveLines = (runs, metric, options = state) =>
  linesOf(runs, (run) => (run.curves[metric] ? [run.curves[metric]] : []), options);

const measureLines = (runs, label, options = state) => linesOf(runs, (run) => run.measures[label] ?? [], options);

// Plotly's traces of lines: each with its raw curve or band behind. Of more than 40 lines those of one color share a trace.
function tracesOf(lines, over) {
  if (lines.length > LOOKS) return together(lines, over);
  const behind = lines.flatMap((line) => [
    ...(line.raw ? [{ x: line.x, y: line.raw, mode: "lines", opacity: 0.3, line: { color: line.look.color, width: 1 }, showlegend: false, hoverinfo: "skip", name: plotText(`${line.name} (raw)`) }] : []),
    ...(line.low ? bandOf(line) : []),
  ]);
  return [...behind, ...lines.map((line) => {
    const few = line.x.length <= 30;
    const alone = few ? [] : isolated(line.y);
    const { color, dash, symbol } = line.look;
    const size = (k) => (few || alone.includes(k) ? 6 : 0);
    return {
      x: line.x, y: line.y, name: plotText(shortened(line.name, 60)), meta: line.id,
      mode: few || alone.length ? "lines+markers" : "lines",
      line: { color, dash, width: line.kind ? 1 : 1.8 },
      marker: { color, symbol: line.kind ? `${symbol}-open` : symbol, size: few ? 6 : line.x.map((_, k) => size(k)) },
      ...(line.errors ? { error_y: { type: "data", array: line.errors, thickness: 1, width: 2 } } : {}),
      customdata: line.n && line.n.map((n, k) => [n, line.nfe?.[k] ?? ""]),
      hovertemplate: hoverOf(line, over),
    };
  })];
}

// What a point says of itself: name, value with two standard errors, place, and what is known of the measurement.
function hoverOf(line, over) {
  const errors = line.errors ? " ± %{error_y.array:.2g}" : "";
  const counts = line.nfe ? ", n %{customdata[0]}, NFE %{customdata[1]}" : line.n ? ", n %{customdata[0]}" : "";
  const settings = line.brief ? `<br>${plotText(line.brief)}` : "";
  return `<b>${plotText(shortened(line.name, 60))}</b>${settings}<br>%{y:.4g}${errors} at %{x:,} ${over}${counts}<extra></extra>`;
}

// Points without neighbors, which a line does not show.
const isolated = (y) => y.map((_, k) => k).filter((k) => y[k] !== null && (y[k - 1] ?? null) === null && (y[k + 1] ?? null) === null);

// The band of a group, an area between two lines; its gaps are left out; one run has none.
function bandOf(line) {
  const kept = line.x.map((_, k) => k).filter((k) => line.low[k] !== null);
  const edge = (values, more) => ({
    x: kept.map((k) => line.x[k]), y: kept.map((k) => values[k]), mode: "lines", line: { width: 0, color: line.look.color },
    name: plotText(`${line.name} (band)`), showlegend: false, hoverinfo: "skip", ...more,
  });
  return kept.length === 0 ? [] : [edge(line.low, {}), edge(line.high, { fill: "tonexty", fillcolor: `${line.look.color}33` })];
}

// Many lines, a trace for those of each color.
function together(lines, over) {
  const traces = new Map();
  for (const line of lines) {
    const { color } = line.look;
    if (!traces.has(color)) traces.set(color, { x: [], y: [], text: [], mode: "lines+markers", line: { color, width: 0.8 }, marker: { color, size: [] }, opacity: 0.4, name: "", showlegend: false, hovertemplate: `%{text}<br>%{y:.4g} at %{x:,} ${over}<extra></extra>` });
    const trace = traces.get(color);
    const alone = new Set(isolated(line.y));
    const text = `<b>${plotText(shortened(line.name, 60))}</b>${line.brief ? `<br>${plotText(line.brief)}` : ""}`;
    line.x.forEach((place, k) => {
      trace.x.push(place);
      trace.y.push(line.y[k]);
      trace.marker.size.push(alone.has(k) ? 4 : 0);
      trace.text.push(text);
    });
    trace.x.push(null);
    trace.y.push(null);
    trace.marker.size.push(0);
    trace.text.push("");
  }
  for (const trace of traces.values()) if (!trace.marker.size.some(Boolean)) trace.mode = "lines";
  return [...traces.values()];
}

// A dashed horizontal line through a figure, such as the value of a perfect model.
function floorOf({ name, value }, ends) {
  return {
    x: ends, y: [value, value], mode: "lines", name: plotText(name), line: { color: "gray", dash: "dash", width: 1.5 },
    hovertemplate: `${plotText(name)}: ${number(value)}<extra></extra>`,
  };
}

// What a figure of lines shows: traces, layout, the lines and a sentence for those who do not see it.
function lineFigure(title, lines, over, { floors = [], xLog = state.xScale === "log", limits = {}, reversed = false } = {}) {
  const values = lines.flatMap((line) => [...line.y, ...(line.raw ?? [])]).filter((value) => value !== null).concat(floors.map(({ value }) => value));
  const places = lines.flatMap(({ x }) => x);
  const [low, high] = extent(values);
  const wide = low > 0 && high / low > 4;
  const yLog = state.yScale === "log" || (state.yScale === "auto" && wide);
  const ends = extent(places);
  const traces = tracesOf(lines, over);
  for (const floor of floors) if (places.length) traces.push(floorOf(floor, ends));
  const lost = yLog ? values.filter((value) => value <= 0).length : 0;
  return {
    data: traces, lines, sentence: sentenceOf(title, lines, over),
    note: [
      lost ? `${lost} values of 0 or below have no place on a logarithmic axis.` : "",
      lines.length > LOOKS ? `${lines.length} lines: without errors and raw curves, those of one color look alike; the legend shows one, groups show means.` : "",
    ].join(" ").trim(),
    layout: {
      xaxis: axisOf(over, xLog, ends, limits.x, reversed), yaxis: axisOf("", yLog, [low, high], limits.y),
      ...(values.length ? {} : { annotations: [{ text: "no finite values", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }] }),
    },
  };
}

// The smallest and the largest; `reduce`, because a call has no room for very many arguments.
const extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

// An axis; one that is logarithmic has plain numbers at its ticks.
function axisOf(title, log, ends, limits, reversed = false) {
  const made = { title: { text: plotText(title), standoff: 8 }, automargin: true, exponentformat: "power", zeroline: false };
  if (log) Object.assign(made, { type: "log" }, logTicks(...(limits ?? ends)));
  if (limits) made.range = log ? limits.map(Math.log10) : limits;
  if (reversed) made.range ? made.range.reverse() : (made.autorange = "reversed");
  return made;
}

// Ticks of a logarithmic axis: powers of ten if there are some, else with their double and fivefold, else even steps.
function logTicks(low, high) {
  if (!(low > 0) || !Number.isFinite(high)) return {};
  const [from, to] = [Math.log10(low), Math.log10(high)];
  let ticks = [];
  if (to - from < 0.7) {
    const step = 10 ** Math.floor(Math.log10((high - low) / 3 || low));
    const wanted = [1, 2, 5, 10].map((digit) => digit * step).find((each) => (high - low) / each <= 6) ?? step;
    for (let tick = Math.floor(low / wanted) - 3; tick * wanted <= high + 3 * wanted; tick += 1) if (tick > 0) ticks.push(tick * wanted);
  } else {
    const digits = to - from > 2.5 ? [1] : [1, 2, 5];
    const every = Math.ceil((to - from) / 8);
    for (let power = Math.floor(from) - 1; power <= Math.ceil(to) + 1; power += 1)
      if (power % every === 0) ticks.push(...digits.map((digit) => digit * 10 ** power));
  }
  return { tickvals: ticks, ticktext: ticks.map((tick) => number(tick)) };
}

// A figure in words: its range, and the lines with the lowest and the highest value.
function sentenceOf(title, lines, over) {
  let [least, most] = [null, null];
  for (const { name, x, y } of lines)
    y.forEach((value, k) => {
      if (value === null) return;
      if (!least || value < least[1]) least = [name, value, x[k]];
      if (!most || value > most[1]) most = [name, value, x[k]];
    });
  if (!least) return `${title}: no finite values.`;
  const at = ([name, value, place]) => `${number(value)} (${name} at ${number(place)})`;
  return `${title}, ${lines.length} line${lines.length === 1 ? "" : "s"} over ${over}. Lowest ${at(least)}, highest ${at(most)}.`;
}
