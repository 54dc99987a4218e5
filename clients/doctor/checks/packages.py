"""Python and the packages: present, new enough, importable, and one ONNX Runtime."""

from __future__ import annotations

import importlib
import platform
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from clients.doctor.finding import Asked, Finding, failure, ok, plural, warning

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = "volition"
SOURCES = Path(__file__).parents[3] / "pyproject.toml"  # of a checkout
LOADED = ("numpy", "pylsl", "zmq", "onnxruntime")  # with native libraries, which may not load
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
)  # all of them install the module `onnxruntime`
EXTRAS = {
    "train": "training, calibration and `volition serve`",
    "rig": "`volition task --window` and pictures of the closed loop",
}  # what each is for


def packages(asked: Asked) -> list[Finding]:
    """Python, dependencies, extras, ONNX Runtime, and whether the native libraries load."""
    findings = [ok("Python", f"{platform.python_version()}, {sys.executable}")]
    try:
        findings += [_dependencies(), *map(_extra, EXTRAS)]
    except ModuleNotFoundError as error:
        do = f"install it: pip install {error.name}"
        findings.append(failure("dependencies", f"can't be compared: {error}", do))
    return [*findings, _one_runtime(), _loading()]


def _dependencies() -> Finding:
    wanted = [r for r in _requirements("") if r.name not in RUNTIMES]
    if wrong := list(_wrong(wanted)):
        return failure("dependencies", "; ".join(wrong), f"pip install --upgrade {OURS}")
    return ok("dependencies", f"{plural(len(wanted), 'package')}, all new enough")


def _extra(extra: str) -> Finding:
    wanted = list(_requirements(extra))
    name, use = f"extra {extra}", EXTRAS[extra]
    if wrong := list(_wrong(wanted)):
        return warning(
            name, f"{'; '.join(wrong)}", f"for {use}: pip install '{OURS}[{extra}]'"
        )  # fmt: skip
    return ok(name, f"{plural(len(wanted), 'package')} for {use}")


def _requirements(extra: str) -> Iterator[Requirement]:
    """What `pip install volition` needs here, or for an extra what it needs in addition."""
    from packaging.requirements import Requirement

    for text in _written(extra):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _written(extra: str) -> list[str]:
    """Requirements as they are written in a checkout's pyproject.toml, or as installed."""
    if SOURCES.is_file():
        project = tomllib.loads(SOURCES.read_text())["project"]
        if project["name"] == OURS:
            optional: list[str] = project["optional-dependencies"].get(extra, [])
            return list(project["dependencies"]) if extra == "" else optional
    named = f'extra == "{extra}"'
    every = [text.replace("'", '"') for text in metadata.requires(OURS) or []]
    return [text for text in every if (named in text if extra else "extra ==" not in text)]


def _wrong(requirements: list[Requirement]) -> Iterator[str]:
    """Those that are missing or too old, or too new, in words."""
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement.name} is missing"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, expected {requirement.specifier}"


def _one_runtime() -> Finding:
    """Several builds overwrite each other's files: which one is loaded, and whether, is chance."""
    name = "ONNX Runtime"
    there = [f"{each} {version}" for each in RUNTIMES if (version := _version(each))]
    if not there:
        return failure(name, "it is missing", f"pip install --upgrade {OURS}")
    if len(there) > 1:
        names = " ".join(text.split()[0] for text in there)
        return failure(
            name,
            f"{' and '.join(there)} are installed side by side, and break each other",
            f"pip uninstall -y {names}; then pip install --force-reinstall one of them "
            "(onnxruntime-gpu runs on the CPU, too)",
        )
    return ok(name, there[0])


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _loading() -> Finding:
    broken = []
    for name in LOADED:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a native library does
            broken.append(f"{name} ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    if broken:
        return failure(
            "libraries",
            f"can't be imported: {'; '.join(broken)}",
            "pip install --force-reinstall that package, or install the library that it names",
        )
    return ok("libraries", f"{', '.join(LOADED)} load")
