// The query of the page, and which runs match it.

// Whether a run matches the query of the page; all do while it cannot be read.
let compiled = {};
function matchesQuery(run) {
  if (!state.query.trim()) return true;
  if (compiled.text !== state.query || compiled.data !== state.data) {
    compiled = { text: state.query, data: state.data, matches: () => true, error: "" };
    try {
      compiled.matches = parsedQuery(state.query, namesOf(state.data.runs));
    } catch (error) {
      compiled.error = error.message;
    }
  }
  return compiled.matches(run);
}

// Takes the typed query if it can be read; else the last one stays, and the reason is shown beside the field.
function takeQuery(text) {
  const error = byId("query-error");
  const before = state.query;
  state.query = text;
  compiled = {};
  state.data.runs.slice(0, 1).forEach(matchesQuery);
  error.textContent = compiled.error ?? "";
  byId("query").setAttribute("aria-invalid", String(Boolean(compiled.error)));
  if (compiled.error) state.query = before;
  if (state.query === before) return;
  showRuns();
  refresh();
}

byId("query").addEventListener("input", ({ target }) => takeQuery(target.value));
