// Read the cursor in JavaScript (Node.js 18 or newer): npm install
//
//     node reader.mjs [tcp://127.0.0.1:5556]
//
// Prints `seq vel_x vel_y` (m/s) for each frame to act on, and `stop: why` otherwise. Call your own
// function in their place. The rules are in docs/READERS.md.

import { Subscriber } from "zeromq";

const MAX_AGE_S = 0.1, SCHEMA = 1, TOPIC = "cursor.json:";
const DRIFT = 2e-4; // s/s; by how much two hosts' clocks may drift apart
const seconds = () => Number(process.hrtime.bigint()) / 1e9;

const socket = new Subscriber({
  conflate: true, // keeps only the newest frame
  receiveBufferSize: 4096,
  receiveTimeout: MAX_AGE_S * 1e3,
});
socket.subscribe(TOPIC);
socket.connect(process.argv[2] ?? "tcp://127.0.0.1:5556");
let shortest = Infinity, started = null, before = seconds();
for (;;) {
  let message;
  try {
    [message] = await socket.receive();
  } catch (error) {
    if (error.code !== "EAGAIN") throw error;
    console.log("stop: silence");
    continue;
  }
  try {
    const frame = JSON.parse(message.subarray(TOPIC.length));
    const now = seconds(), way = now - frame.published;
    if (frame.started !== started) { // another daemon
      started = frame.started;
      shortest = Infinity;
    }
    shortest = Math.min(way, shortest + DRIFT * (now - before));
    before = now;
    const [velX, velY] = frame.velocity;
    if (![way, velX, velY].every(Number.isFinite)) throw new TypeError("numbers expected");
    if (frame.schema !== SCHEMA) console.log("stop: another schema");
    else if (way - shortest > MAX_AGE_S) console.log("stop: an old frame");
    else if (frame.valid !== true) console.log(`stop: ${frame.state}`);
    else console.log(`${frame.seq} ${velX} ${velY}`);
  } catch (error) {
    console.log(`stop: unreadable (${error.message})`);
  }
}
