// The cursor, its trail and the target, from the kinematics stream; metres.

import { byId, colour, number } from "./dom.js";

const TRAIL_S = 1.5;
const LEAST_M = 0.1; // half the width that is always shown
const TARGET_M = 0.015;

const canvas = byId("cursor");
const trail = []; // [time on the LSL clock, x, y]
let target = null;
let reach = LEAST_M;
let velocity = [0, 0];

export function take(header, arrays) {
  const { kin_t: t, kin_pos_x: x, kin_pos_y: y, kin_target_x: tx, kin_target_y: ty } = arrays;
  for (let i = 0; i < t.length; i += 1) {
    if (Number.isNaN(x[i])) continue;
    trail.push([header.now + t[i], x[i], y[i]]);
    reach = Math.max(reach, 1.08 * Math.abs(x[i]), 1.08 * Math.abs(y[i]));
  }
  while (trail.length && trail[0][0] < header.now - TRAIL_S) trail.shift();
  if (t.length) {
    const i = t.length - 1;
    target = Number.isNaN(tx[i]) ? null : [tx[i], ty[i]];
    if (target) reach = Math.max(reach, 1.15 * Math.abs(tx[i]), 1.15 * Math.abs(ty[i]));
  }
  const n = arrays.frame_vx.length;
  if (n) velocity = [arrays.frame_vx[n - 1], arrays.frame_vy[n - 1]];
  const here = trail.at(-1);
  const note = here
    ? `${header.kinematics ?? "stream lost"}: ${number(here[1], 3)}, ${number(here[2], 3)} m`
    : header.kinematics_problem ?? "no kinematics stream: the cursor's position is unknown";
  if (byId("cursor-note").textContent !== note) byId("cursor-note").textContent = note;
}

export function draw() {
  const { context, width, height } = fitted(canvas);
  const scale = Math.min(width, height) / (2 * reach);
  const at = (x, y) => [width / 2 + x * scale, height / 2 - y * scale];
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  for (const part of [-1, 0, 1]) {
    const offset = (part * reach * 2) / 3;
    context.beginPath();
    context.moveTo(...at(-reach, offset)); context.lineTo(...at(reach, offset));
    context.moveTo(...at(offset, -reach)); context.lineTo(...at(offset, reach));
    context.stroke();
  }
  if (target) dot(context, at(...target), Math.max(8, TARGET_M * scale), colour("target"), false);
  const here = trail.at(-1);
  if (!here) return;
  context.strokeStyle = colour("faint");
  context.lineWidth = 2;
  context.beginPath();
  for (const [, x, y] of trail) context.lineTo(...at(x, y));
  context.stroke();
  context.strokeStyle = colour("accent");
  context.beginPath();
  context.moveTo(...at(here[1], here[2]));
  context.lineTo(...at(here[1] + 0.2 * velocity[0], here[2] + 0.2 * velocity[1]));
  context.stroke();
  dot(context, at(here[1], here[2]), 7, colour("accent"), true);
}

function dot(context, [x, y], radius, fill, solid) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = context.strokeStyle = fill;
  context.lineWidth = 3;
  if (solid) context.fill(); else context.stroke();
}

/** The canvas at the screen's resolution, cleared; sizes in CSS pixels. */
export function fitted(element) {
  const ratio = devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = element;
  if (element.width !== Math.round(width * ratio) || element.height !== Math.round(height * ratio)) {
    element.width = Math.round(width * ratio);
    element.height = Math.round(height * ratio);
  }
  const context = element.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}
