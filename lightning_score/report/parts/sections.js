// The sections of measures and curves: their choices, legends and charts.
const OBJECTIVE = /(^|\/)loss(_step|_epoch)?$/; // losses that only runs of one objective share
const MOST_CHARTS = 24;
const ALIKE = "Two standard errors. Values in one figure have the same features, data, split and number of samples.";

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
const available = {
  measures: perData(() => state.data.measures.map(({ label }) => label)),
  curves: perData(() => {
    const names = new Set(state.data.runs.flatMap((run) => Object.keys(run.curves)));
    return [...usual(names), ...[...names].filter((name) => !LEVEL.test(name) && !usual(names).includes(name)).sort()];
  }),
};
const usual = (names) => ["train/loss", "val/loss", "val/excess_loss_held_out", "val/excess_loss_train"].filter((name) => new Set(names).has(name));

function chosenOf(id) {
  const names = available[id]();
  const chosen = state.metrics[id]?.filter((name) => names.includes(name));
  return chosen ?? (id === "curves" && usual(names).length ? usual(names) : names.slice(0, names[0]?.startsWith("sliced_wasserstein") ? 3 : 1));
}

const runsShown = () => shownRuns().map(([run]) => run);

// The charts of a section: one per metric; losses of different objectives have one each.
function wantedCharts(id) {
  const runs = runsShown();
  const wanted = (key, title, text, compute) => {
    let lines = null;
    return { key, title, text, lines: () => (lines ??= compute()) };
  };
  if (id === "measures") return chosenOf(id).map((label) => wanted(`measures ${label}`, label, ALIKE, () => measureLines(runs, label)));
  return chosenOf(id).flatMap((metric) => {
    const having = runs.filter((run) => run.curves[metric]);
    const objectives = OBJECTIVE.test(metric) ? [...new Set(having.map(({ objective }) => objective))].sort() : [];
    const thinned = having.filter((run) => run.curves[metric].means);
    const note = thinned.length ? `The curves of ${thinned.length} runs are thinned to at most ${Math.max(...thinned.map((run) => run.curves[metric].steps.length))} points, which include their extremes.` : "";
    if (objectives.length < 2) return [wanted(`curves ${metric}`, metric, note, () => curveLines(having, metric))];
    const text = "Losses of other objectives are not comparable and have their own figures.";
    return objectives.map((objective) => wanted(`curves ${metric} ${objective}`, `${metric}: ${objective || "other objective"}`, `${text} ${note}`,
      () => curveLines(having.filter((run) => run.objective === objective), metric)));
  });
}

// Shows the figures of a section; what stays the same is not made anew, so that the focus and what is open stay.
function showLines(id) {
  const section = byId(id);
  const names = available[id]();
  section.hidden = names.length === 0;
  if (changedKey(section, [names, groupings()])) {
    forget(section);
    const tools = optionTools(Object.keys(OPTIONS).filter((name) => id !== "measures" || name !== "smoothing"));
    if (names.length > 1) tools.prepend(chooser(id, names, chosenOf(id)));
    section.append(make("div", { class: "body" }, tools, emptyLegend(), make("div", { class: "charts" })));
    showOptions();
  }
  const wanted = new Map(wantedCharts(id).map((each) => [each.key, each]));
  latest[id] = wanted;
  const place = section.querySelector(".charts");
  if (changedKey(place, [...wanted.keys()])) {
    clear(place);
    for (const [key, { title, text }] of wanted)
      showChart(place, { key, title, text, limits: true, make: () => {
        const floors = id === "measures" ? state.data.measures.find(({ label }) => label === title).floors : [];
        return lineFigure(title, latest[id].get(key).lines(), OVER[state.x], { floors, limits: state.limits[key] });
      } });
  }
  section.querySelector(".legend").innerHTML = legendOf([...wanted.values()].flatMap(({ lines }) => lines()));
}
const latest = {};

// Whether an element was made for something else than what is wanted now.
function changedKey(element, key) {
  const text = JSON.stringify(key);
  const changed = element.dataset.made !== text;
  element.dataset.made = text;
  return changed;
}

// Shows all figures of runs; also after runs were switched, or another option chosen.
function redraw() {
  for (const id of ["measures", "curves"]) showLines(id);
  for (const id of ["levels", "langevin"]) showLevels(id);
  redrawCharts();
}
