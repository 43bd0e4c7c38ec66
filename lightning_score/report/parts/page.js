// The page as a whole: the best run first, then what takes longer.
let DataTable = null;

function showTests() {
  const { tests } = state.data;
  byId("tests").hidden = tests.rows.length === 0;
  if (tests.rows.length) showTable("tests", document.querySelector("#tests .table"), tests.columns, tests.rows);
}

function showContents() {
  const sections = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
  byId("contents").replaceChildren(...sections.map((section) =>
    make("li", {}, make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent))));
}

function showTheme() {
  document.documentElement.classList.toggle("dark", state.dark);
  byId("theme").textContent = state.dark ? "Light" : "Dark";
}

// After runs were switched on or off.
function refresh() {
  keepingFocus(showBest);
  redraw();
  showPictures();
}

function about(more = "") {
  const { runs, root, made } = state.data;
  const count = `${runs.length} run${runs.length === 1 ? "" : "s"} in ${root}`;
  const states = Object.entries(Object.groupBy(runs, (run) => run.state)).map(([name, those]) => `${those.length} ${name}`);
  byId("about").ariaLive = more.startsWith("live") ? "off" : "polite"; // a time every 5 s is not announced
  byId("about").textContent = [count + (states.length ? `: ${states.join(", ")}` : ""),
    more || `as of ${new Date(made * 1000).toLocaleString()}`].join("; ");
}

// The browser shows what there is before it goes on.
const painted = () => Promise.race([new Promise((on) => requestAnimationFrame(() => setTimeout(on))), new Promise((on) => setTimeout(on, 200))]);

// The first screen, then the rest of the page.
async function start() {
  settleLink();
  showBest();
  about();
  await painted();
  performance.mark("first screen");
  DataTable ??= await loadDataTables();
}

byId("all").addEventListener("click", () => showOnly(() => true));
byId("none").addEventListener("click", () => showOnly(() => false));
byId("listed").addEventListener("click", () => {
  const wanted = listed();
  showOnly((i) => wanted.has(i));
});
byId("archived").addEventListener("change", ({ target }) => {
  state.archived = target.checked;
  showRuns();
  refresh();
});
const listOfRuns = document.querySelector("#runs .table");
listOfRuns.addEventListener("change", ({ target }) => {
  if (target.dataset.run === undefined) return;
  const { name } = state.data.runs[target.dataset.run];
  if (target.checked) state.off.delete(name);
  else state.off.add(name);
  refresh();
});
listOfRuns.addEventListener("click", ({ target }) => {
  const button = target.closest("button.run");
  if (button) showDetail(state.data.runs[button.dataset.run]);
});
byId("theme").addEventListener("click", () => {
  state.dark = !state.dark;
  showTheme();
  redraw();
});
readLink();
showTheme();
if (live) {
  await poll();
  while (!state.data) await new Promise((on) => setTimeout(on, 500)); // the server may be about to start
} else {
  state.data = await (await unpacked("data")).json();
  state.data.left_out = keepEmbedded(state.data.runs);
  await start();
  const { runs, ...more } = await (await unpacked("more")).json();
  Object.assign(state.data, more);
  runs.forEach((run, i) => Object.assign(state.data.runs[i], run));
  for (const { trials } of state.data.sweeps) state.data.left_out += keepEmbedded(trials);
  showAsked();
}
finishLink();
document.documentElement.dataset.ready = "true";
