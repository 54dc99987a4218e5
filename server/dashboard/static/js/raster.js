// The raster: one row per unit, five seconds, and each unit's rate over them.

import { byId, colour, number } from "./dom.js";
import { fitted } from "./cursor.js";

const SPAN_S = 5;
const MOST = 160_000; // spikes kept
const RATE_W = 60; // pixels of the rates, to the right
const RATE_S = 5; // time constant of the rates

const canvas = byId("raster");
const times = new Float64Array(MOST);
const units = new Uint16Array(MOST);
let first = 0, next = 0; // of the spikes kept, counted since the page was opened
let opened = { now: 0, at: 0 }; // LSL clock and the page's clock of the newest picture
let stream = null;
export let rates = new Float32Array(0);
let marks = []; // of each unit: "", "excluded", "fault", "unknown"

/** Units in stream order, as GET /v1/units lists them. */
export function describe(listed) {
  marks = listed.map((unit) => unit.excluded ? "excluded" : unit.fault ? "fault" : unit.known ? "" : "unknown");
  if (rates.length < listed.length) rates = grown(listed.length);
}

export function take(header, arrays) {
  opened = { now: header.now, at: performance.now() };
  const seen = header.spikes;
  if (!seen) return;
  if (seen.stream !== stream) {
    stream = seen.stream;
    first = next;
    rates = new Float32Array(marks.length);
  }
  const { spike_t: t, spike_u: u } = arrays;
  const highest = u.reduce((most, unit) => Math.max(most, unit), -1);
  if (highest >= rates.length) rates = grown(highest + 1);
  const fade = Math.exp(-seen.seconds / RATE_S);
  for (let i = 0; i < rates.length; i += 1) rates[i] *= fade;
  const each = t.length ? seen.n / t.length : 0; // the feed lists every k-th of too many
  for (let i = 0; i < t.length; i += 1) {
    times[next % MOST] = header.now + t[i];
    units[next % MOST] = u[i];
    rates[u[i]] += each / RATE_S;
    next += 1;
  }
  first = Math.max(first, next - MOST);
  const total = rates.reduce((sum, rate) => sum + rate, 0);
  byId("raster-rate").textContent = `${Math.round(total).toLocaleString("en")} spikes/s, ${rates.length} units`;
  const note = each > 1.01 ? `one spike of ${number(each, 1)} is shown` : "";
  if (byId("raster-note").textContent !== note) byId("raster-note").textContent = note;
}

function grown(n) {
  const wider = new Float32Array(n);
  wider.set(rates);
  return wider;
}

export function draw() {
  const { context, width, height } = fitted(canvas);
  const n = Math.max(rates.length, 1);
  const now = opened.now + (performance.now() - opened.at) / 1e3;
  const row = height / n;
  const across = (width - RATE_W) / SPAN_S;
  const tick = Math.max(1, row - (row > 3 ? 1 : 0));
  const colours = { "": colour("text"), fault: colour("bad"), excluded: colour("line"), unknown: colour("faint") };
  while (first < next && times[first % MOST] < now - SPAN_S) first += 1;
  for (const [mark, fill] of Object.entries(colours)) {
    context.fillStyle = fill;
    for (let k = first; k < next; k += 1) {
      const unit = units[k % MOST];
      if ((marks[unit] ?? "") !== mark) continue;
      context.fillRect(width - RATE_W - (now - times[k % MOST]) * across, unit * row, 1.2, tick);
    }
  }
  const most = Math.max(20, ...rates);
  for (let unit = 0; unit < rates.length; unit += 1) {
    context.fillStyle = colours[marks[unit] ?? ""];
    context.fillRect(width - RATE_W + 6, unit * row, (rates[unit] / most) * (RATE_W - 8), tick);
  }
}

/** The unit's row at a height of the canvas, in CSS pixels. */
export const unitAt = (y) => Math.min(rates.length - 1, Math.floor((y / canvas.clientHeight) * rates.length));
