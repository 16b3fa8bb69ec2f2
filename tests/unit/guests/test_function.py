"""A guest's function: loading, asking, and every way in which it may not answer."""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import FunctionCrashedError, FunctionTimeoutError, GuestError, OversizeError
from mayfly.guests.function import Asking, FunctionRequest, FunctionResponse, ask, is_loaded, load, watch
from mayfly.guests.job import Job, Wanted
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest, StartKind, start
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from mayfly.protocol.conversation import Event
from mayfly.units import MIB
from mayfly.vmm.config import Layer, MachineConfig
from tests.kit import shim
from tests.kit.agent_process import PATH_ENV, build_agent
from tests.kit.api_fakes import factory, install_toys
from tests.kit.played_guest import PlayedProcess, frame, guest_of

FUNCTION = p.Step("function", ("f",), output=1000, function=True)
START = p.Start((), (FUNCTION,), ())
STAGE = p.Stage(0, "function")
ENDED = p.Exit(0, p.ExitHow.EXITED, 3, p.Limit.NONE, 1, 1, 1, (False, False))
Scenario = Callable[[Guest], Awaitable[Any]]


class Log:
    """What a function printed."""

    def __init__(self) -> None:
        self.printed = b""

    def note(self, event: Event) -> None:
        if isinstance(event, p.Stdout | p.Stderr):
            self.printed += event.data


def job(start: p.Start = START, *files: bytes, deadline_s: float = 50.0) -> Job:
    return Job(start=start, files=files, deadline_s=deadline_s, rate=1e6)


def request(payload: bytes = b"", number: int = 7, content_type: str = "text/plain") -> FunctionRequest:
    return FunctionRequest(id=number, content_type=content_type, payload=payload)


def wanted(image: str, **fields: Any) -> Wanted:
    return Wanted(image=Images().find(image), machine=MachineConfig(kernel="k", memory=64 * MIB, **fields), timeout_s=30.0)


def in_guest(scenario: Scenario, image: str = "toy", executable: Path | None = None, fault: str = "") -> Any:
    """Run a scenario with a guest that has said HELLO."""

    async def whole() -> Any:
        spawner = Spawner(factory(fault, executable=executable))
        try:
            return await asyncio.wait_for(scenario(await start(spawner, wanted(image))), 60)
        finally:
            await spawner.close()

    return asyncio.run(whole())


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None) -> Iterator[None]:
    install_toys(monkeypatch, tmp_path)
    yield


# --- fake agents ---


def test_requests_one_after_another() -> None:
    async def scenario(guest: Guest) -> None:
        loading = Log()
        await load(guest, job(), loading)
        assert loading.printed == b"loading\n"
        for number, payload in enumerate((b"", b"x", bytes(1 << 20))):
            response = await ask(guest, request(payload, number), Log(), 30)
            assert (response.kind, response.content_type, response.payload) == ("answer", "text/plain", payload)
        log = Log()
        await ask(guest, request(b"!log words"), log, 30)
        assert log.printed == b"wordswords"
        response = await ask(guest, request(b"!raise words"), Log(), 30)
        assert (response.kind, json.loads(response.payload)["message"]) == ("exception", "words")
        assert (await ask(guest, request(b"!sleep 0.01"), Log(), 30)).guest_us >= 10_000
        assert is_loaded(guest)

    in_guest(scenario)


@pytest.mark.parametrize(
    ("payload", "error", "words"),
    [
        (b"!exit 3", FunctionCrashedError, "exited with 3"),
        (b"!vanish", FunctionCrashedError, "machine ended"),
        (b"!other", FunctionCrashedError, "request 6 instead of 7"),
        (b"!long", FunctionCrashedError, "5 bytes where 4"),
        (b"!hang", FunctionTimeoutError, r"within 0\.3 s"),
    ],
)
def test_no_answer_ends_the_guest(payload: bytes, error: type[GuestError], words: str) -> None:
    async def scenario(guest: Guest) -> None:
        await load(guest, job(), Log())
        assert (await ask(guest, request(b"x"), Log(), 30)).payload == b"x"
        with pytest.raises(error, match=words):
            await ask(guest, request(payload), Log(), 0.3 if error is FunctionTimeoutError else 30)
        assert guest.process.reaped.is_set()

    in_guest(scenario)


def test_an_answer_too_many_is_not_the_next_requests() -> None:
    async def scenario(guest: Guest) -> None:
        await load(guest, job(), Log())
        assert (await ask(guest, request(b"!twice"), Log(), 30)).payload == b"!twice"
        await watch(guest)
        assert not is_loaded(guest)
        with pytest.raises(FunctionCrashedError, match="RESPONSE between requests"):
            await ask(guest, request(b"x", 8), Log(), 30)
        assert guest.process.reaped.is_set()

    in_guest(scenario)


def test_an_idle_function_that_ends_is_seen() -> None:
    async def scenario(guest: Guest) -> None:
        await load(guest, job(), Log())
        watching = asyncio.create_task(watch(guest))
        await asyncio.sleep(0)
        watching.cancel()
        await asyncio.wait([watching])
        assert (await ask(guest, request(b"!answer-exit"), Log(), 30)).payload == b"!answer-exit"
        await watch(guest)
        with pytest.raises(FunctionCrashedError, match="since its last request"):
            await ask(guest, request(), Log(), 30)

    in_guest(scenario)


def test_whoever_is_cancelled_leaves_no_guest() -> None:
    async def scenario(guest: Guest) -> None:
        await load(guest, job(), Log())
        asking = asyncio.create_task(ask(guest, request(b"!hang"), Log(), 30))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert guest.process.reaped.is_set()

    in_guest(scenario)


@pytest.mark.parametrize(
    ("start", "fault", "words"),
    [
        (
            dataclasses.replace(START, steps=(p.Step("build", ("sh", "-c", "echo no good; exit 1"), output=100), FUNCTION)),
            "",
            "'build' .*no good",
        ),
        (START, "load-fails", "'function' failed .exited 1.* said:\nloading"),
        (START, "refuse", "no reason"),
    ],
)
def test_what_does_not_load(start: p.Start, fault: str, words: str) -> None:
    async def scenario(guest: Guest) -> None:
        with pytest.raises(GuestError, match=f"(?s){words}"):
            await load(guest, job(start), Log())
        assert guest.process.reaped.is_set()

    in_guest(scenario, fault=fault)


def test_a_request_that_is_too_large_is_not_asked() -> None:
    async def scenario(guest: Guest) -> None:
        await load(guest, job(), Log())
        with pytest.raises(OversizeError):
            await ask(guest, request(bytes(p.MAX_BODY + 1)), Log(), 30)
        assert (await ask(guest, request(b"x"), Log(), 30)).payload == b"x"

    in_guest(scenario)


def test_a_saved_function_goes_on_in_copies(tmp_path: Path) -> None:
    async def scenario() -> None:
        spawner = Spawner(factory())
        try:
            guest = await start(spawner, wanted("toy"))
            await load(guest, job(), Log())
            (tmp_path / "saved").mkdir()
            await guest.process.snapshot(tmp_path / "saved", timeout_s=30)
            await guest.process.stop()
            copy = wanted("toy", restore=(Layer(folder=str(tmp_path / "saved")),))
            copies = [await start(spawner, Wanted(image=copy.image, machine=copy.machine, timeout_s=30.0, loaded=START)) for _ in range(2)]
            for number, restored in enumerate(copies):
                assert restored.kind is StartKind.RESTORED
                response = await ask(restored, request(b"%d" % number), Log(), 30)
                assert (response.kind, response.payload) == ("answer", b"%d" % number)
            with pytest.raises(FunctionCrashedError, match="exited with 4"):
                await ask(copies[0], request(b"!exit 4"), Log(), 30)
        finally:
            await spawner.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


# --- played guests ---


def played(*messages: p.Message, hangs: bool = False) -> Guest:
    return guest_of(PlayedProcess([b"".join(map(frame, messages))], hangs=hangs))


def test_what_comes_with_the_response_does_not_spoil_it() -> None:
    response = p.Response(7, p.ResponseKind.ANSWER, 5, "", 2, b"ok")

    async def scenario(*after: p.Message) -> tuple[FunctionResponse, bool]:
        first = b"".join(map(frame, (STAGE, p.Loaded())))
        guest = guest_of(PlayedProcess([first, b"".join(map(frame, (response, *after)))]))
        await load(guest, job(), Log())
        return await ask(guest, request(), Log(), 30), is_loaded(guest)

    expected = FunctionResponse(kind="answer", content_type="", payload=b"ok", guest_us=5)
    assert asyncio.run(scenario(p.Stdout(b"x"))) == (expected, True)
    assert asyncio.run(scenario(ENDED, p.Done())) == (expected, False)
    assert asyncio.run(scenario(response)) == (expected, False)


async def asked(guest: Guest) -> tuple[Asking, "asyncio.Task[FunctionResponse]", Log]:
    """A request whose function has printed something."""
    log = Log()
    await load(guest, job(), Log())
    asking = Asking(guest, request(), log, 30)
    answering = asyncio.create_task(asking.answer())
    while not log.printed:
        await asyncio.sleep(0)
    return asking, answering, log


@pytest.mark.parametrize("cut", [0, 1, 15])
def test_a_request_goes_on_in_another_machine_in_the_middle_of_its_answer(cut: int) -> None:
    first, second = (frame(p.Response(7, p.ResponseKind.ANSWER, 5, "text/plain", 4, data)) for data in (b"ok", b"ay"))

    async def scenario() -> None:
        guest = guest_of(
            PlayedProcess([b"".join(map(frame, (STAGE, p.Loaded()))), frame(p.Stdout(b"x")), first + second[:cut]], hangs=True)
        )
        asking, answering, log = await asked(guest)
        for _ in range(9):  # until all that is played is read
            await asyncio.sleep(0)
        await asking.hold()
        moment = await asking.at_rest()
        asking.go_on()
        answering.cancel()
        await asyncio.wait([answering])
        assert guest.process.stopped  # type: ignore[attr-defined]
        for _ in range(2):  # a moment serves more than once
            played = PlayedProcess([second[cut:] + frame(p.Stdout(b"late"))])
            other = Asking(guest_of(played), request(), log, 30, moment)
            response = await other.answer()
            assert (response.kind, response.payload, response.content_type) == ("answer", b"okay", "text/plain")
            assert is_loaded(other.guest)
            (sent,) = p.FrameReader(p.FROM_HOST).feed(played.sent)
            assert isinstance(sent.message, p.Moved)
        assert log.printed == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("after", [(), (ENDED, p.Done()), (p.Response(7, p.ResponseKind.ANSWER, 5, "", 2, b"ok"),)])
def test_a_request_that_is_answered_is_at_rest_no_more(after: tuple[p.Message, ...]) -> None:
    class Late(PlayedProcess):
        async def rest(self) -> bytes:
            return b"".join(map(frame, (p.Response(7, p.ResponseKind.ANSWER, 5, "", 2, b"ok"), *after)))

    async def scenario() -> None:
        guest = guest_of(Late([b"".join(map(frame, (STAGE, p.Loaded()))), frame(p.Stdout(b"x"))], hangs=True))
        asking, answering, _ = await asked(guest)
        await asking.hold()
        with pytest.raises(GuestError, match="is over"):
            await asking.at_rest()
        asking.go_on()
        assert (await answering).payload == b"ok"
        assert is_loaded(guest) == (not after)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_function_that_exits_well_before_it_is_loaded() -> None:
    guest = played(STAGE, dataclasses.replace(ENDED, code=0), p.Done())
    with pytest.raises(GuestError, match="ended before it was loaded"):
        asyncio.run(load(guest, job(), Log()))


@pytest.mark.parametrize("steps", [(FUNCTION,), (p.Step("build", ("cc",), output=1), FUNCTION)])
@pytest.mark.parametrize("ends", [(ENDED, p.Done()), (p.Error(p.ErrorCode.FUNCTION_BROKE_CONTRACT, "it did so"),)])
def test_a_function_that_ends_as_soon_as_it_is_loaded(steps: tuple[p.Step, ...], ends: tuple[p.Message, ...]) -> None:
    built = [message for number in range(len(steps) - 1) for message in (p.Stage(number, "build"), dataclasses.replace(ENDED, code=0))]
    last = len(steps) - 1
    stops = [dataclasses.replace(end, step=last) if isinstance(end, p.Exit) else end for end in ends]
    guest = played(*built, p.Stage(last, "function"), p.Loaded(), *stops)
    with pytest.raises(GuestError, match="'function' ended as soon as it was loaded"):
        asyncio.run(load(guest, job(dataclasses.replace(START, steps=steps)), Log()))


def test_a_function_that_never_loads() -> None:
    with pytest.raises(GuestError, match="did not finish within"):
        asyncio.run(load(played(STAGE, hangs=True), job(deadline_s=0.05), Log()))


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (dataclasses.replace(ENDED, how=p.ExitHow.SIGNALED, code=11), "killed .SIGSEGV"),
        (dataclasses.replace(ENDED, how=p.ExitHow.SIGNALED, code=9, limit=p.Limit.MEMORY), "reached its limit: memory"),
        (p.Error(p.ErrorCode.FUNCTION_BROKE_CONTRACT, "the function did so"), "the function did so"),
    ],
)
def test_how_a_function_crashed_is_said(ended: p.Message, words: str) -> None:
    async def scenario() -> None:
        guest = guest_of(PlayedProcess([b"".join(map(frame, messages)) for messages in ((STAGE, p.Loaded()), (ended,))]))
        await load(guest, job(), Log())
        await ask(guest, request(), Log(), 30)

    with pytest.raises(FunctionCrashedError, match=words) as caught:
        asyncio.run(scenario())
    assert caught.value.console == "last words\n"


# --- the real agent ---


def test_a_function_behind_the_real_agent() -> None:
    handler = b"serve(lambda id, t, data: [os.write(1, b'seen'), say(ANSWER if data != b'!' else EXCEPTION, id, t, data, us=5)])"
    source = shim.HEAD + handler
    loading = job(p.Start(PATH_ENV, (shim.function(),), (p.FileEntry(shim.NAME, 0o644, len(source)),)), source)

    async def scenario(guest: Guest) -> None:
        await load(guest, loading, Log())
        for payload in (b"", b"!", bytes(p.MAX_BODY)):
            log = Log()
            response = await ask(guest, request(payload), log, 50)
            kind = "exception" if payload == b"!" else "answer"
            assert (response.kind, response.content_type, response.payload, response.guest_us) == (kind, "text/plain", payload, 5)
            assert log.printed == b"seen"

    in_guest(scenario, "real", build_agent())
