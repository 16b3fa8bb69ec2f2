"""Which spares a zygote keeps: real processes, which only wait, stand for their machines."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.protocol.pages import WorkingSet
from mayfly.schema import msgspec, replace
from mayfly.units import MIB, PAGE
from mayfly.vmm.config import Channel, Layer, MachineConfig, NetworkBackend, NetworkConfig
from mayfly.vmm.process import spares
from mayfly.vmm.process.spares import Ends, Spares
from mayfly.vmm.snapshot import FILES, WORKING_SET

NETWORK = NetworkConfig(
    backend=NetworkBackend.TAP, tap="tap0", mac="02:00:00:00:00:01", addresses=("10.87.0.2/16",), gateways=("10.87.0.1",)
)


class Zygote:
    """Forks processes that wait as spares do."""

    def __init__(self) -> None:
        self.spares, self.made = Spares(2), True
        self.forked: list[int] = []
        self.ends, self.others = os.pipe(), socket.socketpair()

    def fork(self, config: bytes, link: socket.socket) -> int:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                taken = spares.wait(link, made=self.made)
                if taken is not None:
                    os.write(taken[1].report, config[:1])
            os._exit(0)
        self.forked.append(pid)
        return pid

    def ask(self, config: MachineConfig) -> int | None:
        """As a start does."""
        _, report = self.ends
        return self.spares.hand_over(msgspec.json.encode(config), Ends(self.others[0].fileno(), report, self.others[1].fileno()), 0.0)

    def tend(self, *, may_begin: bool = True) -> None:
        self.spares._looked_at = 0.0
        self.spares.look()
        self.spares.make(self.fork, may_begin=may_begin)

    def close(self) -> None:
        self.spares.drop_all()
        for pid in self.forked:
            os.waitpid(pid, 0)
        for end in self.ends:
            os.close(end)
        for other in self.others:
            other.close()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What says how many threads of this host, of one processor, have work: this one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    file = tmp_path / "loadavg"
    file.write_text("0.50 0.40 0.30 1/999 12345\n")
    monkeypatch.setattr(spares, "_LOAD", str(file))
    return file


@pytest.fixture
def zygote(load: Path) -> Iterator[Zygote]:
    with contextlib.closing(Zygote()) as zygote:
        yield zygote


def machine(folder: Path, name: str = "base") -> MachineConfig:
    """One that goes on from a snapshot with that name."""
    (folder / name).mkdir()
    for file in FILES:
        (folder / name / file).touch()
    return MachineConfig(kernel="kernel", memory=16 * MIB, channel=Channel.VIRTIO, restore=(Layer(folder=str(folder / name)),))


def test_a_start_makes_a_spare_wanted_and_the_next_one_takes_it(zygote: Zygote, tmp_path: Path) -> None:
    config = machine(tmp_path)
    assert zygote.spares.wait_ms is None
    assert zygote.ask(config) is None
    assert zygote.spares.wait_ms == spares.QUIET_MS
    zygote.tend()
    assert zygote.spares.wait_ms == spares.LOOK_MS
    assert zygote.ask(replace(config, cpus=2)) is None
    assert zygote.spares.wait_ms == spares.QUIET_MS
    assert zygote.ask(config) == zygote.forked[0]
    assert os.read(zygote.ends[0], 1) == b"{"
    assert zygote.spares.wait_ms == spares.QUIET_MS


@pytest.mark.parametrize(
    "change",
    [
        {"restore": ()},
        {"channel": Channel.NONE},
        {"network": NETWORK},
        {"page_by_page": True},
        {"restore": (Layer(folder="base", copied=True),)},
        {"restore": (Layer(folder="base"), Layer(folder="base", eager=True))},
        {"restore": (Layer(folder="absent"),)},
        {"initrd": "absent"},
    ],
)
def test_other_machines_have_none(zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]) -> None:
    monkeypatch.chdir(tmp_path)
    assert zygote.ask(replace(machine(tmp_path), **change)) is None
    zygote.tend()
    assert zygote.forked == []


def test_there_are_as_many_as_starts_were_asked_for_at_a_time(zygote: Zygote, tmp_path: Path) -> None:
    config = machine(tmp_path)
    assert [zygote.ask(config) for _ in range(3)] == [None] * 3
    zygote.tend()
    assert zygote.spares.wait_ms == spares.QUIET_MS
    for _ in range(3):
        zygote.tend()
        assert zygote.spares.wait_ms == spares.LOOK_MS
    assert [zygote.ask(config) for _ in range(3)] == [*zygote.forked, None]
    assert len(zygote.forked) == 2  # the most


def test_there_are_so_many_and_the_newest_stay(zygote: Zygote, tmp_path: Path) -> None:
    configs = [machine(tmp_path, name) for name in "abc"]
    for config in configs:
        assert zygote.ask(config) is None
        zygote.tend()
    assert [zygote.ask(config) for config in configs] == [None, *zygote.forked[1:]]


def eager(folder: Path, name: str = "base", pages: int = spares.MOST_AHEAD // PAGE) -> MachineConfig:
    """One whose guest has so many pages of its own ahead."""
    config = machine(folder, name)
    (folder / name / WORKING_SET).write_bytes(WorkingSet(written=[(1, pages)]).pack() if pages else b"")
    return replace(config, memory=2 * spares.MOST_AHEAD, restore=(replace(config.restore[0], eager=True),))


def test_eager_ones_are_as_many_as_processors(zygote: Zygote, tmp_path: Path) -> None:
    first, second, other = eager(tmp_path, "a"), eager(tmp_path, "b"), machine(tmp_path, "c")
    for config in (first, first, other, second):
        assert zygote.ask(config) is None or config is first
        zygote.tend()
    assert len(zygote.forked) == 4
    assert [zygote.ask(config) for config in (first, second, other)] == [None, zygote.forked[3], zygote.forked[2]]


def test_one_that_boots_is_made_after_two_starts_and_ends_with_its_kernel(zygote: Zygote, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.touch()
    config = MachineConfig(kernel=str(kernel), memory=16 * MIB, channel=Channel.VIRTIO)
    zygote.ask(config)
    zygote.tend()
    zygote.ask(machine(tmp_path))
    zygote.ask(config)
    zygote.tend()
    assert zygote.forked == []
    zygote.ask(config)
    zygote.tend()
    (pid,) = zygote.forked
    kernel.write_bytes(b"another")
    zygote.tend()
    assert zygote.ask(config) != pid


@pytest.mark.parametrize(("size", "forked"), [(0, 2), (spares.MOST_AHEAD // 2, 1)])
def test_those_that_boot_are_as_many_as_their_kernels_have_room(zygote: Zygote, tmp_path: Path, size: int, forked: int) -> None:
    kernel = tmp_path / "kernel"
    kernel.touch()
    os.truncate(kernel, size)
    for _ in range(3):
        zygote.ask(MachineConfig(kernel=str(kernel), memory=16 * MIB, channel=Channel.VIRTIO))
    for _ in range(3):
        zygote.tend()
    assert len(zygote.forked) == forked


@pytest.mark.parametrize(("pages", "forked"), [(0, 2), (spares.MOST_AHEAD // PAGE // 2, 2), (spares.MOST_AHEAD // PAGE // 2 + 1, 1)])
def test_eager_ones_for_starts_at_once_are_as_many_as_their_pages_have_room(
    zygote: Zygote, tmp_path: Path, pages: int, forked: int
) -> None:
    config = eager(tmp_path, pages=pages)
    assert [zygote.ask(config) for _ in range(2)] == [None] * 2
    for _ in range(2):
        zygote.tend()
    assert len(zygote.forked) == forked


def test_none_is_made_of_a_damaged_working_set(zygote: Zygote, tmp_path: Path) -> None:
    zygote.ask(eager(tmp_path, pages=2 * spares.MOST_AHEAD // PAGE))
    zygote.tend()
    assert zygote.forked == []


@pytest.mark.parametrize("ending", ["memory", "time", "file", "folder"])
def test_what_is_not_wanted_any_more_ends(zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    config = machine(tmp_path)
    monkeypatch.setattr(spares, "MOST_S", 0.0 if ending == "time" else spares.MOST_S)
    zygote.ask(config)
    zygote.tend()
    (pid,) = zygote.forked
    if ending == "memory":
        (tmp_path / "meminfo").write_text("MemTotal: 1600 kB\nMemFree: 0 kB\nMemAvailable: 99 kB\n")
        monkeypatch.setattr(spares, "_MEMORY", str(tmp_path / "meminfo"))
    elif ending == "file":
        (tmp_path / "base/memory").write_bytes(b"x")
    elif ending == "folder":
        (tmp_path / "base").rename(tmp_path / "other")
    zygote.tend()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert zygote.spares.wait_ms is None
    assert zygote.ask(config) is None


@pytest.mark.parametrize("busy", ["processors", "turns"])
def test_what_keeps_processors_busy_holds_one_up_for_some_time_only(
    zygote: Zygote, tmp_path: Path, load: Path, monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    if busy == "processors":
        load.write_text("0.50 0.40 0.30 2/999 12345\n")
    zygote.ask(machine(tmp_path))
    for _ in range(3):
        zygote.tend(may_begin=busy != "turns")
        assert zygote.forked == []
        assert zygote.spares.wait_ms == spares.QUIET_MS
    monkeypatch.setattr(spares, "PATIENCE_S", 0.0)
    zygote.tend(may_begin=busy != "turns")
    assert len(zygote.forked) == 1


def test_one_is_made_soon_where_there_are_processors_but_the_others_take_their_time(
    zygote: Zygote, tmp_path: Path, load: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    config = machine(tmp_path)
    for _ in range(2):
        zygote.ask(config)
        assert zygote.spares.wait_ms == spares.SOON_MS
    load.write_text("0.50 0.40 0.30 3/999 12345\n")
    waits = []
    for _ in range(7):
        zygote.tend()
        waits.append(zygote.spares.wait_ms)
    assert waits == [20, 40, 80, 160, 200, 200, 200]
    load.write_text("0.50 0.40 0.30 2/999 12345\n")
    zygote.ask(config)
    assert zygote.spares.wait_ms == spares.SOON_MS
    zygote.tend()
    assert (len(zygote.forked), zygote.spares.wait_ms) == (1, spares.QUIET_MS)


def test_one_that_has_ended_is_not_taken(zygote: Zygote, tmp_path: Path) -> None:
    config = machine(tmp_path)
    assert [zygote.ask(config) for _ in range(2)] == [None] * 2
    zygote.tend()
    zygote.tend()
    os.kill(zygote.forked[0], signal.SIGKILL)
    os.waitid(os.P_PID, zygote.forked[0], os.WEXITED | os.WNOWAIT)
    assert zygote.ask(config) == zygote.forked[1]


@pytest.mark.parametrize("made", [True, False])
def test_one_that_is_being_made_takes_what_it_is_sent(made: bool) -> None:
    link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    spares.send(link, Ends(writer, writer, writer), 1.5)
    os.close(writer)
    link.close()
    taken = spares.wait(theirs, made=made)
    assert taken is not None
    asked_at, ends = taken
    assert asked_at == 1.5
    os.write(ends.channel, b"x")
    assert os.read(reader, 2) == b"x"
    for end in (reader, ends.channel, ends.report, ends.control):
        os.close(end)


def test_one_that_could_not_be_made_takes_nothing_that_comes_later() -> None:
    link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with link, theirs.dup():
        assert spares.wait(theirs, made=False) is None
        with pytest.raises(BrokenPipeError):
            spares.send(link, Ends(0, 1, 2), 1.5)
