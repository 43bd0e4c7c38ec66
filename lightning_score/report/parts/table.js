// Tables that sort, filter and download, by DataTables.
async function loadDataTables() {
  const DataTable = (await import(await library("datatables.js"))).default;
  for (const [name, sign] of [["asc", 1], ["desc", -1]]) // unknown values come last in both directions
    DataTable.ext.type.order[`known-${name}`] = (a, b) =>
      a === b ? 0 : a === null || a === "" ? 1 : b === null || b === "" ? -1 : sign * (a < b ? -1 : 1);
  return DataTable;
}

const tables = {};

// Shows a table of cells [what sorts, what is read] in a place, with the filter, the order and the columns of `state`.
function showTable(key, place, columns, rows, render = {}) {
  const titles = columns.map((column) => column.title);
  const choices = () => (state.tables[key] = { filter: "", order: [], columns: {}, ...state.tables[key] });
  const chosen = choices();
  const drawn = tables[key];
  if (drawn && place.contains(drawn.table().node()) && drawn.titles.join("\n") === titles.join("\n")) {
    drawn.clear().rows.add(rows).draw(false); // the reader's page, filter and focus stay
    return drawn;
  }
  drawn?.destroy();
  const head = make("tr", {}, ...columns.map(({ title, hint }) => make("th", { scope: "col", title: hint ?? "" }, title)));
  const element = make("table", { class: "display compact" }, make("thead", {}, head), make("tbody"));
  place.replaceChildren(element);
  const download = {
    extend: "csv", text: "CSV", titleAttr: "download this table", filename: key, escapeExcelFormula: true,
    exportOptions: { columns: () => true, orthogonal: "export", format: { header: (_, j) => columns[j].csv ?? titles[j] } },
  };
  const table = new DataTable(element, {
    data: rows,
    autoWidth: false,
    pageLength: 25,
    lengthMenu: [10, 25, 50, 100, { label: "all", value: -1 }],
    order: chosen.order.map(([title, direction]) => [titles.indexOf(title), direction]).filter(([j]) => j >= 0),
    search: { search: chosen.filter },
    layout: { topStart: { buttons: [{ extend: "colvis", text: "Columns" }, download], pageLength: {} }, topEnd: "search" },
    language: { search: "Filter:", emptyTable: "Nothing here yet", lengthMenu: "_MENU_ rows" },
    columnDefs: columns.map((column, j) => ({
      targets: j,
      type: column.number ? "known" : "string",
      className: column.number ? "dt-right" : "dt-left",
      visible: chosen.columns[column.title] ?? !column.hidden,
      render: (cell, type, row) => {
        if (type === "display") return render[column.title]?.(cell, row) ?? escaped(cell[1]);
        if (type === "export") return cell[0] ?? "";
        if (type === "sort" || type === "type") return column.number ? cell[0] : String(cell[0] ?? "").toLowerCase();
        return cell[1];
      },
    })),
  });
  table.titles = titles;
  table.on("search.dt order.dt", () => {
    choices().filter = table.search();
    choices().order = table.order().map(([j, direction]) => [titles[j], direction]).filter(([, direction]) => direction);
    soonWritten();
  });
  table.on("column-visibility.dt", (_, { bDestroying }, j, visible) => {
    if (!bDestroying) choices().columns[titles[j]] = visible;
  });
  const named = () => {
    const pages = place.querySelector("nav");
    if (pages) pages.ariaLabel = `pages of the table of ${key}`;
  };
  table.on("draw.dt", named);
  named();
  cueForScrolling(element.parentElement, `table of ${key}`);
  tables[key] = table;
  return table;
}

// Shades the edge behind which columns are hidden; the keyboard scrolls there, too.
function cueForScrolling(frame, name) {
  Object.assign(frame, { tabIndex: 0, role: "region", ariaLabel: name });
  const mark = () => frame.classList.toggle("more", frame.scrollLeft + frame.clientWidth < frame.scrollWidth - 2);
  frame.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(frame);
  new ResizeObserver(mark).observe(frame.querySelector("table"));
}

// The columns of the chosen measure, then the values of the others, each with the cells of a run's entry.
function measureColumns() {
  const measure = chosenMeasure();
  if (!measure) return [];
  const cell = (value, text = short(value)) => [value ?? null, text];
  const columns = [
    [measure.label, (e) => cell(e.value, withErrors(e.value, e.error)), `the ${measure.larger ? "highest" : "lowest"}, with two standard errors`],
    ["± 2 s.e.", (e) => cell(e.error === null ? null : 2 * e.error), "two standard errors of it", true],
    ["floor", (e) => cell(e.floor), "the value of a perfect model; of older versions, of a subset of the data against the rest"],
    ["at step", (e) => cell(e.step, e.step.toLocaleString("en")), "training step of the best"],
    ["last", (e) => cell(e.last[0], withErrors(...e.last)), "the last, with two standard errors"],
    ["n", (e) => cell(e.n), "samples"],
    ["NFE", (e) => cell(e.nfe), "network evaluations per sample"],
    ["sampling s", (e) => cell(e.seconds), "seconds for all n samples"],
  ].map(([title, of, hint, hidden]) => ({ title, of, hint, hidden, measure }));
  const others = state.data.standings.filter((each) => each !== measure);
  return [...columns, ...others.map((each, k) => ({
    title: each.label, of: (e) => cell(e.value, withErrors(e.value, e.error)), hint: "the best, with two standard errors", hidden: k > 1, measure: each,
  }))];
}

const SIGNS = { running: "▶", finished: "✓", failed: "✕", crashed: "!", interrupted: "‖", "stopped early": "■", empty: "○", measured: "◆" };

// The state of a run; its sign says what its color says.
function stateOf(run) {
  const sign = make("span", { "aria-hidden": "true" }, SIGNS[run.state] ?? "?");
  return make("span", { class: `state ${run.state}`, title: run.note }, sign, ` ${run.state}`);
}

function showRuns() {
  const { table, runs } = state.data;
  const measured = measureColumns();
  const cells = measured.map(({ measure, of }) => {
    const entries = new Map(measure.entries.map((entry) => [entry.run, entry]));
    return (i) => (entries.has(i) ? of(entries.get(i)) : [null, ""]);
  });
  const [name, status, ...others] = table.columns;
  const columns = [name, status, ...measured.map((column) => ({ ...column, number: true })), ...others];
  const rows = listedRuns().map(([, i]) => {
    const [first, second, ...rest] = table.rows[i];
    return Object.assign([first, second, ...cells.map((cell) => cell(i)), ...rest], { run: i });
  });
  const archived = runs.filter((run) => run.archived).length;
  byId("archived").closest("label").hidden = archived === 0;
  byId("archived").nextSibling.textContent = ` Archived runs (${archived})`;
  showTable("runs", document.querySelector("#runs .table"), columns, rows, {
    run: (cell, row) => {
      const run = state.data.runs[row.run];
      const tick = state.off.has(run.name) ? "" : "checked";
      const name = escaped(run.name);
      return `<span class="name"><input type="checkbox" data-run="${row.run}" aria-label="show ${name} in the figures" ${tick}>` +
        `<span class="swatch" style="background:${look(run.order).color}"></span><button type="button" class="run" data-run="${row.run}" title="${escaped(run.notes)}">${name}</button>` +
        `</span>${run.tags.map((tag) => `<span class="tag">${escaped(tag)}</span> `).join("")}`;
    },
    state: (cell, row) => {
      const run = state.data.runs[row.run];
      const count = run.problems.length;
      const trouble = count ? ` <span class="problem">${count} problem${count > 1 ? "s" : ""}</span>` : "";
      return stateOf(run).outerHTML + trouble;
    },
  });
}

// Shows those runs in the figures for which `wanted` holds.
function showOnly(wanted) {
  state.off = new Set(state.data.runs.filter((run, i) => !wanted(i)).map((run) => run.name));
  showRuns();
  refresh();
}

function listed() {
  return new Set(tables.runs.rows({ search: "applied" }).data().toArray().map((row) => row.run));
}
