// Pictures of the runs side by side, with a slider through training.
const MOST_PICTURES = 24;
const WIDE = ["langevin", "loss_per_sigma", "score"]; // drawings of several panels

function showPictures() {
  const section = byId("pictures");
  const focused = document.activeElement?.id === "step";
  for (const body of section.querySelectorAll(".body")) body.remove();
  const kinds = [...new Set(state.data.runs.flatMap((run) => Object.keys(run.pictures)))];
  kinds.sort((a, b) => (b === "samples") - (a === "samples") || a.localeCompare(b));
  section.hidden = kinds.length === 0;
  if (section.hidden) return;
  const kind = kinds.includes(state.kind) ? state.kind : kinds[0];
  const runs = shownRuns().map(([run]) => run).filter((run) => run.pictures[kind]);
  const steps = [...new Set(runs.flatMap((run) => run.pictures[kind].map(({ step }) => step)))].sort((a, b) => a - b);
  const at = Math.max(steps.findLastIndex((step) => step <= state.step), 0);
  const shelf = make("div", { class: `shelf${WIDE.includes(kind) ? " wide" : ""}` });
  const output = make("output", { for: "step" });
  const slider = make("input", {
    type: "range", id: "step", min: 0, max: Math.max(steps.length - 1, 0), step: 1, value: at, "aria-label": "training step",
    oninput: () => {
      const i = Number(slider.value);
      state.step = i === steps.length - 1 ? Infinity : steps[i];
      fill();
    },
  });
  function fill() {
    const step = Math.min(state.step, steps.at(-1) ?? 0);
    output.textContent = `step ${step.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    shelf.replaceChildren(...runs.slice(0, MOST_PICTURES).map((run) => onePicture(run, kind, step)));
  }
  const tools = make("p", { class: "tools" }, choice("Kind", kinds.map((name) => [name, name.replaceAll("_", " ")]), kind, (name) => {
    state.kind = name;
    showPictures();
  }), make("span", {}, "Through training"), slider, output);
  const notes = [];
  if (runs.length > MOST_PICTURES) notes.push(`The first ${MOST_PICTURES} of ${runs.length} runs: filter the table for others.`);
  if (state.data.left_out) notes.push(`${state.data.left_out} pictures did not fit into this page; report --serve shows all.`);
  section.append(make("div", { class: "body" }, tools, shelf, make("p", { class: "note" }, notes.join(" "))));
  fill();
  if (focused) slider.focus();
}

// The last picture of a run up to a step, or its first one.
function onePicture(run, kind, step) {
  const pictures = run.pictures[kind];
  const picture = pictures.findLast((each) => each.step <= step) ?? pictures[0];
  const caption = picture.caption || `step ${picture.step}`;
  const text = `${run.name}: ${caption}`;
  const alt = `${kind.replaceAll("_", " ")} of ${text}`;
  const image = make("img", { src: source(picture), alt, loading: "lazy", class: picture.drawing ? "drawing" : "pixels" });
  return make("figure", {}, image, make("figcaption", {}, text));
}
