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

// Whether one of the values that a part of the page shows is another than when it was asked last.
const seen = new Map();
function isNew(part, ...values) {
  const before = seen.get(part);
  seen.set(part, values);
  return !before || values.length !== before.length || values.some((value, i) => value !== before[i]);
}

// Calls a function that draws; what has the focus, or what takes its place, keeps it.
function keepingFocus(redrawn) {
  const before = document.activeElement;
  const named = (element) => element.id || element.getAttribute("aria-label") || element.labels?.[0]?.textContent || element.textContent;
  const place = before?.closest("section, dialog, header");
  const [name, start, end] = [before && named(before), before?.selectionStart, before?.selectionEnd];
  redrawn();
  if (!place || before.isConnected) return;
  const after = [...byId(place.id)?.querySelectorAll(before.tagName) ?? []].find((element) => named(element) === name);
  after?.focus({ preventScroll: true });
  if (typeof start === "number") after?.setSelectionRange?.(start, end);
}

let version = null;
async function look() {
  try {
    const headers = version ? { "If-None-Match": version, "A-IM": "changes" } : {};
    const answer = await fetch("/data.json", { headers, cache: "no-store" });
    if (answer.ok) {
      const found = await answer.json();
      version = answer.headers.get("ETag");
      state.data = answer.status === 226 ? changed(state.data, found) : found;
      keepingFocus(show);
    } else if (answer.status !== 304) throw new Error(answer.statusText);
    else about(`live, checked ${new Date().toLocaleTimeString()}`);
  } catch (error) {
    if (state.data) about(`the server does not answer (${error.message})`);
    else byId("about").textContent = `The server does not answer (${error.message}).`;
  }
}

async function poll() {
  await look();
  setTimeout(poll, 5000);
}
