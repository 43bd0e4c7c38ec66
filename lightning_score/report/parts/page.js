// The page as a whole.
const DataTable = await loadDataTables();

function showDetail(run) {
  byId("detail-name").textContent = run.name;
  const copy = make("button", { type: "button", onclick: () => copied(run.again, copy) }, "Copy");
  const parts = [make("p", {}, make("span", { class: `state ${run.state}` }, run.state), run.note ? `: ${run.note}` : "")];
  if (run.problems.length) parts.push(make("ul", { class: "problem" }, ...run.problems.map((each) => make("li", {}, each))));
  parts.push(make("p", {}, "Folder: ", run.folder));
  if (run.config) parts.push(make("h3", {}, "Run it again ", copy), make("pre", { tabindex: 0 }, run.again));
  if (run.given) parts.push(make("h3", {}, "As it was started"), make("pre", { tabindex: 0 }, run.given));
  if (run.config) parts.push(make("h3", {}, "Config"), make("pre", { tabindex: 0 }, run.config));
  byId("detail-body").replaceChildren(...parts);
  byId("detail").showModal();
}

async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it below";
  }
}

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
  redraw();
  showPictures();
}

function about(more = "") {
  const { runs, root, made } = state.data;
  const going = runs.filter((run) => run.state === "running").length;
  const count = `${runs.length} run${runs.length === 1 ? "" : "s"} in ${root}${going ? `, ${going} running` : ""}`;
  byId("about").textContent = `${count}; ${more || `as of ${new Date(made * 1000).toLocaleString()}`}`;
}

function show() {
  showRuns();
  redraw();
  showPictures();
  showSweeps();
  showTests();
  showContents();
  about(live ? `live, updated ${new Date(state.data.made * 1000).toLocaleTimeString()}` : "");
}

byId("all").addEventListener("click", () => showOnly(() => true));
byId("none").addEventListener("click", () => showOnly(() => false));
byId("listed").addEventListener("click", () => {
  const wanted = listed();
  showOnly((i) => wanted.has(i));
});
byId("theme").addEventListener("click", () => {
  state.dark = !state.dark;
  showTheme();
  redraw();
});
showTheme();
if (live) await poll();
else {
  state.data = await unpacked();
  show();
}
document.documentElement.dataset.ready = "true";
