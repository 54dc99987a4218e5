"""The whole loop with neural-data-simulator (NDS): its task, spikes and metrics, our decoder.

    python examples/nds/loop.py PATH/TO/NDS/python -o runs/nds

    task -LSL-> encoder -LSL-> ephys generator -LSL-> daemon -ZeroMQ-> relay -LSL-> task

Everything runs in a process of its own: NDS's task with the cursor under the hand, a calibration
over REST from its behaviour stream, live R²; then its task again, its cursor moved by the decoder.
docs/NDS.md has the same by hand, command by command.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pylsl import local_clock

from clients.harness.daemon import BUNDLES
from clients.harness.server import SHIPPED, Server
from clients.subscriber import CursorSubscriber
from decoder.errors import StreamError
from server.schemas import CalibrationRequest, FiltersPatch, Method
from streaming.columns import VELOCITY
from streaming.inlets.kinematics import KinematicsInlet, find_kinematics
from streaming.inlets.spikes import EVENTS, RESOLVE_S, StreamQuery, find_spikes

HERE = Path(__file__).parent
UNITS = 96
STOP_S = 10.0
FIND_S = 60.0
LIVE_S = 30.0


class Nds:
    """NDS's commands, with streams of our own names, defaults everywhere else.

    python: its interpreter. folder: its home (`.nds`), and logs. prefix: of its streams.
    """

    def __init__(self, python: Path, folder: Path, prefix: str) -> None:
        self.prefix, self._folder, self._python = prefix, folder, python
        self._variables = os.environ | {
            "HOME": str(folder), "PYLSL_LIB": os.environ.get("PYLSL_LIB", liblsl()),
            "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "MPLBACKEND": "agg",
        }  # fmt: skip
        self._variables.pop("PYTHONPATH", None)
        folder.mkdir(parents=True, exist_ok=True)
        install = [str(python.parent / "nds_post_install_config"), "--ignore-sample-data-download"]
        subprocess.run(install, env=self._variables, check=True, stdout=subprocess.DEVNULL)

    @contextmanager
    def running(self, *command: str, **settings: object) -> Iterator[subprocess.Popen[str]]:
        """A command with settings in its own words, ended by SIGINT where it hasn't by itself."""
        given = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        with (self._folder / "nds.log").open("a") as log:
            process = subprocess.Popen(
                [self._python, *command, "-o", *given],
                env=self._variables, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def task(self, *, decoded: bool, trials: int, seed: int) -> Any:
        """Centre-out; the cursor is the decoder's, or the hand's own."""
        stem = "center_out_reach"
        picture = ("--picture", str(self._folder / "trajectories.png")) if decoded else ()
        return self.running(
            str(HERE / "hand.py"), "--trials", str(trials), "--seed", str(seed), *picture,
            **{
                f"{stem}.input.enabled": str(decoded).lower(),
                f"{stem}.input.lsl.stream_name": f"{self.prefix}-decoder",
                f"{stem}.output.lsl.stream_name": f"{self.prefix}-behavior",
                f"{stem}.output.lsl.source_id": f"{self.prefix}-behavior",
                f"{stem}.output.lsl.channel_labels": "[vel_x,vel_y]",
                f"{stem}.standard_scaler.scale": "[20,20]",  # mm in 1/50 s, as m/s
                f"{stem}.task_window_output.lsl.stream_name": f"{self.prefix}-window",
                f"{stem}.task_window_output.lsl.source_id": f"{self.prefix}-window",
                f"{stem}.window.ppi": "127",
            },
        )  # fmt: skip

    def encoder(self) -> Any:
        """Velocity to firing rates."""
        return self.running(
            str(self._python.parent / "encoder"),
            **{
                "encoder.model": str(HERE.resolve() / "units.py"),
                "encoder.input.lsl.stream_name": f"{self.prefix}-behavior",
                "encoder.output.n_channels": str(UNITS),
                "encoder.output.lsl.stream_name": f"{self.prefix}-rates",
                "encoder.output.lsl.source_id": f"{self.prefix}-rates",
            },
        )

    def ephys_generator(self) -> Any:
        """Firing rates to spikes. Longer chunks, fewer samples and less noise made beforehand than
        by default: with 96 channels it falls behind real time on a busy core."""
        stem = "ephys_generator"
        return self.running(
            str(self._python.parent / "ephys_generator"),
            **{
                f"{stem}.input.lsl.stream_name": f"{self.prefix}-rates",
                f"{stem}.lsl_chunk_frequency": "100",
                f"{stem}.raw_data_frequency": "10000",
                f"{stem}.noise.samples": "30000",
                f"{stem}.output.spike_events.lsl.stream_name": f"{self.prefix}-spikes",
                f"{stem}.output.spike_events.lsl.source_id": f"{self.prefix}-spikes",
                f"{stem}.output.raw.lsl.source_id": f"{self.prefix}-raw",
                f"{stem}.output.lfp.lsl.source_id": f"{self.prefix}-lfp",
            },
        )


def liblsl() -> str:
    """The library that our pylsl brings; the older one that NDS needs brings none."""
    import pylsl

    (library,) = (Path(pylsl.__file__).parent / "lib").glob("liblsl.so")
    return str(library)


@contextmanager
def relaying(address: str, name: str) -> Iterator[None]:
    """`volition relay` in a process of its own."""
    command = [sys.executable, "-m", "clients", "relay", "--name", name, "--address", address]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait(STOP_S)


def wait_for_spikes(name: str) -> None:
    """NDS opens the stream long before its first spike: it makes noise first."""
    deadline = time.monotonic() + FIND_S
    query, inlet = StreamQuery(kind=EVENTS, name=name), None
    while time.monotonic() < deadline:
        inlet = inlet or find_spikes(query, RESOLVE_S)
        if inlet is not None and len(inlet.drain(local_clock())[0]):
            inlet.close()
            return
        time.sleep(0.05)
    raise StreamError(f"no spikes from {name!r} within {FIND_S:g} s; nds.log says why")


def found(name: str) -> KinematicsInlet:
    """NDS's behaviour stream, opened as soon as it is there."""
    deadline = time.monotonic() + FIND_S
    while time.monotonic() < deadline:
        if (inlet := find_kinematics(name, RESOLVE_S)) is not None:
            return inlet
    raise StreamError(f"no stream {name!r} within {FIND_S:g} s; nds.log says why")


def first_valid(address: str) -> float:
    """Wait for a valid frame; return the seconds.

    The daemon opens NDS's stream when it has a decoder that knows the stream.
    """
    begun = time.monotonic()
    with CursorSubscriber(address) as cursor:
        while (frame := cursor.receive(timeout_s=FIND_S)) is not None:
            if frame.valid:
                return time.monotonic() - begun
    raise StreamError(f"no frame within {FIND_S:g} s; server.log says why")


def live_r2(
    address: str, behavior: KinematicsInlet, until: Callable[[], object]
) -> dict[str, float]:
    """R² of live frames against the behaviour stream's velocity at the same instants."""
    from training.baselines.ridge import r2

    frames, times, values = [], [], []
    with (
        CursorSubscriber(address, max_age_s=None) as cursor,
        suppress(StreamError),  # the task may end first
    ):
        while not until():
            if (frame := cursor.receive(timeout_s=0.1)) is not None:
                frames.append(frame)
            more, velocity = behavior.drain()
            times.append(more)
            values.append(velocity[:, VELOCITY])
    at, true = np.concatenate(times), np.concatenate(values)
    frames = [frame for frame in frames if at[0] < frame.window_end < at[-1]]
    valid = [frame for frame in frames if frame.valid]
    instants = np.array([frame.window_end for frame in valid])
    moved = np.stack([np.interp(instants, at, true[:, axis]) for axis in (0, 1)], axis=1)
    score = r2(moved, np.array([frame.velocity for frame in valid]))
    return {"r2": score.r2_mean, "valid": len(valid) / len(frames)}


def loop(nds: Nds, folder: Path, *, preset: str, method: Method, gain: float,
         seconds: float, trials: int, seed: int) -> dict[str, Any]:  # fmt: skip
    """Calibrate from NDS's hand, then let NDS's cursor be steered. Returns the figures."""
    result: dict[str, Any] = {"preset": preset, "method": method, "gain": gain, "seed": seed}
    with ExitStack() as ends:
        hand = ends.enter_context(ExitStack())
        hand.enter_context(nds.task(decoded=False, trials=10**6, seed=seed))
        ends.enter_context(nds.encoder())
        ends.enter_context(nds.ephys_generator())
        behavior = found(f"{nds.prefix}-behavior")
        wait_for_spikes(f"{nds.prefix}-spikes")
        server = ends.enter_context(
            Server(
                BUNDLES / f"{SHIPPED[preset]}.bundle", folder / "home", f"{nds.prefix}-spikes",
                VOLITION_STREAM_TYPE="SpikeEvents",
            )
        )  # fmt: skip
        request = CalibrationRequest(
            seconds=seconds, method=method, kinematics=f"{nds.prefix}-behavior",
            markers=f"{nds.prefix}-markers",  # there are none; no other rig's
        )  # fmt: skip
        with server.client() as client:
            *_, calibration = client.calibrate(request)
            result["calibration"] = calibration.model_dump(mode="json")
            if calibration.state != "promoted":
                return result
            result["valid_after_s"] = first_valid(server.address)
            behavior.drain()
            end = time.monotonic() + LIVE_S
            result["live"] = live_r2(server.address, behavior, lambda: time.monotonic() > end)
            client.set_filters(FiltersPatch(gain=gain))
        behavior.close()
        hand.close()
        ends.enter_context(relaying(server.address, f"{nds.prefix}-decoder"))
        with nds.task(decoded=True, trials=trials, seed=seed + 1) as task:
            behavior = found(f"{nds.prefix}-behavior")
            steered = live_r2(server.address, behavior, lambda: task.poll() is not None)
            said, _ = task.communicate(timeout=STOP_S)
            result["steered"] = steered | json.loads(said.splitlines()[-1])
    return result


def main() -> None:
    """Run it once; print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nds", type=Path, help="NDS's interpreter")
    parser.add_argument("-o", "--output", type=Path, default=Path("nds"))
    parser.add_argument("--preset", choices=list(SHIPPED), default="stream")
    parser.add_argument("--method", choices=get_args(Method), default="auto")
    parser.add_argument("--gain", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    nds = Nds(given.nds.absolute(), given.output.absolute(), f"nds-{os.getpid()}")
    result = loop(
        nds, given.output, preset=given.preset, method=given.method, gain=given.gain,
        seconds=given.seconds, trials=given.trials, seed=given.seed,
    )  # fmt: skip
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
