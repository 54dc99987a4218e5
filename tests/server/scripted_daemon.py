"""A daemon that speaks the control protocol, decodes nothing, and follows a script."""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

import msgspec

from streaming.daemon.settings import DaemonSettings
from streaming.inlets.spikes import StreamQuery
from streaming.units import mark_of
from streaming.wire import control
from streaming.wire import messages as wire
from streaming.wire.control import ControlSocket


class Script:
    """What the daemon should do, in memory shared by the test and every daemon.

    before_ms, after_ms: delays before a command is carried out, and before it is answered.
    load_ms: time that a decoder takes to load; may be shortened while it is loading.
    armable: whether the daemon can be armed.
    die: 1 before the next command is carried out, 2 after it but before the answer, 0 not at all.
    """

    FORMAT = struct.Struct("=5d")

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        if is_new:
            path.write_bytes(bytes(self.FORMAT.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.FORMAT.size)
        if is_new:
            self.set()

    def set(
        self, *, before_ms: float = 0, after_ms: float = 0, load_ms: float = 0,
        armable: bool = True, die: int = 0,
    ) -> None:  # fmt: skip
        self.FORMAT.pack_into(self._memory, 0, before_ms, after_ms, load_ms, armable, die)

    def get(self) -> tuple[float, float, float, bool, int]:
        before_ms, after_ms, load_ms, armable, die = self.FORMAT.unpack_from(self._memory)
        return before_ms, after_ms, load_ms, bool(armable), int(die)

    def has_died(self) -> None:
        before_ms, after_ms, load_ms, armable, _ = self.get()
        self.set(before_ms=before_ms, after_ms=after_ms, load_ms=load_ms, armable=armable)


def decoder_of(bundle: Path) -> str:
    return str(json.loads((bundle / "manifest.json").read_text())["decoder_id"])


class ScriptedDaemon:
    """Answers commands as `streaming.daemon.loop.Daemon` does."""

    def __init__(self, bundle: Path, settings: DaemonSettings, folder: Path) -> None:
        assert settings.control is not None
        self._script = Script(folder / "script")
        self._bundle, self._decoder = bundle, decoder_of(bundle)
        self._candidate: Path | None = None
        self._previous: Path | None = None
        self._load_began = 0.0
        self._load_problem: str | None = None
        self._filters, self._paused = settings.filters, settings.paused
        self._excluded = frozenset(settings.excluded)
        self._input = StreamQuery(kind=settings.stream_type, name=settings.stream_name)
        self._started, self._ticks = time.monotonic(), 0
        self._socket = ControlSocket(settings.control)
        self._far = folder / "far"  # exists: the neurons have changed
        birth = {"at": self._started, "pid": os.getpid(), **self.does()}
        with (folder / "births").open("a") as file:
            file.write(f"\n{json.dumps(birth)}\n")  # after the partial line of a killed one

    def does(self) -> dict[str, Any]:
        return {
            "decoder": self._decoder,
            "paused": self._paused,
            "gain": self._filters.gain,
            "input": self._input.name,
            "excluded": sorted(self._excluded),
        }

    def serve(self) -> None:
        while True:
            self._socket._socket.poll(1000)
            command = self._socket.receive()
            if command is None:
                continue
            self._ticks += 1
            is_order = not isinstance(command, control.GetStatus)
            before_ms, after_ms, _, _, die = self._script.get()
            if is_order:
                time.sleep(before_ms / 1e3)
                self._die_if(die == 1)
            problem = command if isinstance(command, str) else self._handle(command)
            if is_order:
                self._die_if(die == 2)
                time.sleep(after_ms / 1e3)
            excluded = sorted(self._excluded)
            self._socket.answer(
                control.Reply(problem=problem, status=self.status(), excluded=excluded)
            )
            if isinstance(command, control.Stop):
                self._socket.close()
                return

    def _die_if(self, it_shall: bool) -> None:
        if it_shall:
            self._script.has_died()
            os.kill(os.getpid(), signal.SIGKILL)

    def _handle(self, command: control.Command) -> str | None:
        armable = self._script.get()[3]
        match command:
            case control.Load(path=path):
                self._candidate, self._load_problem = None, None
                self._load_began = time.monotonic()
                if (Path(path) / "manifest.json").exists():
                    self._candidate = Path(path)
                else:
                    self._load_problem = f"{path} is no bundle"
            case control.Activate(decoder=decoder):
                candidate = None if self._loading else self._candidate
                if candidate is None or decoder_of(candidate) != decoder:
                    return f"decoder {decoder} is not the candidate; load it first"
                self._swap(candidate)
            case control.Rollback():
                if self._previous is None:
                    return "there is no decoder before this one"
                self._swap(self._previous)
            case control.SetInput(kind=kind, name=name):
                self._input = StreamQuery(kind=kind, name=name)
            case control.Pause(why=why):
                self._paused = why
            case control.Resume(paused_for=why):
                if why in (None, self._paused):
                    self._paused = None
            case control.Arm():
                if not armable:
                    return "not armed: nobody listens to cursor frames"
                self._paused = None
            case control.SetFilters(filters=filters):
                self._filters = filters
            case control.SetExcluded(unit_ids=unit_ids):
                if {"1", "2"} <= {*unit_ids}:  # all that the scripted decoders know
                    return "all 2 units that the decoder knows would be excluded"
                self._excluded = frozenset(unit_ids)
        return None

    @property
    def _loading(self) -> bool:
        return time.monotonic() < self._load_began + self._script.get()[2] / 1e3

    def _swap(self, bundle: Path) -> None:
        self._bundle, self._previous, self._candidate = bundle, self._bundle, None
        self._decoder = decoder_of(bundle)

    def status(self) -> wire.Status:
        loading = self._loading
        values = {field.name: _nothing(field.type) for field in msgspec.structs.fields(wire.Status)}
        return wire.Status(
            **values
            | {
                "schema": wire.SCHEMA_VERSION,
                "decoder": self._decoder,
                "state": "paused" if self._paused is not None else "decoding",
                "started": self._started,
                "ticks": self._ticks,
                "input_kind": self._input.kind,
                "input_name": self._input.name,
                "stream": self._input.name,
                "bundle": str(self._bundle),
                "previous": self._previous and decoder_of(self._previous),
                "candidate": decoder_of(self._candidate)
                if self._candidate and not loading
                else None,
                "loading": loading,
                "load_problem": None if loading else self._load_problem,
                "paused": self._paused,
                "filters": self._filters,
                "excluded_units": len(self._excluded),
                "excluded_mark": mark_of(self._excluded),
                "pid": os.getpid(),
                "distance": 2.1 if self._far.exists() else 0.1,
                "distance_limit": 0.5,
            }
        )


def _nothing(kind: Any) -> Any:
    """A zero of a field's type, so that new fields of the status need no change here."""
    if kind in (str, int, float, bool):
        return kind()
    if "None" in str(kind):
        return None
    return (0.0, 0.0) if "tuple" in str(kind) else {}
