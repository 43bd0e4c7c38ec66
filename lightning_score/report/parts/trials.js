// Trials of a sweep as points: what they measure, their tooltips, and the figures of points.
const BARS = 150; // trials with error bars; more would cover each other

const inked = (i) => look(i).color;
const paint = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const distinct = (values) => [...new Set(values)];
const isKnown = (value) => value !== null && value !== undefined;
const isWide = (values, ratio = 4) => values.length > 0 && extent(values)[0] > 0 && extent(values)[1] > ratio * extent(values)[0];
// A setting: a number with three digits, or a text with classes without their modules.
const setting = (value, most = 28) => (typeof value === "number" ? short(value) : shortened((value ?? "").replace(/\b(\w+\.)+(?=[A-Z])/g, ""), most));
const label = (text, most) => plotText(setting(text, most));

// An axis of numbers, logarithmic where they are wide.
function numberAxis(title, values, ratio = 4) {
  const known = values.filter(Number.isFinite);
  return axisOf(shortened(title, 40), isWide(known, ratio), extent(known));
}

// What a figure can have on an axis: the objectives, network evaluations and seconds.
function measuresOf(sweep) {
  const found = sweep.objectives.map(({ name, maximize, floor }, k) => ({
    name, maximize, floor, of: (trial) => trial.values[k], error: (trial) => trial.errors[k],
  }));
  const more = [["network evaluations", "nfe"], ["seconds", "seconds"]].map(([name, key]) => ({
    name, maximize: false, floor: null, of: (trial) => trial[key], error: () => null,
  }));
  return [...found, ...more.filter(({ of }) => distinct(sweep.trials.map(of)).filter(Number.isFinite).length > 1)];
}

const sameMeasure = (sweep, { name }) => measuresOf(sweep).find((each) => each.name === name);
const isDone = (trial, measure) => trial.state === "complete" && Number.isFinite(measure.of(trial));
const better = (measure) => (a, b) => (measure.maximize ? -1 : 1) * (measure.of(a) - measure.of(b));
const rankedBy = (sweep, measure) => sweep.trials.filter((trial) => isDone(trial, measure))
  .sort((a, b) => Boolean(a.infeasible) - Boolean(b.infeasible) || better(measure)(a, b));

// The lines of a trial's tooltip.
function aboutTrial(sweep, trial) {
  const results = sweep.objectives.map(({ name }, k) => `${name}: ${withErrors(trial.values[k], trial.errors[k]) || "no value"}`);
  const settings = sweep.parameters.map(({ title }, p) => `${title}=${setting(trial.settings[p], 60)}`);
  const reason = trial.state === "complete" ? [] : [`${trial.state}${trial.message ? `: ${trial.message}` : ""}`];
  const lines = [`trial ${trial.number}`, ...reason, ...results, ...(isKnown(trial.nfe) ? [`NFE ${short(trial.nfe)}`] : []), ...settings.slice(0, 12)];
  return lines.map((line) => plotText(shortened(line, 80))).join("<br>");
}

// The trace attributes that let the selected ones of some trials stand out.
function selectedOf(trials) {
  const { trials: chosen } = state.sweep;
  return {
    customdata: trials.map((trial) => trial.number), unselected: { marker: { opacity: 0.15 } },
    ...(chosen.length ? { selectedpoints: trials.flatMap((trial, i) => (chosen.includes(trial.number) ? [i] : [])) } : {}),
  };
}

// Points of trials; `x` and `y` are measures, or places without an error. Those of another sweep are not selected.
function points(sweep, trials, x, y, { other = false, total = trials.length, marker = {}, ...more }) {
  const errors = ({ error }) => {
    const { trials: chosen } = state.sweep;
    const array = trials.map((trial) => (chosen.length && !chosen.includes(trial.number) ? 0 : 2 * (error?.(trial) ?? 0)));
    return { type: "data", array, thickness: 1, width: 2, visible: !other && total <= BARS && array.some((each) => each > 0) };
  };
  return {
    x: trials.map(x.of), y: trials.map(y.of), error_x: errors(x), error_y: errors(y), mode: "markers",
    text: trials.map((trial) => aboutTrial(sweep, trial)), hovertemplate: "%{text}<extra>%{fullData.name}</extra>",
    ...(other ? {} : selectedOf(trials)), ...more, marker: { size: total > BARS ? 5 : 8, opacity: other ? 0.4 : 0.8, ...marker },
  };
}

// Trials with a value, by what became of them: a name and a symbol for each kind.
function kindsOf(sweep, measure) {
  const known = sweep.trials.filter((trial) => Number.isFinite(measure.of(trial)));
  const kinds = [
    ["complete", "circle", known.filter((trial) => trial.state === "complete" && !trial.infeasible)],
    ["violates a constraint", "circle-open", known.filter((trial) => trial.infeasible)],
    ["stopped early", "triangle-down-open", known.filter((trial) => trial.state === "stopped early")],
    ["not all seeds yet", "diamond-open", known.filter((trial) => !["complete", "stopped early"].includes(trial.state))],
  ];
  return kinds.filter(([, , trials]) => trials.length);
}

// The rows of a CSV file: trials with the settings of some parameters, by their places, and some measures.
const tableOfTrials = (sweep, trials, places, measures) => [
  ["trial", ...places.map((p) => sweep.parameters[p].name), ...measures.map(({ name }) => name)],
  ...trials.map((trial) => [trial.number, ...places.map((p) => trial.settings[p]), ...measures.map(({ of }) => of(trial))]),
];

const floorOfMeasure = ({ floor }, x) => (floor && x.length ? [floorOf({ value: floor[0], name: floor[1] }, extent(x))] : []);
const prefixOf = (sweep, others) => (others.length ? `${sweep.name}: ` : "");

// The value of every trial with the best so far; of other sweeps, too.
function historyFigure(sweep, others, k) {
  const data = [], measure = measuresOf(sweep)[k], place = { of: (trial) => trial.number };
  for (const [i, each] of [sweep, ...others].entries()) {
    const own = sameMeasure(each, measure), color = inked(i), prefix = prefixOf(each, others);
    if (!own) continue;
    for (const [name, symbol, trials] of kindsOf(each, own))
      data.push(points(each, trials, place, own, { other: i > 0, total: each.trials.length, name: plotText(prefix + name), marker: { color, symbol } }));
    const done = each.trials.filter((trial) => isDone(trial, own) && !trial.infeasible).sort((a, b) => a.number - b.number);
    let best = done[0];
    const sofar = done.map((trial) => (best = better(own)(trial, best) < 0 ? trial : best));
    if (done.length)
      data.push({
        x: [...done.map(place.of), Math.max(...each.trials.map(place.of))], y: [...sofar, best].map(own.of), mode: "lines",
        line: { shape: "hv", color, width: 2 }, hoverinfo: "skip", name: plotText(`${prefix}best so far`),
      });
  }
  const values = data.flatMap(({ y }) => y).concat(measure.floor?.[0] ?? []), numbers = data.flatMap(({ x }) => x);
  const failed = sweep.trials.filter((trial) => trial.state === "failed");
  if (failed.length) data.push(points(sweep, failed, place, { of: () => 0.02 }, { name: "failed", yaxis: "y2", marker: { symbol: "x", color: inked(1) } }));
  data.push(...floorOfMeasure(measure, numbers));
  const last = Math.max(1, ...numbers, ...failed.map(place.of));
  return { data, layout: {
    xaxis: { ...axisOf("trial"), range: [-0.03 * last, 1.03 * last] }, yaxis: numberAxis(measure.name, values),
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
  } };
}

function hypervolumeFigure({ hypervolume: { numbers, values } }) {
  return {
    data: [{ x: numbers, y: values, customdata: numbers, mode: "lines+markers", name: "hypervolume", line: { shape: "hv", color: inked(0) }, marker: { size: 5 },
      hovertemplate: "%{y:.4g} after trial %{x}<extra></extra>" }],
    layout: { xaxis: axisOf("trial"), yaxis: { ...axisOf("hypervolume"), rangemode: "tozero" } },
  };
}

// The trials that no other one beats in both measures, in the order of the first.
function frontOf(sweep, x, y) {
  const both = sweep.trials.filter((trial) => isDone(trial, x) && isDone(trial, y) && !trial.infeasible);
  const found = [];
  for (const trial of both.sort((a, b) => better(x)(a, b) || better(y)(a, b)))
    if (!found.length || better(y)(trial, found.at(-1)) < 0) found.push(trial);
  return found;
}

// One measure against another, with the Pareto front; of other sweeps that have both, too.
function frontFigure(sweep, others, x, y) {
  const data = [];
  for (const [i, each] of [sweep, ...others].entries()) {
    const [across, up] = [x, y].map((measure) => sameMeasure(each, measure));
    if (!across || !up) continue;
    const color = inked(i), prefix = prefixOf(each, others), front = frontOf(each, across, up), total = each.trials.length;
    for (const [name, symbol, trials] of kindsOf(each, up)) {
      const size = trials.map((trial) => (front.includes(trial) ? 11 : total > BARS ? 5 : 7));
      data.push(points(each, trials, across, up, { other: i > 0, total, name: plotText(prefix + name), marker: { color, symbol, size } }));
    }
    data.push({ x: front.map(across.of), y: front.map(up.of), mode: "lines", line: { shape: "hv", color, width: 2 }, hoverinfo: "skip", name: plotText(`${prefix}Pareto front`) });
  }
  const places = data.flatMap((trace) => trace.x).filter(Number.isFinite), values = data.flatMap((trace) => trace.y);
  data.push(...floorOfMeasure(y, places));
  const front = frontOf(sweep, x, y).map((trial) => `trial ${trial.number} (${short(x.of(trial))}, ${short(y.of(trial))})`);
  return {
    data, layout: { xaxis: numberAxis(x.name, places), yaxis: numberAxis(y.name, values.concat(y.floor?.[0] ?? [])) },
    sentence: `The Pareto front of ${x.name} and ${y.name} has ${front.length} trials: ${front.slice(0, 12).join(", ")}.`,
  };
}

function importanceFigure({ parameters, objectives }) {
  const known = parameters.filter(({ importances }) => importances.some(isKnown)).sort((a, b) => (a.importances[0] ?? 0) - (b.importances[0] ?? 0));
  const y = known.map(({ name }) => plotText(name));
  const data = objectives.map(({ name }, k) => ({
    type: "bar", orientation: "h", y, x: known.map(({ importances }) => importances[k]), name: label(name, 40), marker: { color: inked(k) },
    hovertemplate: "%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
  }));
  const shares = known.toReversed().map(({ title, importances }) => `${title} ${Math.round(100 * (importances[0] ?? 0))} %`);
  return {
    data, sentence: `Importance for ${objectives[0].name}: ${shares.join(", ")}.`,
    layout: { barmode: "group", xaxis: { ...axisOf("importance"), tickformat: ".0%", rangemode: "tozero" },
      yaxis: { ...axisOf(""), type: "category", tickvals: y, ticktext: known.map(({ title }) => label(title, 22)) } },
  };
}

// A measure against one parameter: lines for the combinations of the others if these are few.
function sliceFigure(sweep, others, p, k) {
  const { title, name: dotted, texts } = sweep.parameters[p], measure = measuresOf(sweep)[k];
  const known = rankedBy(sweep, measure).filter((trial) => isKnown(trial.settings[p]));
  const rest = (trial) => sweep.parameters.map((each, q) => (q === p || !isKnown(trial.settings[q]) ? "" : `${each.title}=${setting(trial.settings[q])}`)).filter(Boolean).join(", ");
  const groups = Map.groupBy(known, rest);
  const joined = groups.size <= 12 && groups.size < known.length;
  const jitter = (trial) => ((trial.number * 0.618) % 1 - 0.5) / 2; // which keeps the points of a choice apart
  const place = { of: (trial) => (texts ? texts.indexOf(trial.settings[p]) + jitter(trial) : trial.settings[p]) };
  const data = [...(joined ? groups : [["trials", known]])].map(([name, members], i) => {
    const trials = texts ? members : members.toSorted((a, b) => a.settings[p] - b.settings[p]), { color, symbol } = look(i);
    const more = { total: known.length, name: label(name || "trials", 40), mode: joined && !texts ? "lines+markers" : "markers", marker: { color, symbol }, line: { width: 1.5, color } };
    return texts ? points(sweep, trials, measure, place, more) : points(sweep, trials, place, measure, more);
  });
  const own = numberAxis(measure.name, known.map(measure.of));
  if (texts)
    return { data, table: tableOfTrials(sweep, known, [p], [measure]), layout: { xaxis: own, yaxis: { ...axisOf(shortened(title, 40)), tickvals: texts.map((_, i) => i), ticktext: texts.map((text) => label(text, narrow() ? 14 : 28)) } } };
  for (const [i, other] of others.entries()) {
    const q = other.parameters.findIndex((each) => each.name === dotted && !each.texts), theirs = sameMeasure(other, measure);
    if (q < 0 || !theirs) continue;
    const trials = rankedBy(other, theirs).filter((trial) => isKnown(trial.settings[q]));
    data.push(points(other, trials, { of: (trial) => trial.settings[q] }, theirs, { other: true, name: plotText(other.name), marker: { color: inked(i + groups.size), symbol: "x" } }));
  }
  return { data, layout: { xaxis: numberAxis(title, data.flatMap(({ x }) => x)), yaxis: numberAxis(measure.name, data.flatMap(({ y }) => y)) } };
}

const narrow = () => innerWidth < 640;
