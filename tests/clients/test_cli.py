"""The command as a user types it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console

from clients.calibrate import print_calibration
from clients.cli.main import app
from clients.harness.daemon import BUNDLES
from server.schemas import Calibration, Problem
from streaming.sessions import format as sessions
from training.data.simulate import simulate

ROOT = Path(__file__).parents[2]

HEAVY = ("torch", "onnxruntime", "pygame", "pylsl", "zmq", "h5py", "numpy", "rich.progress")


def volition(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clients", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=400, check=False,
    )  # fmt: skip


def test_help_lists_every_verb_and_loads_nothing_heavy() -> None:
    text = volition("--help").stdout
    verbs = ("import", "info", "simulate", "pretrain", "export", "bundle", "decode", "replay",
             "watch", "demo", "task", "score", "bench")  # fmt: skip
    assert all(verb in text for verb in verbs)
    assert "Not a medical device" in text
    code = f"import sys, clients.cli.main; print([m for m in {HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [
    ("info", "missing.h5"),
    ("import", "missing.nwb"),
    ("bundle", "missing.bundle"),
    ("decode", "missing.bundle"),
    ("export", "missing-run", "-o", "x.bundle"),
    ("simulate", "--task", "swimming"),
    ("replay", "missing.h5", "--from", "tomorrow"),
    ("pretrain", "missing", "-o", "run"),
    ("task", "swimming"),
    ("score", "missing.jsonl"),
])  # fmt: skip
def test_a_mistake_gives_one_clear_error_and_exit_code_1(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = volition(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_simulated_session_can_be_inspected_as_json(tmp_path: Path) -> None:
    made = volition("simulate", "--units", "8", "--minutes", "1", "-o", str(tmp_path))
    assert made.returncode == 0, made.stderr
    (path,) = tmp_path.glob("*.h5")
    info = json.loads(volition("info", str(path), "--json").stdout)
    assert info["units"] == 8
    assert info["unit_faults"]["noisy"] == info["unit_faults"]["doubled"] == []
    assert info["minutes"] == pytest.approx(1.0)


def test_a_bundle_prints_as_json(tiny) -> None:
    manifest = json.loads(volition("bundle", str(tiny.bundle.path), "--json").stdout)
    assert manifest["session_id"] == tiny.session.session_id


@pytest.mark.slow
@pytest.mark.timing  # beside others, a reader misses frames
def test_the_demo_ends_by_itself_with_a_score() -> None:
    done = volition("demo", "--seconds", "8", "--json")
    assert done.returncode == 0, done.stderr
    score = json.loads(done.stdout)
    assert score["gaps"] == 0
    assert score["scored_frames"] > 400
    assert score["r2_mean"] > 0.5


def test_help_texts_have_no_brackets() -> None:
    """Rich takes them for markup and prints nothing in their place."""
    command = typer.main.get_command(app)
    groups = [command, command.commands["bench"]]
    verbs = [verb for group in groups for verb in group.commands.values()]
    texts = {
        f"{verb.name} {option.name}": option.help or "" for verb in verbs for option in verb.params
    }
    assert len(texts) > 100
    assert [name for name, text in texts.items() if "[" in text] == []


def test_brackets_in_names_are_printed(tmp_path: Path) -> None:
    """Rich would take them for markup: for a style, or for a closing tag that ends in an error."""
    name = "rig [2] [bold]left [/]"
    session = sessions.save(simulate(n_units=8, minutes=1.0), tmp_path / name)
    bundle = shutil.copytree(BUNDLES / "poyo.bundle", tmp_path / name / "a.bundle")
    for verb, path in (("info", session), ("bundle", bundle)):
        shown = volition(verb, f"{name}/{path.name}", cwd=tmp_path).stdout
        assert f"{name}/{path.name}" in " ".join(shown.split())  # a long title is wrapped
    assert name in volition("info", f"{name}.h5").stderr
    said = StringIO()
    problem = Problem(type="/problems/stream", title="", status=409, detail=f"no {name!r}")
    failed = Calibration.model_construct(
        state="failed", problem=problem, held_out=None, took_s=None,
        candidate=None, before="a", verdict="",
    )  # fmt: skip
    print_calibration(Console(file=said, width=400), failed)
    assert said.getvalue() == f"failed: no {name!r}\n"


def test_no_printed_text_is_markup() -> None:
    """Consoles print each string literally; styles are set by `Text` and `style=`."""
    files = [
        path for room in ("clients", "server", "training") for path in (ROOT / room).rglob("*.py")
    ]
    assert len(files) > 100
    for path in files:
        text = path.read_text()
        assert "[/]" not in text, path
        for console in re.findall(r"\bConsole\((.*)", text):
            assert re.search(r"markup=False|quiet=True|record=True", console), (path, console)
