"""Requests that outlast their guest's machine, which is a toy: each goes on from its last save, is
answered once, and leaves nothing that was saved.
"""

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mayfly import files, paths
from mayfly.errors import FunctionCrashedError, FunctionTimeoutError, GuestError
from mayfly.files import clear
from mayfly.functions import store
from mayfly.functions.answer import Answer
from mayfly.functions.lasting import Lasting
from mayfly.functions.making import FunctionMachines, Revision
from mayfly.functions.request import KEPT_LOG, Piece, Request
from mayfly.functions.service import Functions
from mayfly.functions.spec import FunctionSpec
from mayfly.guests.function import FunctionRequest, FunctionResponse
from mayfly.guests.start import Guest, StartKind
from mayfly.host.plan import want_machine
from mayfly.host.snippet import MAX_OF_A_SAVE
from mayfly.protocol import frames as p
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.snapshots.store import Snapshot
from tests.kit.api_fakes import factory, install_toys, open_descriptors, small_config
from tests.kit.function_fakes import invocation
from tests.kit.scale import patience
from tests.kit.toy_moves import ToyProcess, World, counted, lose_toys_while_saved, make_guest, save_toys

LOADED = p.Start((), (p.Step("function", ("f",), function=True),), ())
ENDLESS = b"-1"


class Bench:
    """A service, whose toys answer requests."""

    def __init__(self, service: Service, world: World) -> None:
        self.service, self.world = service, world
        self.request = Request(invocation("count"))

    async def begin(self, payload: bytes = ENDLESS, timeout_s: float = 1000.0, origin: Snapshot | None = None) -> Lasting:
        """A request that is never saved by itself."""
        wanted = replace(want_machine(self.service.images.find("toy"), self.service.config), loaded=LOADED)
        process = ToyProcess(self.world)
        await process.resume()
        guest = make_guest(process, wanted)
        self.service.supply.note(guest, origin)
        asked = FunctionRequest(id=7, content_type="", payload=payload)
        return Lasting(self.service.spawner, self.service.supply, guest, asked, self.request, timeout_s, 1000.0)

    def printed(self) -> bytes:
        return b"".join(piece.data for piece in self.request.log)

    async def until(self, size: int) -> None:
        """Wait until the function has printed so much."""
        while len(self.printed()) < size:
            await asyncio.sleep(0)

    async def until_made(self, count: int) -> None:
        """Wait until so many machines were made."""
        while len(self.world.made) < count:
            await asyncio.sleep(0)

    def finish(self) -> int:
        """Have the function answer soon; with what."""
        state = self.world.made[-1].state
        state["source"] = b"%d" % (state["n"] + 20)
        return int(state["source"])


Scenario = Callable[[Bench], Awaitable[Any]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    """Run a scenario with a bench; nothing is left behind."""
    world = World()
    install_toys(monkeypatch, tmp_path)
    save_toys(monkeypatch, world)

    def call(scenario: Scenario) -> None:
        async def whole() -> None:
            async with Service(small_config(tmp_path), factory()) as service:
                await asyncio.wait_for(scenario(Bench(service, world)), patience(60))
            await asyncio.gather(*(process.stop() for process in world.made))

        before = open_descriptors()
        asyncio.run(whole())
        assert open_descriptors() == before
        assert left() == []

    return call


def left() -> list[str]:
    """What is there of saves."""
    folder = paths.snapshots_dir()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def check_whole(bench: Bench, response: FunctionResponse, count: int) -> None:
    """The answer is that, and each line was printed once."""
    assert (response.kind, response.payload) == ("answer", b"%d" % count)
    assert counted(bench.printed().decode()) == count


def test_a_request_outlasts_its_machine(serve: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        request = await bench.begin()
        answering = asyncio.create_task(request.ask())
        await bench.until(100)
        await request.save()
        assert len(left()) == 2  # a folder and its lock
        saved = len(bench.printed())
        await bench.until(saved + 100)
        bench.world.made[-1].die()
        await bench.until_made(2)
        await bench.until(saved + 50)
        count = bench.finish()
        guest, response = await answering
        check_whole(bench, response, count)
        assert guest.process.number == len(bench.world.made) == 2
        assert len(bench.world.identities) == 1
        assert left() == []
        again = FunctionRequest(id=8, content_type="", payload=b"3")  # the guest takes the next request
        guest.process.state["n"] = 0  # type: ignore[attr-defined]
        other = Lasting(bench.service.spawner, bench.service.supply, guest, again, bench.request, 1000.0, 1000.0)
        assert (await other.ask())[1].payload == b"3"

    serve(scenario)


def test_a_save_that_is_whole_counts_though_the_machine_is_lost_then(
    serve: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(bench: Bench) -> None:
        lose_toys_while_saved(monkeypatch, bench.world)
        request = await bench.begin()
        request._every_s = 0.01
        answering = asyncio.create_task(request.ask())
        await bench.until_made(2)
        count = bench.finish()
        check_whole(bench, (await answering)[1], count)

    serve(scenario)


def test_each_save_takes_the_place_of_the_one_before(serve: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        request = await bench.begin()
        answering = asyncio.create_task(request.ask())
        for number in range(1, 4):
            await bench.until_made(number)
            for _ in range(2):
                await bench.until(len(bench.printed()) + 50)
                await request.save()
                assert len(left()) == 2
            bench.world.made[-1].die()
        await bench.until_made(4)
        count = bench.finish()
        check_whole(bench, (await answering)[1], count)

    serve(scenario)


def test_a_machine_that_is_lost_again_and_again_is_given_up(serve: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        request = await bench.begin()
        answering = asyncio.create_task(request.ask())
        await bench.until(100)
        await request.save()
        for number in range(MAX_OF_A_SAVE + 1):
            await bench.until_made(number + 1)
            bench.world.made[-1].die()
        with pytest.raises(FunctionCrashedError):
            await answering
        assert len(bench.world.made) == MAX_OF_A_SAVE + 1

    serve(scenario)


@pytest.mark.parametrize("how", ["unsaved", "crashed", "late", "no clone", "made anew"])
def test_what_ends_otherwise_does_not_go_on(serve: Callable[[Scenario], None], how: str) -> None:
    async def scenario(bench: Bench) -> None:
        origin: Any = None
        if how == "made anew":
            origin = Snapshot(Path("/gone"), SimpleNamespace(name="gone"))  # type: ignore[arg-type]
        request = await bench.begin(timeout_s=1000.0 if how != "late" else 0.5, origin=origin)
        answering = asyncio.create_task(request.ask())
        await bench.until(100)
        if how != "unsaved":
            await request.save()
        if how == "no clone":
            bench.world.clones_left = 0
        if how == "crashed":
            bench.world.made[-1].kill()  # as a machine that says why it ends
        elif how != "late":
            bench.world.made[-1].die()
        with pytest.raises(FunctionTimeoutError if how == "late" else FunctionCrashedError):
            await answering
        assert len(bench.world.made) == (2 if how == "made anew" else 1)

    serve(scenario)


def test_a_request_that_is_over_is_not_saved(serve: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        request = await bench.begin(b"5")
        with pytest.raises(GuestError, match="is over"):
            await request.save()  # nothing has begun
        check_whole(bench, (await request.ask())[1], 5)
        with pytest.raises(GuestError, match="is over"):
            await request.save()

    serve(scenario)


def test_an_answer_comes_though_its_save_hears_of_no_cancellation(
    serve: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = asyncio.Event()

    async def save(self: Lasting) -> None:
        saving.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(Lasting, "save", save)

    async def scenario(bench: Bench) -> None:
        request = await bench.begin()
        request._every_s = 0.001
        answering = asyncio.create_task(request.ask())
        await saving.wait()
        await bench.until(100)
        count = bench.finish()
        check_whole(bench, (await answering)[1], count)

    serve(scenario)


def test_an_answer_comes_though_no_save_can_be_removed(serve: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        clear(folder)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "clear", fail)

    async def scenario(bench: Bench) -> None:
        request = await bench.begin()
        answering = asyncio.create_task(request.ask())
        await bench.until(100)
        await request.save()
        await request.save()
        count = bench.finish()
        check_whole(bench, (await answering)[1], count)

    serve(scenario)


def test_a_save_that_is_cut_off_is_removed_beside_the_loop(serve: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def note(folder: Path) -> None:
        threads.append(threading.current_thread())
        clear(folder)

    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(files, "clear", note)
    monkeypatch.setattr("mayfly.functions.lasting.live.save", hang)

    async def scenario(bench: Bench) -> None:
        request = await bench.begin()
        saving = asyncio.create_task(request.save())
        while not left():
            await asyncio.sleep(0)
        saving.cancel()
        await asyncio.wait([saving])
        assert saving.cancelled()
        assert threads
        assert threading.main_thread() not in threads
        await request.asking.guest.process.stop()

    serve(scenario)


def test_whoever_is_cancelled_leaves_neither_guest_nor_save(serve: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        request = await bench.begin()
        answering = asyncio.create_task(request.ask())
        await bench.until(100)
        await request.save()
        answering.cancel()
        await asyncio.wait([answering])
        assert answering.cancelled()
        assert not bench.world.made[-1].alive

    serve(scenario)


def test_whoever_is_cancelled_at_the_very_end_leaves_no_other_guest(
    serve: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = asyncio.Event()

    async def hang(work: Callable[[], None]) -> None:
        work()
        dropping.set()
        await asyncio.Event().wait()

    async def scenario(bench: Bench) -> None:
        request = await bench.begin()
        answering = asyncio.create_task(request.ask())
        await bench.until(100)
        await request.save()
        bench.world.made[-1].die()
        await bench.until_made(2)
        monkeypatch.setattr("mayfly.functions.lasting.whole", hang)
        bench.finish()
        await dropping.wait()
        answering.cancel()
        await asyncio.wait([answering])
        assert answering.cancelled()
        assert not bench.world.made[-1].alive

    serve(scenario)


def test_a_log_goes_back_to_what_it_was() -> None:
    async def scenario() -> None:
        request = Request(invocation("count"))
        request.note(p.Stdout(b"a" * KEPT_LOG))
        kept: tuple[Piece, ...] = tuple(request.log)
        request.note(p.Stderr(b"b" * 1000))  # pushes out the beginning
        request.go_back(kept)
        assert [(piece.stream, piece.data) for piece in request.log] == [("stdout", b"a" * KEPT_LOG)]
        request.note(p.Stdout(b"c"))
        assert sum(len(piece.data) for piece in request.log) == KEPT_LOG

    asyncio.run(scenario())


class ToyMachines(FunctionMachines):
    """Guests that are toys."""

    world: World

    async def start(self, revision: Revision) -> tuple[Guest, StartKind]:
        process = ToyProcess(self.world)
        await process.resume()
        return make_guest(process, replace(revision.wanted, loaded=revision.loaded)), StartKind.RESTORED


def test_a_function_whose_file_says_so_is_saved(serve: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch) -> None:
    saved = asyncio.Event()
    real = Lasting.save

    async def save(self: Lasting) -> None:
        await real(self)
        saved.set()

    monkeypatch.setattr(Lasting, "save", save)

    async def scenario(bench: Bench) -> None:
        service, world = bench.service, bench.world
        machines = ToyMachines(service.config, service.spawner, service.supply, service.networks)
        machines.world = world
        spec = FunctionSpec(name="count", language="toy", code="/code", timeout_s=1000, checkpoint_every_s=1)
        with store.claimed("count"):
            store.save(store.make_function(spec, {}), {})
        shared = (service.config, service.spawner, service.admission, service.supply, service.images, service.networks)
        async with Functions(*shared, machines=machines) as functions:
            answering = asyncio.create_task(functions.invoke(invocation("count", ENDLESS)))
            await saved.wait()
            far = world.made[-1].state["n"] + 200
            while world.made[-1].state["n"] < far:
                await asyncio.sleep(0)
            world.made[-1].die()
            await bench.until_made(2)
            count = bench.finish()
            answer: Answer = await answering
            assert (answer.status, answer.payload) == ("ok", b"%d" % count)
            assert counted(answer.log.decode()) == count
            world.made[-1].state["n"] = 0
            assert (await functions.invoke(invocation("count", b"4"))).payload == b"4"
            assert (await functions.figures("count")).created == 1
            assert len(world.made) == 2

    serve(scenario)
