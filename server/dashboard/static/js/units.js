// The units: rate, fault, and a switch each.

import { ask, byId, make, number, order, show } from "./dom.js";
import { call, get } from "./rest.js";
import * as raster from "./raster.js";

const FAULTS = { silent: "silent", noisy: "noisy", doubled: "doubled", artifact: "artifact" };
let listed = [];

export async function refresh() {
  const answer = await get("/v1/units").catch(() => null);
  if (!answer) return;
  listed = answer.units;
  raster.describe(listed);
  paint();
}

export function paint() {
  const off = listed.filter((unit) => unit.excluded).length;
  const faulty = listed.filter((unit) => unit.fault).length;
  const unknown = listed.filter((unit) => !unit.known).length;
  byId("units-count").textContent = [
    `${listed.length} in the stream`, off && `${off} off`, faulty && `${faulty} faulty`, unknown && `${unknown} unknown`,
  ].filter(Boolean).join(", ");
  show(byId("units"), listed, () => listed.map((unit) => {
    const state = unit.excluded ? "switched off" : unit.fault ? FAULTS[unit.fault] ?? unit.fault : unit.known ? "" : "not in the decoder";
    return make("button", {
      type: "button", className: unit.known ? "" : "unknown", onclick: () => toggle(unit),
      title: `${unit.id}${state ? `: ${state}` : ""}`, "aria-pressed": String(!unit.excluded),
      "aria-label": `Unit ${unit.id}${state ? `, ${state}` : ""}`, "data-fault": unit.fault ?? undefined,
    }, unit.id, make("small", { textContent: "" }));
  }));
  for (const [index, element] of [...byId("units").children].entries()) {
    const text = `${number(raster.rates[index] ?? 0, 0)}/s`;
    if (element.lastChild.textContent !== text) element.lastChild.textContent = text;
  }
}

async function toggle(unit) {
  if (!unit.excluded) {
    const text = "Its spikes are left out of decoding from the next tick on, also of the next decoders, until it is switched on again.";
    if (!await ask(`Switch off unit ${unit.id}?`, text, { yes: "Switch off" })) return;
  }
  await order(() => call("PATCH", "/v1/units", { [unit.excluded ? "include" : "exclude"]: [unit.id] }));
  await refresh();
}

byId("raster").addEventListener("click", (event) => {
  const unit = listed[raster.unitAt(event.offsetY)];
  if (unit) toggle(unit);
});
