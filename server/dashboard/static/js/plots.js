// Velocity traces, the histogram of tick latency, and the held-out part, drawn by uPlot.

import { byId, colour, number } from "./dom.js";

const SPAN_S = 5;
const TICKS_S = 60;
const EDGES = [0, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 50, Infinity]; // ms

const decoded = { t: [], x: [], y: [] };
const moved = { t: [], x: [], y: [] };
const latencies = []; // [LSL time, ms]
let traces = null, latency = null;

const axes = () => ["faint", "faint"].map((name) => ({
  stroke: () => colour(name), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false }, size: 38,
}));

function plot(parent, series, more = {}) {
  const made = new uPlot({
    width: parent.clientWidth, height: parent.clientHeight - 26, axes: axes(), cursor: { show: false },
    legend: { live: false }, ...more, series: [{}, ...series],
  }, [[], ...series.map(() => [])], parent);
  new ResizeObserver(() => made.setSize({ width: parent.clientWidth, height: parent.clientHeight - 26 })).observe(parent);
  return made;
}

const line = (label, name, more = {}) => ({ label, stroke: () => colour(name), width: 1.5, points: { show: false }, ...more });

export function start() {
  traces = plot(byId("traces"), [
    line("decoded x", "x"), line("decoded y", "y"),
    line("cursor x", "x", { dash: [3, 3], width: 1 }), line("cursor y", "y", { dash: [3, 3], width: 1 }),
  ], { scales: { x: { time: false, range: () => [-SPAN_S, 0] } } });
  latency = plot(byId("latency"), [{
    label: "ticks", stroke: () => colour("accent"), fill: () => colour("accent"), points: { show: false },
    paths: uPlot.paths.bars({ size: [0.9, 60] }),
  }], {
    scales: { x: { time: false, range: () => [-0.6, EDGES.length - 1.4] }, y: { range: (_, low, high) => [0, Math.max(1, high)] } },
    axes: [{ ...axes()[0], values: (_, ticks) => ticks.map((i) => Number.isInteger(i) && EDGES[i] !== undefined ? EDGES[i] : ""), space: 30 }, axes()[1]],
    legend: { show: false },
  });
}

export function take(header, arrays) {
  keep(decoded, header.now, arrays.frame_t, arrays.frame_vx, arrays.frame_vy);
  keep(moved, header.now, arrays.kin_t, arrays.kin_vel_x, arrays.kin_vel_y);
  for (let i = 0; i < arrays.frame_t.length; i += 1) latencies.push([header.now + arrays.frame_t[i], arrays.frame_ms[i]]);
  let old = 0;
  while (old < latencies.length && latencies[old][0] < header.now - TICKS_S) old += 1;
  latencies.splice(0, old);
}

function keep(into, now, t, x, y) {
  for (let i = 0; i < t.length; i += 1) { into.t.push(now + t[i]); into.x.push(x[i]); into.y.push(y[i]); }
  let old = 0;
  while (old < into.t.length && into.t[old] < now - SPAN_S - 1) old += 1;
  for (const name of ["t", "x", "y"]) into[name].splice(0, old);
}

export function drawTraces(now) {
  const table = ({ t, x, y }) => [t.map((time) => time - now), blank(x), blank(y)];
  traces.setData(uPlot.join([table(decoded), table(moved)]));
}

const blank = (values) => values.map((value) => Number.isNaN(value) ? null : value);

export function drawTicks(daemon) {
  const counts = new Array(EDGES.length - 1).fill(0);
  for (const [, ms] of latencies) counts[EDGES.findIndex((edge, i) => ms < (EDGES[i + 1] ?? Infinity))] += 1;
  latency.setData([counts.map((_, i) => i), counts]);
  const sorted = latencies.map(([, ms]) => ms).sort((a, b) => a - b);
  const quantile = (q) => sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : null;
  const steps = latencies.slice(1).map(([t], i) => 1e3 * (t - latencies[i][0])).sort((a, b) => a - b);
  const tick = steps[Math.floor(steps.length / 2)] ?? Infinity;
  return {
    "p50": `${number(quantile(0.5))} ms`,
    "p99": `${number(quantile(0.99))} ms`,
    "p99.9": `${number(quantile(0.999))} ms`,
    "late, by more than a tick": `${sorted.filter((ms) => ms > tick).length}`,
    "missed since the start": daemon ? daemon.skipped_ticks.toLocaleString("en") : "–",
    "ticks": daemon ? daemon.ticks.toLocaleString("en") : "–",
    "backlog": daemon?.backlog_s == null ? "–" : `${number(1e3 * daemon.backlog_s, 0)} ms`,
    "overflowed": daemon ? `${daemon.overflowed + daemon.inlet_overflows}` : "–",
  };
}

/** The held-out part of a calibration: true, candidate and active velocity along x and y. */
export function drawHeldOut(held) {
  byId("held-out").hidden = false;
  const parent = byId("held-out-plot");
  parent.replaceChildren();
  const n = held.seconds.length;
  const rows = ["x", "y"].flatMap((axis) => ["true", "candidate", "active"].map((who) => held[who]?.[axis] ?? new Array(n).fill(null)));
  const heldOut = plot(parent, [
    line("true x", "faint"), line("candidate x", "x"), line("active x", "x", { dash: [4, 3], width: 1 }),
    line("true y", "faint", { show: false }), line("candidate y", "y", { show: false }), line("active y", "y", { dash: [4, 3], width: 1, show: false }),
  ], { scales: { x: { time: false } }, cursor: { show: true, drag: { x: true, y: false } } });
  heldOut.setData([held.seconds, ...rows]);
}
