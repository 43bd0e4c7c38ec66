// The state of the page in the fragment of its address: `#curves&x=hours&query=fid+<+2&sweep.name=eps`.
// A section comes first; then what differs from the defaults, nested values with dotted names. Text is as it is, unless it
// could be taken for JSON, which everything else is.
const defaults = structuredClone({ ...state, data: null });
const quotedPart = (text, more = "") => text.replace(/[%&#+\s"<>`\\^{|}]/g, (sign) => (sign === " " ? "+" : encodeURIComponent(sign)))
  .replaceAll(/[.=]/g, (sign) => (more.includes(sign) ? `%${sign.charCodeAt(0).toString(16).toUpperCase()}` : sign));
const readPart = (text) => decodeURIComponent(text.replaceAll("+", " "));
const isNested = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

// Runs that are switched off, or if they are the most those that are on, since addresses must be short.
function switched() {
  const names = state.data?.runs.map(({ name }) => name) ?? [];
  const on = names.filter((name) => !state.off.has(name));
  if (on.length < names.length / 2) return ["on", on];
  return ["off", names.filter((name) => state.off.has(name))];
}

function linkParts(value, first, name) {
  if (value === undefined || JSON.stringify(value) === JSON.stringify(first)) return [];
  if (first === undefined && (value === null || value === "" || (Array.isArray(value) && !value.length))) return [];
  if (isNested(value)) return Object.entries(value).flatMap(([key, part]) => linkParts(part, first?.[key], `${name}.${quotedPart(key, ".=")}`));
  const text = typeof value === "string" && !isJson(value) ? value : JSON.stringify(value);
  return [`${name}=${quotedPart(text)}`];
}

let section = "";
function linkNow() {
  const { data, off, ...rest } = state;
  const [name, runs] = switched();
  const parts = Object.entries(rest).flatMap(([key, value]) => linkParts(value, defaults[key], key));
  if (runs.length || name === "on") parts.unshift(`${name}=${quotedPart(JSON.stringify(runs))}`);
  return `#${[section, ...parts].filter((part, i) => part || i === 0).join("&")}`.replace(/^#&/, "#");
}

// Takes the state from the address; what it does not name has its default.
function readLink() {
  const [first, ...others] = location.hash.slice(1).split("&");
  section = first.includes("=") ? "" : first;
  const found = structuredClone(defaults);
  for (const part of first.includes("=") ? [first, ...others] : others) {
    const [path, text] = [part.slice(0, part.indexOf("=")), part.slice(part.indexOf("=") + 1)];
    try {
      const keys = path.split(".").map(readPart);
      const value = readPart(text);
      if (keys[0] === "on" || keys[0] === "off") found[keys[0]] = new Set(JSON.parse(value));
      else if (!Object.hasOwn(defaults, keys[0]) || keys.some((key) => key === "__proto__")) continue;
      else {
        let place = found;
        for (const key of keys.slice(0, -1)) place = isNested(place[key]) ? place[key] : (place[key] = {});
        const parsed = isJson(value) ? JSON.parse(value) : value;
        const before = place[keys.at(-1)] ?? null;
        if (before === null || (typeof before === typeof parsed && Array.isArray(before) === Array.isArray(parsed))) place[keys.at(-1)] = parsed;
      }
    } catch { /* an address that somebody has changed */ }
  }
  const { data, on, ...chosen } = found;
  Object.assign(state, chosen, { wanted: on });
}

// Switches off all runs but those that the address names.
function settleLink() {
  if (state.wanted) state.off = new Set(state.data.runs.map(({ name }) => name).filter((name) => !state.wanted.has(name)));
  delete state.wanted;
}

// Draws the page; if the address asks for what cannot be drawn, as somebody has changed it, then without that.
function showAsked() {
  try {
    show();
  } catch (error) {
    console.warn(`${location.hash} cannot be shown: ${error.message}`);
    const { data, ...first } = structuredClone(defaults);
    Object.assign(state, first);
    drawAnew();
  }
}

function drawAnew() {
  for (const key of Object.keys(tables)) {
    tables[key].destroy();
    delete tables[key];
  }
  drawnFrom.clear();
  show();
}

// What follows once the page has been drawn: its fields, the dialog and the section that the address names.
function finishLink() {
  byId("query").value = state.query;
  byId("archived").checked = state.archived;
  takeQuery(state.query);
  const run = state.data.runs.find(({ name }) => name === state.detail);
  if (run) showDetail(run);
  else byId("detail").close();
  if (section && byId(section)) byId(section).scrollIntoView();
  written = linkNow();
}

// Writes the state to the address after the reader has done something: a new entry of the history per choice, none per letter.
let written = "";
let typing = false;
function writeLink(typed) {
  if (!document.documentElement.dataset.ready) return;
  const link = linkNow();
  if (link === written) return;
  history[typed && typing ? "replaceState" : "pushState"](null, "", link === "#" ? `${location.pathname}${location.search}` : link);
  [written, typing] = [link, typed];
}
const soonWritten = (typed = false) => setTimeout(() => writeLink(typed), 50); // after what handles the event
for (const kind of ["click", "change", "input", "keyup", "pointerup"])
  document.addEventListener(kind, ({ target }) => soonWritten(kind === "input" && target.matches("[type=search], [type=range]")), true);

window.addEventListener("popstate", () => {
  if (!location.hash.includes("=") && location.hash.length > 1) { // a link to a section
    section = location.hash.slice(1);
    written = linkNow();
    history.replaceState(null, "", written);
  } else if (location.hash !== written) {
    readLink();
    settleLink();
    showTheme();
    drawAnew();
    finishLink();
  }
});
