"""A live machine is moved: every byte of memory, count and line is there, and none twice.

Tiny guests on the real /dev/kvm; source and destination are two vmm processes of one host.
"""

import asyncio
import contextlib
import errno
import itertools
import random
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mayfly.errors import ConfigError, GuestError, MayflyError, MoveError, SnapshotError
from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest
from mayfly.guests.zygote import Zygote
from mayfly.images.store import Images
from mayfly.protocol.pages import pack_runs, unpack_runs
from mayfly.schema import replace
from mayfly.snapshots import live, moving
from mayfly.units import MIB, PAGE
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.snapshot import MEMORY, PAGES
from tests.kit import tiny
from tests.kit.api_fakes import install_toys
from tests.kit.moving_kit import EACH_LINE, Lines, Link, cold, counting, move
from tests.kit.scale import patience, scaled
from tests.kvm.test_control import COPY, SECOND_COUNTER, TOGETHER
from tests.kvm.test_control import COUNTER as TOGETHER_COUNTER

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

MEMORY_BYTES = 24 * MIB
PAGES_WRITTEN = 512


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    """A machine that counts through 4 MiB."""
    install_toys(monkeypatch, tmp_path / "data")
    kernel = tiny.build(tmp_path, counting(PAGES_WRITTEN))
    machine = MachineConfig(kernel=str(kernel), memory=MEMORY_BYTES, channel=Channel.SERIAL)
    return Wanted(image=Images().find("toy"), machine=machine, timeout_s=60.0)


def play(script: Callable[[Spawner], Awaitable[None]], start: Callable[[], Zygote] = Zygote.start) -> None:
    """Run a script with a spawner that ends with it."""

    async def whole() -> None:
        spawner = Spawner(start)
        try:
            await script(spawner)
        finally:
            await spawner.close()

    asyncio.run(whole())


async def saved(guest: Guest, folder: Path) -> tuple[bytes, bytes]:
    """All memory of a machine that stands still."""
    folder.mkdir()
    await guest.process.snapshot(folder, go_on=True, timeout_s=60)
    return (folder / MEMORY).read_bytes(), (folder / PAGES).read_bytes()


async def alike(guest: Guest, moved: Guest, tmp_path: Path) -> None:
    """See that both stand still with the same memory."""
    folders = tmp_path / "source", tmp_path / "destination"
    assert await saved(guest, folders[0]) == await saved(moved, folders[1])
    for folder in folders:
        shutil.rmtree(folder)


def whole(lines: Lines) -> bool:
    """Whether no line is missing, none came twice, and the guest found each page right."""
    return lines.seen == list(range(lines.seen[0], lines.seen[0] + EACH_LINE * len(lines.seen), EACH_LINE))


async def move_often(spawner: Spawner, wanted: Wanted, folder: Path, times: int, rounds: list[moving.Round]) -> None:
    """Move a guest so many times while it runs: each time both machines stand still with the same
    memory, and the next one goes on.
    """
    lines = Lines()
    guest = await cold(spawner, wanted)
    for _ in range(times):
        await lines.more(guest.process, 3)
        moved = await move(spawner, guest, wanted, progress=rounds.append)
        await alike(guest, moved, folder)
        await lines.rest(guest, spawner)
        await moved.process.resume()
        guest = moved
    await lines.more(guest.process, 2 * PAGES_WRITTEN // EACH_LINE)  # each page is looked at once more
    assert lines.seen[0] == EACH_LINE
    assert whole(lines)


def test_a_guest_is_moved_fifty_times_while_it_runs(wanted: Wanted, tmp_path: Path) -> None:
    """Each time both machines stand still with the same memory, and the next one goes on."""
    rounds: list[moving.Round] = []

    async def script(spawner: Spawner) -> None:
        await move_often(spawner, wanted, tmp_path, 50, rounds)

    play(script)
    assert len(rounds) >= 50


def test_two_vcpus_that_agree_are_moved(wanted: Wanted, tmp_path: Path) -> None:
    """They and three places in memory fit together: each next machine goes on, which takes both."""
    tiny.build(tmp_path, TOGETHER)
    two = replace(wanted, machine=replace(wanted.machine, cpus=2))
    folders = itertools.count()

    async def counted(guest: Guest) -> list[int]:
        memory, _ = await saved(guest, tmp_path / f"count{next(folders)}")
        return [int.from_bytes(memory[place : place + 4], "little") for place in (TOGETHER_COUNTER, SECOND_COUNTER, COPY)]

    async def script(spawner: Spawner) -> None:
        guest = await cold(spawner, two)
        before = 0
        for _ in range(scaled(30)):
            while (await counted(guest))[0] <= before:
                pass
            moved = await move(spawner, guest, two)
            await alike(guest, moved, tmp_path)
            first, second, copy = await counted(moved)
            assert before < first
            assert first - second in (0, 1)
            assert copy - second in (0, 1)
            before = first
            await guest.process.stop(0)
            await moved.process.resume()
            guest = moved

    play(script)


def test_without_tracking_all_is_sent_while_the_guest_stands_still(wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel before Linux 6.7."""

    def refuse(_: Mapping) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Mapping, "track_writes", refuse)
    rounds: list[moving.Round] = []

    async def script(spawner: Spawner) -> None:
        await move_often(spawner, wanted, tmp_path, 5, rounds)

    play(script, Zygote.fork)  # whose machines are of this process
    assert not rounds


def test_only_what_differs_from_the_layers_that_are_held_is_sent(wanted: Wanted, tmp_path: Path) -> None:
    """A moved machine has the layers of the one before, so it is moved on like that one. Where
    nothing is held, all is sent: 4 MiB of the base too, which the guest never touches.
    """
    never_touched = random.Random(1).randbytes(4 * MIB)
    base = tmp_path / "base"
    sizes: list[int] = []

    async def script(spawner: Spawner) -> None:
        lines = Lines()
        guest = await cold(spawner, wanted)
        await lines.more(guest.process, 2 * PAGES_WRITTEN // EACH_LINE)
        base.mkdir()
        await guest.process.snapshot(base, timeout_s=60)
        add(base, 8 * MIB, never_touched)
        restored = wanted.restored_from([base])
        lines = Lines()
        guest = await cold(spawner, restored)
        with pytest.raises(MoveError, match="2 layers of a machine that stands on 1"):
            await moving.send_rounds(guest, nowhere, held=2)
        for number, held in enumerate((1, 1, 0, 0)):
            await lines.more(guest.process, 1)
            rounds: list[moving.Round] = []
            here = moving.wanted_with(restored, held)
            moved = await move(spawner, guest, here, held=held, progress=rounds.append)
            sizes.append(rounds[0].size)
            memory, _ = await saved(moved, tmp_path / f"here{number}")
            assert held or memory[8 * MIB : 12 * MIB] == never_touched
            await lines.rest(guest, spawner)
            await moved.process.resume()
            guest = moved
        await lines.more(guest.process, 2 * PAGES_WRITTEN // EACH_LINE)
        assert whole(lines)

    play(script)
    assert max(sizes[:2]) < 4 * MIB < min(sizes[2:])


async def nowhere(_: bytes) -> None:
    raise AssertionError("nothing is to be sent")


def add(base: Path, place: int, content: bytes) -> None:
    """Put pages into a snapshot that does not have them."""
    with (base / MEMORY).open("r+b") as file:
        file.seek(place)
        file.write(content)
    runs = unpack_runs((base / PAGES).read_bytes(), MEMORY_BYTES)
    (base / PAGES).write_bytes(pack_runs(sorted([*runs, (place // PAGE, len(content) // PAGE)])))


def test_a_source_goes_on_when_the_move_is_given_up(wanted: Wanted) -> None:
    """Cut in the first round, in a later one, before the state, and after all of it."""

    async def script(spawner: Spawner) -> None:
        lines = Lines()
        guest = await cold(spawner, wanted)
        await lines.more(guest.process, 10)
        for cut_after in (0, 1, 5_000, 20_000, 400_000, None):
            link = Link(cut_after)
            arriving = asyncio.create_task(moving.receive(spawner, wanted, link.read))
            try:
                await moving.send_rounds(guest, link.write, held=0)
                await moving.send_last(guest, link.write)
            except ConnectionResetError:
                with pytest.raises(SnapshotError, match="ends too early"):
                    await arriving
            else:
                await (await arriving).process.stop(0)
            await guest.process.resume()
            await lines.more(guest.process, 3)
        moved = await move(spawner, guest, wanted)
        await lines.rest(guest, spawner)
        await moved.process.resume()
        await lines.more(moved.process, 2 * PAGES_WRITTEN // EACH_LINE)
        assert whole(lines)

    play(script)


def test_a_machine_that_stands_still_takes_nothing_of_its_channel(wanted: Wanted) -> None:
    """What was written meanwhile waits in the channel, whichever machine goes on."""

    async def script(spawner: Spawner) -> None:
        guest = await cold(spawner, wanted)
        lines = Lines()
        await lines.more(guest.process, 5)
        moved = await move(spawner, guest, wanted)
        for _ in range(3):
            figures = [await one.process.stats() for one in (guest, moved)]
            assert [each.paused for each in figures] == [True, True]
        before = [each.exits["kicks"] for each in figures]
        assert [(await one.process.stats()).exits["kicks"] for one in (guest, moved)] == before
        with pytest.raises(ConfigError, match="track it first"):
            await moved.process.send_round(1, last=False)

    play(script)


def test_a_machine_that_ends_while_nothing_comes_for_it_is_noticed(wanted: Wanted) -> None:
    async def script(spawner: Spawner) -> None:
        async def nothing(_: int) -> bytes:
            spawner.signal(1, signal.SIGKILL)  # the spawner's first machine
            await asyncio.Event().wait()
            return b""

        with pytest.raises(GuestError, match="before it could go on"):
            await asyncio.wait_for(moving.receive(spawner, wanted, nothing), patience(60))

    play(script)


def test_a_stream_that_is_damaged_makes_no_machine(wanted: Wanted) -> None:
    """A bit is turned somewhere: either the machine does not come up, with a typed error, or it is
    one whose memory or registers are others.
    """

    async def script(spawner: Spawner) -> None:
        guest = await cold(spawner, wanted)
        await Lines().more(guest.process, 5)
        pieces: list[bytes] = []

        async def keep(data: bytes) -> None:
            pieces.append(data)

        await moving.send_rounds(guest, keep, held=0)
        await moving.send_last(guest, keep)
        stream = b"".join(pieces)
        rng = random.Random(1)
        for _ in range(scaled(100)):
            damaged = bytearray(stream)
            damaged[rng.choice((rng.randrange(64), rng.randrange(len(stream)), -rng.randrange(1, 4000)))] ^= 1 << rng.randrange(8)
            reader = asyncio.StreamReader()
            reader.feed_data(bytes(damaged))
            reader.feed_eof()
            with contextlib.suppress(MayflyError):
                moved = await moving.receive(spawner, wanted, reader.read)
                await moved.process.resume()
                await moved.process.stop(0)

    play(script)


def test_a_guest_is_saved_while_it_runs_and_clones_go_on_from_there(wanted: Wanted, tmp_path: Path) -> None:
    """The source goes on from the very state that its clones have, none of which is in the other's
    way; a clone can be moved too.
    """

    async def script(spawner: Spawner) -> None:
        lines = Lines()
        guest = await cold(spawner, wanted)
        await lines.more(guest.process, 5)
        stood: list[tuple[bytes, bytes]] = []

        async def at_rest() -> None:
            stood.append(await saved(guest, tmp_path / "at-rest"))

        folder = tmp_path / "fork"
        folder.mkdir()
        await live.save(guest, folder, at_rest=at_rest)
        clones = await live.clones(spawner, wanted, folder, 3)
        shutil.rmtree(folder)
        moved = await move(spawner, clones[2], wanted)
        assert await saved(moved, tmp_path / "moved") == stood[0]
        for number, one in enumerate(clones):
            assert (await saved(one, tmp_path / str(number)))[1] == b"", "it differs from what was saved"
        await lines.more(guest.process, 2 * PAGES_WRITTEN // EACH_LINE)
        assert whole(lines)
        for one in (*clones[:2], moved):
            of_clone = Lines()
            await one.process.resume()
            await of_clone.more(one.process, 2 * PAGES_WRITTEN // EACH_LINE)
            assert of_clone.seen[0] > 5 * EACH_LINE
            assert whole(of_clone)

    play(script)


def test_a_diff_of_a_running_guest_is_over_its_layers(wanted: Wanted, tmp_path: Path) -> None:
    async def script(spawner: Spawner) -> None:
        base, first, second = (tmp_path / name for name in ("base", "first", "second"))
        guest = await cold(spawner, wanted)
        await Lines().more(guest.process, PAGES_WRITTEN // EACH_LINE)
        base.mkdir()
        await guest.process.snapshot(base, timeout_s=60)
        restored = wanted.restored_from([base])
        guest = await cold(spawner, restored)
        lines = Lines()
        written = []
        for folder in (first, second):
            await lines.more(guest.process, 1)
            folder.mkdir()
            written.append(await live.save(guest, folder))
        await lines.more(guest.process, 2)
        assert whole(lines)
        for folder in (first, second):
            again = await live.clone(spawner, restored, folder)
            of_clone = Lines()
            await again.process.resume()
            await of_clone.more(again.process, 2 * PAGES_WRITTEN // EACH_LINE)
            assert whole(of_clone)
        with pytest.raises(SnapshotError, match="File exists"):
            await live.save(guest, first)
        await lines.more(guest.process, 2)
        assert all(0 < size < MEMORY_BYTES // 2 for size in written)

    play(script)
