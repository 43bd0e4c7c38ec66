// The first screen: the best run by a measure, how sure that is, what differs from others, and its samples.
const MOST_CHANGES = 6;

const chosenMeasure = () => state.data.standings.find(({ label }) => label === state.measure) ?? state.data.standings[0];

// The entries of the runs that are shown, the best first.
function ranked(measure) {
  const shown = new Set(shownRuns().map(([, i]) => i));
  const sign = measure.larger ? -1 : 1;
  return measure.entries.filter(({ run }) => shown.has(run)).sort((a, b) => sign * (a.value - b.value));
}

// The difference of two entries, its standard error, and whether it is clear; the same random numbers cancel in paired samples.
function difference(one, other) {
  const paired = one.parts.length > 0 && one.parts.length === other.parts.length && one.paired === other.paired;
  const error = paired ? Math.hypot(...one.parts.map((part, j) => part - other.parts[j]))
    : Math.hypot(one.error ?? NaN, other.error ?? NaN);
  const gap = one.value - other.value;
  return { gap, error, paired, clear: Math.abs(gap) > 2 * error };
}

const runButton = (run) => make("button", { type: "button", class: "run", onclick: () => showDetail(run) }, run.name);

// The settings in which two runs differ: [name, value of the one, value of the other].
function settingsThatDiffer(one, other) {
  return differing().map((name) => [name, settingText(one.settings[name]), settingText(other.settings[name])])
    .filter(([, left, right]) => left !== right);
}

function changes(best, other) {
  const found = settingsThatDiffer(best, other);
  if ([best, other].some(({ settings }) => !Object.keys(settings).length)) return ["unknown, since a config is missing."];
  if (!found.length) return ["in nothing of the config."];
  const rows = found.slice(0, MOST_CHANGES).map(([name, ours, theirs]) =>
    make("li", {}, make("code", {}, name), ` ${ours}, not ${theirs}`));
  const more = found.length - rows.length;
  if (more) rows.push(make("li", {}, `and ${more} other setting${more > 1 ? "s" : ""}`));
  return [make("ul", {}, ...rows)];
}

function toTheSecond(best, second, ranking) {
  if (!second) return ["It is the only run with this measure."];
  const { gap, error, paired, clear } = difference(best, second);
  const kind = paired ? "paired samples" : "independent samples";
  const apart = `${withErrors(Math.abs(gap), error)} (${kind})`;
  const level = ranking.slice(1).map((each) => difference(best, each)).filter((each) => !each.clear && each.error >= 0);
  const verdict = Number.isNaN(error) ? "ahead, without known errors" : clear ? "clearly ahead" : "not clearly ahead";
  const parts = [make("strong", {}, verdict), " of ", runButton(state.data.runs[second.run]), ` by ${apart}.`];
  if (level.length > 1) parts.push(` ${level.length} runs are within two standard errors of it.`);
  return parts;
}

function toTheFloor(measure, best) {
  if (best.floor === null) return null;
  const gap = best.value - best.floor;
  const name = `${best.floor_name}, ${short(best.floor)}`;
  const by = withErrors(Math.abs(gap), best.error);
  if (best.error === null) return [make("strong", {}, gap > 0 ? "above" : "below"), ` that of a ${name}, by ${by}.`];
  if (Math.abs(gap) <= 2 * best.error) return [make("strong", {}, "reached"), `, that of a ${name}: the difference is ${withErrors(gap, best.error)}.`];
  if (gap > 0 !== measure.larger) return [make("strong", {}, "not reached"), `, that of a ${name}: ${gap > 0 ? "above" : "below"} it by ${by}.`];
  return [make("strong", {}, "beaten"), `, that of a ${name}, by ${by}: look for copies of the training data.`];
}

// The last samples of a run, as a strip.
function strip(run) {
  const kind = run.pictures.samples ? "samples" : Object.keys(run.pictures)[0];
  const picture = run.pictures[kind]?.at(-1);
  if (!picture) return [];
  const caption = captionOf(picture);
  const image = make("img", { src: source(picture), alt: `the last ${kind.replaceAll("_", " ")} of ${run.name}: ${caption}`,
    class: picture.drawing ? "drawing" : "pixels" });
  return [make("figure", {}, image, make("figcaption", {}, `${run.name}: ${caption}`))];
}

// Why there is no best run.
function withoutBest() {
  const { runs, root, standings } = state.data;
  if (!runs.length) return [make("p", {}, `There are no runs in ${root} yet. This trains one:`),
    make("pre", { tabindex: 0 }, "python -m lightning_score fit --config ddpm")];
  if (standings.length) return [make("p", {}, "None of the runs that are shown has this measure.")];
  const [newest] = runs;
  const loss = newest.values.loss_last;
  return [
    make("p", {}, "No run has been measured yet: ", make("code", {}, "Evaluate"), " measures during validation, ",
      make("code", {}, "test"), " afterwards."),
    make("p", {}, "The newest run is ", runButton(newest), ": ", stateOf(newest), newest.note ? `, ${newest.note}` : "",
      `, step ${newest.values.steps.toLocaleString("en")}`, loss === undefined ? "" : `, loss ${short(loss)}`, "."),
    ...strip(newest),
  ];
}

function showBest() {
  const section = byId("best");
  const { standings, runs } = state.data;
  const measure = chosenMeasure();
  const ranking = measure ? ranked(measure) : [];
  const [best, second] = ranking;
  const tools = standings.length > 1 ? [make("p", { class: "tools" },
    choice("Best by", standings.map(({ label, entries }) => [label, `${label} (${entries.length} run${entries.length > 1 ? "s" : ""})`]),
      measure.label, (label) => {
        state.measure = label;
        keepingFocus(() => {
          showBest();
          showRuns();
        });
      }))] : [];
  const title = make("h2", {}, "Best run");
  if (!best) return section.replaceChildren(title, ...tools, ...withoutBest());
  const run = runs[best.run];
  const before = runs[best.run + 1]; // they are sorted by start
  const floor = toTheFloor(measure, best);
  const about = [`step ${best.step.toLocaleString("en")}`, `n ${best.n}`, `NFE ${short(best.nfe)}`];
  if (best.of > 1) about.unshift(`the ${measure.larger ? "highest" : "lowest"} of ${best.of}`);
  const facts = [["Runner-up", toTheSecond(best, second, ranking)]];
  if (floor) facts.push(["Floor", floor]);
  if (second) facts.push(["Differs from the runner-up", changes(run, runs[second.run])]);
  if (before && before !== runs[second?.run]) facts.push(["Differs from the run before", [runButton(before), " ", ...changes(run, before)]]);
  section.replaceChildren(title, ...tools, make("div", { class: "best" },
    make("div", {},
      make("p", { class: "winner" }, runButton(run), " ", stateOf(run)),
      make("p", { class: "value" }, make("strong", {}, withErrors(best.value, best.error)), ` ${measure.label}`),
      make("p", { class: "note" }, `${about.join(", ")}; ± two standard errors; ${ranking.length} of ${runs.length} runs have this measure.`),
      make("dl", {}, ...facts.flatMap(([name, parts]) => [make("dt", {}, name), make("dd", {}, ...parts)]))),
    make("div", {}, ...strip(run), ...(second ? strip(runs[second.run]) : []))));
}
