"""A live machine is commanded: paused, resumed, counted, saved while it goes on.

Tiny guests on the real /dev/kvm.
"""

import contextlib
import functools
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.errors import ConfigError, GuestError, SnapshotError
from mayfly.guests.spawner import snapshot_files
from mayfly.guests.zygote import Zygote
from mayfly.protocol.control import (
    Done,
    Figures,
    Pause,
    Prefault,
    Resume,
    Snapshot,
    Stats,
)
from mayfly.protocol.report import End, pack
from mayfly.protocol.spawning import Reaped
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.config import Channel, Layer, MachineConfig
from mayfly.vmm.devices.virtio.registers import Register
from mayfly.vmm.process.requests import serve
from mayfly.vmm.snapshot import FILES, MEMORY
from tests.kit import tiny
from tests.kit.control_client import ControlClient
from tests.kit.scale import scaled
from tests.kit.spawned import Spawned
from tests.kit.tiny import RESET, Running, start

pytestmark = pytest.mark.kvm

COUNTER = 0x50_0000
COUNT = f"""
        cli
        xor eax, eax
1:      inc eax
        mov [{COUNTER:#x}], eax
        jmp 1b
"""
"""Counts for ever, with interrupts off and without an exit."""
SECOND_COUNTER, COPY = 0x8800, 0xD800
SECOND = tiny.start_second(COUNT, COUNT.replace(f"{COUNTER:#x}", f"{SECOND_COUNTER:#x}"))
"""The same on two processors; the second one, in real mode, has a counter of its own."""
PLACES = {1: (COUNTER,), 2: (COUNTER, SECOND_COUNTER)}
SOURCES = {1: COUNT, 2: SECOND}
TOGETHER = tiny.start_second(
    f"""
        cli
        xor eax, eax
1:      inc eax
        mov [{COUNTER:#x}], eax
2:      cmp [{COPY:#x}], eax
        jne 2b
        mov [{SECOND_COUNTER:#x}], eax
        jmp 1b
    """,
    f"""
        cli
1:      mov eax, [{SECOND_COUNTER:#x}]
        inc eax
        mov [{COPY:#x}], eax
        jmp 1b
    """,
)
"""Each processor waits for the other: the first for its count in COPY, where the second writes one
more than the first has got back. COUNTER is one more than SECOND_COUNTER, or equal; so is COPY.
"""


ENTROPY_RING = (0x30_0000, 0x30_1000, 0x30_2000)
REQUESTS = (
    tiny.MAP_MMIO
    + tiny.start_virtio(0, [(8, *ENTROPY_RING)])
    + f"""
        cli
        mov qword ptr [{ENTROPY_RING[0]:#x}], 0x600000
        mov dword ptr [{ENTROPY_RING[0] + 8:#x}], 1
        mov word ptr [{ENTROPY_RING[0] + 12:#x}], 2
        xor ebx, ebx
next:   inc ebx
        mov word ptr [{ENTROPY_RING[1] + 2:#x}], bx
        {tiny.write(Register.QUEUE_NOTIFY, 0)}
wait:   cmp word ptr [{ENTROPY_RING[2] + 2:#x}], bx
        jne wait
        mov [{COUNTER:#x}], ebx
        jmp next
"""
)
"""Asks the entropy device for a byte, waits for it, counts, and asks again."""
PENDING = (
    tiny.MAP_MMIO
    + tiny.start_virtio(0, [(8, *ENTROPY_RING)], features=1 << 32)
    + f"""
        cli
        mov qword ptr [{ENTROPY_RING[0]:#x}], 0x600000
        mov dword ptr [{ENTROPY_RING[0] + 8:#x}], 1
        mov word ptr [{ENTROPY_RING[0] + 12:#x}], 2
        mov word ptr [{ENTROPY_RING[1] + 2:#x}], 1
        {tiny.write(Register.QUEUE_NOTIFY, 0)}
        mov al, 0x0a
        out 0x20, al
wait:   in al, 0x20
        test al, 0x20
        jz wait
        mov dx, 0x3f8
        out dx, al
        mov ecx, 1000
1:      loop 1b
        in al, 0x20
        out dx, al
        {RESET}
"""
)
"""Waits until the entropy device's interrupt is pending in the PIC (IRR, GSI 5); says it twice."""


def command(running: Running, script: Callable[[ControlClient], object]) -> End:
    """Run the machine while `script`, in a thread of its own, commands it; then it is stopped."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    errors: list[BaseException] = []

    def talk() -> None:
        try:
            script(ControlClient(ours))
        except BaseException as error:
            errors.append(error)
        finally:
            running.machine.finish(End.STOPPED)

    with ours, theirs:
        ours.settimeout(60)
        serve(theirs, running.loop, running.machine.carry_out)
        talker = threading.Thread(target=talk)
        talker.start()
        end = running.run()
        talker.join()
        running.loop.watch(theirs, 0, lambda: None)
    if errors:
        raise errors[0]
    return end


def counted(running: Running, place: int = COUNTER) -> int:
    return int.from_bytes(running.read(place, 4), "little")


def see_counting(running: Running, client: ControlClient, place: int = COUNTER) -> None:
    """Wait until the guest counts on; the test's limit ends this."""
    before = counted(running, place)
    while counted(running, place) == before:
        assert client.ask(Stats())


def save(client: ControlClient, folder: Path, *, go_on: bool) -> int:
    folder.mkdir()
    with snapshot_files(folder) as descriptors:
        answer = client.ask(Snapshot(go_on=go_on), descriptors)
    assert isinstance(answer, Done)
    return answer.memory_bytes


@pytest.mark.parametrize("cpus", [1, 2])
def test_pause_stops_the_guest_and_resume_lets_it_go_on(started: list[Running], tmp_path: Path, cpus: int) -> None:
    running = start(started, tmp_path, SOURCES[cpus], cpus=cpus)

    def script(client: ControlClient) -> None:
        for place in PLACES[cpus]:
            see_counting(running, client, place)
        for _ in range(3):
            assert client.ask(Pause()) == Done()
            assert client.ask(Pause()) == Done()
            before = [counted(running, place) for place in PLACES[cpus]]
            for _ in range(50):
                answer = client.ask(Stats())
                assert isinstance(answer, Figures)
                assert answer.paused
            assert [counted(running, place) for place in PLACES[cpus]] == before
            assert client.ask(Resume()) == Done()
            assert client.ask(Resume()) == Done()
            for place in PLACES[cpus]:
                see_counting(running, client, place)

    assert command(running, script) is End.STOPPED


BODIES = ("1: jmp 1b\n", "1: hlt\njmp 1b\n", "mov dx, 0x3f8\n1: out dx, al\njmp 1b\n", "cli\n1: hlt\njmp 1b\n")


@pytest.mark.parametrize("body", BODIES)
def test_a_paused_machine_ends_and_one_that_ended_is_not_paused(started: list[Running], tmp_path: Path, body: str) -> None:
    running = start(started, tmp_path, body, cpus=2)
    assert command(running, lambda client: client.ask(Pause())) is End.STOPPED
    for thread in running.machine.processors.threads:
        thread.join(10)
        assert not thread.is_alive()
    with pytest.raises(GuestError, match="has ended"):
        running.machine.processors.pause()


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_machine_that_was_saved_goes_on_and_so_does_its_copy(started: list[Running], tmp_path: Path, cpus: int) -> None:
    running = start(started, tmp_path, SOURCES[cpus], cpus=cpus)
    folders = [tmp_path / str(number) for number in range(3)]
    at: list[list[int]] = []

    def script(client: ControlClient) -> None:
        for place in PLACES[cpus]:
            see_counting(running, client, place)
        for folder in folders:
            save(client, folder, go_on=True)
            for place in PLACES[cpus]:
                see_counting(running, client, place)
            at.append([counted(running, place) for place in PLACES[cpus]])

    assert command(running, script) is End.STOPPED
    for folder, later in zip(folders, at, strict=True):
        again = Running(tmp_path / "tiny.elf", restore=(str(folder),), cpus=cpus)
        started.append(again)
        saved = [counted(again, place) for place in PLACES[cpus]]
        assert all(0 < then < now for then, now in zip(saved, later, strict=True))

        def go_on(client: ControlClient, again: Running = again) -> None:
            for place in PLACES[cpus]:
                see_counting(again, client, place)

        assert command(again, go_on) is End.STOPPED
        assert all(counted(again, place) > then for place, then in zip(PLACES[cpus], saved, strict=True))


def test_two_processors_are_saved_at_one_moment(started: list[Running], tmp_path: Path) -> None:
    """They and three pages of memory fit together: each copy goes on, which takes both."""
    running = start(started, tmp_path, TOGETHER, cpus=2)
    folders = [tmp_path / str(number) for number in range(scaled(100))]

    def script(client: ControlClient) -> None:
        for folder in folders:
            see_counting(running, client)
            save(client, folder, go_on=True)

    assert command(running, script) is End.STOPPED
    before = 0
    for folder in folders:
        again = Running(tmp_path / "tiny.elf", restore=(str(folder),), cpus=2)
        try:
            first, second, copy = (counted(again, place) for place in (COUNTER, SECOND_COUNTER, COPY))
            assert before < first
            assert first - second in (0, 1)
            assert copy - second in (0, 1)
            before = first
            assert command(again, functools.partial(see_counting, again)) is End.STOPPED
            assert counted(again) > first
        finally:
            again.close()


def test_a_machine_that_was_paused_stays_so_when_it_is_saved(started: list[Running], tmp_path: Path) -> None:
    running = start(started, tmp_path, COUNT)

    def script(client: ControlClient) -> None:
        see_counting(running, client)
        client.ask(Pause())
        before = counted(running)
        save(client, tmp_path / "first", go_on=True)
        save(client, tmp_path / "second", go_on=True)
        figures = client.ask(Stats())
        assert isinstance(figures, Figures)
        assert figures.paused
        assert counted(running) == before
        assert (tmp_path / "first" / MEMORY).read_bytes() == (tmp_path / "second" / MEMORY).read_bytes()
        client.ask(Resume())
        see_counting(running, client)
        save(client, tmp_path / "last", go_on=False)

    assert command(running, script) is End.SAVED


def test_queues_are_undisturbed(started: list[Running], tmp_path: Path) -> None:
    """The guest waits for each answer of its device: it or a copy would stand still without one."""
    running = start(started, tmp_path, REQUESTS)

    def script(client: ControlClient) -> None:
        for number in range(10):
            see_counting(running, client)
            save(client, tmp_path / str(number), go_on=True)
        see_counting(running, client)

    assert command(running, script) is End.STOPPED
    for number in range(10):
        again = Running(tmp_path / "tiny.elf", restore=(str(tmp_path / str(number)),))
        started.append(again)
        assert command(again, functools.partial(see_counting, again)) is End.STOPPED


def test_an_interrupt_that_is_pending_stays_so(started: list[Running], tmp_path: Path) -> None:
    running = start(started, tmp_path, PENDING)
    saved: list[int] = []
    save_soon = running.loop.add_event(lambda: saved.append(running.save(tmp_path / "snapshot", go_on=True)))

    def say(data: bytes) -> None:
        if not running.console:
            running.machine.processors.threads[0].pause()
            save_soon()
        running.console += data

    running.say = say
    assert running.run() is End.RESET
    assert saved
    again = Running(tmp_path / "tiny.elf", restore=(str(tmp_path / "snapshot"),))
    started.append(again)
    assert again.run() is End.RESET
    assert [byte & 0x20 for byte in running.console + again.console] == [0x20] * 3


def test_a_bad_message_is_refused_and_the_guest_goes_on(started: list[Running], tmp_path: Path) -> None:
    running = start(started, tmp_path, COUNT)

    def script(client: ControlClient) -> None:
        for data, descriptors in ((b"stop", 0), (b'{"type":"stop"}', 0), (pack(Snapshot(go_on=False)), 2)):
            with (tmp_path / "file").open("w") as file:
                socket.send_fds(client._control, [data], [file.fileno()] * descriptors)
            with pytest.raises(ConfigError, match="malformed"):
                client.accept()
        see_counting(running, client)
        assert client.ask(Prefault()) == Done()  # a machine that booted has nothing to map

    assert command(running, script) is End.STOPPED


def test_a_full_disk_refuses_a_snapshot_and_the_guest_goes_on(started: list[Running], tmp_path: Path) -> None:
    running = start(started, tmp_path, COUNT)

    def script(client: ControlClient) -> None:
        with Path("/dev/full").open("wb") as full, pytest.raises(SnapshotError, match="cannot be written"):
            client.ask(Snapshot(go_on=False), [full.fileno()] * len(FILES))
        see_counting(running, client)
        save(client, tmp_path / "snapshot", go_on=True)

    assert command(running, script) is End.STOPPED


def test_a_vmm_process_without_privileges_is_commanded(tmp_path: Path) -> None:
    """The whole way: zygote, another user, a folder that this user may not write."""
    folder = tmp_path / "snapshot"
    folder.mkdir(mode=0o700)
    with contextlib.closing(Zygote.start()) as zygote:
        config = MachineConfig(kernel=str(tiny.build(tmp_path, COUNT)), memory=16 * MIB, channel=Channel.SERIAL)
        with Spawned(zygote, config) as machine, snapshot_files(folder) as descriptors:
            machine.wait_running()
            assert machine.control.ask(Pause()) == Done()
            answer = machine.control.ask(Snapshot(go_on=False), descriptors)
            assert isinstance(answer, Done)
            assert answer.memory_bytes > 0
            ended = machine.wait_ended()
            assert (ended.reason, ended.error) == (End.SAVED, None)
            with pytest.raises(GuestError):
                machine.control.ask(Stats())
        assert isinstance(zygote.receive(), Reaped)
        with Spawned(zygote, replace(config, restore=(Layer(folder=str(folder)),))) as machine:
            machine.wait_running()
            assert machine.control.ask(Prefault()) == Done()
            figures = machine.control.ask(Stats())
            assert isinstance(figures, Figures)
            assert not figures.paused
            assert figures.exits["own-bytes"] > 0
