"""The daemon's status: its health, and an explanation of its state for people."""

from __future__ import annotations

import os

from decoder.runtimes.base import MAX_RATE_HZ, Runtime
from decoder.runtimes.onnx import PROVIDERS
from decoder.usual import Drift
from streaming.daemon.tick import Ticker
from streaming.units import mark_of
from streaming.wire import messages as wire
from streaming.wire.states import State

LEFT_OUT = {  # why events can't be used, for the explanation
    "future": "are stamped ahead of this host's clock",
    "too_old": "are stamped before the decoder's window",
    "no_time": "have no time stamp",
    "unknown_unit": "are of units that are not in the bundle",
    "excluded": "are of excluded units",
}


def status_of(
    ticker: Ticker,
    now: float,
    *,
    n_skipped: int,
    latency: wire.Quantiles | None,
    spikes_per_s: float,
) -> wire.Status:
    """The status at `now` (LSL clock, s).

    n_skipped: deadlines skipped since the start. latency, spikes_per_s: of the last period.
    """
    inlet, drift = ticker.inlet, ticker.runtime.drift
    explanations = (explain(ticker), drift_warning(drift), provider_warning(ticker))
    return wire.Status(
        schema=wire.SCHEMA_VERSION,
        session=ticker.bundle.manifest.session_id,
        decoder=ticker.bundle.manifest.decoder_id,
        state=ticker.state.value,
        detail=_printable("; ".join(filter(None, explanations))),
        provider=ticker.runtime.provider,
        started=ticker.started,
        uptime_s=now - ticker.started,
        ticks=ticker.n_frames,
        skipped_ticks=n_skipped,
        late_ticks=n_skipped,
        latency=latency,
        spikes_per_s=spikes_per_s,
        backlog_s=ticker.health.backlog_s,
        input_kind=ticker.connector.query.kind,
        input_name=ticker.connector.query.name,
        stream=inlet.name if inlet else None,
        known_units=ticker.match.n_known if inlet else 0,
        unknown_units=ticker.match.n_unknown if inlet else 0,
        missing_units=ticker.match.n_missing if inlet else 0,
        window_s=ticker.runtime.window_s,
        events=ticker.admission.counters.as_dict(),
        overflowed=ticker.runtime.n_overflowed,
        inlet_overflows=ticker.n_inlet_overflows,
        offset_jumps=ticker.n_offset_jumps,
        bundle=_printable(str(ticker.bundle.path.absolute())),
        previous=_id_of(ticker.previous),
        candidate=_id_of(ticker.loader.candidate),
        loading=ticker.loader.busy,
        load_problem=_printable(ticker.loader.problem) if ticker.loader.problem else None,
        paused=ticker.paused,
        filters=ticker.filters.settings,
        bias=ticker.filters.bias,
        distance=drift.distance if drift else None,
        distance_limit=drift.limit if drift else None,
        pid=os.getpid(),
        excluded_units=len(ticker.excluded),
        excluded_mark=mark_of(ticker.excluded),
        unit_faults=ticker.unit_watch.faults(tuple(inlet.unit_ids)) if inlet else None,
    )


def drift_warning(drift: Drift | None) -> str:
    """A warning if the neurons are not those of the days that the decoder knows, else empty."""
    if drift is None or (distance := drift.distance) is None or distance <= drift.limit:
        return ""
    return (
        f"the neurons have changed since the decoder's last days (distance {distance:.2f} nats, "
        f"usually below {drift.limit:.2f}); recalibrate"
    )


def provider_warning(ticker: Ticker) -> str:
    """A warning if decodes don't run on the requested provider, else an empty text."""
    asked, runs_on = ticker.settings.provider, ticker.runtime.provider
    if PROVIDERS.get(asked, runs_on) == runs_on:
        return ""
    return (
        f"{asked} was asked for, but decodes run on {runs_on}: check the GPU, its driver and "
        "volition[cuda]; --require-provider refuses to start instead"
    )


def explain(ticker: Ticker) -> str:
    """What the daemon waits for or what went wrong; empty while it decodes."""
    if ticker.paused is not None:
        return f"paused: {ticker.paused}" if ticker.paused else "paused"
    if ticker.inlet is None:
        return ticker.connector.problem or ticker.detail or f"waiting for {ticker.connector.query}"
    if ticker.is_overfull and ticker.state in (State.STALE, State.WARMING):
        return f"more than {MAX_RATE_HZ:,} spikes/s arrive, too many for the window; is it noise?"
    if ticker.connector.problem and ticker.state in (State.STALE, State.READY):
        return ticker.connector.problem  # with the stream that would replace the silent one
    return {
        State.STALE: _explain_no_spikes(ticker, "no spikes; waiting for the stream to come back"),
        State.WARMING: "filling the window",
        State.READY: _explain_no_spikes(ticker, "connected, no spikes yet"),
        State.FAULT: ticker.fault or "",
    }.get(ticker.state, "")


def _explain_no_spikes(ticker: Ticker, otherwise: str) -> str:
    left_out = ticker.admission.left_out
    if not left_out:
        return otherwise
    reasons = ", ".join(f"{n} {LEFT_OUT[name]}" for name, n in left_out.items())
    clock = "" if left_out.keys() <= {"unknown_unit", "excluded"} else "the sender's clock and "
    return f"events arrive, but none can be used: {reasons}; check {clock}the bundle's units"


def _printable(text: str) -> str:
    """Text that can be encoded: a path may contain bytes that are not UTF-8."""
    return text.encode(errors="replace").decode()


def _id_of(runtime: Runtime | None) -> str | None:
    return runtime.bundle.manifest.decoder_id if runtime else None
