// The figures per noise level: losses, and Langevin dynamics; of one run, or of all that are shown at their last step.
const LEVEL = /^val\/(excess_loss|loss)_(train|held_out)\/([-+.\deE]+)$/;
const NOISE = "noise level sigma/alpha";
const NOTES = {
  levels: "Loss is 1/2 E||sigma s + z||^2, with weight sigma^2; the excess loss is its difference from the loss of the training data's exact score.",
  langevin: "A variance ratio above 1 means remaining noise, or noise from too large a step; below 1 it means lost diversity.",
};
// Langevin dynamics: a title, the quantity of each run, and the one it is compared with.
const QUANTITIES = [
  ["step size e (squared units)", "step_size", null],
  ["signal-to-noise ratio of a step", "snr", null],
  ["root mean square of samples; gray: of data with the noise", "sample_norm", "data_norm"],
  ["root mean square of sigma x score", "score_norm", null],
  ["variance ratio after the level; gray: recursion of technique 4", "variance_ratio", "predicted_ratio"],
];

// The runs that a section can show, and the chosen one; null: all.
function havingLevels(id) {
  const having = state.data.runs.filter((run) => (id === "langevin" ? run.langevin.length : levelsOf(run).length));
  const on = runsShown().filter((run) => having.includes(run));
  const chosen = having.find(({ name }) => name === state.run[id]) ?? (on.length === 1 ? on[0] : null);
  return { having, on, chosen };
}

function showLevels(id) {
  const section = byId(id);
  const { having, on, chosen } = havingLevels(id);
  section.hidden = having.length === 0;
  if (changedKey(section, having.map(({ name }) => name))) {
    forget(section);
    const options = [["", "all shown, at their last step"], ...having.map(({ name }) => [name, shortened(name, 60)])];
    const choose = choice("Run", options, chosen?.name ?? "", (name) => {
      state.run[id] = name;
      redraw();
    });
    section.append(make("div", { class: "body" }, make("div", { class: "tools" }, choose, make("span", { class: "stage" })),
      emptyLegend(), make("div", { class: "charts" }), make("p", { class: "note" }, NOTES[id])));
  }
  if (section.hidden) return;
  section.querySelector("select").value = chosen?.name ?? "";
  const place = section.querySelector(".charts");
  const wanted = id === "langevin" ? quantities() : [...new Set((chosen ? [chosen] : having).flatMap((run) => levelsOf(run).map(([title]) => title)))].sort();
  if (changedKey(place, [wanted, id === "levels" && chosen !== null])) {
    clear(place);
    for (const title of wanted) (id === "langevin" ? langevinChart : levelChart)(place, title);
  }
  if (id === "langevin") showStages(section.querySelector(".stage"), chosen);
  const lines = chosen ? [] : linesOf(on, () => [{ steps: [0], values: [0] }], levelOptions()); // with the looks of runs or groups
  section.querySelector(".legend").innerHTML = legendOf(lines);
}

// The curves of a run by noise level, by the kind of loss and the split.
const levelsOf = perRun((run) => {
  const found = new Map();
  for (const name of Object.keys(run.curves)) {
    const match = name.match(LEVEL);
    if (!match) continue;
    const title = `${match[1]}, ${match[2]} data`.replaceAll("_", " ");
    if (!found.has(title)) found.set(title, []);
    found.get(title).push([match[3], run.curves[name]]);
  }
  return [...found].map(([title, rows]) => [title, rows.sort(([a], [b]) => a - b)]);
});

// The losses per noise level: a map over training of the chosen run, or a line per run.
function levelChart(place, title) {
  const key = `levels ${title}`;
  const rowsOf = (run) => levelsOf(run).find(([name]) => name === title)?.[1];
  const { chosen } = havingLevels("levels");
  showChart(place, { key, title, limits: !chosen, make: () => {
    const { chosen } = havingLevels("levels");
    if (chosen) return heatOf(rowsOf(chosen) ?? [], title);
    const lines = linesOf(runsShown(), (run) => {
      const rows = rowsOf(run);
      return rows ? [{ steps: rows.map(([sigma]) => Number(sigma)), values: rows.map(([, { values }]) => values.at(-1)) }] : [];
    }, levelOptions());
    return lineFigure(title, lines, NOISE, { xLog: true, limits: state.limits[key] });
  } });
}

const levelOptions = () => ({ x: "steps", smoothing: "none", group: state.group, band: state.band });

// A heat map: noise levels over training steps; colors are in asinh if losses are far apart.
function heatOf(rows, title) {
  const steps = [...new Set(rows.flatMap(([, curve]) => curve.steps))].sort((a, b) => a - b);
  const cells = rows.map(([, curve]) => {
    const at = new Map(curve.steps.map((step, k) => [step, curve.values[k]]));
    return steps.map((step) => at.get(step) ?? null);
  });
  const [low, high] = extent(cells.flat().filter((value) => value !== null));
  const largest = Math.max(Math.abs(low), Math.abs(high));
  const far = largest > 3;
  const scaled = far ? Math.asinh : (value) => value;
  const ticks = [0, ...[0, 1, 2, 3, 4, 5, 6].flatMap((power) => [-(10 ** power), 10 ** power])].filter((tick) => tick >= low && tick <= high);
  const [cold, middle, hot] = state.dark ? ["#5aa9ff", "#20262e", "#ff7b5a"] : ["#2166ac", "#f4f4f4", "#b2182b"];
  const diverging = { colorscale: [[0, cold], [0.5, middle], [1, hot]], zmin: -scaled(largest), zmax: scaled(largest) };
  const about = `a map of ${rows.length} noise levels over ${steps.length} steps, from ${number(low)} to ${number(high)} nats`;
  return {
    kind: "map", sentence: `${title}: ${Number.isFinite(low) ? about : "no finite values"}.`,
    data: [{
      type: "heatmap", x: steps.map(String), y: rows.map(([sigma]) => sigma), customdata: cells,
      z: cells.map((row) => row.map((value) => (value === null ? null : scaled(value)))),
      colorbar: { title: { text: "nats" }, thickness: 12, ...(far ? { tickvals: ticks.map(scaled), ticktext: ticks.map((tick) => number(tick)) } : {}) },
      hovertemplate: "%{customdata:.4g} nats at sigma/alpha %{y}, step %{x}<extra></extra>",
      ...(title.startsWith("excess") ? diverging : { colorscale: "Viridis" }),
    }],
    layout: {
      xaxis: { title: { text: "training steps" }, type: "category", nticks: 6, automargin: true, tickangle: 0 },
      yaxis: { title: { text: "sigma/alpha" }, type: "category", nticks: 12, automargin: true },
    },
  };
}

const quantities = perData(() => QUANTITIES.filter(([, name]) => state.data.runs.some((run) => run.langevin.some((stage) => stage[name]))).map(([title]) => title));

// The dynamics of a run at the chosen step, or at its last one.
function stageOf(run, chosen) {
  const last = run.langevin.reduce((best, each) => (best && best.step > each.step ? best : each), null);
  return (chosen && run.langevin.find(({ step }) => String(step) === state.stage)) || last;
}

function showStages(place, run) {
  const steps = (run?.langevin ?? []).map(({ step }) => step).sort((a, b) => b - a);
  if (!changedKey(place, [run?.name, steps])) return;
  place.replaceChildren();
  if (steps.length < 2) return;
  place.append(choice("At step", steps.map((step) => [String(step), step.toLocaleString("en")]), String(stageOf(run, run).step), (step) => {
    state.stage = step;
    redrawCharts();
  }));
}

function langevinChart(place, title) {
  const [, quantity, compared] = QUANTITIES.find(([each]) => each === title);
  const key = `langevin ${quantity}`;
  showChart(place, { key, title, limits: true, make: () => {
    const { chosen } = havingLevels("langevin");
    const linesFor = (name) => linesOf(chosen ? [chosen] : runsShown(), (run) => {
      const stage = stageOf(run, chosen);
      return stage?.[name] ? [{ steps: stage.sigma, values: stage[name] }] : [];
    }, levelOptions());
    const lines = linesFor(quantity);
    const beside = compared && lines.length <= 8 ? linesFor(compared) : [];
    for (const line of beside) Object.assign(line, { id: "", name: `${line.name}, compared with`, look: { color: "gray", dash: "dash", symbol: "circle" } });
    return lineFigure(title, [...beside, ...lines], NOISE, { xLog: true, reversed: true, limits: state.limits[key] });
  } });
}
