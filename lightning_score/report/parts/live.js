// New data from the server: only what has changed is sent, and only what shows it is drawn again.

// A value after a change, as changes.py makes it; what has not changed stays the same object.
function changed(old, change) {
  if (change === 0) return old;
  if ("new" in change) return change.new;
  if (change.list) {
    const made = [];
    let i = 0;
    for (const step of change.list) {
      if (typeof step !== "number" && step.add) made.push(...step.add);
      else if (typeof step !== "number") made.push(changed(old[i++], step));
      else for (const end = i + Math.abs(step); i < end; i += 1) if (step > 0) made.push(old[i]);
    }
    return made;
  }
  const made = new Map(Object.entries(old));
  for (const [key, part] of Object.entries(change.set)) made.set(key, changed(old[key], part));
  for (const key of change.without) made.delete(key);
  return Object.fromEntries(made);
}

// Whether one of the values that a part of the page shows is another one than when this was asked last.
const drawnFrom = new Map();
function isNew(part, ...values) {
  const before = drawnFrom.get(part);
  drawnFrom.set(part, values);
  return !before || values.length !== before.length || values.some((value, i) => value !== before[i]);
}

// Calls a function that draws; the focus, marked text, open details and the place on the page stay.
function keepingFocus(drawAgain) {
  const element = document.activeElement;
  const place = element?.closest("section, dialog, header, nav");
  const name = (each) => each.id || each.ariaLabel || each.labels?.[0]?.textContent || each.textContent;
  const alike = () => [...(place.id ? byId(place.id) : place).querySelectorAll(element.localName)];
  const at = place ? alike().indexOf(element) : -1;
  const [named, start, end] = at < 0 ? [] : [name(element), element.selectionStart, element.selectionEnd];
  const details = () => [...document.querySelectorAll("section details, dialog details")];
  const titled = (each) => `${each.closest("section, dialog").id} ${each.querySelector("summary").textContent}`;
  const open = new Set(details().filter((each) => each.open).map(titled));
  const { scrollX, scrollY } = window;
  drawAgain();
  for (const each of details()) if (open.has(titled(each))) each.open = true;
  if (at >= 0 && !element.isConnected) {
    const found = alike().find((each) => name(each) === named) ?? alike()[at];
    found?.focus({ preventScroll: true });
    if (typeof start === "number") found?.setSelectionRange?.(start, end);
  }
  window.scrollTo(scrollX, scrollY);
}

// Draws the parts of the page that show something new.
function show() {
  const { runs, table, standings, measures, sweeps, tests, made } = state.data;
  if (isNew("best", runs, standings)) showBest();
  if (isNew("runs", runs, table, standings)) showRuns();
  if (isNew("figures", runs, measures)) redraw();
  if (isNew("pictures", ...runs.flatMap((run) => [run.name, run.pictures, run.archived, run.tags]))) showPictures();
  if (isNew("comparison", runs, standings)) showComparison();
  if (isNew("sweeps", sweeps)) showSweeps();
  if (isNew("tests", tests)) showTests();
  showContents();
  updateDetail();
  about(live ? `live, updated ${new Date(made * 1000).toLocaleTimeString()}` : "");
}

// Looks for new data, once it has those of the last call, which its changes are to.
let dataVersion = null;
let updates = Promise.resolve();
const update = () => (updates = updates.then(updateNow, updateNow));

async function updateNow() {
  try {
    const headers = dataVersion ? { "If-None-Match": dataVersion, "A-IM": "changes" } : {};
    const answer = await fetch("/data.json", { headers, cache: "no-store" });
    if (answer.ok) {
      const found = await answer.json();
      dataVersion = answer.headers.get("ETag");
      state.data = answer.status === 226 ? changed(state.data, found) : found;
      if (!DataTable) await start();
      keepingFocus(showAsked);
    } else if (answer.status !== 304) throw new Error(answer.statusText);
    else about(`live, checked ${new Date().toLocaleTimeString()}`);
  } catch (error) {
    if (state.data) about(`the server does not answer (${error.message})`);
    else byId("about").textContent = `The server does not answer (${error.message}).`;
  }
}

async function poll() {
  await update();
  setTimeout(poll, 5000);
}
