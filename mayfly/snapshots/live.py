"""Save a guest without stopping it for long, and make clones that go on from there.

The rounds of a move (`moving`) go into a snapshot's folder: the guest stands still only for what it
wrote during the last but one, and for the state of its machine.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Self

from mayfly.errors import ConfigError, HostError, MayflyError, SnapshotError
from mayfly.guests.job import Wanted
from mayfly.guests.meanwhile import whole
from mayfly.guests.spawner import Spawner, snapshot_files
from mayfly.guests.start import Guest
from mayfly.protocol.pages import Head, Kind, pack_runs, runs_of
from mayfly.schema import replace
from mayfly.snapshots.moving import send_pages, send_round, standing
from mayfly.units import PAGE
from mayfly.vmm.config import Layer
from mayfly.vmm.snapshot import FILES, MEMORY, PAGES, STATE

AtRest = Callable[[], Awaitable[None]]
"""Called while the guest stands still, to keep what belongs to this moment outside of it."""


class SnapshotFolder:
    """A snapshot's files, made of the records of a machine's stream. Raises SnapshotError: the
    disk is full, or fails.
    """

    def __init__(self, folder: Path, memory: int) -> None:
        self._folder = folder
        self._has = bytearray(memory // PAGE)
        self._state = b""
        self.sent = 0
        with contextlib.ExitStack() as opened, self._explained():
            self._fds = dict(zip(FILES, opened.enter_context(snapshot_files(folder)), strict=True))
            os.ftruncate(self._fds[MEMORY], memory)
            self._close = opened.pop_all().close

    async def put(self, head: Head, content: bytes) -> None:
        """Take a record. A page that is zeros is a hole, unless it was something else before."""
        pages = slice(head.first, head.first + head.length)
        with self._explained():
            if head.kind is Kind.PAGES:
                self._write(MEMORY, content, head.first * PAGE)
                self._has[pages] = bytes([1]) * head.length
            elif head.kind is Kind.ZEROS:
                for first, count in list(runs_of(self._has[pages])):
                    self._write(MEMORY, bytes(count * PAGE), (head.first + first) * PAGE)
                self._has[pages] = bytes([1]) * head.length
            elif head.kind is Kind.STATE:
                self._state = content

    def finish(self) -> int:
        """Write the rest; the bytes of memory that it holds."""
        with self._explained():
            self._write(PAGES, pack_runs(list(runs_of(self._has))), 0)
            self._write(STATE, self._state, 0)
        return PAGE * self._has.count(1)

    def _write(self, name: str, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fds[name], view, offset)
            view, offset = view[written:], offset + written

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SnapshotError(f"{self._folder}: {error.strerror}", hint="make room on the disk, or look at its permissions") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()


async def save(guest: Guest, folder: Path, *, still: AbstractAsyncContextManager[None] | None = None, at_rest: AtRest | None = None) -> int:
    """Save a guest that goes on into the empty `folder`, as a diff over the layers that it began
    with; the bytes of memory written. The block `still` is around the time in which it stands
    still.

    Raises:
        ConfigError: it has a network, whose addresses a snapshot does not hold.
        SnapshotError: it could not be written.
        MayflyError: the machine has ended, cannot be saved, or stood still for longer than it may
            take to come up.
    """
    machine = guest.wanted.machine
    if machine.network is not None and machine.network.connected:
        raise ConfigError("a snapshot holds no network's addresses", hint="save a machine that is connected to none")
    with SnapshotFolder(folder, machine.memory) as sink:
        try:
            await send_pages(guest, sink, held=len(machine.restore))
        except BaseException:
            await _go_on(guest)
            raise
        async with still or contextlib.nullcontext():
            try:
                try:
                    async with asyncio.timeout(guest.wanted.timeout_s):
                        await send_round(guest, sink, last=True)
                except TimeoutError as error:
                    raise HostError("the machine stood still for too long to be saved", hint="this host is slow") from error
                if at_rest:
                    await at_rest()
            finally:
                await _go_on(guest)
        return await whole(sink.finish)


async def _go_on(guest: Guest) -> None:
    with contextlib.suppress(MayflyError):  # it has ended, which its channel tells
        await guest.process.resume()


async def clone(spawner: Spawner, wanted: Wanted, folder: Path) -> Guest:
    """Another guest as `save` left it in `folder`, which may be removed then. It stands still until
    `process.resume()`; its conversation is a new one: the caller has the one to go on.

    Raises:
        MayflyError: it did not come up. Nothing is left of it.
    """
    layers = (*wanted.layers, Layer(folder=str(folder)))
    process = await spawner.spawn(replace(wanted.machine, restore=layers, paused=True))
    return await standing(process, wanted)


async def clones(spawner: Spawner, wanted: Wanted, folder: Path, count: int) -> list[Guest]:
    """So many guests as `clone` makes one, or none."""
    making = [asyncio.create_task(clone(spawner, wanted, folder), name=f"clone {number}") for number in range(count)]
    try:
        return await asyncio.gather(*making)
    except BaseException:
        for task in making:
            task.cancel()
        made = await asyncio.gather(*making, return_exceptions=True)
        await asyncio.gather(*(each.process.stop(0) for each in made if isinstance(each, Guest)))
        raise
