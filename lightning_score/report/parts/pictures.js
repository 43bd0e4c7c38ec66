// Pictures of the runs side by side at the same step, with a slider through training; each opens in full size.
const MOST_PICTURES = 24;
const picturesOf = { kind: null, runs: [], most: MOST_PICTURES };

function showPictures() {
  const section = byId("pictures");
  const kinds = [...new Set(state.data.runs.flatMap((run) => Object.keys(run.pictures)))];
  kinds.sort((a, b) => (b === "samples") - (a === "samples") || a.localeCompare(b));
  section.hidden = kinds.length === 0;
  if (changedKey(section, [kinds, state.data.left_out])) {
    for (const body of section.querySelectorAll(".body")) body.remove();
    if (kinds.length) section.append(make("div", { class: "body" }, ...pictureTools(kinds)));
  }
  if (section.hidden) return;
  const kind = kinds.includes(state.kind) ? state.kind : kinds[0];
  section.querySelector("select").value = kind;
  Object.assign(picturesOf, { kind, runs: runsShown().filter((run) => run.pictures[kind]) });
  const steps = stepsOf(picturesOf.runs, kind);
  const slider = byId("step");
  slider.max = Math.max(steps.length - 1, 0);
  slider.value = Math.max(steps.findLastIndex((step) => step <= state.step), 0);
  slider.disabled = steps.length < 2;
  fillShelf();
}

const stepsOf = (runs, kind) => [...new Set(runs.flatMap((run) => run.pictures[kind].map(({ step }) => step)))].sort((a, b) => a - b);

function pictureTools(kinds) {
  const slider = make("input", {
    type: "range", id: "step", min: 0, max: 0, step: 1, "aria-label": "training step",
    oninput: () => {
      const steps = stepsOf(picturesOf.runs, picturesOf.kind);
      state.step = Number(slider.value) === steps.length - 1 ? Infinity : steps[slider.value];
      fillShelf();
    },
  });
  const choose = choice("Kind", kinds.map((name) => [name, name.replaceAll("_", " ")]), "", (name) => {
    state.kind = name;
    showPictures();
  });
  const more = make("button", { type: "button", class: "more", onclick: () => {
    picturesOf.most += MOST_PICTURES;
    fillShelf();
  } }, `Show ${MOST_PICTURES} more`);
  const left = state.data.left_out ? `${state.data.left_out} pictures did not fit into this page; report --serve shows all.` : "";
  return [
    make("p", { class: "tools" }, choose, make("span", {}, "Through training"), slider, make("output", { for: "step" })),
    make("div", { class: "shelf" }), make("p", { class: "tools" }, more, make("span", { class: "note count" })), make("p", { class: "note" }, left),
  ];
}

function fillShelf() {
  const section = byId("pictures");
  const { kind, runs, most } = picturesOf;
  const step = Math.min(state.step, stepsOf(runs, kind).at(-1) ?? 0);
  const shelf = section.querySelector(".shelf");
  shelf.classList.toggle("wide", runs.some((run) => pictureAt(run, kind, step)?.wide));
  shelf.replaceChildren(...runs.slice(0, most).map((run) => onePicture(run, kind, step, runs)));
  section.querySelector("output").textContent = `step ${step.toLocaleString("en")}`;
  byId("step").setAttribute("aria-valuetext", `step ${step}`);
  section.querySelector(".more").hidden = runs.length <= most;
  section.querySelector(".count").textContent = runs.length > most ? `The first ${most} of ${runs.length} runs.` : "";
}

const pictureAt = (run, kind, step) => run.pictures[kind].findLast((each) => each.step <= step);

// The last picture of a run up to a step; a click opens it, with those of `runs` before and after it.
function onePicture(run, kind, step, runs = [run]) {
  const picture = pictureAt(run, kind, step);
  const swatch = make("span", { class: "swatch", style: `background:${look(run.order).color}` });
  const caption = make("figcaption", { title: run.name }, swatch, shortened(run.name, 44));
  if (!picture) return make("figure", {}, make("p", { class: "note" }, `none up to step ${step}`), caption);
  caption.append(`: ${captionOf(picture)}`);
  const open = make("button", { type: "button", class: "picture", onclick: () => openPicture(runs, runs.indexOf(run), kind, step) }, imageOf(run, kind, picture));
  return make("figure", {}, open, caption);
}

const captionOf = (picture) => picture.caption || `step ${picture.step}`;

function imageOf(run, kind, picture) {
  const alt = `${kind.replaceAll("_", " ")} of ${run.name}: ${captionOf(picture)}`;
  const image = make("img", { src: source(picture), alt, loading: "lazy", class: picture.drawing ? "drawing" : "pixels", onload: () => fit(image) });
  if (!picture.drawing) sizes.observe(image);
  return image;
}

// Shows pixels evenly: a whole number of screen pixels each, or, where there is no room for one, smoothly.
function fit(image) {
  const room = image.parentElement?.clientWidth;
  if (!room || !image.naturalWidth || !image.classList.contains("pixels")) return;
  const tall = image.closest("dialog") ? 0.75 * innerHeight : Infinity;
  const times = Math.floor(Math.min(room / image.naturalWidth, tall / image.naturalHeight) * devicePixelRatio);
  image.style.width = times ? `${(times * image.naturalWidth) / devicePixelRatio}px` : "";
  image.style.imageRendering = times ? "pixelated" : "auto";
}
const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => fit(target)));
addEventListener("resize", () => document.querySelectorAll("img.pixels").forEach(fit));

// One picture as large as the window allows: left and right go to other runs, up and down through training.
function openPicture(runs, at, kind, step) {
  const dialog = byId("picture") ?? document.body.appendChild(make("dialog", { id: "picture", "aria-label": "Picture" }));
  const show = (places) => {
    at = (at + places + runs.length) % runs.length;
    const picture = pictureAt(runs[at], kind, step);
    image.replaceChildren(picture ? imageOf(runs[at], kind, picture) : `none up to step ${step}`);
    text.textContent = `${runs[at].name}: ${picture ? captionOf(picture) : ""} (${at + 1} of ${runs.length})`;
  };
  const go = (moves) => {
    const steps = stepsOf(runs, kind);
    const k = Math.max(steps.findLastIndex((each) => each <= step), 0) + moves;
    step = steps[Math.min(Math.max(k, 0), steps.length - 1)];
    show(0);
  };
  const button = (name, label, act) => make("button", { type: "button", "aria-label": label, onclick: act }, name);
  const keys = { ArrowLeft: () => show(-1), ArrowRight: () => show(1), ArrowUp: () => go(1), ArrowDown: () => go(-1) };
  const image = make("div", { class: "full" });
  const text = make("p", { role: "status" });
  const tools = make("p", { class: "tools" }, button("←", "previous run", keys.ArrowLeft), button("→", "next run", keys.ArrowRight),
    button("↓", "earlier", keys.ArrowDown), button("↑", "later", keys.ArrowUp), button("Close", "Close", () => dialog.close()));
  dialog.replaceChildren(tools, image, text);
  dialog.onkeydown = (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  };
  dialog.showModal();
  show(0);
}
