"""What the zygote and passt have given up, as the kernel tells it."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.guests.zygote import Zygote
from mayfly.vmm.config import NetworkBackend, NetworkConfig
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm.prctl import prctl
from mayfly.vmm.network.passt import FIRST_UID, Passt
from mayfly.vmm.process.zygote import LIMITS, load
from mayfly.vmm.sandbox.namespaces import KINDS
from tests.kit import net_kit, tiny
from tests.kit.forked import answer_of_child
from tests.kit.net_kit import GATEWAY, GUEST, make_tap
from tests.kvm.test_zygote import DEADLINE_S, NOBODY_UID, SPIN, spawned

SECRET = "a-key-of-the-server"


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def links(pid: int) -> list[str]:
    """What its descriptors are."""
    return [str(entry.readlink()) for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda entry: int(entry.name))]


@pytest.mark.kvm
def test_the_zygote_and_its_machines_have_what_they_need_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAYFLY_KEY", SECRET)
    with (tmp_path / "open").open("w") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        zygote = Zygote.start()
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    for pid in (zygote.pid, machine.pid):
        assert status(pid)["NoNewPrivs"] == "1"
        assert SECRET not in Path(f"/proc/{pid}/environ").read_text()
        limits = [line.split() for line in Path(f"/proc/{pid}/limits").read_text().splitlines()]
        found = {words[2]: (int(words[-3]), int(words[-2])) for words in limits if words[1:3] in (["core", "file"], ["open", "files"])}
        assert found["file"] == (0, 0)
        assert found["files"][0] == found["files"][1] <= LIMITS[resource.RLIMIT_NOFILE]
    assert links(zygote.pid)[0] == os.devnull
    kinds = {link.partition(":")[0] for link in links(zygote.pid)[3:]}
    # Its client's, its own for SIGCHLD, its machines' turns; the rest are their namespaces.
    assert kinds - set(KINDS) == {"socket", "pipe"}
    machine.close()
    zygote.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_nobody_of_the_same_user_has_a_hold_of_the_zygote() -> None:
    load()

    def held() -> dict[str, bool]:
        os.setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID)
        prctl("PR_SET_DUMPABLE", 1)  # as whoever was never root
        zygote = Zygote.fork()
        until = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{zygote.pid}/environ").stat().st_uid == NOBODY_UID and time.monotonic() < until:
            os.sched_yield()
        found = {}
        for name in ("mem", "environ", "fd"):
            try:
                found[name] = bool(os.open(f"/proc/{zygote.pid}/{name}", os.O_RDONLY))
            except PermissionError:
                found[name] = False
        zygote.close()
        return found

    assert answer_of_child(held) == {"mem": False, "environ": False, "fd": False}


@pytest.mark.kvm
@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a process in another group")
def test_nobody_of_the_same_user_has_a_hold_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in /proc of a process that may not be traced are root's, whatever its user and group
    (proc(5)).
    """
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    command = [sys.executable, "-m", "mayfly.cli.main", "serve", "--socket", str(tmp_path / "api.sock"), "--time-factor", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, group=NOBODY_UID) as server:
        try:
            assert server.stderr is not None
            said = b""
            while b"listening" not in said:
                line = server.stderr.readline()
                assert line, said
                said += line
            assert Path(f"/proc/{server.pid}").stat().st_gid == NOBODY_UID
            assert Path(f"/proc/{server.pid}/mem").stat().st_gid == 0
        finally:
            server.terminate()


@pytest.fixture
def passt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passt]:
    """One that root has started, and whose machine waits."""
    monkeypatch.setenv("MAYFLY_KEY", SECRET)
    network = NetworkConfig(
        backend=NetworkBackend.PASST, mac="02:00:00:00:00:05", addresses=(f"{GUEST}/16",), gateways=(GATEWAY,), allow=("198.51.100.1",)
    )
    with net_kit.namespace(), EventLoop() as loop:
        make_tap("uplink", "198.51.100.1/24")
        net_kit.ip("route", "add", "default", "via", "198.51.100.2", "dev", "uplink")
        with contextlib.closing(Passt(network, loop)) as passt:
            yield passt


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces")
def test_passt_has_isolated_itself(passt: Passt) -> None:
    pid = passt._pid
    found = status(pid)
    assert {*found["Uid"].split(), *found["Gid"].split()} == {str(FIRST_UID + os.getpid())}
    assert (found["NoNewPrivs"], found["Seccomp"], int(found["CapEff"], 16), found["Groups"]) == ("1", "2", 0, "")
    assert [entry.name for entry in Path(f"/proc/{pid}/root").iterdir()] == []
    for kind in ("user", "mnt", "ipc", "uts"):
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink(), kind
    assert Path(f"/proc/{pid}/environ").read_text() == ""
    kinds = {link.partition(":")[0] for link in links(pid)[3:]}
    assert kinds <= {"socket", "pipe", "anon_inode", os.devnull}, kinds
