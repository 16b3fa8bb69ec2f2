"""A tiny guest that is worth moving, and what moves it between two vmm processes of one host."""

import asyncio
import contextlib
import signal
import struct

from mayfly.errors import MayflyError
from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner, VmmProcess
from mayfly.guests.start import Guest, StartKind
from mayfly.protocol.conversation import Conversation
from mayfly.protocol.frames import PROTOCOL_VERSION, Hello
from mayfly.snapshots import moving
from mayfly.snapshots.moving import Progress
from mayfly.units import PAGE
from mayfly.vmm.devices.virtio.registers import Register
from tests.kit import tiny

COUNTER, DATA = 0x50_0000, 0x100_0000
RING, BUFFERS = (0x30_0000, 0x30_1000, 0x30_2000), 0x60_0000
EACH_LINE, EACH_REQUEST = 64, 32
"""Counts between two lines, and between two requests to the entropy device."""
LINE = struct.Struct("<I")
BAD = 0xFFFF_FFFF
UART, LINE_STATUS = 0x2F8, 0x2FD
SAY = f"""
say:    mov ecx, 4
1:      mov dx, {LINE_STATUS}
        in al, dx
        test al, 0x20
        jz 1b
        mov dx, {UART}
        mov al, sil
        out dx, al
        shr esi, 8
        dec ecx
        jnz 1b
        ret
"""
"""Sends ESI through the serial channel, as a LINE."""


def counting(pages: int) -> str:
    """A guest that counts for ever. Each count goes into the next of `pages` pages (a power of 2),
    which must hold what was written there a turn before: else it says BAD. It sends each
    EACH_LINEth count, as a LINE, through the serial channel, and asks the entropy device for 64
    bytes each EACH_REQUESTth count: the next request waits for the answer.
    """
    return f"""
        cli
        mov esp, 0x400000
        {tiny.MAP_MMIO}
        {tiny.start_virtio(0, [(8, *RING)])}
        xor ebx, ebx
        xor r8d, r8d
next:   inc ebx
        mov edi, ebx
        and edi, {pages - 1}
        shl edi, 12
        add edi, {DATA}
        mov ecx, [rdi]
        test ecx, ecx
        jz fresh
        mov edx, ebx
        sub edx, {pages}
        cmp ecx, edx
        jne bad
        cmp [rdi + {PAGE - 4}], edx
        jne bad
fresh:  mov [rdi], ebx
        mov [rdi + {PAGE - 4}], ebx
        mov [{COUNTER:#x}], ebx
        test ebx, {EACH_REQUEST - 1}
        jnz 3f
4:      cmp word ptr [{RING[2] + 2:#x}], r8w
        jne 4b
        mov esi, r8d
        and esi, 0xff
        shl esi, 12
        add esi, {BUFFERS}
        mov qword ptr [{RING[0]:#x}], rsi
        mov dword ptr [{RING[0] + 8:#x}], 64
        mov word ptr [{RING[0] + 12:#x}], 2
        inc r8d
        mov word ptr [{RING[1] + 2:#x}], r8w
        {tiny.write(Register.QUEUE_NOTIFY, 0)}
3:      test ebx, {EACH_LINE - 1}
        jnz 2f
        mov esi, ebx
        call say
2:      jmp next
bad:    mov esi, {BAD}
        call say
        jmp .
{SAY}
    """


class Link:
    """One direction between two hosts: a byte stream that holds little. It can be cut."""

    def __init__(self, cut_after: int | None = None) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(4)
        self._rest = b""
        self._left = cut_after
        self.sent = 0

    async def write(self, data: bytes) -> None:
        """Send all of it. Raises ConnectionError: it was cut, which the reader sees as the end."""
        self.sent += len(data)
        if self._left is not None and self.sent > self._left:
            await self._pieces.put(b"")
            raise ConnectionResetError
        await self._pieces.put(data)

    async def read(self, most: int) -> bytes:
        """As a stream's."""
        data = self._rest or await self._pieces.get()
        self._rest = data[most:]
        return data[:most]


def _start(said: bytes, step: int) -> int | None:
    """Where a line begins in the first bytes of a channel; None: they are too few to tell."""
    for start in range(min(LINE.size, len(said) - 2 * LINE.size + 1)):
        (one,), (next_one,) = LINE.unpack_from(said, start), LINE.unpack_from(said, start + LINE.size)
        if next_one == one + step:
            return start
    assert len(said) < 3 * LINE.size, f"the guest says {said!r}"
    return None


class Lines:
    """The counts that a guest says through its channel, whichever machine it is in: each by `step`
    larger than the one before.

    A guest that was saved amid a line goes on with the rest of it, which is left out: the first two
    whole lines show where they begin.
    """

    def __init__(self, step: int = EACH_LINE) -> None:
        self.seen: list[int] = []
        self._step = step
        self._part = b""
        self._aligned = False

    def take(self, data: bytes) -> None:
        """Bytes of the channel."""
        self._part += data
        if not self._aligned and (start := _start(self._part, self._step)) is not None:
            self._aligned, self._part = True, self._part[start:]
        if not self._aligned:
            return
        whole = len(self._part) // LINE.size * LINE.size
        self.seen += [number for (number,) in LINE.iter_unpack(self._part[:whole])]
        self._part = self._part[whole:]

    async def more(self, process: VmmProcess, count: int) -> None:
        """Wait for so many."""
        wanted = len(self.seen) + count
        while len(self.seen) < wanted:
            data = await process.read()
            assert data, "the machine ended"
            self.take(data)

    async def rest(self, guest: Guest, spawner: Spawner) -> None:
        """End a machine that stands still, and take what it had said before."""
        spawner.signal(guest.process.number, signal.SIGKILL)
        while data := await guest.process.read():
            self.take(data)
        await guest.process.stop()


async def cold(spawner: Spawner, wanted: Wanted) -> Guest:
    """A tiny guest that boots; there is no agent in it."""
    return standing_in(wanted, await spawner.spawn(wanted.machine))


def standing_in(wanted: Wanted, process: VmmProcess) -> Guest:
    """A guest whose agent never says anything."""
    manifest = wanted.image.manifest
    conversation = Conversation(arch=manifest.arch, end_marker=manifest.end_marker)
    hello = Hello(PROTOCOL_VERSION, "", manifest.arch, 0, manifest.end_marker)
    return Guest(wanted=wanted, process=process, conversation=conversation, hello=hello, kind=StartKind.COLD)


async def move(spawner: Spawner, guest: Guest, wanted: Wanted, *, held: int = 0, progress: Progress | None = None, **limit: float) -> Guest:
    """The guest, which stands still, in another process too; `wanted` has the layers held there."""
    link = Link()
    arriving = asyncio.create_task(moving.receive(spawner, wanted, link.read))
    try:
        await moving.send_rounds(guest, link.write, held=held, progress=progress, **limit)
        await moving.send_last(guest, link.write, **limit)
        return await arriving
    finally:
        arriving.cancel()
        with contextlib.suppress(asyncio.CancelledError, MayflyError):
            await arriving
