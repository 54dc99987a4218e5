"""Carries out the commands of the control socket, between two ticks."""

from __future__ import annotations

from collections.abc import Set
from math import inf
from pathlib import Path

from decoder.runtimes.base import Runtime
from streaming.daemon.recent import KEEP_S
from streaming.daemon.swap import StreamSpikes
from streaming.daemon.tick import Ticker
from streaming.inlets.spikes import StreamQuery
from streaming.units import UnitMatch, none_left, too_many_excluded
from streaming.wire import control
from streaming.wire.control import Command
from streaming.wire.states import State


def handle(ticker: Ticker, command: Command, window_end: float) -> str | None:
    """Carry out one command. Returns why it is refused, or None."""
    match command:
        case control.Load(path=path):
            if ticker.loader.busy:
                return "another decoder is being loaded; try again when it is done"
            ticker.loader.load(
                Path(path), ticker.runtime, epoch=ticker.started, recent=_recent_spikes(ticker)
            )
        case control.Activate(decoder=decoder):
            candidate = ticker.loader.candidate
            if candidate is None or candidate.bundle.manifest.decoder_id != decoder:
                return f"decoder {decoder} is not the candidate; load it first"
            return swap(ticker, candidate, window_end)
        case control.Rollback():
            if ticker.previous is None:
                return "there is no previous decoder"
            return swap(ticker, ticker.previous, window_end)
        case control.SetInput(kind=kind, name=name):
            ticker.read_from(StreamQuery(kind=kind, name=name), window_end)
        case control.SetExcluded(unit_ids=unit_ids):
            return _exclude(ticker, frozenset(unit_ids))
        case control.Pause(why=why):
            ticker.paused = why
        case control.Resume(paused_for=why):
            if why is None or why == ticker.paused:
                ticker.paused = None
        case control.Arm():
            return _arm(ticker, window_end)
        case control.SetFilters(filters=filters):
            ticker.filters.settings = filters
        case control.Stop():
            ticker.should_stop = True
    return None


def units_of(ticker: Ticker) -> list[control.Unit]:
    """The units of the open stream, at most `MAX_LISTED`, in its order."""
    unit_ids = ticker.inlet.unit_ids[: control.MAX_LISTED] if ticker.inlet else []
    known = set(ticker.bundle.manifest.unit_ids)
    found = ticker.unit_watch.faults(tuple(ticker.inlet.unit_ids)) if ticker.inlet else None
    fault_of = found.by_unit() if found else {}
    return [
        control.Unit(
            id=unit_id,
            known=unit_id in known,
            excluded=unit_id in ticker.excluded,
            fault=fault_of.get(unit_id),
        )
        for unit_id in unit_ids
    ]


def _recent_spikes(ticker: Ticker) -> StreamSpikes | None:
    """The recent spikes of the open stream; None if no stream is open."""
    if ticker.inlet is None:
        return None
    times, stream_units = ticker.recent.since(-inf)
    return StreamSpikes(
        times=times,
        stream_units=stream_units,
        unit_ids=tuple(ticker.inlet.unit_ids),
        excluded=ticker.excluded,
    )


def _exclude(ticker: Ticker, excluded: Set[str]) -> str | None:
    """Exclude these units only. At least one that the decoder knows must remain."""
    if problem := too_many_excluded(excluded):
        return problem
    known = ticker.bundle.manifest.unit_ids
    stream_units = ticker.inlet.unit_ids if ticker.inlet else known
    match = UnitMatch(stream_units, known, excluded)
    if match.n_known and not match.n_used:
        return none_left(match.n_known)
    ticker.exclude(excluded)
    return None


def _arm(ticker: Ticker, window_end: float) -> str | None:
    """Resume, but only with a listener, a live stream and a working decoder."""
    missing = []
    if not ticker.publisher.has_listener:
        missing.append("nobody listens to cursor frames")
    if ticker.watch.judge(window_end) is not State.DECODING:
        missing.append("unbroken live spikes don't fill the decoder's window yet")
    if ticker.fault is not None:
        missing.append(ticker.fault)
    if missing:
        return f"not armed: {'; '.join(missing)}"
    ticker.paused = None
    return None


def swap(ticker: Ticker, runtime: Runtime, window_end: float) -> str | None:
    """Decode with another runtime from the next tick on, with the same recent spikes.

    Returns why that is refused, or None.
    """
    unit_ids = runtime.bundle.manifest.unit_ids
    match = ticker.match_to(runtime.bundle)
    least = max(ticker.settings.min_known_share * len(unit_ids), 1)
    if ticker.inlet and match.n_known < least:
        return (
            f"the stream has {match.n_known} of the decoder's {len(unit_ids)} units; expected "
            f"at least {ticker.settings.min_known_share:.0%} (--min-known-share)"
        )
    if ticker.inlet and not match.n_used:
        return none_left(match.n_known)
    runtime.reset()
    runtime.continue_from(ticker.runtime)
    times, stream_units = ticker.recent.since(window_end - KEEP_S)
    unit_index = match(stream_units)
    times, unit_index = times[unit_index >= 0], unit_index[unit_index >= 0]
    seen = times >= window_end - runtime.window_s
    runtime.append(times[seen], unit_index[seen])
    ticker.runtime, ticker.previous, ticker.match = runtime, ticker.runtime, match
    ticker.connector.bundle_units = unit_ids  # for streams found from now on
    ticker.admission.max_age_s = ticker.watch.unbroken_s = runtime.window_s
    if runtime.window_s > KEEP_S:  # the recent spikes don't fill its window
        ticker.watch.refill(window_end)
    elif ticker.inlet is not None and ticker.inlet.bin_ends is None:
        ticker.watch.recount(times, window_end)  # only spikes of its own units are signs of life
    ticker.loader.drop()
    ticker.filters.forget_bias()  # learned from the other decoder
    ticker.fault = None
    return None
