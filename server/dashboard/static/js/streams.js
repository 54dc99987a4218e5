// The LSL streams, what each is used for, and the choice of the input.

import { ask, button, byId, make, order, scrolling, show, table } from "./dom.js";
import { call, get } from "./rest.js";
import { offer } from "./calibrate.js";

export function start() {
  byId("streams-look").addEventListener("click", look);
  look();
}

async function look() {
  byId("streams-look").disabled = true;
  const found = await order(() => get("/v1/streams"));
  byId("streams-look").disabled = false;
  if (!found) return;
  offer(found.filter((stream) => stream.used_for === "kinematics").map((stream) => stream.name));
  show(byId("streams"), found, () => found.length === 0
    ? [make("p", { className: "note", textContent: "No stream answers. Is the sender running, on this network?" })]
    : [scrolling("LSL streams", table(["stream", "used for", ""], found.map((stream) => [
      make("span", {}, stream.name, make("small", { textContent: ` ${stream.type}, ${stream.host}` })),
      stream.open ? make("span", { className: "tag", textContent: "decoded" }) : stream.used_for === "nothing" ? "–" : stream.used_for,
      stream.used_for === "spikes" && !stream.open ? button("Read", () => read(stream), { "aria-label": `Read ${stream.name}` }) : make("span"),
    ])))]);
}

async function read(stream) {
  if (!await ask("Read this stream?", `The daemon leaves its stream and decodes ${stream.name}; frames are not valid until its spikes fill the window.`, { yes: "Read it" })) return;
  await order(() => call("PUT", "/v1/input", { kind: stream.type, name: stream.name }));
  setTimeout(look, 1500);
}
