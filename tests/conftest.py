"""Shared fixtures: real recordings, a small disk, and tiny decoders exported once per run."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pylsl
import pytest
import torch

from decoder.bundles.bundle import Bundle, open_bundle
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from tests import isolation
from training.data.profile import N_PROFILE
from training.data.simulate import simulate
from training.data.tuning import tuning
from training.data.windows import OutputScale, unit_words
from training.exports.export import export_model
from training.models.config import ModelConfig, PossmConfig
from training.models.families import Config, Model, build
from training.pretraining import runs

isolation.own_lsl_session()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background: children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of child processes, as `volition` sets it
torch.set_num_threads(1)  # small models: more threads wait for each other, longer under load

ROOT = Path(__file__).parent.parent
MOST_WORKERS = 8
TINY = ModelConfig(
    latent_step=0.25,
    num_latents_per_step=4,
    dim=32,
    depth=1,
    dim_head=16,
    self_heads=2,
    t_min=1e-3,
    atn_dropout=0.0,
)


TINY_STREAM = PossmConfig(
    warm_up_s=1.0, num_latents=4, dim=32, dim_head=8, hidden=32, t_min=1e-3
)  # the warm-up is as long as TINY's window
TINIES = {"poyo": TINY, "possm": TINY_STREAM}


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings (VOLITION_RECORDINGS, or ../shared/data)."""
    folder = Path(os.environ.get("VOLITION_RECORDINGS", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real recordings in {folder}; set VOLITION_RECORDINGS")
    return folder


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MB. Skips if this user can't mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("can't mount a small disk here (root only)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(frozen=True)
class TinyDecoder:
    """A small model with random weights, its bundle, and the session whose units it knows."""

    model: Model
    config: Config
    bundle: Bundle
    session: Session
    session_path: Path


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", params=list(TINIES))
def tiny(run_folder: Path, request: pytest.FixtureRequest) -> TinyDecoder:
    """One tiny decoder of each family for the whole run; its session's name is unique."""
    family, config = request.param, TINIES[request.param]
    folder = isolation.made_once(run_folder, f"tiny-{family}", lambda to: make_tiny(family, to))
    bundle = open_bundle(folder / "tiny.bundle")
    (session_path,) = folder.glob("*.h5")
    model, _ = runs.load_model(bundle.path)
    return TinyDecoder(model.eval(), config, bundle, sessions.load(session_path), session_path)


def make_tiny(family: str, folder: Path) -> None:
    """Save a simulated session, and a bundle with random weights that knows its units."""
    config = TINIES[family]
    name = f"tiny-{uuid.uuid4().hex[:8]}"
    session = replace(simulate(n_units=40, minutes=2.0, subject=1, seed=1), session_id=name)
    torch.manual_seed(0)
    model = build(config, unit_words(session), [name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    scale = OutputScale.of(session)
    record = runs.RunRecord(
        preset="tiny",
        seed=0,
        family=family,
        model=asdict(config),
        unit_words=unit_words(session),
        session_words=[name],
        session_paths={},
        output_mean={name: (scale.mean[0], scale.mean[1])},
        output_std={name: (scale.std[0], scale.std[1])},
        settings={},
    )
    export_model(model, record, name, folder / "tiny.bundle")
    sessions.save(session, folder)


def identifying(tiny: TinyDecoder, folder: Path) -> Bundle:
    """The bundle of a tiny decoder with a network of random weights that identifies units."""
    model, record = runs.load_model(tiny.bundle.path)
    record.n_profile = N_PROFILE
    record.unit_tuning = tuning(tiny.session).round(3).tolist()
    torch.manual_seed(1)
    other = record.build()
    runs.set_weights(other, runs.weights(other) | runs.weights(model))
    return export_model(
        other.eval(), record, tiny.session.session_id, folder / "identifying.bundle"
    )


class _Outlet(pylsl.StreamOutlet):
    """An outlet that `open_outlets` lists until it is closed."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)
        open_outlets.add(self)


open_outlets: weakref.WeakSet[_Outlet] = weakref.WeakSet()
pylsl.StreamOutlet = _Outlet


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Close the outlets of a test: those in a circle of references wait for the collector."""
    before = set(map(id, open_outlets))
    result = yield
    if any(id(outlet) not in before for outlet in open_outlets):
        gc.collect()
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Twice as many workers as cores: most tests wait for other processes most of the time."""
    return min(2 * (os.cpu_count() or 1), MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group and order the tests of a worker of pytest-xdist (`--dist loadgroup`).

    Tests that share a module's fixture stay together. The longest tests and the groups start first.
    """
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if group := shared_fixtures(item):
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(
        key=lambda item: not any(map(item.get_closest_marker, ("long", "slow", "xdist_group")))
    )


def shared_fixtures(item: pytest.Item) -> str:
    """Module and parameters of the module-scoped fixtures that a test uses; "" if none."""
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
    names = {name for name, found in fixtures.items() if found and found[-1].scope == "module"}
    if not names:
        return ""
    callspec = getattr(item, "callspec", None)
    chosen = [
        f"{name}={callspec.params[name]}"
        for name in sorted(names)
        if callspec and name in callspec.params
    ]
    return ",".join([item.nodeid.partition("::")[0], *chosen])
