"""On a machine that is wrong in one way, `volition doctor` names it; on this one, nothing."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clients.doctor.checks.decoders import cuda_problem
from clients.harness.daemon import BUNDLES, free_port
from clients.harness.server import Server
from decoder.bundles.bundle import open_bundle
from tests.clients.doctor.examined import doctor, run

IN_A_NETWORK = (
    "ip link set lo up; ip link add doctor0 type veth peer name doctor1; "
    "ip addr add 10.99.1.1/24 dev doctor0; ip link set doctor0 up; ip link set doctor1 up; "
)


def own_network(setup: str = "") -> tuple[str, ...]:
    """A prefix that runs a command in a network of its own. Skips if this user may not."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("a network of its own needs unshare and iproute2 (Linux)")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("a network of its own isn't allowed here (root only)")
    return ("unshare", "-n", "sh", "-ec", f'{setup} exec "$@"', "sh")


def free_addresses() -> dict[str, str]:
    return {
        "VOLITION_ADDRESS": f"tcp://127.0.0.1:{free_port()}",
        "VOLITION_CONTROL": f"tcp://127.0.0.1:{free_port()}",
        "VOLITION_PORT": str(free_port()),
    }


def test_this_machine_and_the_shipped_decoder_have_no_failure(tmp_path: Path) -> None:
    bundle = BUNDLES / "possm.bundle"
    seen = doctor(str(bundle), "--provider", "cpu", VOLITION_HOME=str(tmp_path), **free_addresses())
    assert seen.code == 0, seen.about
    checks = {line["check"] for line in seen.about["findings"]}
    assert checks == {"packages", "settings", "network", "lsl", "clocks", "timer", "permissions",
                      "cpu", "disk", "ports", "provider", "bundle"}  # fmt: skip
    for name in ("discovery", "data", "LSL clock", "clock step"):
        assert seen.line(name)["state"] == "ok", seen.about
    assert "onnxruntime" in seen.line("ONNX Runtime")["found"]
    assert open_bundle(bundle).manifest.decoder_id in seen.line("bundle")["found"]
    assert "of a tick of 10 ms" in seen.line("decode time")["found"]
    assert "CPU" in seen.line("provider")["found"]


def test_no_network_at_all_is_a_failure_of_the_discovery() -> None:
    seen = doctor("--only", "network", "--only", "lsl", prefix=own_network())
    assert seen.code == 1
    assert seen.line("discovery")["state"] == "failure"
    assert "wasn't found" in seen.line("discovery")["found"]
    assert "no network interface can do multicast" in seen.line("multicast")["found"]


def test_no_multicast_is_named_with_its_interface() -> None:
    """Streams of the same machine are still found, so the rig may run."""
    setup = f"{IN_A_NETWORK} ip link set doctor0 multicast off;"
    seen = doctor("--only", "network", "--only", "lsl", prefix=own_network(setup))
    assert seen.code == 0
    assert seen.line("discovery")["state"] == "ok"
    assert seen.line("multicast")["state"] == "warning"
    assert "doctor0: no multicast" in seen.line("multicast")["found"]
    assert "no route to 239.255.172.215" in seen.line("multicast route")["found"]


def test_multicast_works_over_an_interface_that_has_it() -> None:
    setup = f"{IN_A_NETWORK} ip route add 224.0.0.0/4 dev doctor0;"
    seen = doctor("--only", "network", prefix=own_network(setup))
    assert "works over doctor0 (10.99.1.1)" in seen.line("multicast")["found"]
    assert "10.99.1.1" in seen.line("multicast route")["found"]
    assert seen.about["warnings"] == 0


def test_multicast_that_the_kernel_refuses_is_a_failure() -> None:
    refused = f"{IN_A_NETWORK} echo 0 > /proc/sys/net/ipv4/igmp_max_memberships;"
    seen = doctor("--only", "network", prefix=own_network(refused))
    assert seen.code == 1
    assert "doctor0: multicast is refused" in seen.line("multicast")["found"]


def test_taken_ports_are_named_with_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "commands"
    with socket.socket() as other, socket.socket(socket.AF_UNIX) as commands:
        other.bind(("127.0.0.1", 0))
        commands.bind(str(path))
        for each in (other, commands):
            each.listen()
        port = other.getsockname()[1]
        seen = doctor(
            "--only", "ports", VOLITION_PORT=str(port),
            VOLITION_CONTROL=f"ipc://{path}", VOLITION_ADDRESS=f"tcp://127.0.0.1:{port}",
        )  # fmt: skip
        assert path.exists(), "ZeroMQ would take the address over"
    assert (seen.code, seen.about["failures"]) == (1, 3)
    for name, taken, variable in (
        ("frames", str(port), "VOLITION_ADDRESS"),
        ("commands", str(path), "VOLITION_CONTROL"),
        ("REST", str(port), "VOLITION_PORT"),
    ):
        line = seen.line(name)
        assert f"pid {os.getpid()}" in line["found"]
        assert taken in line["found"]
        assert f"kill {os.getpid()}" in line["do"]
        assert variable in line["do"]


def test_a_port_taken_by_another_user_is_named_with_that_user() -> None:
    perl = shutil.which("perl")
    if shutil.which("setpriv") is None or perl is None or os.geteuid() != 0:
        pytest.skip("a process of another user needs setpriv, perl and root")
    port = free_port()
    listen = "$s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], "
    listen += "Listen => 1, ReuseAddr => 1) or die $!; $| = 1; print 'listens'; sleep 300"
    nobody = ["setpriv", "--reuid=65534", "--clear-groups", perl, "-MIO::Socket::INET"]
    with subprocess.Popen([*nobody, "-e", listen, str(port)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(7) == b"listens"
            without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
            port_is_taken = free_addresses() | {"VOLITION_PORT": str(port)}
            seen = doctor("--only", "ports", prefix=without, **port_is_taken)
        finally:
            process.kill()
    assert seen.code == 1
    assert f":{port} is taken by a process of user {user_name(65534)}" in seen.line("REST")["found"]


def user_name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    there = free_addresses() | {"VOLITION_ADDRESS": "tcp://192.0.2.77:5556"}
    seen = doctor("--only", "ports", **there)
    assert seen.code == 1
    assert "192.0.2.77" in seen.line("frames")["found"]
    assert seen.line("commands")["state"] == seen.line("REST")["state"] == "ok"


def test_ports_of_a_running_volition_are_as_they_should_be(tiny_stream, tmp_path: Path) -> None:
    with Server(tiny_stream, tmp_path / "home", "nobody-streams-this") as server:
        seen = doctor("--only", "ports", **server.variables)
        with server.client() as client:
            pid = client.status().daemon.pid
    assert seen.code == 0, seen.about
    for name in ("frames", "commands"):
        assert f"the running Volition daemon, pid {pid}" in seen.line(name)["found"]
    assert "the running Volition server" in seen.line("REST")["found"]


@pytest.fixture
def tiny_stream() -> Path:
    return BUNDLES / "possm.bundle"


def test_missing_real_time_permission_is_named() -> None:
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("dropping a capability needs setpriv and root")
    without = ("prlimit", "--rtprio=0", "setpriv", "--bounding-set=-sys_nice",
               "--inh-caps=-sys_nice")  # fmt: skip
    seen = doctor("--only", "permissions", "--only", "timer", prefix=without)
    assert seen.code == 0, "the daemon runs without"
    assert seen.line("real time")["state"] == "warning"
    assert "isn't permitted" in seen.line("real time")["found"]
    assert "rtprio" in seen.line("real time")["do"]
    assert "ordinary priority" in seen.line("timer")["found"]


def test_few_open_files_and_a_limit_of_real_time_are_named() -> None:
    if shutil.which("prlimit") is None or os.geteuid() != 0:
        pytest.skip("lower limits need prlimit; real-time priority needs root")
    limited = ("prlimit", "--nofile=200", "--rttime=200000")
    seen = doctor("--only", "permissions", prefix=limited)
    assert "at most 200" in seen.line("open files")["found"]
    assert "computes for 200 ms" in seen.line("real time")["found"]


def test_a_broken_bundle_is_named(tmp_path: Path) -> None:
    bundle = shutil.copytree(BUNDLES / "possm.bundle", tmp_path / "a.bundle")
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "weights.safetensors").write_bytes(content)
    seen = doctor(str(bundle), "--only", "bundle", "--only", "provider", "--provider", "cpu")
    assert seen.code == 1
    assert seen.line("bundle")["state"] == "failure"
    assert str(bundle) in seen.line("bundle")["found"]
    assert "weights.safetensors has sha256" in seen.line("bundle")["found"]
    assert seen.line("provider")["state"] == "ok", "the demo's decoder is asked instead"


def test_the_report_prints_names_without_markup_and_what_to_do(tmp_path: Path) -> None:
    shown = run("left [bold] [/].bundle", "--only", "bundle", cwd=tmp_path, COLUMNS="200")
    assert shown.returncode == 1
    assert "left [bold] [/].bundle" in shown.stdout
    assert "->  export it again, or give another" in shown.stdout
    assert "1 failure: the rig would fail on this machine" in shown.stdout


def test_a_decoder_slower_than_its_tick_is_a_failure() -> None:
    seen = doctor(str(BUNDLES / "poyo.bundle"), "--only", "bundle", "--tick-ms", "0.05")
    assert seen.code == 1
    assert "every tick would be skipped" in seen.line("decode time")["found"]


def test_cuda_without_a_driver_is_a_failure() -> None:
    if cuda_problem() is None:
        pytest.skip("this machine has an NVIDIA GPU")
    seen = doctor("--only", "provider", "--provider", "cuda")
    assert seen.code == 1
    assert "CUDA was asked for, but the NVIDIA driver" in seen.line("provider")["found"]
    assert "runs on CPU" in seen.line("provider")["found"]


def test_a_full_disk_is_named(full_disk: Path) -> None:
    home = full_disk / "not there yet"
    seen = doctor("--only", "disk", VOLITION_HOME=str(home))
    assert seen.code == 1
    assert seen.line("home")["state"] == "failure"
    assert seen.line("temporary")["state"] != "failure"
    assert f"{home} (to be made in {full_disk})" in seen.line("home")["found"]
    (full_disk / "filler").write_bytes(bytes(2**20 - 2**13))
    seen = doctor("--only", "disk", TMPDIR=str(full_disk))
    assert "No space left" in seen.line("temporary")["found"]
    assert seen.line("home")["state"] != "failure"


def test_a_step_of_the_clock_is_named(tmp_path: Path) -> None:
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("a clock that steps needs a C compiler on Linux")
    library, source = tmp_path / "steps.so", Path(__file__).with_name("steps.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    seen = doctor("--only", "clocks", LD_PRELOAD=str(library))
    assert seen.line("clock step")["state"] == "warning"
    assert "steps, the largest of +" in seen.line("clock step")["found"]
    assert seen.line("LSL clock")["state"] == "ok", "it is the monotonic one"


@pytest.mark.parametrize("place", ["working directory", "home folder"])
def test_a_stray_lsl_api_cfg_is_named_with_its_keys(place: str, tmp_path: Path) -> None:
    folder = tmp_path / ("" if place == "working directory" else "lsl_api")
    folder.mkdir(exist_ok=True)
    config = folder / "lsl_api.cfg"
    config.write_text(
        "[lab]\nSessionID = another\nKnownPeers = {127.0.0.1}\n"
        "[multicast]\nResolveScope = machine\n[ports]\nBasePort = 20572\nPortRange = 32\n"
    )
    elsewhere = tmp_path if place == "working directory" else Path("/")
    seen = doctor(
        "--only", "lsl", cwd=elsewhere, without=("LSLAPICFG",), HOME=str(tmp_path)
    )  # fmt: skip
    line = seen.line("lsl_api.cfg")
    assert line["state"] == "warning"
    assert f"{config} (from the {place}) changes" in line["found"]
    for key in ("SessionID = another", "KnownPeers", "ResolveScope = machine", "BasePort = 20572"):
        assert key in line["found"]
    assert "PortRange" not in line["found"], "it is the default"


def test_a_lost_lslapicfg_is_a_failure(tmp_path: Path) -> None:
    seen = doctor("--only", "lsl", LSLAPICFG=str(tmp_path / "none.cfg"))
    assert seen.code == 1
    lost = next(line for line in seen.lines("lsl_api.cfg") if line["state"] == "failure")
    assert "none.cfg (LSLAPICFG) doesn't exist" in lost["found"]


def test_invalid_settings_are_named_and_the_other_checks_go_on(tmp_path: Path) -> None:
    seen = doctor("--only", "settings", "--only", "disk", VOLITION_TICK_MS="fast")
    assert seen.code == 1
    assert "tick_ms" in seen.line("settings")["found"]
    assert seen.line("home")
    missing = doctor("--only", "settings", "--config", str(tmp_path / "none.toml"))
    assert "no such file" in missing.line("settings")["found"]


def test_the_name_of_no_check_is_one_clear_error() -> None:
    done = run("--only", "weather")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: --only weather; expected packages" in done.stderr
    assert "needs the path of a bundle" in run("--only", "bundle").stderr
