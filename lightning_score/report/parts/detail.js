// What is known of one run, in a dialog, with its tags and notes, which the page of a server can change.
const token = document.querySelector("meta[name=token]")?.content;

// A text with its heading; nothing without a text.
const block = (title, text, ...more) => (text ? [make("h3", {}, title, ...more), make("pre", { tabindex: 0 }, text)] : []);

// A command with a button that copies it.
function commandBlock(command) {
  const copy = make("button", { type: "button", onclick: () => copied(command, copy) }, "Copy");
  return block("Run it again ", command, copy);
}

function detailParts(run) {
  const parts = [make("p", {}, stateOf(run), run.note ? `: ${run.note}` : "")];
  if (run.problems.length) parts.push(make("ul", { class: "problem" }, ...run.problems.map((each) => make("li", {}, each))));
  parts.push(make("p", {}, "Folder: ", run.folder));
  const others = state.data.runs.filter((other) => other !== run).map(({ name }) => [name, name]);
  if (others.length) parts.push(make("p", {}, choice("Compare with", [["", "choose a run"], ...others], "", (name) => compare(run.name, name))));
  if (run.config) parts.push(...commandBlock(run.again));
  return [...parts, ...block("As it was started", run.given), ...block("Console, the last lines", run.console?.join("\n")), ...block("Config", run.config)];
}

// Opens the dialog, which may have shown something else, for a run or for what is not one.
function openDetail(title, parts, run = null) {
  const dialog = byId("detail");
  state.detail = run && run.name;
  byId("detail-name").textContent = title;
  byId("detail-notes").replaceChildren(...(run ? notesOf(run) : []));
  byId("detail-body").replaceChildren(...parts);
  showSystem(run ?? { name: "" });
  if (!dialog.open) dialog.showModal();
}

function showDetail(run) {
  openDetail(run.name, detailParts(run), run);
  isNew("detail", run);
  for (const console of byId("detail").querySelectorAll("pre")) if (console.previousSibling.textContent.startsWith("Console")) console.scrollTop = console.scrollHeight;
}

// New data of the run whose dialog is open: only what differs is replaced, and what is being typed stays.
function updateDetail() {
  const run = state.data.runs.find(({ name }) => name === state.detail);
  if (!byId("detail").open || !run || !isNew("detail", run)) return;
  const before = [...byId("detail-body").children];
  const after = detailParts(run);
  if (before.length !== after.length) byId("detail-body").replaceChildren(...after);
  else before.forEach((part, i) => {
    if (part.outerHTML === after[i].outerHTML) return;
    const { scrollTop, scrollHeight, clientHeight } = part;
    part.replaceWith(after[i]);
    after[i].scrollTop = scrollTop + clientHeight >= scrollHeight - 4 ? after[i].scrollHeight : scrollTop; // it follows its end
  });
  showSystem(run);
  if (!byId("detail-notes").querySelector("form.edited")) byId("detail-notes").replaceChildren(...notesOf(run));
}

// The curves of processors and memory.
function showSystem(run) {
  const place = byId("detail-system");
  const names = Object.keys(run.system ?? {}); // the page may be about to unpack it
  if (changedKey(place, [run.name, names])) {
    clear(place);
    place.append(...(names.length ? [make("h3", {}, "System")] : []), make("div", { class: "charts" }));
    const now = () => state.data.runs.find(({ name }) => name === run.name) ?? run;
    for (const name of names)
      showChart(place.lastChild, { key: `system ${name}`, title: name.replaceAll("_", " "), make: () => lineFigure(name,
        linesOf([now()], (one) => (one.system[name] ? [one.system[name]] : []), { x: "hours", smoothing: "none", group: "" }), OVER.hours) });
  } else for (const chart of place.querySelectorAll(".chart")) draw(chart);
}

// Tags, notes and whether the run is archived: to read, or in the page of a server to change.
function notesOf(run) {
  if (!token) {
    const found = [run.tags.length ? `Tags: ${run.tags.join(", ")}` : "", run.archived ? "archived" : "", run.notes].filter(Boolean);
    return found.map((line) => make("p", { class: "notes" }, line));
  }
  const tags = make("input", { id: "detail-tags", value: run.tags.join(", "), placeholder: "good, baseline", autocomplete: "off" });
  const notes = make("textarea", { rows: 3 }, run.notes);
  const archived = make("input", { type: "checkbox", checked: run.archived });
  const answer = make("output", { role: "status" });
  let edits = 0;
  const save = async () => {
    const change = { run: run.name, version: run.notes_version, notes: notes.value, archived: archived.checked };
    change.tags = tags.value.split(",").map((tag) => tag.trim()).filter(Boolean);
    const typed = edits;
    answer.textContent = "";
    const [status, text] = await sent(change);
    const now = [200, 409].includes(status) ? JSON.parse(text) : {};
    run = { ...run, notes_version: now.version ?? run.notes_version }; // what is typed before the update replaces this one
    if (status === 200 && typed === edits) form.classList.remove("edited");
    answer.className = status === 200 ? "" : "problem";
    answer.textContent = status === 200 ? "Saved" : text;
    if (status === 409) {
      answer.textContent = `Changed elsewhere meanwhile, to tags “${now.tags.join(", ")}” and notes “${now.notes}”. Save again to replace them.`;
    }
    await update();
    if (status !== 200 || !form.isConnected || form.matches(".edited")) return;
    form.replaceWith(...notesOf(state.data.runs.find(({ name }) => name === run.name) ?? run)); // an update came before the answer
  };
  const form = make("form", {
    oninput: () => {
      form.classList.add("edited");
      edits += 1;
    },
    onsubmit: (event) => {
      event.preventDefault();
      save();
    },
  }, make("label", {}, "Tags, with commas ", tags), make("label", {}, "Notes ", notes), make("label", {}, archived, " Archived"),
  make("p", { class: "tools" }, make("button", {}, "Save"), answer));
  return [form];
}

// The status and the text of the server's answer.
async function sent(change) {
  try {
    const headers = { "Content-Type": "application/json", "X-Token": token };
    const answer = await fetch("/notes", { method: "POST", headers, body: JSON.stringify(change) });
    return [answer.status, await answer.text()];
  } catch (error) {
    return [0, `Not saved: the server does not answer (${error.message})`];
  }
}

async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it below";
  }
}

byId("detail").addEventListener("close", ({ target }) => {
  if (!target.open) state.detail = null; // the event comes late: it may be open again
});
