// The section of sweeps.
function showSweeps() {
  const section = byId("sweeps");
  forget(section);
  const { sweeps } = state.data;
  section.hidden = sweeps.length === 0;
  if (section.hidden) return;
  const place = make("div", { class: "body" });
  section.append(place);
  const names = sweeps.map((sweep) => sweep.name);
  const chosen = Math.max(names.indexOf(state.run.sweeps), 0);
  const sweep = sweeps[chosen];
  if (names.length > 1)
    place.append(make("p", { class: "tools" }, choice("Sweep", names.map((name) => [name, name]), sweep.name, (name) => {
      state.run.sweeps = name;
      showSweeps();
    })));
  if (sweep.problem) place.append(make("p", { class: "problem" }, `${sweep.name}: ${sweep.problem}.`));
  if (sweep.panel?.views.length) showPanel(place, { ...sweep.panel, key: `sweep ${sweep.name}` });
  else if (sweep.summary) place.append(make("p", {}, sweep.summary));
  if (sweep.table) {
    const table = make("div", { class: "table" });
    place.append(table);
    delete tables.trials;
    showTable("trials", table, sweep.table.columns, sweep.table.rows);
  }
  if (sweep.text)
    place.append(make("details", {}, make("summary", {}, "The sweep's file and summary"), make("pre", { tabindex: 0 }, sweep.text)));
}
