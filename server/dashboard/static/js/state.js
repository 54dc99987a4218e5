// The state of the decoder as one word, one colour, an explanation and what to do next.

import { byId } from "./dom.js";

const LOST_MS = 700; // without a picture, of 30 per second
const SILENT_S = 0.5; // without a frame of the daemon
const NEXT = {
  decoding: "",
  paused: "Arm to go on.",
  ready: "Start the sender of the spikes.",
  warming: "Wait: the window is filling.",
  stale: "The cursor is stopped. Check the amplifier and the sender.",
  fault: "The cursor is stopped. Roll back, or lower the gain.",
  idle: "The daemon has stopped.",
  "no daemon": "The cursor is stopped. The server starts the daemon again; if it does not, activate a decoder.",
  lost: "This page can't pause anything now: stop the rig at the rig. It connects again by itself.",
};

let arrivedAt = -Infinity;
let last = { word: "lost", why: "" };

/** What a picture says of the state. */
export function judge(header) {
  arrivedAt = performance.now();
  const frame = header.frame;
  const answered = header.server;
  if (answered) last.server = answered;
  if (!frame || frame.age_s > SILENT_S) {
    const restarting = last.server?.restarting;
    last.word = "no daemon";
    last.why = header.problem || (restarting ? "The daemon has ended and is being started." : "No frames arrive from the daemon.");
  } else {
    last.word = frame.state;
    last.why = frame.state === "decoding"
      ? `Armed: the velocity of ${frame.decoder} leaves for the rig.`
      : last.server?.daemon?.state === frame.state ? last.server.daemon.detail : "";
    const warning = last.server?.daemon?.detail;
    if (frame.state === "decoding" && warning && last.server.daemon.state === "decoding") last.why += ` ${warning}`;
  }
  paint();
}

function paint() {
  const lost = performance.now() - arrivedAt > LOST_MS;
  const word = lost ? "lost" : last.word;
  const why = lost ? "No picture arrives from the server; what you see is old." : last.why;
  if (document.body.dataset.state !== word) {
    document.body.dataset.state = word;
    byId("state-word").textContent = word === "lost" ? "Feed lost" : word;
    byId("state-next").textContent = NEXT[word] ?? "";
    document.title = `${word} · Volition`;
  }
  if (byId("state-why").textContent !== why) byId("state-why").textContent = why;
  byId("arm").disabled = lost || word === "decoding";
  byId("pause").disabled = word === "paused";
}

setInterval(paint, 100);
