// The output filters as sliders, with their values in their units. A slider changes the filter when
// it is released, so that each change is one entry of the journal.

import { byId, make, number, order } from "./dom.js";
import { call, get } from "./rest.js";

const FILTERS = [ // name, label, unit, least, most and step of the slider; off: what switches it off
  { name: "gain", label: "Gain", unit: "×", least: 0, most: 4, step: 0.05 },
  { name: "smoothing_s", label: "Smoothing", unit: "s", least: 0, most: 0.5, step: 0.01 },
  { name: "dead_zone", label: "Dead zone", unit: "m/s", least: 0, most: 0.1, step: 0.002 },
  { name: "speed_limit", label: "Speed limit", unit: "m/s", least: 0.05, most: 2, step: 0.05, off: null },
  { name: "acceleration_limit", label: "Acceleration limit", unit: "m/s²", least: 0.5, most: 50, step: 0.5, off: null },
  { name: "bias_s", label: "Bias correction", unit: "s", least: 10, most: 600, step: 10, off: null },
];
const sliders = new Map();

export function start() {
  byId("filters").replaceChildren(...FILTERS.map((filter) => {
    const id = `filter-${filter.name}`;
    const slider = make("input", { type: "range", id, min: filter.least, max: filter.most, step: filter.step });
    const output = make("output", { htmlFor: id });
    slider.addEventListener("input", () => write(filter, output, Number(slider.value)));
    slider.addEventListener("change", () => set(filter, Number(slider.value)));
    const off = "off" in filter
      ? make("button", { type: "button", className: "small", textContent: "Off", "aria-label": `${filter.label} off`, onclick: () => set(filter, filter.off) })
      : make("button", { type: "button", className: "small", textContent: "Reset", "aria-label": `${filter.label} reset`, onclick: () => set(filter, filter.name === "gain" ? 1 : 0) });
    sliders.set(filter.name, { filter, slider, output });
    return make("div", { className: "filter" }, make("label", { htmlFor: id, textContent: filter.label }), slider, output, off);
  }));
}

function write({ unit, step }, output, value) {
  const digits = step < 0.01 ? 3 : step < 1 ? 2 : 0;
  output.textContent = value === null ? "off" : `${number(value, digits)} ${unit}`;
}

async function set(filter, value) {
  const answer = await order(() => call("PATCH", "/v1/filters", { [filter.name]: value }));
  paint(answer ?? await get("/v1/filters").catch(() => null));
}

/** Show the filters in use, but do not move a slider that is being dragged. */
export function paint(filters) {
  if (!filters) return;
  for (const [name, { filter, slider, output }] of sliders) {
    if (slider.matches(":active")) continue;
    const value = filters[name];
    slider.value = value ?? filter.most;
    slider.setAttribute("aria-valuetext", value === null ? "off" : `${value} ${filter.unit}`);
    write(filter, output, value);
  }
}
