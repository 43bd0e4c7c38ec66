// Tables that sort and filter, by DataTables.
async function loadDataTables() {
  const source = live ? "/datatables.js" : URL.createObjectURL(
    new Blob([byId("datatables").textContent], { type: "text/javascript" }));
  const DataTable = (await import(source)).default;
  for (const [name, sign] of [["asc", 1], ["desc", -1]]) // unknown values come last in both directions
    DataTable.ext.type.order[`known-${name}`] = (a, b) =>
      a === b ? 0 : a === null || a === "" ? 1 : b === null || b === "" ? -1 : sign * (a < b ? -1 : 1);
  return DataTable;
}

const tables = {};

// Shows a table of cells [what sorts, what is read] in a place; keeps order, search and page of the one before.
function showTable(key, place, columns, rows, render = {}) {
  const before = tables[key];
  const hidden = columns.map((column, j) => (column.hidden ? j : -1)).filter((j) => j >= 0);
  const kept = before && before.columns().count() === columns.length
    ? { order: before.order(), search: { search: before.search() }, displayStart: before.page.info().start } : {};
  const visible = kept.order && before.columns().visible().toArray();
  if (before) before.destroy();
  const head = make("tr", {}, ...columns.map((column) => make("th", { scope: "col", title: column.hint ?? "" }, column.title)));
  const table = make("table", { class: "display compact" }, make("thead", {}, head), make("tbody"));
  place.replaceChildren(table);
  tables[key] = new DataTable(table, {
    data: rows,
    autoWidth: false,
    pageLength: 25,
    lengthMenu: [10, 25, 50, 100, { label: "all", value: -1 }],
    order: [],
    ...kept,
    layout: { topStart: { buttons: [{ extend: "colvis", text: "Columns" }], pageLength: {} }, topEnd: "search" },
    language: { search: "Filter:", emptyTable: "Nothing here yet", lengthMenu: "_MENU_ rows" },
    columnDefs: columns.map((column, j) => ({
      targets: j,
      type: column.number ? "known" : "string",
      className: column.number ? "dt-right" : "dt-left",
      visible: visible ? visible[j] : !hidden.includes(j),
      orderable: column.orderable ?? true,
      render: (cell, type, row) => {
        if (type === "sort" || type === "type") return column.number ? cell[0] : String(cell[0] ?? "").toLowerCase();
        if (type === "display") return render[column.title]?.(cell, row) ?? escaped(cell[1]);
        return cell[1];
      },
    })),
  });
  return tables[key];
}

function showRuns() {
  const { table, runs } = state.data;
  const columns = [{ title: "shown", hint: "in the figures", number: false }, ...table.columns];
  const rows = table.rows.map((row, i) => [[i, ""], ...row]);
  const shown = showTable("runs", document.querySelector("#runs .table"), columns, rows, {
    shown: (cell) => {
      const { name } = runs[cell[0]];
      const tick = state.off.has(name) ? "" : "checked";
      return `<input type="checkbox" data-run="${cell[0]}" aria-label="show ${escaped(name)} in the figures" ${tick}>`;
    },
    run: (cell, row) =>
      `<button type="button" class="run" data-run="${row[0][0]}"><span class="swatch" style="background:` +
      `${runs[row[0][0]].color}"></span>${escaped(cell[1])}</button>`,
    state: (cell, row) => {
      const { note, problems } = runs[row[0][0]];
      const count = problems.length;
      const trouble = count ? ` <span class="problem">${count} problem${count > 1 ? "s" : ""}</span>` : "";
      return `<span class="state ${escaped(cell[1])}" title="${escaped(note)}">${escaped(cell[1])}</span>${trouble}`;
    },
  });
  const body = shown.table().body();
  body.addEventListener("change", ({ target }) => {
    if (target.dataset.run === undefined) return;
    const { name } = runs[target.dataset.run];
    if (target.checked) state.off.delete(name);
    else state.off.add(name);
    refresh();
  });
  body.addEventListener("click", ({ target }) => {
    const button = target.closest("button.run");
    if (button) showDetail(runs[button.dataset.run]);
  });
}

// Shows those runs in the figures for which `wanted` holds.
function showOnly(wanted) {
  state.off = new Set(state.data.runs.filter((run, i) => !wanted(i)).map((run) => run.name));
  showRuns();
  refresh();
}

function listed() {
  return new Set(tables.runs.rows({ search: "applied" }).data().toArray().map((row) => row[0][0]));
}
