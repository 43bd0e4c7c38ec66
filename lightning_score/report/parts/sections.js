// The sections of figures: measures, curves, losses per noise level, Langevin dynamics.
const LEVEL = /^val\/(excess_loss|loss)_(train|held_out)\/([-+.\deE]+)$/;
const OBJECTIVE = /(^|\/)loss(_step|_epoch)?$/; // losses that only runs of one objective share
const MOST_CHARTS = 24;
const CAPTIONS = {
  measures: "Two standard errors. Values in one figure have the same features, data, split and number of samples.",
  levels: "Loss is 1/2 E||sigma s + z||^2, with weight sigma^2; the excess loss is its difference from the loss of the training data's exact score.",
  langevin: "A variance ratio above 1 means remaining noise, or noise from too large a step; below 1 it means lost diversity.",
};

// The choices of all figures; those of the sections follow each other.
const OPTIONS = {
  x: ["Over", () => [["steps", "steps"], ["hours", "hours"], ["epochs", "epochs"]]],
  xScale: ["x axis", () => [["linear", "linear"], ["log", "logarithmic"]]],
  yScale: ["y axis", () => [["auto", "automatic"], ["linear", "linear"], ["log", "logarithmic"]]],
  smoothing: ["Smoothing", () => [["none", "none"], ["exponential", "exponential"], ["gaussian", "Gaussian"]]],
  group: ["Group by", () => groupings()],
  band: ["Band", () => [["t", "95 % t-interval of the mean"], ["range", "smallest to largest"]]],
};

function optionTools(names) {
  const tools = make("div", { class: "tools options" });
  for (const name of names) {
    const [label, options] = OPTIONS[name];
    const box = choice(label, options(), state[name], (value) => setOption(name, value));
    box.lastChild.dataset.option = name;
    tools.append(box);
    if (name === "smoothing") {
      const slider = make("input", { type: "range", min: 0.5, max: 30, step: 0.5, value: state.width, "data-option": "width", oninput: () => setOption("width", Number(slider.value)) });
      tools.append(make("label", { "data-needs": "smoothing" }, "over ", slider, make("output", {}, "")));
    }
    if (name === "band") box.dataset.needs = "group";
  }
  return tools;
}

function setOption(name, value) {
  state[name] = value;
  if (["x", "xScale"].includes(name)) for (const limits of Object.values(state.limits)) limits.x = undefined;
  showOptions();
  redraw();
}

// Brings the choices of all sections to what holds now.
function showOptions() {
  for (const field of document.querySelectorAll("[data-option]")) {
    if (field.value !== String(state[field.dataset.option])) field.value = state[field.dataset.option];
    if (field.dataset.option === "width") {
      field.nextElementSibling.textContent = ` ${state.width} % of the axis`;
      field.setAttribute("aria-valuetext", `${state.width} % of the axis`);
    }
  }
  for (const box of document.querySelectorAll("[data-needs=smoothing]")) box.hidden = state.smoothing === "none";
  for (const box of document.querySelectorAll("[data-needs=group]")) box.hidden = state.group === "";
}

// Check boxes for what a section shows, each a figure of its own.
function chooser(id, names, chosen) {
  const count = make("summary", {});
  const counted = () => (count.textContent = `${id === "measures" ? "Measures" : "Metrics"}: ${chosen.length} of ${names.length}`);
  counted();
  const boxes = names.map((name) => make("label", {}, make("input", {
    type: "checkbox", checked: chosen.includes(name), value: name,
    onchange: ({ target }) => {
      chosen = names.filter((each) => (each === name ? target.checked : chosen.includes(each)));
      state.metrics[id] = chosen;
      counted();
      redraw();
    },
  }), ` ${name}`));
  return make("details", { class: "chooser" }, count, make("div", {}, ...boxes));
}

// What each section can show, and what it shows at first.
const contents = {
  measures: perData(() => state.data.measures.map(({ label }) => label)),
  curves: perData(() => {
    const names = new Set(state.data.runs.flatMap((run) => Object.keys(run.curves)));
    const first = ["train/loss", "val/loss", "val/excess_loss_held_out", "val/excess_loss_train"].filter((name) => names.has(name));
    return [...first, ...[...names].filter((name) => !LEVEL.test(name) && !first.includes(name)).sort()];
  }),
};
const chosenOf = (id) => state.metrics[id]?.filter((name) => contents[id]().includes(name)) ?? contents[id]().slice(0, id === "measures" ? 1 : 4);

const runsShown = () => shownRuns().map(([run]) => run);

// The charts of a section: one per metric; losses of different objectives have one each.
function wantedCharts(id) {
  const runs = runsShown();
  if (id === "measures")
    return chosenOf(id).map((label) => ({ key: `measures ${label}`, title: label, text: CAPTIONS.measures, lines: () => measureLines(runsShown(), label), floors: state.data.measures.find((each) => each.label === label).floors }));
  return chosenOf(id).flatMap((metric) => {
    const objectives = OBJECTIVE.test(metric) ? [...new Set(runs.filter((run) => run.curves[metric]).map(({ objective }) => objective))] : [];
    if (objectives.length < 2) return [{ key: `curves ${metric}`, title: metric, text: "", lines: () => curveLines(runsShown(), metric) }];
    return objectives.map((objective) => ({
      key: `curves ${metric} ${objective}`, title: `${metric}: ${objective || "objective not known"}`,
      text: "Losses of other objectives are not comparable and have their own figures.",
      lines: () => curveLines(runsShown().filter((run) => run.objective === objective), metric),
    }));
  }).slice(0, MOST_CHARTS);
}

// A section whose figures share a legend.
function showLines(id) {
  const section = byId(id);
  forget(section);
  section.hidden = contents[id]().length === 0;
  if (section.hidden) return;
  const names = id === "measures" ? ["x", "xScale", "yScale", "group", "band"] : Object.keys(OPTIONS);
  const tools = optionTools(names);
  if (contents[id]().length > 1) tools.prepend(chooser(id, contents[id](), chosenOf(id)));
  section.append(make("div", { class: "body" }, tools, make("ul", { class: "legend", "aria-label": "Lines" }), make("div", { class: "charts" })));
  showOptions();
  fillLines(id);
}

// The charts of a section, new ones only if other ones are wanted.
function fillLines(id) {
  const section = byId(id);
  const place = section.querySelector(".charts");
  if (!place) return;
  const wanted = wantedCharts(id);
  if (place.dataset.keys !== JSON.stringify(wanted.map(({ key }) => key))) {
    for (const chart of place.querySelectorAll(".chart")) drop(chart);
    place.replaceChildren();
    place.dataset.keys = JSON.stringify(wanted.map(({ key }) => key));
    for (const { key, title, text, lines, floors } of wanted)
      showChart(place, { key, title, text, limits: true, make: () => lineFigure(title, lines(), OVER[state.x], { floors, limits: state.limits[key] }) });
  }
  section.querySelector(".legend").replaceChildren(...legendOf(wanted.flatMap(({ lines }) => lines())));
}

// The figures per noise level: of one run, or of all that are shown.
function showLevels(id) {
  const section = byId(id);
  forget(section);
  const having = state.data.runs.filter((run) => (id === "langevin" ? run.langevin.length : levelNames(run).length));
  section.hidden = having.length === 0;
  if (section.hidden) return;
  const place = make("div", { class: "body" });
  section.append(place);
  const on = having.filter(({ name }) => !state.off.has(name));
  const chosen = having.find(({ name }) => name === state.run[id]) ?? (on.length === 1 ? on[0] : null);
  const tools = make("div", { class: "tools" }, choice("Run", [["", "all shown, at their last step"], ...having.map(({ name }) => [name, name])], chosen?.name ?? "", (name) => {
    state.run[id] = name;
    showLevels(id);
  }));
  const legend = make("ul", { class: "legend", "aria-label": "Lines" });
  const grid = make("div", { class: "charts" });
  place.append(tools, legend, grid, make("p", { class: "note" }, CAPTIONS[id]));
  if (id === "langevin") langevinCharts(grid, tools, chosen);
  else if (chosen) for (const [title, rows] of levelsOf(chosen)) showChart(grid, { key: `levels ${title}`, title, make: () => heatOf(rows, title) });
  else levelCharts(grid);
  legend.hidden = chosen !== null;
  if (!chosen) legend.replaceChildren(...legendOf(shownRuns().map(([run]) => ({ id: run.name, name: run.name, label: shortened(run.name), look: look(run.order) })).filter(({ id }) => having.some(({ name }) => name === id))));
}

const levelNames = (run) => Object.keys(run.curves).filter((name) => LEVEL.test(name));

// The curves of a run by noise level, by the kind of loss and the split.
function levelsOf(run) {
  const found = new Map();
  for (const name of levelNames(run)) {
    const [, kind, split, sigma] = name.match(LEVEL);
    const title = `${kind}, ${split} data`.replaceAll("_", " ");
    if (!found.has(title)) found.set(title, new Map());
    found.get(title).set(sigma, run.curves[name]);
  }
  return [...found].sort(([a], [b]) => a.localeCompare(b)).map(([title, rows]) => [title, new Map([...rows].sort(([a], [b]) => a - b))]);
}

function levelCharts(grid) {
  const titles = [...new Set(state.data.runs.flatMap((run) => levelsOf(run).map(([title]) => title)))].sort();
  for (const title of titles) {
    const lines = () => linesOf(runsShown(), (run) => levelsOf(run).filter(([name]) => name === title).map(([, rows]) => ({
      steps: [...rows.keys()].map(Number), values: [...rows.values()].map(({ values }) => values.at(-1)),
    })), { x: "steps", smoothing: "none", group: state.group, band: state.band });
    const over = "noise level sigma/alpha";
    showChart(grid, { key: `levels ${title}`, title, limits: true, make: () => lineFigure(title, lines(), over, { xLog: true, limits: state.limits[`levels ${title}`] }) });
  }
}

// A heat map: noise levels over training steps; colors are in asinh if losses are far apart.
function heatOf(rows, title) {
  const steps = [...new Set([...rows.values()].flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const cells = [...rows.values()].map((curve) => {
    const at = new Map(curve.steps.map((step, k) => [step, curve.values[k]]));
    return steps.map((step) => at.get(step) ?? null);
  });
  const [low, high] = extent(cells.flat().filter((value) => value !== null));
  const largest = Math.max(Math.abs(low), Math.abs(high));
  const far = largest > 3;
  const scaled = far ? Math.asinh : (value) => value;
  const ticks = [0, ...[0, 1, 2, 3, 4, 5, 6].flatMap((power) => [-(10 ** power), 10 ** power])].filter((tick) => tick >= low && tick <= high);
  const middle = state.dark ? "#20262e" : "#f4f4f4";
  const diverging = { colorscale: [[0, state.dark ? "#5aa9ff" : "#2166ac"], [0.5, middle], [1, state.dark ? "#ff7b5a" : "#b2182b"]], zmin: -scaled(largest), zmax: scaled(largest) };
  return {
    kind: "map", sentence: Number.isFinite(low) ? `${title}: a map of ${rows.size} noise levels over ${steps.length} steps, from ${number(low)} to ${number(high)} nats.` : `${title}: no finite values.`,
    data: [{
      type: "heatmap", x: steps.map(String), y: [...rows.keys()], z: cells.map((row) => row.map((value) => value === null ? null : scaled(value))), customdata: cells,
      colorbar: { title: { text: "nats" }, thickness: 12, ...(far ? { tickvals: ticks.map(scaled), ticktext: ticks.map(number) } : {}) },
      hovertemplate: "%{customdata:.4g} nats at sigma/alpha %{y}, step %{x}<extra></extra>",
      ...(title.startsWith("excess") ? diverging : { colorscale: "Viridis" }),
    }],
    layout: {
      xaxis: { title: { text: "training steps" }, type: "category", nticks: 6, automargin: true, tickangle: 0 },
      yaxis: { title: { text: "sigma/alpha" }, type: "category", nticks: 12, automargin: true },
    },
  };
}

// Langevin dynamics: a title, the quantity of each run, and the one it is compared with.
const QUANTITIES = [
  ["step size e (squared units)", "step_size", null], ["signal-to-noise ratio of a step", "snr", null],
  ["root mean square of samples; dashed: of data with the noise", "sample_norm", "data_norm"],
  ["root mean square of sigma x score", "score_norm", null],
  ["variance ratio after the level; dashed: recursion of technique 4", "variance_ratio", "predicted_ratio"],
];

function langevinCharts(grid, tools, chosen) {
  if (chosen && chosen.langevin.length > 1) {
    const steps = chosen.langevin.map(({ step }) => step).sort((a, b) => b - a);
    const at = steps.includes(Number(state.view.langevin)) ? state.view.langevin : steps[0];
    tools.append(choice("At step", steps.map((step) => [String(step), step.toLocaleString("en")]), String(at), (step) => {
      state.view.langevin = step;
      redraw();
    }));
  }
  const stageOf = (run) => run.langevin.find(({ step }) => chosen && String(step) === String(state.view.langevin)) ??
    run.langevin.reduce((last, each) => (!last || each.step > last.step ? each : last), null);
  for (const [title, quantity, compared] of QUANTITIES) {
    const linesFor = (name) => linesOf(chosen ? [chosen] : runsShown(), (run) => {
      const stage = stageOf(run);
      return stage?.[name] ? [{ steps: stage.sigma, values: stage[name] }] : [];
    }, { x: "steps", smoothing: "none", group: chosen ? "" : state.group, band: state.band });
    const key = `langevin ${quantity}`;
    if (!state.data.runs.some((run) => stageOf(run)?.[quantity])) continue;
    showChart(grid, { key, title, limits: true, make: () => {
      const lines = linesFor(quantity);
      const beside = compared && lines.length <= 8 ? linesFor(compared) : [];
      for (const line of beside) Object.assign(line, { name: `${line.name}, compared with`, look: { color: "gray", dash: "dash", symbol: "circle" } });
      return lineFigure(title, [...lines, ...beside], "noise level sigma/alpha", { xLog: true, reversed: true, limits: state.limits[key] });
    } });
  }
}

const SECTIONS = { measures: showLines, curves: showLines, levels: showLevels, langevin: showLevels };

function showFigures() {
  for (const [id, show] of Object.entries(SECTIONS)) show(id);
}

// After runs were switched, or another option chosen.
function redraw() {
  for (const id of ["measures", "curves"]) fillLines(id);
  for (const id of ["levels", "langevin"]) showLevels(id);
  redrawCharts();
}
