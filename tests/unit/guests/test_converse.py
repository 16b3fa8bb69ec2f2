"""What a guest may do in a conversation: the order, the bounds in bytes, entries and time, many
runs one after another.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mayfly.errors import CollectError, GuestError, MayflyError
from mayfly.guests.converse import Exchange, collect, converse
from mayfly.guests.job import Job
from mayfly.guests.outcome import Outcome, Status
from mayfly.guests.start import Guest
from mayfly.protocol import frames as p
from mayfly.runs.stdin import LiveStdin, StdinWriter
from tests.kit.played_guest import EXIT, RAN, STEP, PlayedProcess, frame, guest_of, played_guest
from tests.kit.scale import patience

JOB = Job(start=p.Start((), (STEP,), ()), deadline_s=30.0, rate=1e6)
LAST = p.Collected(0, None, False, True, b"")


def run(guest: Guest, job: Job = JOB) -> Outcome:
    outcome = Outcome(job.step_names, kept=10)
    asyncio.run(asyncio.wait_for(converse(guest, job, outcome), 60))
    return outcome


def test_a_job_and_its_outcome() -> None:
    outcome = run(played_guest(p.Stage(0, "x"), p.Stdout(b"some words"), p.Stderr(b"!"), EXIT, p.Done()))
    assert (outcome.verdict(), outcome.tail) == ((Status.OK, 0), b"ome words!")


def test_the_error_of_a_guest_that_ends_has_its_console() -> None:
    guest = played_guest(p.Stage(0, "x"))
    with pytest.raises(GuestError, match="middle of the run") as caught:
        run(guest)
    assert caught.value.console == "last words\n"
    assert guest.process.stopped  # type: ignore[attr-defined]


def test_what_came_before_a_fault_is_told() -> None:
    outcome = Outcome(JOB.step_names, kept=10)
    guest = guest_of(PlayedProcess([b"".join(map(frame, (p.Stage(0, "x"), p.Stdout(b"seen"), p.Done())))]))
    with pytest.raises(GuestError, match="DONE"):
        asyncio.run(converse(guest, JOB, outcome))
    assert outcome.tail == b"seen"


@pytest.mark.parametrize("noise", [b"\xc0" * 1000, frame(p.Credit(0)) * 100, frame(p.Stdout(b"old"), 7) * 100])
def test_noise_does_not_extend_the_time(noise: bytes) -> None:
    """At this rate each piece would give more time than passes before the next."""

    async def endless() -> AsyncIterator[bytes]:
        yield frame(p.Stage(0, "x"))
        while True:
            await asyncio.sleep(0.02)
            yield noise

    job = Job(start=JOB.start, deadline_s=0.2, rate=1e4)
    with pytest.raises(GuestError, match=r"did not finish within 0\.2 s"):
        run(guest_of(PlayedProcess(endless())), job)


def test_one_conversation_serves_many_runs() -> None:
    played = [frame(message, number) for number in (1, 2, 3) for message in RAN]
    guest = guest_of(PlayedProcess(played))
    assert [run(guest).verdict().status for _ in range(3)] == [Status.OK] * 3
    reader = p.FrameReader(p.FROM_HOST)
    assert [found.run for found in reader.feed(guest.process.sent) if isinstance(found.message, p.Start)] == [1, 2, 3]  # type: ignore[attr-defined]


def test_the_limits_are_each_runs_own() -> None:
    """Three runs may send together what none of them may alone."""
    noise = b"x" * (900 << 10) + b"\xc0"
    guest = guest_of(PlayedProcess([piece for number in (1, 2, 3) for piece in (noise, *(frame(message, number) for message in RAN))]))
    assert [run(guest).verdict().status for _ in range(3)] == [Status.OK] * 3


def test_a_guest_that_spoils_the_time_between_runs_gets_no_other() -> None:
    guest = guest_of(PlayedProcess([b"".join(map(frame, (*RAN, p.Stdout(b"more"))))]))
    assert run(guest).verdict().status is Status.OK
    with pytest.raises(GuestError, match="STDOUT between runs"):
        run(guest)


def test_late_frames_of_the_run_before_are_ignored() -> None:
    guest = guest_of(PlayedProcess([*map(frame, RAN), frame(p.Stdout(b"late")), *(frame(message, 2) for message in RAN)]))
    assert [run(guest).verdict().status for _ in range(2)] == [Status.OK] * 2
    assert guest.conversation.strays == 1


@pytest.mark.parametrize("stands_still", [False, True])
def test_a_conversation_that_was_held_sends_standard_input_again(stands_still: bool) -> None:
    async def whole() -> None:
        process = PlayedProcess([frame(p.Stage(0, "x")), frame(p.Credit(100))], hangs=True)
        stdin = LiveStdin()
        exchange = Exchange(guest_of(process), Outcome(JOB.step_names), stdin, deadline_s=30.0, rate=1e6)
        running = asyncio.create_task(exchange.run(JOB))
        with StdinWriter(stdin) as writer:
            await writer.write(b"word 0")
            for number in range(3):
                while b"word %d" % number not in process.sent:
                    await asyncio.sleep(0)
                await exchange.hold()
                if stands_still:
                    assert await exchange.stand_still()
                await writer.write(b"word %d" % (number + 1))
                exchange.go_on()
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(asyncio.wait_for(whole(), patience(5)))


@pytest.mark.parametrize(("size", "pieces"), [(100, 1), (200_000, 4)])
def test_a_job_begins_in_few_pieces_of_whole_frames(size: int, pieces: int) -> None:
    step = dataclasses.replace(STEP, stdin=True)
    start = p.Start((), (step,), (p.FileEntry("a", 0o644, size), p.FileEntry("b", 0o644, 0)))
    guest = played_guest(*RAN)
    run(guest, Job(start=start, files=(bytes(size), b""), deadline_s=30.0, rate=1e6))
    reader = p.FrameReader(p.FROM_HOST)
    found: list[p.Message] = []
    process = guest.process
    assert isinstance(process, PlayedProcess)
    for piece in process.pieces:
        found += [each.message for each in reader.feed(piece)]
        assert reader.begun == (b"", False)
    assert len(process.pieces) == pieces
    assert found[0] == start
    assert sum(len(each.data) for each in found if isinstance(each, p.File)) == size
    assert [type(each) for each in found[-2:]] == [p.Begin, p.StdinEof]


# --- COLLECT ---


def piece(path: str, data: bytes = b"", size: int | None = None, mode: int = 0o100644, ends: bool = True) -> p.Collected:
    return p.Collected(0, p.FileEntry(path, mode, len(data) if size is None else size), ends, False, data)


def collected(guest: Guest, *, deadline_s: float = 30.0, entries: int = 10) -> list[p.Collected]:
    found: list[p.Collected] = []

    async def whole() -> None:
        await converse(guest, JOB, Outcome(JOB.step_names))
        await collect(guest, ["/work"], found.append, entries=entries, size=10_000, deadline_s=deadline_s, rate=1e6)

    asyncio.run(asyncio.wait_for(whole(), 60))
    return found


def test_what_a_run_left_is_collected_and_the_next_run_can_begin() -> None:
    pieces = [
        piece("/work/d", mode=0o40755),
        piece("/work/d/a", b"12", size=3, ends=False),
        p.Collected(0, None, True, False, b"3"),
        piece("/work/e"),
        LAST,
    ]
    guest = guest_of(PlayedProcess([frame(message) for message in (*RAN, *pieces)] + [frame(message, 2) for message in RAN]))
    assert collected(guest) == pieces
    assert run(guest).verdict().status is Status.OK


EMPTY = p.Collected(0, None, False, False, b"")


@pytest.mark.parametrize(
    ("messages", "error", "text"),
    [
        ([p.Error(p.ErrorCode.COLLECT_FAILED, "no such thing")], CollectError, "no such thing"),
        ([p.Error(p.ErrorCode.AGENT_FAILED, "no more")], GuestError, "no more"),
        ([p.Stdout(b"x")], GuestError, "STDOUT"),
        ([piece("/etc/passwd"), LAST], GuestError, "not asked for"),
        ([piece("/workshop"), LAST], GuestError, "not asked for"),
        ([piece("/work/" + "x" * 5000), LAST], GuestError, "not asked for"),
        ([piece("/work/a", b"123", size=2), LAST], GuestError, "another size"),
        ([piece("/work/a", b"1", size=2), LAST], GuestError, "another size"),
        ([piece("/work/d", b"1", mode=0o40755), LAST], GuestError, "folder"),
        ([piece("/work/a", b"1", size=2, ends=False), piece("/work/b"), LAST], GuestError, "before the file in front"),
        ([piece("/work/a", b"1", size=2, ends=False), LAST], GuestError, "in the middle of"),
        ([piece("/work/a", b"1", size=2, ends=False), EMPTY], GuestError, "empty piece"),
        ([piece("/work/a", b"1"), p.Collected(0, None, True, False, b"")], GuestError, "piece of no file"),
        ([EMPTY], GuestError, "piece of no file"),
        ([piece("/work/a", size=1 << 40, ends=False)], CollectError, "10000 bytes"),
        ([*[piece(f"/work/{number}") for number in range(11)], LAST], CollectError, "10 files"),
        ([piece("/work/a", b"1")], GuestError, "middle of the run"),
    ],
)
def test_an_answer_that_goes_wrong(messages: list[p.Message], error: type[MayflyError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        collected(played_guest(*RAN, *messages))
    assert type(caught.value) is error


def test_an_answer_of_noise_ends() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for message in RAN:
            yield frame(message)
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)

    with pytest.raises(GuestError, match="limits allow"):
        collected(guest_of(PlayedProcess(endless())))


def test_an_answer_that_never_comes_ends() -> None:
    with pytest.raises(GuestError, match="did not finish"):
        collected(played_guest(*RAN, hangs=True), deadline_s=0.05)


def test_many_small_files_are_no_flood() -> None:
    """Their frames have 40 bytes for each of data."""
    pieces: list[Any] = [piece(f"/work/{number:0200}", b"x") for number in range(6000)]
    assert len(collected(played_guest(*RAN, *pieces, LAST), entries=6000)) == 6001
