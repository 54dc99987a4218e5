// The operator's screen. Pictures arrive 30 times per second and are drawn when the browser draws.

import { byId, make, order, show } from "./dom.js";
import { follow } from "./feed.js";
import { post } from "./rest.js";
import * as state from "./state.js";
import * as cursor from "./cursor.js";
import * as raster from "./raster.js";
import * as plots from "./plots.js";
import * as units from "./units.js";
import * as filters from "./filters.js";
import * as calibrate from "./calibrate.js";
import * as decoders from "./decoders.js";
import * as journal from "./journal.js";
import * as streams from "./streams.js";

const SLOW_MS = 5000, FAST_MS = 1000;
const TYPING = "input:not([type=range]), textarea";
let now = 0;
let known = ""; // what the lists were last fetched for

theme(localStorage.getItem("theme"));
plots.start();
filters.start();
calibrate.start();
decoders.start();
journal.start();
streams.start();
units.refresh();

follow((header, arrays) => {
  now = header.now;
  state.judge(header);
  cursor.take(header, arrays);
  raster.take(header, arrays);
  plots.take(header, arrays);
  if (header.server) server(header.server);
});

function server({ daemon, calibration }) {
  const ticks = plots.drawTicks(daemon);
  show(byId("ticks"), ticks, () => Object.entries(ticks).flatMap(([name, text]) => [
    make("dt", { textContent: name }),
    make("dd", { textContent: text, className: name === "overflowed" && text !== "0" && text !== "–" ? "bad" : "" }),
  ]));
  filters.paint(daemon?.filters);
  calibrate.follow(calibration);
  const seen = JSON.stringify([daemon?.decoder, daemon?.candidate, daemon?.previous, daemon?.stream, daemon?.started, calibration]);
  if (seen !== known) {
    known = seen;
    for (const part of [units, decoders, calibrate, journal]) part.refresh();
  }
}

function draw() {
  cursor.draw();
  raster.draw();
  plots.drawTraces(now);
  requestAnimationFrame(draw);
}
requestAnimationFrame(draw);
setInterval(() => { units.paint(); }, FAST_MS);
setInterval(() => { units.refresh(); decoders.refresh(); journal.refresh(); }, SLOW_MS);

const pause = () => order(() => post("/v1/decoding/pause", { why: "from the dashboard" }));
byId("pause").addEventListener("click", pause);
byId("arm").addEventListener("click", () => order(() => post("/v1/decoding/arm")));

// Before any element sees the key: the space bar must not press the button that has the focus.
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.(TYPING) ?? false;
  if ((event.code === "Space" && !typing) || (event.code === "Escape" && typing)) {
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) pause();
  }
}, { capture: true });
document.addEventListener("keyup", (event) => {
  if (event.code === "Space" && event.target.matches?.("button, summary")) event.preventDefault();
}, { capture: true });

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}
byId("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const current = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = current === "dark" ? "light" : "dark";
  localStorage.setItem("theme", next);
  theme(next);
});
