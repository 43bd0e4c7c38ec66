// The page as a whole.
const DataTable = await loadDataTables();

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
readLink();
if (live) await poll();
else {
  state.data = await unpacked();
  show();
}
openLink();
document.documentElement.dataset.ready = "true";
