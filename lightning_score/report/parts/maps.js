// Figures of all settings of trials: maps of two parameters, parallel coordinates, timeline and learning curves.
// Viridis without the end that is as dark, or as bright, as the page: the best trial has the strongest color.
const SHADES = { light: ["#440154", "#46327e", "#365c8d", "#277f8e", "#22a884"], dark: ["#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e"] };
const shades = () => SHADES[state.dark ? "dark" : "light"];
const colorscale = () => shades().map((color, i, all) => [i / (all.length - 1), color]);
const FEW = 8; // values of a parameter that are all marked
const BINS = 24;
const thinnedTo = (list, most) => list.filter((_, i) => i % Math.ceil(list.length / most) === 0);

// The places of a parameter's values on a map: its choices, its few numbers, or bins of equal width.
function binsOf(sweep, known, p) {
  const { title, texts } = sweep.parameters[p];
  const values = distinct(known.map((trial) => trial.settings[p])).sort((a, b) => (texts ? texts.indexOf(a) - texts.indexOf(b) : a - b));
  if (texts || values.length <= FEW) {
    const places = values.map((value, i) => (texts ? `${i}` : String(value)));
    return { title, places, of: (trial) => values.indexOf(trial.settings[p]), names: values.map((value) => label(value, narrow() ? 12 : 18)) };
  }
  const wide = isWide(values, 20), scaled = wide ? Math.log10 : Number;
  const [low, high] = extent(values).map(scaled), count = Math.min(BINS, values.length), width = (high - low) / (count - 1);
  const places = Array.from({ length: count }, (_, i) => (wide ? 10 ** (low + i * width) : low + i * width));
  return { title, places, of: (trial) => Math.round((scaled(trial.settings[p]) - low) / width), numbers: true };
}

// A measure over two parameters, the best over all others: contours between many numbers, else a heat map.
function mapFigure(sweep, p, q, k) {
  const measure = measuresOf(sweep)[k];
  const known = rankedBy(sweep, measure).filter((trial) => isKnown(trial.settings[p]) && isKnown(trial.settings[q]));
  const [across, up] = [p, q].map((each) => binsOf(sweep, known, each));
  const cells = up.places.map(() => across.places.map(() => null));
  for (const trial of known) cells[up.of(trial)][across.of(trial)] ??= trial; // the best comes first
  const best = cells.flat().filter(Boolean), values = best.map(measure.of), contour = across.numbers && up.numbers && best.length >= 12;
  const scaled = isWide(values) ? Math.log10 : Number, ticks = isWide(values) ? logTicks(...extent(values)) : {};
  const each = (of) => cells.map((row) => row.map((trial) => (trial ? of(trial) : null)));
  const common = {
    x: across.places, y: up.places, z: each((trial) => scaled(measure.of(trial))), customdata: each(measure.of), numbers: each((trial) => trial.number),
    colorscale: colorscale(), reversescale: measure.maximize, name: plotText(measure.name),
    colorbar: { thickness: 12, title: { text: label(measure.name, 30), side: "right" }, ...ticks, ...(ticks.tickvals ? { tickvals: ticks.tickvals.map(scaled) } : {}) },
  };
  const small = known.length > BARS;
  const data = contour
    ? [{ ...common, type: "contour", connectgaps: true, hoverinfo: "skip", line: { width: 0.5 }, ncontours: 12 },
      points(sweep, known, { of: (trial) => trial.settings[p] }, { of: (trial) => trial.settings[q] },
        { name: "trials", showlegend: false, marker: { size: small ? 3 : 6, color: paint("page"), line: { color: paint("text"), width: small ? 0.5 : 1.5 } } })]
    : [{ ...common, type: "heatmap", xgap: 1, ygap: 1, text: cells.map((row) => row.map((trial) => (trial ? withErrors(measure.of(trial), measure.error(trial)) : ""))), texttemplate: cells.flat().length > (narrow() ? 16 : 64) ? "" : "%{text}",
      hovertext: each((trial) => aboutTrial(sweep, trial)), hovertemplate: "%{hovertext}<extra></extra>", hoverongaps: false }];
  const axis = ({ title, numbers, places, names }) => {
    if (contour) return numberAxis(title, places, 20);
    const marked = thinnedTo(places.map((place, i) => [place, names?.[i] ?? short(place)]), numbers ? (narrow() ? 5 : 10) : 40);
    return { ...axisOf(shortened(title, 40)), type: "category", tickvals: marked.map(([place]) => place), ticktext: marked.map(([, name]) => name) };
  };
  return { data, table: tableOfTrials(sweep, best, [p, q], [measure]), layout: { xaxis: axis(across), yaxis: axis(up) }, kind: contour ? "contour" : "heat map" };
}

// One dimension of parallel coordinates: numbers, or places in a list of texts.
function dimensionOf(title, values, { texts = null, ratio = 20 } = {}) {
  if (texts) {
    const marked = thinnedTo(texts.map((_, i) => i), 14);
    return { label: label(title, 16), values, range: [-0.5, texts.length - 0.5], tickvals: marked, ticktext: marked.map((i) => label(texts[i], 14)) };
  }
  if (!isWide(values, ratio)) return { label: label(title, 16), values };
  const [low, high] = extent(values), { tickvals, ticktext } = logTicks(low, high), inside = tickvals.map((tick) => tick >= low && tick <= high);
  return { label: label(title, 16), values: values.map(Math.log10), tickvals: tickvals.filter((_, i) => inside[i]).map(Math.log10), ticktext: ticktext.filter((_, i) => inside[i]) };
}

// A line per trial through its settings and results; dragging along an axis selects trials.
function parallelFigure(sweep, k) {
  const measures = measuresOf(sweep), ranked = rankedBy(sweep, measures[k]), { trials: chosen } = state.sweep;
  const numbers = ranked.map((trial) => trial.number);
  const settings = sweep.parameters.map(({ title, texts }, p) => {
    const values = ranked.map((trial) => trial.settings[p]);
    if (!texts && values.every(isKnown)) return dimensionOf(title, values);
    const names = texts ?? distinct(values.filter(isKnown)).sort((a, b) => a - b);
    const all = values.every(isKnown) ? names : ["none", ...names];
    return dimensionOf(title, values.map((value) => (isKnown(value) ? all.indexOf(value) : 0)), { texts: all });
  });
  const results = measures.filter(({ of }) => ranked.every((trial) => Number.isFinite(of(trial))));
  return {
    data: [{
      type: "parcoords", numbers, uirevision: chosen.join(), labelside: "top",
      dimensions: [
        { ...dimensionOf("trial", numbers, { ratio: Infinity }), ...(chosen.length ? { constraintrange: chosen.map((each) => [each - 0.4, each + 0.4]) } : {}) },
        ...settings, ...results.map(({ name, of }) => dimensionOf(name, ranked.map(of))),
      ],
      line: { color: ranked.map((_, i) => i), colorscale: colorscale(), showscale: false }, // by rank, which an outlier does not compress
      unselected: { line: { color: paint("faint"), opacity: 0.15 } },
    }],
    table: tableOfTrials(sweep, ranked, [...sweep.parameters.keys()], results),
    layout: { margin: { l: 45, r: 45, t: 60, b: 30 } },
  };
}

const singles = (sweep) => sweep.trials.flatMap((trial) => (trial.members ?? [trial]).map((each) => [each, trial]));
const STATES = { complete: 0, "stopped early": 4, failed: 1, running: 2, interrupted: 6 }; // and their colors

// When which worker ran which trial.
function timelineFigure(sweep) {
  const known = singles(sweep).filter(([each]) => isKnown(each.started)).sort(([a], [b]) => a.started - b.started);
  const latest = Math.max(...known.map(([each]) => each.started + (each.seconds ?? 0)));
  const lasted = ([each]) => each.seconds ?? Math.max((each.state === "running" ? state.data.made : latest) - each.started, 0);
  const workers = distinct(known.map(([each]) => each.worker || "unknown"));
  const data = Object.entries(STATES).map(([name, color]) => {
    const own = known.filter(([each]) => each.state === name);
    return {
      type: "bar", orientation: "h", name, marker: { color: inked(color), line: { color: paint("page"), width: own.length > BARS ? 0 : 1 } },
      base: own.map(([each]) => each.started * 1000), x: own.map((pair) => lasted(pair) * 1000), y: own.map(([each]) => each.worker || "unknown"),
      ...selectedOf(own.map(([, trial]) => trial)), textposition: "none", hovertemplate: "%{text}<extra></extra>",
      text: own.map((pair) => `${aboutTrial(sweep, pair[1])}<br>${short(lasted(pair))} seconds`),
    };
  }).filter(({ x }) => x.length);
  const yaxis = { ...axisOf(""), type: "category", categoryarray: workers, tickvals: workers, ticktext: workers.map((name) => label(name, 18)) };
  const rows = known.map(([each]) => [each.number, each.worker, each.state, new Date(each.started * 1000).toISOString(), lasted([each])]);
  return { data, table: [["trial", "worker", "state", "started", "seconds"], ...rows], layout: { barmode: "overlay", xaxis: { ...axisOf(""), type: "date" }, yaxis } };
}

const runOf = (trial) => state.data.runs.find(({ name }) => name === trial.run);

// The curves of one objective of the trials that train.
function learned(sweep, k) {
  const { name } = sweep.objectives[k];
  return singles(sweep).map(([each, trial]) => [each, trial, runOf(each)?.curves?.[name]]).filter(([, , curve]) => curve?.values.length);
}

function learningFigure(sweep, k) {
  const found = learned(sweep, k), measure = measuresOf(sweep)[k], { trials: chosen } = state.sweep;
  const ranks = new Map(rankedBy(sweep, measure).map((trial, i, all) => [trial.number, i / Math.max(all.length - 1, 1)]));
  const data = found.map(([each, trial, { steps, values }]) => {
    const rank = ranks.get(trial.number), color = rank === undefined ? "gray" : shades()[Math.round(rank * (shades().length - 1))];
    const symbol = values.map((_, i) => (["complete", "running"].includes(each.state) || i < values.length - 1 ? "circle" : "x"));
    return {
      x: steps, y: values, mode: "lines+markers", line: { color, width: 1.5 }, marker: { symbol, color, size: symbol.map((sign) => (sign === "x" ? 9 : 4)) },
      opacity: chosen.length && !chosen.includes(trial.number) ? 0.15 : 1, name: `trial ${each.number}`, showlegend: false,
      customdata: steps.map(() => trial.number), hovertemplate: `%{y:.4g} at step %{x}<br>${aboutTrial(sweep, trial)}<extra></extra>`,
    };
  });
  return { data: data.reverse(), layout: { xaxis: axisOf("training steps"), yaxis: numberAxis(measure.name, found.flatMap(([, , { values }]) => values)) } };
}
