"""Read the cursor in Python, without Volition's package: `pip install pyzmq`.

    python reader.py [tcp://127.0.0.1:5556]

Prints `seq vel_x vel_y` (m/s) for each frame to act on, and `stop: why` otherwise. Call your own
function in their place. The rules are in docs/READERS.md.
"""

import json
import math
import sys
import time

import zmq

MAX_AGE_S, SCHEMA, TOPIC = 0.1, 1, b"cursor.json:"
DRIFT = 2e-4  # s/s; by how much two hosts' clocks may drift apart


def say(line: str) -> None:
    print(line, flush=True)


socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.CONFLATE, 1)  # keeps only the newest frame
socket.setsockopt(zmq.RCVBUF, 4096)
socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
socket.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5556")
shortest, started, before = math.inf, None, time.monotonic()
while True:
    if not socket.poll(MAX_AGE_S * 1e3):
        say("stop: silence")
        continue
    try:
        frame = json.loads(socket.recv()[len(TOPIC) :])
        now, published = time.monotonic(), float(frame["published"])
        if frame["started"] != started:  # another daemon
            started, shortest = frame["started"], math.inf
        shortest = min(now - published, shortest + DRIFT * (now - before))
        before = now
        vel_x, vel_y = map(float, frame["velocity"])
        if frame["schema"] != SCHEMA:
            say("stop: another schema")
        elif now - published - shortest > MAX_AGE_S:
            say("stop: an old frame")
        elif frame["valid"] is not True:
            say(f"stop: {frame['state']}")
        else:
            say(f"{frame['seq']} {vel_x!r} {vel_y!r}")
    except (ValueError, KeyError, TypeError) as error:
        say(f"stop: unreadable ({error})")
