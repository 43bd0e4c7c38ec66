// Figures by Plotly, drawn when they come into sight.
const waiting = new Map(); // chart element -> panel
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) draw(target);
}, { rootMargin: "300px" });

// The traces and the layout of a view for what is switched on now.
function prepared(figure) {
  const { data, layout } = structuredClone(figure);
  const { runs } = state.data;
  let hours = false;
  for (const trace of data) {
    const meta = trace.meta ?? {};
    if (meta.run !== undefined) trace.visible = !state.off.has(runs[meta.run].name);
    if (state.x === "hours" && meta.hours) {
      trace.x = meta.hours;
      hours = true;
    }
  }
  if (hours) layout.xaxis = { ...layout.xaxis, title: { text: "hours since the start of the run" } };
  const visible = data.filter((trace) => trace.visible !== false).length;
  const dark = state.dark ? "dark" : "light";
  Object.assign(layout, {
    template: templates[dark], autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    modebar: { bgcolor: "rgba(0,0,0,0)" }, showlegend: visible > 1 && visible <= 14, legend: { orientation: "h", y: -0.18, yanchor: "top" }, uirevision: state.x,
  });
  return [data, layout];
}

function draw(chart) {
  const panel = waiting.get(chart);
  if (!panel) return;
  const view = panel.views.find(({ label }) => label === state.view[panel.key]) ?? panel.views[0];
  chart.setAttribute("aria-label", `${panel.title}: ${view.label}. ${panel.caption}`);
  const [data, layout] = prepared(view.figure);
  if (chart.dataset.view !== view.label) Plotly.purge(chart); // another kind of figure keeps nothing of the last one
  chart.dataset.view = view.label;
  chart.dataset.drawn = "true";
  Plotly.react(chart, data, layout, { responsive: true, displaylogo: false });
  panel.drawn?.(chart);
}

// A figure with its choice of views; the same element is used again when the data are new.
function showPanel(place, panel) {
  const label = state.view[panel.key] ?? panel.views[0].label;
  const tall = panel.views[0].figure.layout.height > 500;
  const chart = make("div", { class: `chart${tall ? " tall" : ""}`, role: "img", "data-key": panel.key });
  const tools = make("p", { class: "tools" });
  if (panel.views.length > 1)
    tools.append(choice("Show", panel.views.map((view) => [view.label, view.label]), label, (value) => {
      state.view[panel.key] = value;
      draw(chart);
    }));
  place.append(make("figure", {}, tools, chart, make("figcaption", {}, panel.caption)));
  waiting.set(chart, panel);
  sight.observe(chart);
}

// A section whose figures are those of all runs, or of one that is chosen.
function showSection(id) {
  const section = byId(id);
  const own = state.data.panels.filter((panel) => panel.section === id);
  forget(section);
  section.hidden = own.length === 0;
  if (section.hidden) return;
  const place = make("div", { class: "body" });
  section.append(place);
  const single = own.filter((panel) => panel.run !== null);
  for (const panel of own) if (panel.run === null) showPanel(place, { ...panel, key: id });
  if (!single.length) return;
  const names = single.map((panel) => state.data.runs[panel.run].name);
  const on = names.filter((name) => !state.off.has(name));
  const chosen = names.includes(state.run[id]) ? state.run[id] : on[0] ?? names[0];
  place.append(make("p", { class: "tools" }, choice("Run", names.map((name) => [name, name]), chosen, (name) => {
    state.run[id] = name;
    showSection(id);
  })));
  showPanel(place, { ...single[names.indexOf(chosen)], key: id });
}

// Takes away what a section shows.
function forget(section) {
  for (const chart of section.querySelectorAll(".chart")) {
    sight.unobserve(chart);
    waiting.delete(chart);
    Plotly.purge(chart);
  }
  for (const body of section.querySelectorAll(".body")) body.remove();
}

// Draws again what has been drawn: runs were switched, or the axis, or the theme.
function redraw() {
  for (const chart of waiting.keys()) if (chart.dataset.drawn) draw(chart);
}
