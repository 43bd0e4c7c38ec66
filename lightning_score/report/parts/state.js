// What the page shows now, and small helpers.
const embedded = document.getElementById("data");
const live = embedded === null;
const templates = JSON.parse(document.getElementById("templates").textContent);

const state = {
  data: null,
  off: new Set(), // names of the runs that the figures leave out
  archived: false, // whether archived runs are listed
  query: "", // runs that do not match it are left out everywhere
  compare: null, // the names of two runs
  allSettings: false, // of the compared runs, or only those that differ
  detail: null, // the name of the run whose dialog is open
  measure: null, // label of the chosen measure; null: the main one
  tables: {}, // filter, order and columns of each table
  x: "steps", // or hours, epochs
  xScale: "linear", // or log
  yScale: "auto", // or linear, log
  smoothing: "none", // or exponential, gaussian
  width: 5, // of smoothing, per cent of the axis
  group: "", // a setting, tags or objective
  band: "t", // of groups; or range
  metrics: {}, // chosen figures of each section, by name
  limits: {}, // of the axes of figures, by key: {x: [from, to], y: [from, to]}
  selected: null, // the line that stands out, by name
  stage: null, // the step of Langevin dynamics; null: the last
  sweep: { name: null, others: [], trials: [], picked: {}, drag: "select" }, // shown, overlaid, selected trials, choices of figures
  run: {}, // chosen run of each section, by name
  kind: null, // of the pictures
  step: Infinity, // of the pictures
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
};

// What the page holds: a gzip file in base64.
async function unpacked(id) {
  const file = await fetch(`data:;base64,${document.getElementById(id).textContent}`);
  return new Response(file.body.pipeThrough(new DecompressionStream("gzip")));
}

// The address of a library: in the page, or on its server.
async function library(name) {
  if (live) return `/${name}`;
  return URL.createObjectURL(new Blob([await (await unpacked(name)).text()], { type: "text/javascript" }));
}

// The pictures, which the page holds once; their addresses on a server need no look-up.
const sources = document.getElementById("sources")?.textContent.split("\n");
const source = ({ src }) => (typeof src === "number" ? sources[src] : src);

// Forgets the pictures that did not fit into the page, and counts them.
function keepEmbedded(entries) {
  let count = 0;
  for (const entry of entries) for (const [kind, pictures] of Object.entries(entry.pictures ?? {})) {
    const kept = pictures.filter(source);
    count += pictures.length - kept.length;
    if (kept.length) entry.pictures[kind] = kept;
    else delete entry.pictures[kind];
  }
  return count;
}

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A labeled choice; `chosen` is the value of the one that is on.
function choice(label, options, chosen, change) {
  const select = make("select", { onchange: () => change(select.value) });
  for (const [value, text] of options) select.append(make("option", { value, selected: value === chosen }, text));
  return make("label", {}, `${label} `, select);
}

function escaped(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return String(text).replace(/[&<>"']/g, (sign) => entities[sign]);
}

// Runs that the table lists, and those of them that the figures draw, each with its number.
const listedRuns = () => state.data.runs.map((run, i) => [run, i]).filter(([run]) => (state.archived || !run.archived) && matchesQuery(run));
const shownRuns = () => listedRuns().filter(([run]) => !state.off.has(run.name));
