"""A vmm process has its machine and no more: what it does in its life is allowed, all else is not.

Tiny guests on the real /dev/kvm.
"""

import contextlib
import os
import platform
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.protocol.report import End
from mayfly.protocol.spawning import Reaped
from mayfly.schema import replace
from mayfly.vmm.config import Channel, Sandbox
from mayfly.vmm.process.zygote import load
from mayfly.vmm.sandbox import landlock, namespaces, parts, seccomp
from mayfly.vmm.sandbox.namespaces import Cell
from tests.fuzz.test_virtio import CHAINS, SEEDS
from tests.kit.intruder import SUCCEEDED, attempts, cell_of, intrude, spinning
from tests.kit.sandbox_scenarios import SCENARIOS, Stage, play
from tests.kit.scale import FULL, scaled
from tests.kit.tiny import start_virtio
from tests.kit.virtio_fuzzer import FUZZERS
from tests.kvm.test_virtio import HOSTILE, RINGS

pytestmark = pytest.mark.kvm

NOBODY = 65534
REFUSALS = {"SIGSYS", "EACCES", "EPERM", "ENOSYS"}
of_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the tiny guests are for x86-64; on Arm the system tests run under the filters")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[of_root] * (name in ("tap", "tcp", "passt"))) for name in SCENARIOS])
def test_a_machine_lives_in_its_sandbox(name: str, tmp_path: Path) -> None:
    """Each process ends by itself: a system call that is not allowed would end it by SIGSYS."""
    play(name, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """As a zygote, so that each process needs less time."""
    load()


@pytest.fixture
def victim() -> Iterator[int]:
    """Another process."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may use, as those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "there").touch()
        yield folder


@pytest.mark.parametrize(
    ("uid", "spare"),
    [(None, False), pytest.param(NOBODY, False, marks=of_root), (None, True)],
    ids=["as-it-is", "of-a-user", "spare"],
)
def test_an_intruder_has_nothing(victim: int, open_folder: Path, uid: int | None, spare: bool) -> None:
    """Each attempt in a process of its own: in its event loop, in a vCPU's thread, or in both."""
    config = spinning(open_folder)
    tried = {}
    with cell_of(uid) as cell:
        for number, (name, attempt) in enumerate(attempts(victim, open_folder).items()):
            for in_vcpu in (False, True) if FULL else (number % 2 == 1,):
                tried[name, in_vcpu] = intrude(config, attempt, cell, in_vcpu=in_vcpu, uid=uid, spare=spare)
    assert len(tried) >= 40
    assert {name: end for name, end in tried.items() if end not in REFUSALS} == {}
    os.kill(victim, 0)
    assert not (open_folder / "made").exists()
    print(", ".join(f"{name}: {end}" for (name, _), end in tried.items()))


def test_without_the_sandbox_an_intruder_has_something(victim: int, open_folder: Path) -> None:
    """So it is the sandbox that refuses, and not that the attempts are wrong."""
    config = replace(spinning(open_folder), sandbox=Sandbox.OFF)
    names = ("read a file", "make a file", "open an Internet socket", "fork", "make a thread", "make a pipe", "make a file in memory")
    tried = {name: intrude(config, attempts(victim, open_folder)[name], Cell({}, {})) for name in names}
    assert set(tried.values()) == {SUCCEEDED}, tried


@pytest.mark.parametrize("seed", range(SEEDS if FULL else 2))
@pytest.mark.parametrize("device", sorted(FUZZERS.keys() - {"plain-net"}))  # whose kit opens sockets; the scenario `tap` makes its calls
def test_a_fuzzed_device_calls_nothing_else(open_folder: Path, device: str, seed: int) -> None:
    """The inputs of tests/fuzz/test_virtio.py in the process of a running machine, in its event
    loop or in a vCPU's thread: a call that is not allowed ends it by SIGSYS, one that is refused is
    an exception.
    """

    def fuzz() -> None:
        fuzzer = FUZZERS[device](seed)
        while fuzzer.chains < scaled(CHAINS) // SEEDS:
            fuzzer.step()
        assert fuzzer.driver.interrupts

    with cell_of(None) as cell:
        assert intrude(spinning(open_folder), fuzz, cell, in_vcpu=seed % 2 == 1) == SUCCEEDED


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the tiny guests are for x86-64")
@pytest.mark.parametrize("seed", range(1, scaled(30) + 1))
def test_a_hostile_guest_makes_its_process_call_nothing_else(tmp_path: Path, seed: int) -> None:
    """It drives the devices wrongly for a second: the monitor needs no other calls for that."""
    starts = ""
    for slot, count in enumerate((4, 1)):
        rings = [RINGS + slot * 0x4000 + index * 0x1000 for index in range(count)]
        starts += start_virtio(slot, [(16, ring, ring + 0x400, ring + 0x600) for ring in rings])
    stage = Stage(tmp_path)
    machine = stage.machine(HOSTILE.format(seed=seed, starts=starts), channel=Channel.VIRTIO)
    timer = threading.Timer(1.0, stage.zygote.signal, (7, signal.SIGTERM))
    timer.start()
    ended = machine.wait_ended()
    timer.join()
    assert ended.reason is End.STOPPED or "triple fault" in str(ended.error)
    assert stage.zygote.receive() == Reaped(machine=7, status=0)
    stage.close()


def lacks(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Pretend that this kernel lacks a part, or a kind of namespace."""
    if part == "Landlock":
        monkeypatch.setattr(landlock, "abi", landlock.abi.__wrapped__)  # what it said before is kept
        monkeypatch.setattr(landlock, "_CREATE_RULESET", 999)  # ENOSYS, as of a kernel before 5.13
    elif part == "seccomp":
        monkeypatch.setitem(seccomp._NUMBERS, "seccomp", 999)
    else:
        monkeypatch.setitem(namespaces.KINDS, part, -1)


@pytest.mark.parametrize("part", ["mnt", "net", "Landlock", "seccomp"])
def test_a_part_that_the_kernel_lacks_is_left_out_alone(monkeypatch: pytest.MonkeyPatch, open_folder: Path, part: str) -> None:
    """The others still refuse; where all are required, the machine does not run."""
    lacks(monkeypatch, part)
    required = spinning(open_folder)
    config = replace(required, sandbox=Sandbox.BEST_EFFORT)
    with cell_of(None) as cell:
        assert intrude(config, lambda: os.getrandom(8), cell, in_vcpu=True) == SUCCEEDED
        read = intrude(config, lambda: os.open("/etc/passwd", os.O_RDONLY), cell)
        assert read == ("ENOENT" if part == "seccomp" else "EACCES")
        assert intrude(config, lambda: os.fork() or os._exit(0), cell) == (SUCCEEDED if part == "seccomp" else "SIGSYS")
        refused = intrude(required, lambda: None, cell)
    name = "namespaces" if part in namespaces.KINDS else part
    assert f"sandbox is required, and this host lacks {name}" in refused
    assert [found.name for found in parts.look() if found.lacking] == [name.lower()]


def test_a_kernel_with_an_old_landlock_bounds_what_it_knows(monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> None:
    """As Linux 5.15 has it: this kernel refuses a ruleset with rights that its ABI lacks."""
    config = spinning(open_folder)
    with cell_of(None) as cell:
        for version in range(1, landlock.abi() + 1):
            monkeypatch.setattr(landlock, "abi", lambda version=version: version)
            assert intrude(config, lambda: os.open("/", os.O_RDONLY), cell, in_vcpu=True) == "EACCES"
            assert ("TCP" in parts._landlock().finding) == (version >= 4)
