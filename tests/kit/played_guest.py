"""A guest without a process: its agent's frames are played, and what the host sends is kept."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from mayfly.guests.start import Guest, StartKind
from mayfly.protocol import frames as p
from mayfly.protocol.conversation import Conversation
from mayfly.protocol.report import End, Ended

HELLO = p.Hello(p.PROTOCOL_VERSION, "1", "x86_64", 1000, "ab")
EXIT = p.Exit(0, p.ExitHow.EXITED, 0, p.Limit.NONE, 1, 1, 1, (False, False))
RAN = (p.Stage(0, "x"), EXIT, p.Done())
STEP = p.Step("x", ("x",), output=1000)


class PlayedProcess:
    """Reads what is played, then the channel's end, or nothing any more if it `hangs`."""

    number = 1
    phases: dict[str, float] = {}  # noqa: RUF012 (never written)

    def __init__(self, played: Iterable[bytes] | AsyncIterator[bytes], *, hangs: bool = False) -> None:
        self._played = played if isinstance(played, AsyncIterator) else iter(played)
        self._hangs = hangs
        self.sent = b""
        self.pieces: list[bytes] = []  # of it
        self.stopped = False

    async def read(self) -> bytes:
        await asyncio.sleep(0)  # the sender has its turn
        data = await anext(self._played, b"") if isinstance(self._played, AsyncIterator) else next(self._played, b"")
        if self._hangs and not data:
            await asyncio.Event().wait()
        return data

    async def write(self, data: bytes) -> bool:
        self.sent += data
        self.pieces.append(data)
        return True

    async def rest(self) -> bytes:
        return b""

    async def stop(self, grace_s: float = 0) -> Ended:
        self.stopped = True
        return Ended(reason=End.VANISHED, console="last words\n")


def frame(message: p.Message, run: int = 1) -> bytes:
    return p.encode_frame(message, 0 if isinstance(message, p.Hello) else run)


def played_guest(*messages: p.Message, hangs: bool = False, run: int = 1) -> Guest:
    """A guest that has said HELLO and will send these messages."""
    return guest_of(PlayedProcess([frame(message, run) for message in messages], hangs=hangs))


def guest_of(process: PlayedProcess) -> Guest:
    conversation = Conversation(arch="x86_64", end_marker="ab")
    conversation.feed(frame(HELLO))
    return Guest(wanted=None, process=process, conversation=conversation, hello=HELLO, kind=StartKind.COLD)  # type: ignore[arg-type]
