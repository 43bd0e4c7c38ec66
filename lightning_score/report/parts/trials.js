// Figures of a sweep, each from its trials.
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star"];
// Viridis without the end that is as dark, or as bright, as the page: the best trial is the strongest color.
const SHADES = { light: ["#440154", "#46327e", "#365c8d", "#277f8e", "#22a884"], dark: ["#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e"] };
const FEW = 8; // values that are all marked on an axis
const BARS = 150; // trials with error bars; more would cover each other
const BINS = 24;

// Okabe and Ito's colors, for color-blind readers; those first that stand out most from the page.
const INKS = {
  light: { blue: "#0072b2", orange: "#d55e00", green: "#009e73", pink: "#cc79a7", yellow: "#b37a00", sky: "#3a8fc4" },
  dark: { blue: "#56b4e9", orange: "#ff8c42", green: "#1fc796", pink: "#e394c4", yellow: "#f0c23c", sky: "#9fd4f5" },
};
const theme = () => (state.dark ? "dark" : "light");
const inks = () => INKS[theme()];
const lines = (i) => Object.values(inks())[i % 6];
const shades = () => SHADES[theme()].map((color, i, all) => [i / (all.length - 1), color]);
const paint = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function shortNumber(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

const withError = (value, error) => shortNumber(value) + (error === undefined || error === null ? "" : ` ± ${shortNumber(2 * error)}`);
const clipped = (text, most = 28) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
// A value in short: a number with three digits, a class without its modules.
const brief = (value, most) => (typeof value === "number" ? shortNumber(value) : clipped((value ?? "").replace(/^(\w+\.)+(?=[A-Z])/, ""), most));
const unique = (values) => [...new Set(values)];
const isWide = (values, ratio = 4) => values.length > 0 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > ratio;

// An axis for numbers: logarithmic where they are wide, with ticks at 1, 2 and 5.
function numberAxis(title, values, ratio = 4) {
  const known = values.filter((value) => Number.isFinite(value));
  const axis = { title: { text: escaped(clipped(title, 40)) }, automargin: true };
  if (!isWide(known, ratio)) return axis;
  const [low, high] = [Math.log10(Math.min(...known)), Math.log10(Math.max(...known))];
  const digits = high - low > 3 ? [1] : high - low > 1.5 ? [1, 3] : [1, 2, 5];
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  const tickvals = powers.flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)));
  return { ...axis, type: "log", tickvals, ticktext: tickvals.map(shortNumber) };
}

// What a figure of trials can have on an axis: objectives, evaluations and seconds.
function measuresOf(sweep) {
  const found = sweep.objectives.map(({ name, maximize, floor }, k) => ({
    name, maximize, floor, of: (trial) => trial.values[k], error: (trial) => trial.errors[k],
  }));
  const more = [["network evaluations per sample (NFE)", "nfe"], ["seconds", "seconds"]].map(([name, key]) => ({
    name, maximize: false, floor: null, of: (trial) => trial[key], error: () => undefined,
  }));
  return [...found, ...more.filter(({ of }) => unique(sweep.trials.map(of)).filter(Number.isFinite).length > 1)];
}

const isDone = (trial, measure) => trial.state === "complete" && Number.isFinite(measure.of(trial));
const better = (measure) => (a, b) => (measure.maximize ? measure.of(b) - measure.of(a) : measure.of(a) - measure.of(b));
const rankedBy = (sweep, measure) => sweep.trials.filter((trial) => isDone(trial, measure)).sort(better(measure));

// The lines of a trial's tooltip.
function aboutTrial(sweep, trial) {
  const results = sweep.objectives.map(({ name }, k) => `${name}: ${withError(trial.values[k], trial.errors[k]) || "no value"}`);
  const settings = sweep.parameters.map(({ title }, p) => `${title}=${brief(trial.settings[p], 60)}`);
  const more = trial.nfe === undefined ? [] : [`NFE ${shortNumber(trial.nfe)}`];
  const reason = trial.state === "complete" ? [] : [clipped(`${trial.state}${trial.message ? `: ${trial.message}` : ""}`, 80)];
  return [`trial ${trial.number}`, ...reason, ...results, ...more, ...settings.slice(0, 12)].map((line) => escaped(clipped(line, 80))).join("<br>");
}

// Points of trials, of which those that are selected stand out.
function points(sweep, trials, x, y, more = {}) {
  const { trials: chosen } = state.sweep;
  const own = chosen.length ? { selectedpoints: trials.flatMap(({ number }, i) => (chosen.includes(number) ? [i] : [])) } : {};
  return {
    x: trials.map(x), y: trials.map(y), customdata: trials.map(({ number }) => number), mode: "markers",
    text: trials.map((trial) => aboutTrial(sweep, trial)), hovertemplate: "%{text}<extra></extra>",
    unselected: { marker: { opacity: 0.15 } }, ...own, ...more, marker: { size: trials.length > BARS ? 5 : 8, ...more.marker },
  };
}

const bars = (trials, measure) => ({
  type: "data", array: trials.map((trial) => 2 * (measure.error(trial) ?? 0)), thickness: 1, width: 2, visible: trials.length <= BARS,
});

// Trials with a value, by what became of them: a name and a symbol for each kind.
function kindsOf(sweep, measure) {
  const known = sweep.trials.filter((trial) => Number.isFinite(measure.of(trial)));
  const kinds = [
    ["complete", "circle", known.filter((trial) => trial.state === "complete" && !trial.infeasible)],
    ["violates a constraint", "circle-open", known.filter((trial) => trial.infeasible)],
    ["stopped early", "triangle-down-open", known.filter((trial) => trial.state === "stopped early")],
  ];
  return kinds.filter(([, , trials]) => trials.length);
}

function floorLine({ floor }, x) {
  const ends = [Math.min(...x), Math.max(...x)];
  return floor === null || !x.length ? [] : [{
    x: ends, y: [floor[0], floor[0]], mode: "lines", name: floor[1], line: { color: "gray", dash: "dash", width: 1.5 },
    hovertemplate: `${escaped(floor[1])}: ${shortNumber(floor[0])}<extra></extra>`,
  }];
}

// The value of every trial with the best so far, of further sweeps, too.
function historyFigure(sweep, others, k) {
  const data = [], values = [], numbers = [];
  for (const [i, each] of [sweep, ...others].entries()) {
    const measure = measuresOf(each)[i ? 0 : k];
    const color = lines(i), prefix = others.length ? `${each.name}: ` : "";
    const done = each.trials.filter((trial) => isDone(trial, measure) && !trial.infeasible).sort((a, b) => a.number - b.number);
    let best = null;
    const so_far = done.map((trial) => (best = best === null || better(measure)(trial, best) < 0 ? trial : best));
    for (const [name, symbol, trials] of i ? [["trials", "circle", done]] : kindsOf(each, measure)) {
      const more = { name: escaped(prefix + name), marker: { color, symbol, opacity: i ? 0.35 : 0.8 }, error_y: bars(trials, measure) };
      const dots = points(each, trials, ({ number }) => number, measure.of, more);
      data.push(i ? { ...dots, selectedpoints: undefined, customdata: undefined, error_y: undefined } : dots);
      values.push(...dots.y);
      numbers.push(...dots.x);
    }
    if (done.length)
      data.push({
        x: [...done.map(({ number }) => number), Math.max(...each.trials.map(({ number }) => number))],
        y: [...so_far, best].map(measure.of), mode: "lines", line: { shape: "hv", color, width: 2 }, hoverinfo: "skip",
        name: escaped(`${prefix}best so far`),
      });
  }
  const measure = measuresOf(sweep)[k];
  const failed = sweep.trials.filter(({ state: is }) => is === "failed");
  if (failed.length)
    data.push(points(sweep, failed, ({ number }) => number, () => 0.02, {
      name: "failed", yaxis: "y2", marker: { symbol: "x", color: inks().orange },
    }));
  data.push(...floorLine(measure, numbers));
  return { data, layout: {
    xaxis: { title: { text: "trial" }, range: [-0.03, 1.03].map((place) => place * Math.max(...sweep.trials.map(({ number }) => number), 1)) }, yaxis: numberAxis(measure.name, [...values, ...(measure.floor ?? []).slice(0, 1)]),
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
  } };
}

function hypervolumeFigure({ hypervolume }) {
  const { numbers, values } = hypervolume;
  const line = { x: numbers, y: values, customdata: numbers, mode: "lines+markers", line: { shape: "hv", color: lines(0) }, marker: { size: 5 },
    hovertemplate: "%{y:.4g} after trial %{x}<extra></extra>" };
  return { data: [line], layout: { xaxis: { title: { text: "trial" } }, yaxis: { title: { text: "hypervolume" }, automargin: true, rangemode: "tozero" } } };
}

// The trials that no other one beats in both measures, in the order of the first.
function frontOf(sweep, x, y) {
  const both = sweep.trials.filter((trial) => isDone(trial, x) && isDone(trial, y) && !trial.infeasible);
  const found = [];
  for (const trial of both.sort((a, b) => better(x)(a, b) || better(y)(a, b)))
    if (!found.length || better(y)(trial, found.at(-1)) < 0) found.push(trial);
  return found;
}

// One measure against another, with the Pareto front.
function frontFigure(sweep, others, x, y) {
  const data = [], all = [[], []];
  for (const [i, each] of [sweep, ...others].entries()) {
    const [across, up] = [x, y].map(({ name }) => measuresOf(each).find((measure) => measure.name === name));
    if (!across || !up) continue;
    const color = lines(i), prefix = others.length ? `${each.name}: ` : "";
    const front = frontOf(each, across, up);
    for (const [name, symbol, trials] of kindsOf(each, up)) {
      const error_x = bars(trials, across);
      const dots = points(each, trials, across.of, up.of, {
        name: escaped(prefix + name), error_y: bars(trials, up), error_x: { ...error_x, visible: error_x.visible && error_x.array.some(Boolean) },
        marker: { color, symbol, opacity: 0.75, size: trials.map((trial) => (front.includes(trial) ? 10 : trials.length > BARS ? 5 : 7)) },
      });
      data.push(i ? { ...dots, selectedpoints: undefined, customdata: undefined } : dots);
      all[0].push(...dots.x);
      all[1].push(...dots.y);
    }
    data.push({ x: front.map(across.of), y: front.map(up.of), mode: "lines", line: { shape: "hv", color, width: 2 }, hoverinfo: "skip", name: escaped(`${prefix}Pareto front`) });
  }
  data.push(...floorLine(y, all[0].filter(Number.isFinite)));
  return { data, layout: { xaxis: numberAxis(x.name, all[0]), yaxis: numberAxis(y.name, [...all[1], ...(y.floor ?? []).slice(0, 1)]) } };
}

function importanceFigure({ parameters, objectives }) {
  const order = [...parameters].filter((each) => each.importances.some((share) => share !== null))
    .sort((a, b) => (a.importances[0] ?? 0) - (b.importances[0] ?? 0));
  const names = order.map(({ name }, i) => `${i}${name}`); // categories that differ even where their titles do not
  const data = objectives.map(({ name }, k) => ({
    type: "bar", orientation: "h", y: names, x: order.map((each) => each.importances[k]), name: escaped(clipped(name, 40)),
    customdata: order.map((each) => escaped(each.name)), marker: { color: lines(k) },
    hovertemplate: `%{customdata}: %{x:.1%}<extra></extra>`,
  }));
  const yaxis = { tickvals: names, ticktext: order.map(({ title }) => escaped(clipped(title, 22))), automargin: true };
  return { data, layout: { xaxis: { title: { text: "importance" }, tickformat: ".0%", rangemode: "tozero" }, yaxis, barmode: "group" } };
}

// The measure against one parameter: a line for each combination of the others if these are few.
function sliceFigure(sweep, others, p, k) {
  const parameter = sweep.parameters[p], measure = measuresOf(sweep)[k];
  const known = rankedBy(sweep, measure).filter((trial) => trial.settings[p] !== null);
  const groups = Map.groupBy(known, (trial) => sweep.parameters.map(({ title }, q) => (q === p || trial.settings[q] === null ? [] : `${title}=${brief(trial.settings[q])}`)).flat().join(", "));
  const joined = groups.size <= 12 && groups.size < known.length;
  const texts = parameter.texts;
  const place = (trial) => (texts ? texts.indexOf(trial.settings[p]) + (((trial.number * 0.618) % 1) - 0.5) / 2 : trial.settings[p]); // which keeps points apart
  const data = [...(joined ? groups : [["trials", known]])].map(([name, trials], i) => {
    const members = texts ? trials : [...trials].sort((a, b) => a.settings[p] - b.settings[p]);
    const color = lines(i);
    const errors = { ...bars(members, measure), visible: known.length <= BARS };
    const more = { name: escaped(clipped(name || "trials", 40)), mode: joined && !texts ? "lines+markers" : "markers", marker: { color, symbol: SYMBOLS[Math.floor(i / 6)] }, line: { width: 1.5, color } };
    return texts ? points(sweep, members, measure.of, place, { ...more, error_x: errors })
      : points(sweep, members, place, measure.of, { ...more, error_y: errors });
  });
  const own = numberAxis(measure.name, known.map(measure.of));
  if (texts) {
    const yaxis = { title: { text: escaped(clipped(parameter.title, 40)) }, automargin: true, tickvals: texts.map((_, i) => i), ticktext: texts.map((text) => escaped(brief(text, innerWidth < 640 ? 14 : 28))) };
    return { data, layout: { xaxis: own, yaxis } };
  }
  for (const [i, other] of others.entries()) {
    const q = other.parameters.findIndex(({ name, texts: choices }) => name === parameter.name && !choices);
    if (q < 0) continue;
    const theirs = rankedBy(other, measuresOf(other)[0]).filter((trial) => trial.settings[q] !== null);
    const color = lines(i + 1);
    data.push({ ...points(other, theirs, (trial) => trial.settings[q], (trial) => trial.values[0], { name: escaped(other.name), marker: { color, symbol: "x", opacity: 0.6 } }), selectedpoints: undefined, customdata: undefined });
  }
  return { data, layout: { xaxis: numberAxis(parameter.title, data.flatMap(({ x }) => x)), yaxis: own } };
}

// The places of a parameter's values on an axis of a map: its choices, its few numbers, or bins of equal width.
function placesOf(sweep, known, p) {
  const { title, texts } = sweep.parameters[p];
  const values = unique(known.map((trial) => trial.settings[p])).sort((a, b) => (texts ? texts.indexOf(a) - texts.indexOf(b) : a - b));
  if (texts || values.length <= FEW)
    return { title, bins: values.map((value) => escaped(brief(value, 18))), of: (trial) => values.indexOf(trial.settings[p]), numbers: false };
  const wide = isWide(values, 20), scaled = wide ? Math.log10 : Number, back = wide ? (x) => 10 ** x : Number;
  const [low, high] = [scaled(values[0]), scaled(values.at(-1))];
  const count = Math.min(BINS, values.length), width = (high - low) / (count - 1);
  return {
    title, wide, numbers: true, of: (trial) => Math.round((scaled(trial.settings[p]) - low) / width),
    bins: Array.from({ length: count }, (_, i) => back(low + i * width)),
  };
}

// The measure over two parameters, the best over all others: contours between many numbers, else a heat map.
function mapFigure(sweep, p, q, k) {
  const measure = measuresOf(sweep)[k];
  const known = rankedBy(sweep, measure).filter((trial) => trial.settings[p] !== null && trial.settings[q] !== null);
  const [across, up] = [p, q].map((each) => placesOf(sweep, known, each));
  const cells = up.bins.map(() => across.bins.map(() => null));
  for (const trial of known) cells[up.of(trial)][across.of(trial)] ??= trial; // the best first
  const best = cells.flat().filter(Boolean), values = best.map(measure.of);
  const scaled = isWide(values) ? Math.log10 : Number;
  const contour = across.numbers && up.numbers && best.length >= 12;
  const dense = across.numbers || up.numbers || cells.length * cells[0].length > 64;
  const ticks = numberAxis("", values).tickvals;
  const common = {
    x: across.bins, y: up.bins, z: cells.map((row) => row.map((trial) => (trial ? scaled(measure.of(trial)) : null))),
    colorscale: shades(), reversescale: measure.maximize,
    colorbar: { thickness: 12, title: { text: escaped(clipped(measure.name, 30)), side: "right" }, ...(ticks ? { tickvals: ticks.map(scaled), ticktext: ticks.map(shortNumber) } : {}) },
    text: cells.map((row) => row.map((trial) => (trial ? withError(measure.of(trial), measure.error(trial)) : ""))),
    customdata: cells.map((row) => row.map((trial) => trial?.number ?? null)),
  };
  const data = contour
    ? [{ ...common, type: "contour", connectgaps: true, text: undefined, customdata: undefined, hoverinfo: "skip", line: { width: 0.5 }, ncontours: 12 },
       points(sweep, known, (trial) => trial.settings[p], (trial) => trial.settings[q], { name: "trials", showlegend: false, marker: { size: known.length > BARS ? 3 : 6, color: paint("page"), line: { color: paint("text"), width: known.length > BARS ? 0.5 : 1.5 } } })]
    : [{ ...common, type: "heatmap", hovertemplate: "%{text}, trial %{customdata}<extra></extra>", xgap: 1, ygap: 1, ...(dense || innerWidth < 640 ? {} : { texttemplate: "%{text}" }) }];
  const axis = ({ title, numbers, bins }) => (numbers && contour ? { ...numberAxis(title, bins, 20) }
    : { title: { text: escaped(clipped(title, 40)) }, type: "category", automargin: true, nticks: 12,
      ...(numbers ? { tickvals: bins, ticktext: bins.map(shortNumber) } : {}) });
  return { data, layout: { xaxis: axis(across), yaxis: axis(up) } };
}

// A line per trial through its settings and results; dragging along an axis selects trials.
function parallelFigure(sweep, k) {
  const measures = measuresOf(sweep), measure = measures[k];
  const ranked = rankedBy(sweep, measure).reverse(); // the best is drawn last, on top
  const dimension = (title, values, texts, ratio = 20) => {
    const axis = numberAxis("", values, ratio), scaled = axis.type ? Math.log10 : Number;
    const label = escaped(clipped(title, 16));
    if (texts) {
      const marked = texts.map((_, i) => i).filter((i) => i % Math.ceil(texts.length / 14) === 0);
      return { label, values, range: [-0.5, texts.length - 0.5], tickvals: marked, ticktext: marked.map((i) => escaped(brief(texts[i], 14))) };
    }
    const ticks = axis.tickvals?.filter((tick) => tick >= Math.min(...values) && tick <= Math.max(...values)) ?? [];
    return { label, values: values.map(scaled), ...(ticks.length > 1 ? { tickvals: ticks.map(scaled), ticktext: ticks.map(shortNumber) } : {}) };
  };
  const { trials: chosen } = state.sweep;
  const trial = { ...dimension("trial", ranked.map(({ number }) => number), null, Infinity), ...(chosen.length ? { constraintrange: chosen.map((n) => [n - 0.4, n + 0.4]) } : {}) };
  const settings = sweep.parameters.map(({ title, texts }, p) => {
    const values = ranked.map((each) => each.settings[p]);
    const absent = values.includes(null);
    if (!texts && !absent) return dimension(title, values);
    const names = texts ?? unique(values.filter((value) => value !== null)).sort((a, b) => a - b).map(shortNumber);
    const all = absent ? ["–", ...names] : names;
    return dimension(title, values.map((value) => (value === null ? 0 : all.indexOf(texts ? value : shortNumber(value)))), all);
  });
  const results = measures.filter(({ of }) => ranked.every((each) => Number.isFinite(of(each))));
  const color = ranked.map((_, i) => -i); // the rank, which an outlier does not compress
  return { data: [{
    type: "parcoords", dimensions: [trial, ...settings, ...results.map(({ name, of }) => dimension(name, ranked.map(of)))],
    line: { color, colorscale: shades(), cmin: 1 - ranked.length, cmax: 0, showscale: false }, labelside: "top",
    unselected: { line: { color: paint("line"), opacity: chosen.length ? 0.1 : 0.25 } },
    meta: { numbers: ranked.map(({ number }) => number) }, uirevision: chosen.join(),
  }], layout: { margin: { l: 40, r: 40, t: 60, b: 30 } } };
}

const STATES = { complete: "blue", "stopped early": "yellow", failed: "orange", running: "green", interrupted: "pink" };
const singles = (sweep) => sweep.trials.flatMap((trial) => (trial.members ?? [trial]).map((each) => [each, trial]));

// When which worker ran which trial.
function timelineFigure(sweep) {
  const known = singles(sweep).filter(([each]) => each.started !== undefined).sort(([a], [b]) => a.started - b.started);
  const workers = unique(known.map(([each]) => each.worker || "unknown"));
  const latest = Math.max(...known.map(([each]) => each.started + (each.seconds ?? 0)));
  const lasted = ([each]) => each.seconds ?? Math.max((each.state === "running" ? state.data.made : latest) - each.started, 0);
  const { trials: chosen } = state.sweep;
  const data = Object.entries(STATES).map(([name, color]) => {
    const own = known.filter(([each]) => each.state === name);
    return {
      type: "bar", orientation: "h", name, marker: { color: inks()[color], line: { color: paint("page"), width: 1 } },
      base: own.map(([each]) => each.started * 1000), x: own.map((each) => lasted(each) * 1000), y: own.map(([each]) => each.worker || "unknown"),
      customdata: own.map(([, trial]) => trial.number), unselected: { marker: { opacity: 0.2 } },
      ...(chosen.length ? { selectedpoints: own.flatMap(([, { number }], i) => (chosen.includes(number) ? [i] : [])) } : {}),
      text: own.map((pair) => `${aboutTrial(sweep, pair[1])}<br>${shortNumber(lasted(pair))} s`), textposition: "none", hovertemplate: "%{text}<extra></extra>",
    };
  }).filter(({ x }) => x.length);
  const yaxis = { type: "category", categoryarray: workers, automargin: true, tickvals: workers, ticktext: workers.map((name) => escaped(clipped(name, 18))) };
  return { data, layout: { barmode: "overlay", xaxis: { type: "date" }, yaxis } };
}

const runOf = (trial) => state.data.runs.find(({ name }) => name === trial.run);

// The curves of the trials that train; a cross ends those that early termination has stopped.
function curvesOf(sweep, k) {
  const { name } = sweep.objectives[k];
  return singles(sweep).flatMap(([each, trial]) => {
    const curve = runOf(each)?.curves?.[name];
    return curve?.values.length ? [[each, trial, curve]] : [];
  });
}

function curvesFigure(sweep, k) {
  const found = curvesOf(sweep, k), measure = measuresOf(sweep)[k];
  const order = new Map(rankedBy(sweep, measure).map((trial, i, all) => [trial.number, all.length > 1 ? i / (all.length - 1) : 0]));
  const scale = SHADES[theme()];
  const { trials: chosen } = state.sweep;
  const data = found.map(([each, trial, curve]) => {
    const color = order.has(trial.number) ? scale[Math.round(order.get(trial.number) * (scale.length - 1))] : "gray";
    const ended = curve.values.map((_, i) => (each.state !== "complete" && i === curve.values.length - 1 ? "x" : "circle"));
    return {
      x: curve.steps, y: curve.values, mode: "lines+markers", line: { color, width: 1.5 }, marker: { symbol: ended, size: ended.map((symbol) => (symbol === "x" ? 9 : 4)), color },
      opacity: chosen.length && !chosen.includes(trial.number) ? 0.15 : 1, name: escaped(`trial ${each.number}`), showlegend: false,
      customdata: curve.values.map(() => trial.number), text: curve.values.map(() => aboutTrial(sweep, trial)),
      hovertemplate: "%{y:.4g} at step %{x}<br>%{text}<extra></extra>",
    };
  });
  return { data: data.reverse(), layout: { xaxis: { title: { text: "training steps" } }, yaxis: numberAxis(measure.name, found.flatMap(([, , { values }]) => values)) } };
}
