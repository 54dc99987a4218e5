"""The machine: settings, permissions, processors, disks."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from pathlib import Path

from clients.doctor.finding import Asked, Finding, failure, ok, plural, warning
from clients.doctor.settings import read_settings, usable_settings
from decoder.errors import SettingsError
from streaming.priority import PRIORITY, real_time

FEW_FILES = 1024
LOOKED_S = 0.5
BUSY = 0.8  # of all processors
TRIED_BYTES = 2**20
FULL_BYTES = 100 * 2**20  # a calibration of minutes, its decoder, and the logs (10 MB each)
LOW_BYTES = 2 * 2**30
GOVERNORS = Path("/sys/devices/system/cpu")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def settings(asked: Asked) -> list[Finding]:
    """Whether the settings are valid, and the ones that differ from their defaults."""
    try:
        read = read_settings(asked)
    except SettingsError as error:
        do = "correct the VOLITION_… variable, the file or the option"
        return [failure("settings", str(error), do)]
    names = sorted(read.model_fields_set - {"daemon"} | read.daemon.model_fields_set)
    defaults = type(read.daemon).model_fields
    changed = [
        name
        for name in names
        if name not in defaults or getattr(read.daemon, name) != defaults[name].default
    ]
    if not changed:
        return [ok("settings", "defaults")]
    return [ok("settings", f"valid; given: {', '.join(changed)}")]


def permissions(asked: Asked) -> list[Finding]:
    """Real-time priority, locked memory and open files."""
    try:
        import resource
    except ImportError:
        return [ok("permissions", "this system has no such limits")]

    n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    many = n_files == resource.RLIM_INFINITY or n_files >= FEW_FILES
    shown = "unlimited" if n_files == resource.RLIM_INFINITY else f"{n_files:,}"
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    limit = "unlimited" if locked == resource.RLIM_INFINITY else f"{locked / 2**20:.1f} MB"
    return [
        _real_time(usable_settings(asked).daemon.realtime),
        ok("memory lock", f"{limit}; the daemon locks none, a driver of a GPU may"),
        ok("open files", f"at most {shown}")
        if many
        else warning(
            "open files",
            f"at most {n_files}: each stream and each subscriber needs some",
            f"ulimit -n {4 * FEW_FILES}, or LimitNOFILE={4 * FEW_FILES} in a systemd unit",
        ),
    ]


def _real_time(wanted: bool) -> Finding:
    """Try it, as the daemon does: root, a capability, a limit or a control group may decide."""
    import resource

    name = "real time"
    if not wanted:
        return ok(name, "not wanted (VOLITION_REALTIME)")
    with real_time() as granted:
        pass
    if not granted:
        limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0] if _is_linux() else 0
        return warning(
            name,
            f"real-time priority {PRIORITY} (SCHED_FIFO) isn't permitted; the limit is {limit}: "
            "on a busy machine ticks are late",
            f"add the line `rig - rtprio {PRIORITY}` with your user's name to "
            "/etc/security/limits.d/volition.conf and log in again; in a container: "
            f"--cap-add SYS_NICE or --ulimit rtprio={PRIORITY}",
        )
    if _is_linux() and (us := resource.getrlimit(resource.RLIMIT_RTTIME)[0]) >= 0:
        return warning(
            name,
            f"permitted, but a thread that computes for {us / 1e3:g} ms at a stretch is killed",
            "raise the limit (RLIMIT_RTTIME): LimitRTTIME=infinity in a systemd unit",
        )
    return ok(name, f"priority {PRIORITY} (SCHED_FIFO) is permitted")


def _is_linux() -> bool:
    return os.uname().sysname == "Linux"


def cpu(asked: Asked) -> list[Finding]:
    """Number of processors, their governor, and how busy they are before the other checks."""
    return [_processors(), *_governor(), *_load()]


def _processors() -> Finding:
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    found, share = plural(count, "processor"), _cpu_share()
    if share < count:
        found += f", of which this process may use {share:g} (its control group's limit)"
    if min(count, share) < 2:
        do = "daemon, server and trainer need two: give the machine or container another"
        return warning("processors", found, do)
    return ok("processors", found)


def _cpu_share() -> float:
    """The control group's limit, in processors; infinite if there is none."""
    try:
        quota, period = CPU_LIMIT.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # "max"
        return math.inf


def _governor() -> list[Finding]:
    files = GOVERNORS.glob("cpu[0-9]*/cpufreq/scaling_governor")
    found = sorted({file.read_text().strip() for file in files})
    if not found:
        return [ok("governor", "none (the hardware or the virtual machine's host decides)")]
    if slow := [name for name in found if name in ("powersave", "ondemand", "conservative")]:
        do = "cpupower frequency-set -g performance"
        return [warning("governor", f"{', '.join(slow)}: processors slow down between ticks", do)]
    return [ok("governor", ", ".join(found))]


def _load() -> list[Finding]:
    before = _busy_and_all()
    time.sleep(LOOKED_S)
    after = _busy_and_all()
    if before is None or after is None or after[1] == before[1]:
        return []
    share = (after[0] - before[0]) / (after[1] - before[1])
    found = f"{share:.0%} busy now, load of the last minute {os.getloadavg()[0]:.1f}"
    if share > BUSY:
        return [warning("load", found, "end other programs (see top): ticks may be late")]
    return [ok("load", found)]


def _busy_and_all() -> tuple[int, int] | None:
    """Time of all processors since the start, busy and in all, in the kernel's ticks (Linux)."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    times = [int(field) for field in fields]  # user, nice, system, idle, iowait, …
    return sum(times) - times[3] - times[4], sum(times)


def disk(asked: Asked) -> list[Finding]:
    """Space and permission in the folder of all persistent data, and for temporary files."""
    home = usable_settings(asked).home.absolute()
    folder = next(each for each in (home, *home.parents) if each.exists())
    temporary = Path(tempfile.gettempdir())
    shown = str(home) if folder == home else f"{home} (to be made in {folder})"
    return [
        _folder("home", folder, shown, "free some space, or choose another with VOLITION_HOME"),
        _folder("temporary", temporary, str(temporary), "free some space, or set TMPDIR"),
    ]


def _folder(name: str, folder: Path, shown: str, do: str) -> Finding:
    """Whether files can be written there. Free space alone doesn't say: there are quotas."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(TRIED_BYTES))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return failure(name, f"{shown}: {TRIED_BYTES >> 20} MB can't be written "
                       f"({error.strerror or error})", do)  # fmt: skip
    found = f"{shown}: {_size(free)} free, writable"
    if free < FULL_BYTES:
        return failure(name, f"{shown}: the disk is nearly full, {_size(free)} free", do)
    if (n_more := _more_files(folder)) < FEW_FILES:
        return failure(name, f"{shown}: room for {n_more} more files only", do)
    if free < LOW_BYTES:
        return warning(name, f"{found}; a day of recordings and calibrations needs more", do)
    return ok(name, found)


def _more_files(folder: Path) -> float:
    """How many files the disk still has room for; some disks have no such limit."""
    if not hasattr(os, "statvfs"):
        return math.inf
    space = os.statvfs(folder)
    return space.f_favail if space.f_files else math.inf


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MB"
