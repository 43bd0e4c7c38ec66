// Two runs side by side: how they differ in settings and values, their curves, and their samples at the same step.
function compare(one, other) {
  state.compare = [one, other];
  byId("detail").close();
  showComparison();
  byId("comparison").scrollIntoView();
}

function showComparison() {
  const section = byId("comparison");
  forget(section);
  const { runs } = state.data;
  section.hidden = runs.length < 2;
  if (section.hidden) return;
  const chosen = [0, 1].map((k) => runs.find(({ name }) => name === state.compare?.[k]));
  const tools = make("p", { class: "tools" }, ...[0, 1].map((k) => choice(k ? "and" : "Compare", [["", "choose a run"], ...runs.map(({ name }) => [name, name])], chosen[k]?.name ?? "", (name) => {
    state.compare = [0, 1].map((i) => (i === k ? name : chosen[i]?.name ?? ""));
    keepingFocus(showComparison);
  })));
  const body = make("div", { class: "body" }, tools);
  section.append(body);
  if (!chosen[0] || !chosen[1]) return;
  if (chosen[0] === chosen[1]) return body.append(make("p", { class: "note" }, "They are the same run."));
  body.append(...valuesBeside(chosen), ...settingsBeside(chosen), ...samplesBeside(chosen));
  curvesBeside(body, chosen);
}

function tableBeside(caption, titles, rows) {
  const cells = (tag, row) => row.map((cell, i) => make(i ? tag : "th", { scope: i ? (tag === "th" ? "col" : undefined) : tag === "th" ? "col" : "row" }, cell));
  return make("div", { class: "table", tabindex: 0, role: "region", "aria-label": caption }, make("table", { class: "beside" },
    make("caption", {}, caption), make("thead", {}, make("tr", {}, ...cells("th", titles))), make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row))))));
}

// The measures that both have, with their difference and its error, which for paired samples is that of the differences.
function valuesBeside(chosen) {
  const { runs, standings } = state.data;
  const places = chosen.map((run) => runs.indexOf(run));
  const rows = [];
  for (const { label, entries } of standings) {
    const [one, other] = places.map((i) => entries.find(({ run }) => run === i));
    if (!one && !other) continue;
    const both = one && other ? difference(one, other) : null;
    const kind = both ? (both.paired ? "paired samples" : "independent samples") : "";
    const sure = both?.clear ? "clear" : both && both.error >= 0 ? "not clear" : "";
    rows.push([label, ...[one, other].map((each) => (each ? withErrors(each.value, each.error) : "")), both ? withErrors(both.gap, both.error) : "", [kind, sure].filter(Boolean).join(", ")]);
  }
  for (const name of ["loss", "steps", "hours"]) {
    const pair = chosen.map(({ values }) => values[name]);
    if (pair.some((value) => value !== undefined)) rows.push([name, ...pair.map(short), pair.includes(undefined) ? "" : short(pair[0] - pair[1]), ""]);
  }
  return [tableBeside("Values, with two standard errors", ["value", chosen[0].name, chosen[1].name, "difference", "which is"], rows)];
}

// The settings in which they differ, or all.
function settingsBeside(chosen) {
  const names = [...new Set(chosen.flatMap(({ settings }) => Object.keys(settings)))].sort();
  const texts = names.map((name) => [name, ...chosen.map(({ settings }) => settingText(settings[name]))]);
  const shown = texts.filter(([, one, other]) => state.allSettings || one !== other);
  const box = make("input", { type: "checkbox", checked: state.allSettings, onchange: () => {
    state.allSettings = box.checked;
    keepingFocus(showComparison);
  } });
  const table = shown.length ? tableBeside("Settings", ["setting", chosen[0].name, chosen[1].name], shown) : make("p", {}, "Their settings are equal.");
  for (const row of table.querySelectorAll("tbody tr")) row.classList.toggle("differs", row.cells[1].textContent !== row.cells[2].textContent);
  return [make("p", { class: "tools" }, make("label", {}, box, ` All ${names.length} settings, not only those that differ`)), table];
}

// Their samples at the same step; the samples of all steps and runs have the same seeds.
function samplesBeside(chosen) {
  const kinds = Object.keys(chosen[0].pictures).filter((kind) => chosen[1].pictures[kind]);
  if (!kinds.length) return [];
  const kind = kinds.includes(state.kind) ? state.kind : kinds.includes("samples") ? "samples" : kinds[0];
  const steps = stepsOf(chosen, kind);
  const shelf = make("div", { class: "shelf beside" });
  const output = make("output");
  const at = Math.max(steps.findLastIndex((step) => step <= state.step), 0);
  const fill = () => {
    const step = steps[slider.value];
    output.textContent = `step ${step.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    shelf.replaceChildren(...chosen.map((run) => onePicture(run, kind, step)));
  };
  const slider = make("input", { type: "range", min: 0, max: steps.length - 1, step: 1, value: at, "aria-label": "step of both pictures", oninput: () => {
    state.step = Number(slider.value) === steps.length - 1 ? Infinity : steps[slider.value];
    fill();
  } });
  fill();
  return [make("p", { class: "tools" }, choice("Pictures", kinds.map((name) => [name, name.replaceAll("_", " ")]), kind, (name) => {
    state.kind = name;
    keepingFocus(showComparison);
  }), slider, output), shelf];
}

// The metrics and measures that both have, over one another.
function curvesBeside(body, chosen) {
  const now = () => chosen.map(({ name }) => state.data.runs.find((run) => run.name === name)).filter(Boolean);
  const options = () => ({ ...state, group: "" });
  const shared = (part) => Object.keys(chosen[0][part]).filter((name) => chosen[1][part][name] && !LEVEL.test(name));
  const place = make("div", { class: "charts" });
  body.append(place);
  const figures = [...shared("measures").map((name) => [name, () => measureLines(now(), name, options())]),
    ...shared("curves").map((name) => [name, () => curveLines(now(), name, options())])];
  for (const [name, lines] of figures.slice(0, MOST_CHARTS))
    showChart(place, { key: `compare ${name}`, title: name, limits: true, make: () => lineFigure(name, lines(), OVER[state.x], { limits: state.limits[`compare ${name}`] }) });
}
