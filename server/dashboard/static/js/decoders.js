// The decoders, with their aliases: activate, pin, label, delete; and rolling back.

import { ask, button, byId, make, number, order, scrolling, show, table } from "./dom.js";
import { at, call, get, post } from "./rest.js";

export function start() {
  byId("rollback").addEventListener("click", async () => {
    if (!await ask("Roll back?", "Decode with the previous decoder from the next tick on.", { yes: "Roll back" })) return;
    await order(() => post("/v1/decoders/rollback"));
    refresh();
  });
  refresh();
}

export async function refresh() {
  const all = await get("/v1/decoders").catch(() => null);
  if (!all) return;
  byId("rollback").disabled = !all.some((decoder) => decoder.aliases.includes("previous"));
  show(byId("decoders"), all, () => [scrolling("Decoders", table(["decoder", "is", "units", "validation R²", "added", ""], all.map(row)))]);
}

function row(decoder) {
  const name = make("span", {}, decoder.label ? make("strong", { textContent: `${decoder.label} ` }) : null,
    make("span", { textContent: decoder.id }), make("small", { textContent: ` ${decoder.preset}` }));
  const tags = make("span", {}, ...[...decoder.aliases, ...(decoder.pinned ? ["pinned"] : [])].flatMap((alias) =>
    [make("span", { className: "tag", textContent: alias }), " "]));
  const score = decoder.metrics.validation_r2 ?? null;
  const active = decoder.aliases.includes("active");
  const actions = make("span", { className: "row" },
    active ? null : button("Activate", () => activate(decoder), { "aria-label": `Activate ${decoder.id}` }),
    button(decoder.pinned ? "Unpin" : "Pin", () => change(decoder, { pinned: !decoder.pinned }), { "aria-label": `${decoder.pinned ? "Unpin" : "Pin"} ${decoder.id}` }),
    button("Label", () => label(decoder), { "aria-label": `Label ${decoder.id}` }),
    active ? null : button("Delete", () => remove(decoder), { "aria-label": `Delete ${decoder.id}` }));
  return [name, tags, String(decoder.units), number(score), decoder.added.slice(0, 16).replace("T", " "), actions];
}

async function activate(decoder) {
  if (!await ask("Activate this decoder?", `${decoder.id} is warmed next to the active one and decodes from then on.`, { yes: "Activate" })) return;
  await order(() => post(at("decoders", decoder.id, "activate")));
  refresh();
}

async function change(decoder, fields) {
  await order(() => call("PATCH", at("decoders", decoder.id), fields));
  refresh();
}

async function label(decoder) {
  const text = await ask("Label this decoder", decoder.id, { yes: "Save", field: "Label", value: decoder.label });
  if (text !== null) change(decoder, { label: text });
}

async function remove(decoder) {
  if (!await ask("Delete this decoder?", `${decoder.id} and its files are removed for good.`, { yes: "Delete" })) return;
  await order(() => call("DELETE", at("decoders", decoder.id)));
  refresh();
}
