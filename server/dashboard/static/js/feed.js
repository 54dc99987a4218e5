// The WebSocket feed: connects, connects again, and decodes pictures (server/dashboard/picture.py).

const AGAIN_MS = 500;
const TYPES = { f4: Float32Array, u2: Uint16Array, u1: Uint8Array };
const padded = (bytes) => Math.ceil(bytes / 8) * 8;

export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  let from = 4 + length;
  for (const [name, type, n] of header.arrays) {
    arrays[name] = new TYPES[type](buffer, from, n);
    from += padded(arrays[name].byteLength);
  }
  return { header, arrays };
}

/** Calls `picture(header, arrays)` for each picture, for as long as the page is open. */
export function follow(picture) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/v1/feed`);
  let opened = false;
  socket.binaryType = "arraybuffer";
  socket.addEventListener("open", () => { opened = true; });
  socket.addEventListener("message", (event) => {
    const { header, arrays } = decode(event.data);
    picture(header, arrays);
  });
  socket.addEventListener("close", async () => {
    if (!opened) await loginIfAsked();
    setTimeout(() => follow(picture), AGAIN_MS);
  });
}

/** A browser does not tell why a WebSocket was refused, so ask over HTTP. */
async function loginIfAsked() {
  const answer = await fetch("/v1/filters").catch(() => null);
  if (answer?.status === 401) location.assign("/login");
}
