"""What a move stands on: the connection to the other server, and the machine's own way there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from mayfly.errors import MoveError, ServerLostError
from mayfly.guests.start import Guest
from mayfly.host.config import Config
from mayfly.images.store import InstalledImage
from mayfly.runs.described import Description
from mayfly.runs.moves.messages import Message
from mayfly.schema import Record, replace
from mayfly.vmm.config import NetworkConfig


class Link(Protocol):
    """A connection between two servers, each of which knows who the other is."""

    async def send(self, message: Message) -> None:
        """Send a message, waiting while the other end is slower.

        Raises:
            ServerLostError: the connection is lost.
        """
        ...

    async def receive(self) -> Message:
        """The next message. If the caller is cancelled, none is lost.

        Raises:
            ServerLostError: the connection is lost, or closed.
            MoveError: what came is no message.
        """
        ...

    async def close(self) -> None:
        """Close it."""
        ...


Connect = Callable[[], Awaitable[Link]]
"""Connects to the destination. Raises MayflyError: it cannot, or is refused."""
Write = Callable[[bytes], Awaitable[None]]
Read = Callable[[int], Awaitable[bytes]]
"""At least one and at most so many bytes of the machine; empty at their end."""


class Round(Record, frozen=True, kw_only=True):
    """A round of a machine's pages has been sent: its number from 1 on, and its bytes."""

    number: int
    bytes: int


class Place(Record, frozen=True, kw_only=True):
    """Why a machine cannot go on at a host, a sentence for each reason; or the digest of the image
    that this host lacks; or how many of the layers that it stands on, from the base on, that host
    has too. The machine has `cpus` virtual CPUs.
    """

    misfits: tuple[str, ...] = ()
    lacks: str | None = None
    held: int = 0
    cpus: int = 1


class Machines(Protocol):
    """How machines travel (mayfly/snapshots/moving.py)."""

    async def offer(self, guest: Guest) -> bytes:
        """What the guest's machine needs of a host."""
        ...

    async def look(self, run: Description, offer: bytes, image: InstalledImage | None) -> Place:
        """Whether the machine can go on here, with the `image` that was sent for it, if one was;
        its network's addresses are another question.
        """
        ...

    async def send_rounds(self, guest: Guest, write: Write, *, held: int, limit_bytes_s: int, progress: Callable[[Round], None]) -> None:
        """Send the memory of a guest that runs on, over the first `held` of its layers, until
        little is left to send. `limit_bytes_s` is what may be sent a second, 0 for all that goes.
        """
        ...

    async def send_last(self, guest: Guest, write: Write) -> None:
        """Pause the guest, and send the rest and its state. It stays paused."""
        ...

    async def receive(
        self, run: Description, offer: bytes, read: Read, *, held: int, network: NetworkConfig | None, image: InstalledImage | None
    ) -> Guest:
        """The guest whose machine comes from `read`, paused, and gets this network; `image` is as
        of `look`. Its conversation is a new one.

        Raises:
            MayflyError: it cannot be made; nothing of it is left.
        """
        ...


class ImageSent(Record, frozen=True, kw_only=True):
    """So many of the `size` bytes of the image have been sent that the other server lacks."""

    bytes: int
    size: int


class Times(Record, frozen=True, kw_only=True):
    """How long each side waits, in seconds: for a connection, for the other end of one to say
    anything at all (half of that after it was asked to), for an answer that takes no work, for the
    machine to be there after its last byte, for the vmm process to take what was sent to it, for a
    server that is lost, and before it is asked again.
    """

    connect_s: float = 10.0
    silent_s: float = 10.0
    answer_s: float = 15.0
    ready_s: float = 30.0
    flush_s: float = 2.0
    lost_s: float = 60.0
    again_s: float = 0.5

    def on(self, config: Config) -> "Times":
        """The same on a host where everything takes longer."""
        slower = ("connect_s", "silent_s", "answer_s", "ready_s", "flush_s")
        return replace(self, **{name: config.here(getattr(self, name)) for name in slower})


@contextlib.asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Limit what is done in the block. Raises MoveError: it took longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise MoveError(f"{what} within {seconds:g} s", hint="look at the other server's log, and try again") from error


async def close_quietly(link: Link) -> None:
    """Close a connection that may be lost."""
    with contextlib.suppress(ServerLostError):
        await link.close()
