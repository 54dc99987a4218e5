// Block notes, and the journal of all changes.

import { byId, make, order, show, table } from "./dom.js";
import { get, post } from "./rest.js";

const SHOWN = 40;

export function start() {
  byId("note").addEventListener("submit", async (event) => {
    event.preventDefault();
    const field = event.target.elements.text;
    if (await order(() => post("/v1/notes", { text: field.value }))) field.value = "";
    refresh();
  });
  refresh();
}

export async function refresh() {
  const changes = await get(`/v1/journal?limit=${SHOWN}`).catch(() => null);
  if (!changes) return;
  show(byId("journal"), changes[0]?.number ?? 0, () => [table(["at", "who", "what", ""], changes.map(({ at, who, what, detail }) => {
    const words = Object.entries(detail).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
    return [new Date(at).toLocaleTimeString("en-GB"), who, make("strong", { textContent: what }), words.join(", ")];
  }))]);
}
