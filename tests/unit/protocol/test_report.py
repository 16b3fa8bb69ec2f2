"""Reports and control messages of a vmm process that may be in its guest's hands."""

import contextlib
import functools
import json
import os
import random
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import BootError, ConfigError, GuestError, KvmError, MayflyError, SnapshotError
from mayfly.guests.spawner import snapshot_files
from mayfly.protocol import report
from mayfly.protocol.control import MESSAGE_LIMIT, Answer, Done, Figures, Pause, Prefault, Refused, Request, Resume, Snapshot, Stats
from mayfly.protocol.report import End, Ended, Running, decode, encode, pack, unpack
from mayfly.vmm.process.requests import answer_next
from mayfly.vmm.snapshot import FILES
from tests.kit.control_client import ControlClient

ENDED = Ended(reason=End.RESET, console="Linux\n\tok", exits={"io 0x3f8": 2, "total": 2}, phases={"running": 0.5})
LINES: list[report.Line] = [Running(phases={"process": 0.001}), ENDED, Ended(reason=End.ERROR)]


@pytest.mark.parametrize("line", LINES)
def test_a_line_survives_the_pipe(line: report.Line) -> None:
    assert decode(encode(line)) == line


@pytest.mark.parametrize("error", [BootError("no init", hint="look", console="panic"), KvmError("KVM_RUN", 14), ConfigError("memory")])
def test_an_error_survives_the_pipe(error: MayflyError) -> None:
    line = decode(encode(Ended(reason=End.ERROR, error=error)))
    assert isinstance(line, Ended)
    assert type(line.error) is type(error)
    assert vars(line.error) == vars(error)


def ended(**fields: Any) -> bytes:
    return json.dumps({**json.loads(encode(ENDED)), **fields}).encode()


BAD_LINES = {
    "nothing": b"",
    "not JSON": b"{]",
    "not UTF-8": b'{"type":"running","phases":{"\xff":1}}',
    "deep": b"[" * 100_000,
    "a number": b"7",
    "two kinds": b'{"type":"running","phases":{},"type":"ended"}',
    "an unknown kind": b'{"type":"paused"}',
    "no fields": b'{"type":"running"}',
    "fields that are none": b'{"type":"running","phases":[]}',
    "a field too many": ended(more=1),
    "an unknown reason": ended(reason="bored"),
    "a reason that only we give": ended(reason="vanished"),
    "escape sequences": ended(console="\x1b[2J"),
    "much text": ended(console="x" * (report.MAX_TEXT + 1)),
    "counts that are fractions": ended(exits={"io": 1.5}),
    "negative counts": ended(exits={"io": -1}),
    "true as a count": ended(exits={"io": True}),
    "huge counts": ended(exits={"io": 1 << 63}),
    "many names": ended(exits={str(number): 1 for number in range(report.MAX_NAMES + 1)}),
    "long names": ended(exits={"x" * (report.MAX_NAME + 1): 1}),
    "names with escapes": ended(exits={"\x1b[2J": 1}),
    "NaN": ended(phases={"load": float("nan")}),
    "Infinity": ended(phases={"load": float("inf")}),
    "a float that is infinite": ended(phases={"load": 1}).replace(b": 1}", b": 1e999}"),
    "a number with many digits": b'{"type":"running","phases":{"load":' + b"9" * 5000 + b"}}",
    "an unknown phase": ended(phases={"p1": 1}),
    "seconds as text": ended(phases={"load": "1"}),
    "an error of no class": ended(error={"code": "no_such", "message": "", "hint": ""}),
    "an error without a hint": ended(error={"code": "boot_failed", "message": "", "console": ""}),
    "an error that is text": ended(error="boom"),
    "an error with escapes": ended(error={"code": "host_failed", "message": "\x1b[2J", "hint": ""}),
    "an errno that is text": ended(error={"code": "kvm_failed", "message": "", "hint": "", "ioctl": "x", "errno": "1"}),
}


@pytest.mark.parametrize("data", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_no_bytes_do_anything_but_raise_value_error() -> None:
    chance = random.Random(1)
    seeds = [*map(encode, LINES), pack(Done(memory_bytes=7)), pack(Refused(error=KvmError("KVM_RUN", 1)))]
    for _ in range(5000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            new = chance.randbytes(chance.randint(0, 3)) if chance.random() < 0.5 else chance.choice([b"{", b"}", b'"', b":", b"0"])
            data[at : at + chance.randint(0, 3)] = new
            data += b" " * (not data)
        for take in (decode, functools.partial(unpack, Answer)):
            with contextlib.suppress(ValueError):
                take(bytes(data))


class Machine:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.error: MayflyError | None = None

    def carry_out(self, request: Request, descriptors: Sequence[int]) -> Answer:
        if self.error:
            raise self.error
        self.asked.append(request)
        if isinstance(request, Snapshot):
            for fd, name in zip(descriptors, FILES, strict=True):
                os.write(fd, name.encode())
            return Done(memory_bytes=4096)
        return Figures(paused=False, exits={"total": 3}) if isinstance(request, Stats) else Done()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def ask(ends: tuple[socket.socket, socket.socket], machine: Machine, data: bytes, descriptors: Sequence[int] = ()) -> Answer:
    socket.send_fds(ends[0], [data], descriptors)
    assert answer_next(ends[1], machine.carry_out)
    answer: Answer = unpack(Answer, ends[0].recv(MESSAGE_LIMIT))
    return answer


@pytest.mark.parametrize(
    ("request_", "answer"),
    [(Pause(), Done()), (Resume(), Done()), (Prefault(), Done()), (Stats(), Figures(paused=False, exits={"total": 3}))],
)
def test_a_request_is_carried_out(ends: tuple[socket.socket, socket.socket], request_: Request, answer: Answer) -> None:
    machine = Machine()
    assert ask(ends, machine, pack(request_)) == answer
    assert machine.asked == [request_]


def test_a_snapshot_goes_to_new_files(ends: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    machine = Machine()
    with snapshot_files(tmp_path) as descriptors:
        assert ask(ends, machine, pack(Snapshot(go_on=True)), descriptors) == Done(memory_bytes=4096)
    assert machine.asked == [Snapshot(go_on=True)]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in FILES}
    with pytest.raises(FileExistsError), snapshot_files(tmp_path):
        pass


BAD_REQUESTS = {
    "not JSON": (b"pause", 0),
    "no such request": (b'{"type":"stop"}', 0),
    "a field too many": (b'{"type":"pause","long":true}', 0),
    "a field too few": (b'{"type":"snapshot"}', 4),
    "a field of another type": (b'{"type":"snapshot","go_on":1}', 4),
    "descriptors too few": (pack(Snapshot(go_on=True)), 3),
    "descriptors too many": (pack(Pause()), 1),
    "more descriptors than are taken": (pack(Pause()), 20),
    "too long": (b'{"type":"pause","x":"' + b"x" * MESSAGE_LIMIT + b'"}', 0),
}


@pytest.mark.parametrize(("data", "descriptors"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
@pytest.mark.usefixtures("no_leaks")
def test_a_bad_request_is_refused_and_does_nothing(ends: tuple[socket.socket, socket.socket], data: bytes, descriptors: int) -> None:
    machine = Machine()
    before = len(list(Path("/proc/self/fd").iterdir()))
    answer = ask(ends, machine, data, [ends[0].fileno()] * descriptors)
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, ConfigError)
    assert machine.asked == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert ask(ends, machine, pack(Pause())) == Done()


def test_an_error_comes_back_as_it_was(ends: tuple[socket.socket, socket.socket]) -> None:
    machine = Machine()
    machine.error = SnapshotError("the snapshot cannot be written: No space left on device", hint="make room")
    client = ControlClient(ends[0])
    ends[0].send(pack(Resume()))
    assert answer_next(ends[1], machine.carry_out)
    with pytest.raises(SnapshotError, match="No space") as caught:
        client.accept()
    assert caught.value.hint == "make room"


def test_an_end_of_the_other_side_is_typed(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    client = ControlClient(ours)
    theirs.send(b"nonsense")
    with pytest.raises(GuestError, match="malformed"):
        client.accept()
    theirs.close()
    with pytest.raises(GuestError, match="takes no requests"):
        client.ask(Snapshot(go_on=True))
    ours_too, gone = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours_too:
        gone.close()
        assert not answer_next(ours_too, Machine().carry_out)
