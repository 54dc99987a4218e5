// Calibrations: start one, follow it, compare the candidate with the active decoder, and decide.

import { ask, button, byId, make, number, order, scrolling, show, table } from "./dom.js";
import { at, call, get, post } from "./rest.js";
import { drawHeldOut } from "./plots.js";

const RUNNING = ["collecting", "training", "shadowing", "promoting"];
const OPEN = ["ready", "undecided", "rejected"]; // a candidate that can still be promoted
const SHOWN = 8;
let following = null;

export function start() {
  byId("calibrate").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { kinematics, seconds, ...form } = Object.fromEntries(new FormData(event.target));
    const request = { ...form, seconds: Number(seconds), kinematics: kinematics || null };
    const begun = await order(() => post("/v1/calibrations", request));
    if (begun) follow(begun.id);
  });
  byId("progress-finish").addEventListener("click", () => following && order(() => post(at("calibrations", following, "finish"))));
  byId("progress-cancel").addEventListener("click", async () => {
    if (following && await ask("Cancel the calibration?", "The data collected so far are kept.", { yes: "Cancel it" })) {
      order(() => post(at("calibrations", following, "cancel")));
    }
  });
  refresh();
}

/** The kinematics streams to choose from, when there are several. */
export function offer(names) {
  const select = byId("calibrate").elements.kinematics;
  show(select, names, () => ["", ...names].map((value) =>
    make("option", { value, textContent: value || "the only stream", selected: value === select.value })));
}

/** Follow the running calibration, whoever started it. */
export function follow(id) {
  if (id === null || id === following) return;
  following = id;
  const events = new EventSource(at("calibrations", id, "events"));
  const end = () => { events.close(); following = null; byId("progress").hidden = true; refresh(); };
  const news = (event) => {
    const calibration = JSON.parse(event.data);
    progress(calibration);
    if (!RUNNING.includes(calibration.state)) end();
  };
  for (const state of [...RUNNING, "promoted", "rejected", "undecided", "ready", "failed", "cancelled", "interrupted"]) {
    events.addEventListener(state, news);
  }
  events.onerror = end; // the status names it again while it runs
}

function progress(calibration) {
  byId("progress").hidden = false;
  const collecting = calibration.state === "collecting";
  const wanted = calibration.request.seconds;
  byId("progress-bar").value = collecting ? calibration.collected_s / wanted : calibration.state === "training" ? calibration.share : 1;
  byId("progress-text").textContent = collecting
    ? `collecting: ${number(calibration.collected_s, 0)} of ${number(wanted, 0)} s labelled, ${calibration.spikes.toLocaleString("en")} spikes`
    : `${calibration.state} ${calibration.phase}`;
  byId("progress-finish").hidden = !collecting;
}

export async function refresh() {
  const all = await get("/v1/calibrations").catch(() => null);
  if (!all) return;
  show(byId("calibrations"), all.slice(0, SHOWN), () => all.length === 0 ? [make("p", { className: "note", textContent: "None yet." })] : [
    scrolling("Calibrations", table(["when", "method", "outcome", "R² before → after", ""], all.slice(0, SHOWN).map(row))),
  ]);
}

function row(calibration) {
  const { held_out: held, state } = calibration;
  const gain = held && held.candidate !== null ? held.candidate - (held.active ?? 0) : null;
  const scores = held
    ? make("span", { className: gain > 0 ? "better" : "worse", textContent: `${number(held.active)} → ${number(held.candidate)}` })
    : "–";
  const outcome = make("span", { title: calibration.verdict || calibration.problem?.detail || "" }, state,
    ...(calibration.verdict || calibration.problem ? [make("small", { textContent: ` ${calibration.verdict || calibration.problem.detail}` })] : []));
  const actions = make("span", { className: "row" });
  if (held) actions.append(button("Traces", () => traces(calibration)));
  if (calibration.candidate && OPEN.includes(state)) {
    actions.append(button("Promote", () => decide(calibration, "promote")));
    if (state !== "rejected") actions.append(button("Reject", () => decide(calibration, "reject")));
  }
  return [calibration.created.slice(0, 16).replace("T", " "), calibration.method ?? calibration.request.method, outcome, scores, actions];
}

async function decide(calibration, what) {
  const held = calibration.held_out;
  const compared = held ? ` Held out, over ${number(held.seconds, 0)} s: R² ${number(held.candidate)}, the active decoder ${number(held.active)}.` : "";
  const text = what === "promote"
    ? `Decode with ${calibration.candidate} from the next tick on.${compared}`
    : `${calibration.candidate} stays among the decoders.${compared}`;
  if (!await ask(what === "promote" ? "Promote the candidate?" : "Reject the candidate?", text, { yes: what === "promote" ? "Promote" : "Reject" })) return;
  await order(() => call("POST", at("calibrations", calibration.id, what)));
  refresh();
}

async function traces(calibration) {
  const held = await order(() => get(at("calibrations", calibration.id, "traces")));
  if (!held) return;
  byId("held-out-title").textContent = `${calibration.id}, m/s; click a name to show or hide it`;
  drawHeldOut(held);
}
