"""A live guest goes on elsewhere: its memory is sent in rounds while it runs, then what was written
meanwhile and the rest of its machine while it stands still.

    source                                      destination
    offer                  ── Offer ──>         misfits, held
    send_rounds            ── blocks ──>        receive
    send_last              ── blocks ──>        ... which returns a guest that stands still

Until `process.resume()` is called on one of the two machines both stand still, vCPUs and devices,
with equal state. Who calls it, and how both sides agree on that, is not decided here.
"""

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from mayfly import __version__
from mayfly.errors import GuestError, MayflyError, MoveError, SnapshotError
from mayfly.files import file_digest
from mayfly.guests.job import Wanted
from mayfly.guests.meanwhile import while_alive
from mayfly.guests.spawner import Spawner, VmmProcess
from mayfly.guests.start import Guest, StartKind, explain
from mayfly.protocol.conversation import Conversation
from mayfly.protocol.frames import PROTOCOL_VERSION, Hello
from mayfly.protocol.pages import HEAD, Head, Kind, damaged, parse
from mayfly.schema import Record, replace
from mayfly.snapshots.store import MANIFEST, SnapshotManifest
from mayfly.snapshots.wire import Packer, Read, Write, unpacked
from mayfly.units import MIB, PAGE
from mayfly.vmm.config import Layer
from mayfly.vmm.snapshot import MEMORY, PAGES
from mayfly.vmm.snapshot.files import Shape, shape

MAX_ROUNDS = 30
SMALL_S = 0.05  # A round that took no longer is followed by the last one
SHRINKING = 0.8  # So is one that has more than this much of the bytes of that before it
_READ_AHEAD = 1 << 20


class Offer(Record, frozen=True, kw_only=True):
    """What a machine goes on with, and so needs on another host. Digests are `sha256:` and
    hexadecimal, `layers` of the memory that the machine began with, a base and its diffs;
    `identity` is what guests see of processor and KVM.
    """

    mayfly: str
    protocol: int
    arch: str
    identity: str
    kernel: str
    image: str
    language: str
    machine: Shape
    layers: tuple[str, ...]


class Round(Record, frozen=True, kw_only=True):
    """A round that is over: its number from 0, bytes of the machine and as sent, and seconds."""

    number: int
    size: int
    sent: int
    took_s: float


Progress = Callable[[Round], None]


def offer(guest: Guest) -> Offer:
    """What this guest goes on with."""
    return offer_of(guest.wanted)


def offer_of(wanted: Wanted) -> Offer:
    """What a machine as it is wanted here would go on with: the other side of `misfits`.

    Raises:
        MayflyError: KVM, kernel, or a layer of it is missing.
    """
    manifest, kernel = wanted.image.manifest, Path(wanted.machine.kernel)
    status = kernel.stat()
    return Offer(
        mayfly=__version__,
        protocol=PROTOCOL_VERSION,
        arch=manifest.arch,
        identity=_identity(),
        kernel=_digest(kernel, status.st_ino, status.st_size, status.st_mtime_ns),
        image=manifest.initramfs_digest,
        language=manifest.language,
        machine=shape(wanted.machine),
        layers=tuple(map(_layer_digest, wanted.machine.restore)),
    )


def misfits(offered: Offer, here: Offer) -> list[str]:
    """All that keeps the machine from going on here, a sentence for each; none if it fits. Layers
    that are missing here are none: their pages are sent too (`held`).
    """
    pairs = (
        ("Mayfly", offered.mayfly, here.mayfly),
        ("protocol", offered.protocol, here.protocol),
        ("architecture", offered.arch, here.arch),
        ("kernel", offered.kernel, here.kernel),
        (f"image of {offered.language}", offered.image, here.image),
        *((f"machine's {name}", *(_said(name, one) for one in (offered.machine, here.machine))) for name in Shape.__struct_fields__),
    )
    found = [f"The {what} there is {theirs}, here {ours}." for what, theirs, ours in pairs if theirs != ours]
    if offered.arch == here.arch and offered.identity != here.identity:
        from mayfly.vmm.arch import state  # loads cffi, which the rest of a server does without

        found.append(f"What guests see of processor and KVM differs: {state.difference(offered.identity, here.identity)}.")
    return found


def held(offered: Offer, here: Offer) -> int:
    """How many layers, from the base on, both have: what differs from these is sent."""
    count = 0
    for theirs, ours in zip(offered.layers, here.layers, strict=False):
        if theirs != ours:
            break
        count += 1
    return count


def wanted_with(wanted: Wanted, count: int) -> Wanted:
    """The same machine with its first `count` layers alone, for `receive`."""
    return replace(wanted, machine=replace(wanted.machine, restore=wanted.machine.restore[:count]))


async def send_rounds(
    guest: Guest, write: Write, *, held: int, limit_bytes_s: float | None = None, progress: Progress | None = None
) -> None:
    """Send what the receiver, who holds the first `held` layers, lacks, in rounds until one is
    small or they shrink no more. The guest runs. On a kernel that does not tell which pages are
    written (before Linux 6.7, on arm64 6.10) nothing is sent yet.

    Raises:
        MoveError: the machine stands on fewer layers.
        MayflyError: the machine has ended, or cannot be sent.
    """
    if held > (count := len(guest.wanted.machine.restore)):
        raise MoveError(f"the destination says that it has {held} layers of a machine that stands on {count}", hint="look at its log")
    await send_pages(guest, _Packed(Packer(write, limit_bytes_s)), held=held, progress=progress)


async def send_last(guest: Guest, write: Write, *, limit_bytes_s: float | None = None) -> None:
    """Stop the guest, and send the rest. It stands still then until `process.resume()`, even when
    this fails.

    Raises:
        MayflyError: the machine has ended, or cannot be sent.
    """
    await send_round(guest, _Packed(Packer(write, limit_bytes_s)), last=True)


async def receive(spawner: Spawner, wanted: Wanted, read: Read) -> Guest:
    """Make the machine that comes, with `wanted_with` the layers that are held here; it stands
    still until `process.resume()`. Its conversation is a new one: the caller has the one to go on.

    Raises:
        MayflyError: it did not come whole, or cannot go on here. Nothing is left of it.
    """
    process = await spawner.spawn(replace(wanted.machine, arriving=True))

    async def fill() -> None:
        async for data in unpacked(read):
            if not await process.write(data):
                return  # it says why

    return await standing(process, wanted, fill)


async def standing(process: VmmProcess, wanted: Wanted, fill: Callable[[], Coroutine[Any, Any, None]] | None = None) -> Guest:
    """The guest in a machine that is being made, by `fill` too, and stands still.

    Raises:
        MayflyError: it does not come up. Nothing is left of it.
    """
    try:
        if fill:
            await while_alive(process, fill())
        async with asyncio.timeout(wanted.timeout_s):
            await process.comes_up()
    except BaseException as caught:
        ended = await process.stop(0)
        if isinstance(caught, TimeoutError):
            raise explain(GuestError(f"the machine did not come up within {wanted.timeout_s:g} s"), ended) from caught
        if isinstance(caught, MayflyError):
            raise explain(caught, ended) from caught
        raise
    manifest = wanted.image.manifest
    return Guest(
        wanted=wanted,
        process=process,
        conversation=Conversation(arch=manifest.arch, end_marker=manifest.end_marker),
        hello=Hello(PROTOCOL_VERSION, __version__, manifest.arch, 0, manifest.end_marker),
        kind=StartKind.MOVED,
    )


class Sink(Protocol):
    """Who takes the records of a machine's stream, and has `sent` so many bytes for them."""

    sent: int

    async def put(self, head: Head, content: bytes) -> None:
        """Take a record."""


class _Packed:
    def __init__(self, packer: Packer) -> None:
        self._packer = packer
        self.sent = 0

    async def put(self, head: Head, content: bytes) -> None:
        await self._packer.put(head.pack(), content)
        if head.kind in (Kind.ROUND, Kind.STATE):
            await self._packer.flush(last=head.kind is Kind.STATE)
        self.sent = self._packer.sent


async def send_pages(guest: Guest, sink: Sink, *, held: int, progress: Progress | None = None) -> None:
    """As `send_rounds`, to `sink`."""
    if not await guest.process.track(held):
        return
    before = 0
    for number in range(MAX_ROUNDS):
        began, sent = time.monotonic(), sink.sent
        size = await send_round(guest, sink, last=False)
        took_s = time.monotonic() - began
        if progress:
            progress(Round(number=number, size=size, sent=sink.sent - sent, took_s=took_s))
        if took_s <= SMALL_S or (number and size > SHRINKING * before):
            return
        before = size


async def send_round(guest: Guest, sink: Sink, *, last: bool) -> int:
    """Give `sink` a round of the guest's; the bytes of it. With `last` the guest stands still from
    then on, as after `send_last`.

    Raises:
        MayflyError: the machine has ended, or cannot be sent.
    """
    loop, pages = asyncio.get_running_loop(), guest.wanted.machine.memory // PAGE
    end, size = Kind.STATE if last else Kind.ROUND, 0
    with contextlib.ExitStack() as opened:
        reading, writing = os.pipe()
        with contextlib.suppress(OSError):  # of 64 KiB each would cost the two processes a turn
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _READ_AHEAD)
        with os.fdopen(writing, "wb", buffering=0):
            reader = asyncio.StreamReader(limit=_READ_AHEAD)
            file = opened.enter_context(os.fdopen(reading, "rb", buffering=0))
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
            opened.callback(transport.close)
            await guest.process.send_round(writing, last=last)
        while True:
            try:
                head = parse(await reader.readexactly(HEAD.size), pages)
                content = await reader.readexactly(head.size)
            except asyncio.IncompleteReadError as error:
                raise GuestError("the machine stopped sending itself in the middle of a round") from error
            await sink.put(head, content)
            size += HEAD.size + len(content)
            if head.kind is end:
                return size
            if head.kind in (Kind.ROUND, Kind.STATE):
                raise damaged(f"a round ends with {head.kind.name}")


def _said(name: str, machine: Shape) -> str:
    """A field of a machine, in words."""
    match getattr(machine, name):
        case tuple() as several:
            return ", ".join(map(str, several)) or "none"
        case int() as count if name == "memory":
            return f"{count / MIB:g} MiB"
        case value:
            return str(value).lower()


@functools.cache
def _identity() -> str:
    """What guests here see of processor and KVM."""
    from mayfly.vmm.arch import state
    from mayfly.vmm.kvm.kvm import Kvm

    with Kvm() as kvm:
        return state.identity(kvm)


@functools.lru_cache(maxsize=8)
def _digest(path: Path, *stamp: int) -> str:
    """The digest of a file that is the same while its `stamp` is."""
    return file_digest(path)


def _layer_digest(layer: Layer) -> str:
    folder = Path(layer.folder)
    try:
        manifest = SnapshotManifest.from_json((folder / MANIFEST).read_bytes(), layer.folder)
    except OSError as error:
        raise SnapshotError(f"{folder}: {error.strerror}", hint="make the snapshot again") from error
    text = f"{manifest.files.get(MEMORY)} {manifest.files.get(PAGES)}"
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
