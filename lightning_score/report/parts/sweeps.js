// The section of sweeps: the list of all, the figures and the trials of one; what is selected stands out in all of them.
function showSweeps() {
  const section = byId("sweeps");
  forget(section);
  const { sweeps } = state.data;
  section.hidden = sweeps.length === 0;
  if (section.hidden) return;
  const place = make("div", { class: "body" });
  section.append(place);
  if (sweeps.length > 1) showSweepList(place);
  const sweep = sweeps.find(({ name }) => name === state.sweep.name) ?? sweeps[0];
  place.append(make("h3", { id: "sweep" }, sweep.name));
  if (sweep.problem) place.append(make("p", { class: "problem" }, `${sweep.name}: ${sweep.problem}.`));
  else {
    place.append(make("p", { class: "summary" }, sweep.summary));
    showSweepFigures(place, sweep);
    showTrials(place, sweep);
  }
  if (sweep.text)
    place.append(make("details", {}, make("summary", {}, "The sweep's file and summary"), make("pre", { tabindex: 0 }, sweep.text)));
}

// The best trial of a sweep by its first objective.
const bestOf = (sweep) => (sweep.problem ? undefined : rankedBy(sweep, measuresOf(sweep)[0]).find(({ infeasible }) => !infeasible));
const aimOf = ({ objectives }) => JSON.stringify([objectives?.[0].name, objectives?.[0].maximize]);

// The sweeps that are drawn over another one: those that are ticked and have its measure.
function overlaid(sweep) {
  return state.data.sweeps.filter((each) => each !== sweep && !each.problem && state.sweep.others.includes(each.name) && aimOf(each) === aimOf(sweep));
}

function showSweepList(place) {
  const { sweeps } = state.data;
  const shown = sweeps.find(({ name }) => name === state.sweep.name) ?? sweeps[0];
  const holder = make("div", { class: "table" });
  place.append(holder);
  const columns = [
    { title: "sweep" }, { title: "state" }, { title: "trials", number: true }, { title: "measure" }, ...errorColumns("best"), { title: "when", number: true },
    { title: "overlay", hint: "draws it over the sweep below, if it has the same measure" },
  ];
  const rows = sweeps.map((sweep, i) => {
    const best = bestOf(sweep);
    const when = sweep.when ? new Date(sweep.when * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" }) : "";
    return [[sweep.name, sweep.name], plainCell(sweep.state ?? "unreadable"), [sweep.ended ?? null, sweep.total === undefined ? "" : `${sweep.ended} of ${sweep.total}`],
      plainCell(sweep.objectives?.map(({ name }) => name).join(", ") ?? ""), ...errorCells(best?.values[0], best?.errors[0]), [sweep.when ?? null, when], [i, ""]];
  });
  const table = showTable("sweeps", holder, columns, rows, {
    sweep: (cell) => `<button type="button" class="run" ${cell[0] === shown.name ? 'aria-current="true"' : ""}>${escaped(cell[1])}</button>`,
    state: (cell) => `<span class="state ${escaped(cell[0])}">${escaped(cell[0])}</span>`,
    overlay: ([i]) => {
      const may = sweeps[i] !== shown && !sweeps[i].problem && aimOf(sweeps[i]) === aimOf(shown);
      return `<input type="checkbox" aria-label="overlay ${escaped(sweeps[i].name)}" ${may ? "" : "disabled"} ${may && state.sweep.others.includes(sweeps[i].name) ? "checked" : ""}>`;
    },
  });
  const nameAt = (target) => table.row(target.closest("tr")).data()[0][0];
  table.table().body().addEventListener("click", ({ target }) => {
    if (!target.closest("button.run")) return;
    Object.assign(state.sweep, { name: nameAt(target), trials: [] });
    delete state.tables.trials; // its filter was for the trials of another sweep
    showSweeps();
  });
  table.table().body().addEventListener("change", ({ target }) => {
    const name = nameAt(target);
    state.sweep.others = target.checked ? [...state.sweep.others, name] : state.sweep.others.filter((each) => each !== name);
    redrawCharts();
  });
}

const plainCell = (text) => [text, text];
const numberCell = (value) => [value ?? null, short(value)];
// A value with its errors, and these alone: columns of the second are hidden at first.
const errorCells = (value, error) => [[value ?? null, withErrors(value, error)], numberCell(isKnown(error) ? 2 * error : null)];
const errorColumns = (title) => [{ title, number: true, hint: "with two standard errors" }, { title: `${title} ± 2 s.e.`, number: true, hidden: true }];

// A figure of a sweep with its own choices, as [label, options, name, index of the one that is chosen at first].
function sweepFigure(place, sweep, { key, title, text, wide, width, choices = [], figure }) {
  const chart = showChart(place, {
    key: `sweep ${key}`, title, text, drawn: linked,
    tools: choices.length ? [make("span", { class: "tools" }, ...choices.map(([label, options, name, first]) =>
      choice(label, options, picked(name, options, first), (value) => {
        state.sweep.picked[name] = value;
        draw(chart);
      })))] : [],
    make: () => {
      const made = figure();
      const legend = made.data.filter(({ name, showlegend }) => name && showlegend !== false).length;
      const showlegend = legend > 1 && legend <= 14;
      const layout = { showlegend, legend: { orientation: "h", y: -0.18, yanchor: "top" }, dragmode: dragging(), selections: [], ...made.layout };
      return { sentence: `${title} of ${sweep.name}. ${text}`, kind: key, ...made, layout };
    },
  });
  chart.parentElement.classList.toggle("wide", Boolean(wide));
  if (!width) return;
  const frame = make("div", { class: "across", tabindex: 0, role: "group", "aria-label": title });
  chart.before(frame);
  chart.style.minWidth = width;
  frame.append(chart);
}

const dragging = () => (matchMedia("(pointer: coarse)").matches ? false : state.sweep.drag);

// What is chosen of some options [value, text]; without a choice that of an index.
function picked(name, options, first = 0) {
  const values = options.map(([value]) => value), chosen = state.sweep.picked[name];
  return values.includes(chosen) ? chosen : values[Math.min(first, values.length - 1)];
}

function showSweepFigures(place, sweep) {
  const grid = make("div", { class: "charts" });
  place.append(grid);
  const { parameters, objectives, trials, hypervolume } = sweep;
  const measures = measuresOf(sweep), done = rankedBy(sweep, measures[0]), others = () => overlaid(sweep);
  const add = (entry) => sweepFigure(grid, sweep, entry);
  const goals = objectives.map(({ name }) => [name, name]);
  const goal = (name) => objectives.findIndex((each) => each.name === picked(name, goals));
  const objective = (name) => (goals.length > 1 ? [["Objective", goals, name]] : []);
  if (trials.some(({ values }) => values.some(isKnown))) {
    const options = [...goals, ...(hypervolume ? [["hypervolume", "hypervolume"]] : [])];
    const seeds = trials.some(({ members }) => members) ? " Of several training seeds: the mean and its 95 % t-interval." : "";
    const volume = hypervolume ? ` Hypervolume: what the trials so far dominate up to (${hypervolume.reference.map(short).join(", ")}), the bounds of constraints or the worst values.` : "";
    add({
      key: "history", title: "History", text: `Every trial in the order of the queue with two standard errors, and the best so far.${seeds}${volume}`,
      choices: options.length > 1 ? [["Of", options, "history"]] : [],
      figure: () => (hypervolume && picked("history", options) === "hypervolume" ? hypervolumeFigure(sweep) : historyFigure(sweep, others(), goal("history"))),
    });
  } else grid.append(make("p", { class: "note" }, "No trial has a value yet."));
  if (measures.length > 1 && done.length > 1) {
    const options = measures.map(({ name }) => [name, name]);
    const measure = (name, first) => measures.find((each) => each.name === picked(name, options, first));
    add({
      key: "front", title: "Pareto front", text: "No trial is better than one of the front in both; two standard errors.",
      choices: [["Across", options, "front across", 1], ["Up", options, "front up"]],
      figure: () => frontFigure(sweep, others(), measure("front across", 1), measure("front up")),
    });
  }
  if (parameters.some(({ importances }) => importances.some(isKnown)))
    add({ key: "importance", title: "Importance", text: `Each parameter's share of the variance of the results, by ${sweep.method}.`, figure: () => importanceFigure(sweep) });
  const several = parameters.map((parameter, p) => ({ ...parameter, p })).filter(({ p }) => distinct(done.map(({ settings }) => settings[p])).filter(isKnown).length > 1);
  const options = several.sort((a, b) => (b.importances[0] ?? 0) - (a.importances[0] ?? 0)).map(({ name, title }) => [name, title]);
  const parameter = (name, first) => parameters.findIndex((each) => each.name === picked(name, options, first));
  if (options.length)
    add({
      key: "slice", title: "Slice", text: "The results against one parameter.", choices: [["Parameter", options, "slice"], ...objective("slice of")],
      figure: () => sliceFigure(sweep, others(), parameter("slice"), goal("slice of")),
    });
  if (options.length > 1)
    add({
      key: "map", title: "Two parameters", text: "The best result over all other parameters.",
      choices: [["Across", options, "map across"], ["Up", options, "map up", 1], ...objective("map of")],
      figure: () => mapFigure(sweep, parameter("map across"), parameter("map up", 1), goal("map of")),
    });
  if (learned(sweep, 0).length)
    add({ key: "learning", title: "Learning curves", text: "A line per training, good results in strong colors; a cross ends those that were stopped or failed.", choices: objective("learning of"), figure: () => learningFigure(sweep, goal("learning of")) });
  if (done.length > 1)
    add({
      key: "parallel", title: "Parallel coordinates", text: "Strong colors are good results, by rank. Drag along an axis to select trials; click on it to select all.",
      wide: true, width: `${110 * (parameters.length + measures.length + 1)}px`, choices: objective("parallel of"), figure: () => parallelFigure(sweep, goal("parallel of")),
    });
  if (singles(sweep).some(([each]) => isKnown(each.started)))
    add({ key: "timeline", title: "Timeline", text: "When each worker ran which trial.", wide: true, figure: () => timelineFigure(sweep) });
}

// Connects a chart that has just been drawn with the selection.
function linked(chart) {
  for (const event of ["plotly_selected", "plotly_restyle"]) chart.removeAllListeners(event);
  const [{ type, dimensions, numbers } = {}] = chart.data;
  chart.removeListener("plotly_click", clicked);
  chart.on("plotly_click", clicked);
  chart.on("plotly_selected", (event) => event?.points && selectTrials(numbersOf(event.points)));
  if (type === "parcoords") chart.on("plotly_restyle", ([change]) => {
    if (chart.data[0].dimensions[0].constraintrange && !Object.keys(change).some((name) => name.startsWith("dimensions[0]")))
      return Plotly.restyle(chart, { "dimensions[0].constraintrange": null }); // an axis replaces the selection from elsewhere
    const limits = chart.data[0].dimensions.map(({ constraintrange: range }) => (range ? (Array.isArray(range[0]) ? range : [range]) : null));
    const inside = (i) => limits.every((ranges, j) => !ranges || ranges.some(([low, high]) => low <= dimensions[j].values[i] && dimensions[j].values[i] <= high));
    selectTrials(limits.some(Boolean) ? numbers.filter((_, i) => inside(i)) : [], chart);
    return undefined;
  });
}

// The trials of points, of the cell of a map, too.
const numbersOf = (points) => distinct(points.map(({ data, customdata, pointNumber }) => (data.type === "heatmap" ? data.numbers[pointNumber[0]][pointNumber[1]] : customdata))).filter(Number.isInteger);

function clicked({ points, event }) {
  const [number] = numbersOf(points ?? []), { trials } = state.sweep;
  if (number === undefined) return;
  const more = event?.shiftKey || event?.ctrlKey || event?.metaKey;
  selectTrials(trials.includes(number) ? trials.filter((each) => each !== number) : more ? [...trials, number] : [number]);
}

// Selects trials in all figures but `source`, and in the table.
function selectTrials(numbers, source = null) {
  state.sweep.trials = numbers;
  for (const chart of byId("sweeps").querySelectorAll(".chart")) {
    if (chart === source) continue;
    stale.add(chart);
    if (visible.has(chart)) draw(chart);
  }
  showSelection();
}

function showSelection() {
  const { trials: chosen } = state.sweep, table = tables.trials, bar = byId("selection");
  if (!table || !bar) return;
  const count = chosen.length ? `${chosen.length} trial${chosen.length > 1 ? "s" : ""} selected` : "Select trials here or in a figure; Shift or Ctrl adds to them.";
  bar.replaceChildren(make("span", { role: "status" }, count), ...(chosen.length ? [make("button", { type: "button", onclick: () => selectTrials([]) }, "Clear")] : []),
    choice("Dragging in figures", [["select", "selects trials"], ["zoom", "zooms"]], state.sweep.drag, (value) => {
      state.sweep.drag = value;
      redrawCharts();
    }));
  const first = table.rows({ order: "current", search: "applied" }).data().toArray().findIndex(([[number]]) => chosen.includes(number));
  const { start, end, length } = table.page.info();
  if (first >= 0 && (first < start || first >= end)) table.page(Math.floor(first / length)).draw(false);
  tickSelected();
}

// Ticks the selected trials of the rows that the table shows.
function tickSelected() {
  for (const box of tables.trials.table().body().querySelectorAll("input")) box.checked = state.sweep.trials.includes(Number(box.value));
}

function showTrials(place, sweep) {
  const bar = make("p", { class: "tools", id: "selection" }), holder = make("div", { class: "table" });
  place.append(make("h3", {}, "Trials"), bar, holder);
  const { parameters, objectives, trials } = sweep;
  const filled = (key) => trials.some((trial) => isKnown(trial[key]));
  const measured = objectives.map(({ name }, k) => [name, (trial) => [trial.values[k], trial.errors[k]]]);
  if (filled("gap")) measured.push(["to the best", (trial) => [trial.gap, trial.gapError]]);
  const optional = [["NFE", "nfe"], ["seconds", "seconds"], ["spread of seeds", "spread"]].filter(([, key]) => filled(key));
  const seeded = filled("planned");
  const columns = [
    { title: "trial", number: true }, { title: "state" },
    ...parameters.map(({ title, name, texts }) => ({ title, hint: name, number: !texts })),
    ...measured.flatMap(([title]) => errorColumns(title)),
    ...(seeded ? [{ title: "seeds", number: true }] : []),
    ...optional.map(([title]) => ({ title, number: true })),
    ...(filled("message") ? [{ title: "reason" }] : []),
  ];
  const ranked = rankedBy(sweep, measuresOf(sweep)[0]);
  const rows = [...ranked, ...trials.filter((trial) => !ranked.includes(trial))].map((trial) => [
    [trial.number, String(trial.number)], plainCell(trial.infeasible ? "complete, violates a constraint" : trial.state),
    ...parameters.map(({ texts }, p) => (texts ? plainCell(trial.settings[p] ?? "") : numberCell(trial.settings[p]))),
    ...measured.flatMap(([, of]) => errorCells(...of(trial))),
    ...(seeded ? [[trial.seeds?.length ?? 0, trial.planned ? `${trial.seeds?.length ?? 0} of ${trial.planned}` : "1"]] : []),
    ...optional.map(([, key]) => numberCell(trial[key])),
    ...(filled("message") ? [plainCell(trial.message ?? "")] : []),
  ]);
  const clip = (cell) => `<span title="${escaped(cell[1])}">${escaped(shortened(String(cell[1]), 40))}</span>`;
  const page = tables.trials?.sweep === sweep.name ? tables.trials.page() : 0;
  const table = showTable("trials", holder, columns, rows, {
    trial: ([number]) => `<input type="checkbox" value="${number}" aria-label="select trial ${number}"> ` +
      `<button type="button" class="run">${number}</button>`,
    state: (cell) => `<span class="state ${escaped(cell[0])}">${escaped(cell[0])}</span>`,
    ...Object.fromEntries(parameters.filter(({ texts }) => texts).map(({ title }) => [title, clip])),
    reason: clip,
  });
  table.sweep = sweep.name;
  table.on("draw.dt", tickSelected);
  if (page) table.page(page).draw(false);
  const numberAt = (target) => table.row(target.closest("tr")).data()[0][0];
  const body = table.table().body();
  body.addEventListener("click", ({ target }) => {
    if (target.closest("button.run")) showTrial(sweep, trials.find(({ number }) => number === numberAt(target)));
  });
  body.addEventListener("change", ({ target }) => {
    const number = numberAt(target), { trials: chosen } = state.sweep;
    selectTrials(target.checked ? [...chosen, number] : chosen.filter((each) => each !== number));
  });
  showSelection();
}

// Everything about a trial, in the page's dialog.
function showTrial(sweep, trial) {
  const results = sweep.objectives.map(({ name }, k) => `${name}: ${withErrors(trial.values[k], trial.errors[k]) || "no value"}`);
  const parts = [make("p", {}, make("span", { class: `state ${trial.state}` }, trial.state), `; ${results.join("; ")}`)];
  if (trial.message) parts.push(make("pre", { class: "problem", tabindex: 0 }, trial.message));
  parts.push(...block("Settings", sweep.parameters.map(({ name }, p) => `${name}: ${trial.settings[p] ?? "–"}`).join("\n")));
  parts.push(...commandBlock(trial.again));
  for (const each of trial.members ?? [])
    parts.push(make("p", {}, `Seed ${each.seed} (trial ${each.number}): ${each.state}, ${withErrors(each.values[0], each.errors[0]) || "no value"}${each.message ? `: ${each.message}` : ""} `, ...runLink(each)));
  if (!trial.members) parts.push(...runLink(trial));
  for (const [kind, pictures] of Object.entries(trial.pictures ?? runOf(trial)?.pictures ?? {})) {
    const picture = pictures.at(-1);
    const alt = `${kind.replaceAll("_", " ")} of trial ${trial.number}: ${captionOf(picture)}`;
    parts.push(make("figure", {}, make("img", { src: source(picture), alt, class: picture.drawing ? "drawing" : "pixels" }), make("figcaption", {}, alt)));
  }
  parts.push(...block("End of its log", trial.log));
  openDetail(`${sweep.name}: trial ${trial.number}`, parts);
}

// A button that opens the run of a trial that trains.
function runLink(trial) {
  const run = runOf(trial);
  return run ? [make("button", { type: "button", class: "run", onclick: () => showDetail(run) }, `Its run: ${run.name}`)] : [];
}
