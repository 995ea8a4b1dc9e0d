"use strict";

// Runs as they go. What the server tells is shown as text nodes; it is asked again every few seconds.

const EVERY_MS = 2000, COLORS = 6;
const CHARTS = [                  // title, columns of the metrics; the second one is dashed
  ["Loss", ["loss", "val_loss"]], ["Tokens per second", ["tokens_per_second"]], ["Peak memory (GB)", ["peak_memory_gb"]],
  ["Learning rate", ["learning_rate"]], ["Gradient norm", ["grad_norm"]], ["Accuracy of preferences", ["accuracy", "val_accuracy"]],
  ["Margin of rewards", ["margin", "val_margin"]],
];
let runs = [];                    // of the server's list
let wanted = new Set();           // names of the runs in the charts
let current = "";                 // the run whose details are shown
const read = new Map();           // name -> {stamp, curves, samples, settings, log}
const colors = new Map();         // name -> its number, which stays

async function ask(path, body) {
  let response;
  const request = body ? { method: "POST", body: JSON.stringify(body) } : {};
  try { response = await fetch(path, { headers: headers(), ...request }); }
  catch { throw new Error("The studio does not answer; is it still running?"); }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) $("with-key").hidden = false;
  throw new Error((answer.error && answer.error.message) || response.statusText);
}

function tell(text) { $("problem").textContent = text; $("problem").hidden = !text; }

function colorOf(name) {
  if (!colors.has(name)) colors.set(name, colors.size % COLORS);
  return "c" + colors.get(name);
}

// -- what the server has

async function refresh() {
  try {
    const told = await ask("api/runs"), isFirst = !runs.length;
    runs = told.runs.sort((one, other) => (other.written || 0) - (one.written || 0));
    if (isFirst && runs.length && !current) { current = runs[0].name; wanted.add(current); }
    $("folder").textContent = runs.length ? `Runs in ${told.folder}` : `No runs in ${told.folder} yet; they appear here as soon as they write something.`;
    let changed = listRuns();
    for (const run of runs) {
      if ((!wanted.has(run.name) && run.name !== current) || (read.get(run.name) || {}).stamp === run.stamp) continue;
      if (run.problem) continue;
      read.set(run.name, { ...(await ask("api/run?name=" + encodeURIComponent(run.name))), stamp: run.stamp });
      changed = true;
    }
    if (changed) { draw(); details(); }
    tell("");
  } catch (error) { tell(error.message); }
}

async function follow() {         // one after the other, and not while nobody looks
  if (!document.hidden) await refresh();
  setTimeout(follow, EVERY_MS);
}

// -- on screen

function stateOf(run) {
  if (run.problem) return ["unreadable", "failed"];
  if (run.active) return [run.stopped ? "stopping" : "running", "running"];
  if (!run.code) return ["ended", ""];
  return run.stopped ? ["stopped", ""] : [`failed (${run.code})`, "failed"];
}

let listed = "";
function listRuns() {             // whether anything in it is new; else it stays as it is, and so does the focus
  const now = JSON.stringify([runs, [...wanted], current]);
  if (now === listed) return false;
  listed = now;
  const focused = document.activeElement && document.activeElement.dataset.of;
  $("runs").replaceChildren(...runs.map((run) => {
    const box = make("input", { type: "checkbox", "aria-label": "Show " + run.name, "data-of": "box " + run.name, onchange: () => {
      box.checked ? wanted.add(run.name) : wanted.delete(run.name);
      refresh();
    } });
    box.checked = wanted.has(run.name);
    const [state, kind] = stateOf(run), numbers = [run.step, run.loss, run.val_loss, run.tokens_per_second].map(short);
    const name = button(run.name, () => { current = run.name; wanted.add(run.name); refresh(); }, { "data-of": "name " + run.name, title: "Show details" });
    const memory = run.peak_memory_gb ? run.peak_memory_gb.toFixed(2) + " GB" : "–";
    return make("tr", { "aria-selected": String(run.name === current) }, make("td", {}, box),
      make("td", {}, make("span", { class: "key " + colorOf(run.name) }), name),
      ...[...numbers, memory].map((text) => make("td", {}, text)), make("td", { class: kind, title: run.problem || null }, state));
  }));
  if (focused) { const again = [...document.querySelectorAll("[data-of]")].find((one) => one.dataset.of === focused); if (again) again.focus(); }
  return true;
}

function draw() {
  const shown = runs.filter((run) => wanted.has(run.name) && read.has(run.name)), others = new Set();
  for (const run of shown) for (const column of Object.keys(read.get(run.name).curves)) if (column.includes("/")) others.add(column);
  const figures = [...CHARTS, ...[...others].map((column) => [column, [column]])].map(([title, columns], n) => {
    const series = shown.flatMap((run) => columns.map((column, second) => ({
      label: run.name + (second ? " validation" : ""), color: colorOf(run.name), dashed: second > 0,
      smooth: column === "loss", points: read.get(run.name).curves[column] || [],
    })));
    if (!series.some((one) => one.points.some(([, y]) => y !== null))) return null;
    return [make("figure", { class: n ? null : "wide", "data-chart": title }), title, series];
  }).filter(Boolean);
  $("charts").replaceChildren(...figures.map(([figure]) => figure));
  for (const [figure, title, series] of figures) chart(figure, title, series);
}

function details() {
  const run = read.get(current);
  $("details").hidden = !run;
  if (!run) return;
  const { started, active, stopped } = runs.find((one) => one.name === current) || {};
  $("name").textContent = current;
  $("stop").hidden = !(started && active);
  $("stopping").textContent = !active ? "" : !started ? "Stop it by Ctrl-C where it was started." : stopped ? "It saves after this step." : "";
  $("samples").replaceChildren(...run.samples.slice().reverse().map(([step, text]) =>
    make("div", {}, make("p", { class: "soft" }, `After step ${step}`), make("pre", {}, text))));
  if (!run.samples.length) $("samples").append(make("p", { class: "soft" }, "None yet; training writes one after each validation."));
  $("settings").textContent = run.settings || "Not written yet.";
  const log = $("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.textContent = run.log || "Only runs that the studio has started have one.";
  if (atEnd) log.scrollTop = log.scrollHeight;
}

$("stop").addEventListener("click", async () => {
  try { await ask("api/stop", { name: current }); await refresh(); } catch (error) { tell(error.message); }
});
$("key").value = keptHere("key");
$("key").addEventListener("change", () => { keepHere("key", $("key").value); refresh(); });
addEventListener("resize", draw);
follow();
