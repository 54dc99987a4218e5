"""Choice of the stream, over real LSL: odd names, leftovers, unreadable streams."""

from __future__ import annotations

import gc
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pylsl
import pytest

from decoder.errors import StreamError
from streaming.inlets.connector import Connector, Source, open_stream
from streaming.inlets.inlet import Inlet
from streaming.inlets.kinematics import KinematicsInlet, MarkerInlet, Markers
from streaming.inlets.search import Lookout, Query
from streaming.inlets.spikes import SpikeInlet, StreamQuery
from tests.rig import DEADLINE_S, meanwhile, wait_for


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def outlet(name: str, kind: str, source_id: str | None = None) -> pylsl.StreamOutlet:
    """An outlet with two channels, and a unique source id unless one is given."""
    source_id = source_id or unique("source")
    info = pylsl.StreamInfo(name, kind, 2, 0.0, pylsl.cf_int32, source_id)
    return pylsl.StreamOutlet(info)


@contextmanager
def sending(stream: pylsl.StreamOutlet) -> Iterator[None]:
    """Send ten samples per second."""

    def send(stop: threading.Event) -> None:
        while not stop.wait(0.1):
            stream.push_sample([1, 0])

    with meanwhile(send):
        yield


NAMES = [
    "the rig's spikes",
    'a "quoted" name',
    """both ' and " and '' """,
    "naïve µV 日本 🧠",
    "a]b[c&d<e>f or true() | //x",
    "tab\tand\nnewline",
    "\\'); x='",
    "x" * 300,
]


def test_a_stream_is_found_by_any_name() -> None:
    kind = unique("kind")
    names = [f"{name}{uuid.uuid4().hex[:6]}" for name in NAMES]
    outlets = [outlet(name, kind) for name in names]
    for name in names:
        with Lookout(Query(kind=kind, name=name)) as lookout:
            found = [info.name() for info in lookout.wait(10.0)]
        assert found == [name]
    with Lookout(Query(kind=kind)) as lookout:
        wait_for("all", lambda: {info.name() for info in lookout.seen()} == set(names))
    with Lookout(Query(kind=kind, name="' or true() or '")) as lookout:
        assert lookout.wait(0.7) == []
    del outlets


def test_a_search_for_an_odd_name_does_not_spin() -> None:
    looks = 0

    class Counting(Connector[SpikeInlet]):
        def _look(self) -> None:
            nonlocal looks
            looks += 1
            super()._look()

    connector = Counting(StreamQuery(name=unique("it's not")), SpikeInlet)
    connector.start()
    time.sleep(1.0)
    connector.stop()
    assert looks <= 2


def test_a_source_id_with_an_apostrophe_is_read() -> None:
    name = unique("rig")
    stream = outlet(name, "SpikeEvents", source_id='it\'s "mine"')
    inlet = open_stream(StreamQuery(name=name), SpikeInlet, 5.0)
    assert inlet is not None
    assert inlet.source_id == 'it\'s "mine"'
    inlet.close()
    del stream


def test_the_stream_that_sends_is_preferred_to_a_leftover() -> None:
    name = unique("rig")
    leftover = outlet(name, "SpikeEvents")
    source = Source(StreamQuery(name=name), SpikeInlet)
    first = source.wait(20.0)
    assert first is not None, "a single stream is read even if silent"
    live = outlet(name, "SpikeEvents")
    with sending(live):

        def reads_the_live_one() -> bool:
            inlet = source.tend()
            return inlet is not None and len(inlet.drain(pylsl.local_clock())[0]) > 0

        wait_for("the one that sends", reads_the_live_one)
        assert source.inlet.uid != first.uid
        again = open_stream(StreamQuery(name=name), SpikeInlet, 5.0)
        assert again is not None
        assert again.uid == source.inlet.uid
        again.close()
    source.close()
    del leftover, live


def test_two_sending_streams_of_one_name_are_refused() -> None:
    name = unique("rig")
    streams = [outlet(name, "SpikeEvents") for _ in range(2)]
    with (
        sending(streams[0]),
        sending(streams[1]),
        pytest.raises(StreamError, match=r"2 streams have name .* stop the others"),
    ):
        open_stream(StreamQuery(name=name), SpikeInlet, 5.0)
    del streams


def test_two_silent_streams_of_one_name_are_awaited() -> None:
    name = unique("rig")
    streams = [outlet(name, "SpikeEvents") for _ in range(2)]
    source = Source(StreamQuery(name=name), SpikeInlet)
    wait_for("the problem", lambda: source.tend() or "none of them sends" in (source.problem or ""))
    assert source.inlet is None
    with sending(streams[1]):
        assert source.wait(30.0) is not None
    assert source.problem is None
    source.close()
    del streams


def test_an_unreadable_stream_of_the_type_does_not_block_others() -> None:
    kind = unique("kind")
    odd = pylsl.StreamOutlet(pylsl.StreamInfo("log", kind, 1, 0.0, pylsl.cf_string, unique("odd")))
    eye = outlet(unique("eye"), kind)  # no labels
    info = pylsl.StreamInfo(unique("hand"), kind, 2, 50.0, pylsl.cf_float32, unique("hand"))
    info.set_channel_labels(["pos_x", "pos_y"])
    hand = pylsl.StreamOutlet(info)
    with Lookout(Query(kind=kind)) as lookout:
        wait_for("all three", lambda: len(lookout.seen()) == 3)
    inlet = open_stream(Query(kind=kind), KinematicsInlet, 5.0)
    assert inlet is not None
    assert inlet.name == info.name()
    inlet.close()
    del odd, eye, hand


def test_streams_of_several_types_may_share_a_name() -> None:
    name = unique("device")
    streams = [outlet(name, kind) for kind in ("SpikeEvents", "Markers")]
    for kind, opens in (("SpikeEvents", SpikeInlet), ("Markers", MarkerInlet)):
        inlet: Inlet | None = open_stream(Query(kind=kind, name=name), opens, 5.0)
        assert inlet is not None
        assert inlet.kind == kind
        inlet.close()
    del streams


def test_all_marker_streams_are_read_and_none_blocks_the_others() -> None:
    """Numbers, invalid UTF-8, a stream that goes away and one that starts late."""
    name = unique("markers")
    texts = pylsl.StreamOutlet(pylsl.StreamInfo(name, "Markers", 1, 0.0, pylsl.cf_string, name))
    numbers = pylsl.StreamOutlet(
        pylsl.StreamInfo(f"{name}-n", "Markers", 1, 0.0, pylsl.cf_int32, f"{name}-n")
    )
    markers = Markers()
    seen: set[str] = set()

    def has_come(text: str) -> bool:
        seen.update(text for _, text in markers.drain())
        return text in seen

    wait_for("both", lambda: {name, f"{name}-n"} <= set(markers.names))
    texts.push_sample([b"caf\xe9 " + name.encode()])
    number = uuid.uuid4().int % 2**31
    numbers.push_sample([number])
    wait_for("a text", lambda: has_come(f"caf\ufffd {name}"))
    wait_for("a number", lambda: has_come(str(number)))
    del numbers
    late = pylsl.StreamOutlet(
        pylsl.StreamInfo(f"{name}-l", "Markers", 1, 0.0, pylsl.cf_string, f"{name}-l")
    )
    assert late.wait_for_consumers(DEADLINE_S)
    for stream, text in ((late, f"late {name}"), (texts, f"still {name}")):
        stream.push_sample([text])
        wait_for(text, lambda text=text: has_come(text))
    markers.close()
    del late, texts


def test_a_stream_with_an_absurd_rate_is_refused() -> None:
    name = unique("fast")
    info = pylsl.StreamInfo(name, "SpikeCounts", 1, 2e5, pylsl.cf_int32, name)
    info.set_channel_labels(["1/0"])
    stream = pylsl.StreamOutlet(info)
    with pytest.raises(StreamError, match="has a rate of 200000 Hz"):
        open_stream(StreamQuery(kind="SpikeCounts", name=name), SpikeInlet, 5.0)
    del stream


def test_failed_inlets_are_freed_without_the_garbage_collector() -> None:
    """The daemon runs without it: each failed try would leave a connection and its threads."""
    name = unique("text")
    stream = pylsl.StreamOutlet(pylsl.StreamInfo(name, "Spikes", 1, 0.0, pylsl.cf_string, name))
    source = Source(StreamQuery(name=name), SpikeInlet)
    gc.collect()
    gc.disable()
    try:
        wait_for(
            "the problem", lambda: source.tend() or "carries strings" in (source.problem or "")
        )
        source.close()
        left = [thing for thing in gc.get_objects() if type(thing) is pylsl.StreamInlet]
    finally:
        gc.enable()
    assert left == []
    del stream
