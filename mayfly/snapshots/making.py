"""Making snapshots: boot a machine (or restore its parent's), let it run a snippet, stop it, keep
it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from mayfly.errors import ConfigError, GuestError, SnapshotError, SnapshotNotFoundError
from mayfly.files import remove_tree, sync
from mayfly.guests.converse import converse
from mayfly.guests.job import Job, Wanted
from mayfly.guests.outcome import Outcome
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest, going_on, start
from mayfly.snapshots import live
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.store import Snapshot
from mayfly.vmm.config import Channel
from mayfly.vmm.snapshot import MEMORY, WORKING_SET

log = logging.getLogger(__name__)
OUTPUT_SHOWN = 2000
DAY_S = 24 * 3600
CLAIM_S = 0.05
"""Between two looks whether a snapshot is still being made."""
Prepare = Callable[[Guest], Awaitable[None]]
"""Brings a guest to where it is to be saved, or raises a MayflyError."""


def base_name(wanted: Wanted) -> str:
    """The name of the base for this machine: the image's own, what is unusual about the machine,
    and the kind of its network.
    """
    network = [wanted.machine.network.backend] if wanted.machine.network else []
    return ".".join([wanted.image.folder.parent.name, *_unusual(wanted), *network])


def is_usual(wanted: Wanted) -> bool:
    """Whether this is the machine that the image asks for, with or without a network, so that the
    base will serve many runs.
    """
    return not _unusual(wanted)


def _unusual(wanted: Wanted) -> list[str]:
    machine, memory = wanted.machine, wanted.image.manifest.memory
    unusual = [f"{machine.cpus}cpus"] if machine.cpus != 1 else []
    unusual += [f"{machine.memory >> 20}mib"] if machine.memory - memory >= 1 << 20 else []
    return unusual + ([machine.channel] if machine.channel is not Channel.VIRTIO else [])


def _named(name: str, parent: Snapshot | None) -> Snapshot:
    """The base of that name, or with `parent` the diff.

    Raises:
        SnapshotError: there is none.
        ConfigError: a diff has the name of a base, or the other way round.
    """
    snapshot = snapshots.find(name)
    if parent and not snapshot.manifest.parent:
        raise ConfigError(f"{name!r} is the name of a language's own snapshot", hint="give another --name")
    if snapshot.manifest.parent and not parent:
        raise ConfigError(f"{name!r}, a snapshot over {snapshot.manifest.parent}, has the name of a language's own", hint="remove it")
    return snapshot


def _usable(name: str, wanted: Wanted, parent: Snapshot | None = None, function: str = "") -> Snapshot:
    """As `_named`, if this machine can go on from it.

    Raises:
        SnapshotError: there is none, or it does not fit.
        ConfigError: as `_named`.
    """
    snapshot = _named(name, parent)
    snapshots.check(snapshot, wanted.image, wanted.machine, function=function)
    return snapshot


def find_base(wanted: Wanted) -> Snapshot | None:
    """The base for this machine, if there is one that can be used; why another one cannot is
    logged.
    """
    try:
        return _usable(base_name(wanted), wanted)
    except SnapshotNotFoundError:
        return None
    except (SnapshotError, ConfigError) as error:
        log.warning("a snapshot is not used: %s", error)
        return None


def doing(job: Job) -> Prepare:
    """Do the job. Raises SnapshotError if its program fails."""

    async def do(guest: Guest) -> None:
        outcome = Outcome(job.step_names, kept=OUTPUT_SHOWN)
        await converse(guest, job, outcome)
        if failure := outcome.failure():
            raise SnapshotError(f"the program for the snapshot {failure}", hint="fix it, or the image")

    return do


def making_ready(warmup: Job | None, standby: Job | None) -> Prepare | None:
    """Warm up, start what stands by, and zero what is free. Raises SnapshotError if a program of
    the warm-up fails; a snapshot does without what stands by, if need be.

    What stands by starts a day ago: OpenSSL's generator of random numbers, which clones of the
    machine would have in common, is seeded anew when it is used an hour after its last time.
    """
    if standby is None:
        return doing(warmup.zeroing()) if warmup else None

    async def do(guest: Guest) -> None:
        if warmup:
            await doing(warmup)(guest)
        await guest.process.write(going_on(guest.conversation, ago_s=DAY_S))
        try:
            await doing(standby.zeroing())(guest)
        except SnapshotError as error:
            log.warning("nothing stands by in the snapshot: %s", error)

    return do


async def make(
    spawner: Spawner,
    wanted: Wanted,
    prepare: Prepare | None,
    *,
    name: str,
    parent: Snapshot | None = None,
    again: bool = False,
    use: tuple[Wanted, Prepare] | None = None,
    function: str = "",
) -> Snapshot:
    """Make the snapshot `name` of the machine `wanted` as `prepare` leaves it; without a parent it
    boots for that.

    `use` is a machine that goes on from the new snapshot and what it does once: the working set is
    what that reads. Without it, the working set is what the preparation read of the parent.

    With `function`, which stands for one that `prepare` loads, only requests to that start from it.
    Two who make the same do the work once: unless `again`, one that fits is kept. A base and a diff
    never take each other's place. At an error nothing is left.

    Raises:
        SnapshotError: the snippet failed, or the snapshot could not be written.
        ConfigError: the name is taken.
        MayflyError: the machine came to a bad end.
    """
    with contextlib.ExitStack() as held:
        snapshots.check_name(name, function=function)
        await _claim(held, name)
        if again:
            with contextlib.suppress(SnapshotError):  # what cannot be used may go
                _named(name, parent)
        elif found := await asyncio.to_thread(_fitting, name, wanted, parent, function):
            return found
        part = held.enter_context(snapshots.replacing(name))
        chain = parent.chain if parent else ()
        written = await _run_and_save(spawner, wanted.restored_from(chain), prepare, part)
        if use:
            await _note_working_set(spawner, use[0].restored_from((*chain, part)), use[1], part)
        await asyncio.to_thread(
            snapshots.complete,
            part,
            name=name,
            image=wanted.image,
            machine=wanted.machine,
            parent=parent,
            memory_bytes=written,
            function=function,
        )
    return snapshots.find(name)


async def save(guest: Guest, origin: Snapshot | None, *, name: str, run: str) -> Snapshot:
    """Save a guest in the middle of `run`, which goes on. The guest was restored from `origin`.

    Raises:
        ConfigError: the name is taken.
        SnapshotError: `origin` was made anew since, or the snapshot could not be written.
        MayflyError: the machine has ended.
    """
    with contextlib.ExitStack() as held:
        snapshots.check_name(name)
        await _claim(held, name)
        with contextlib.suppress(SnapshotNotFoundError):
            snapshots.find(name)
            raise ConfigError(f"there is a snapshot {name!r} already", hint="give another name, or remove it: mayfly snapshot rm")
        if origin and snapshots.find(origin.manifest.name).manifest != origin.manifest:
            raise SnapshotError(f"{origin.manifest.name} was made anew since the run began", hint="start the run again")
        part = held.enter_context(snapshots.replacing(name))
        written = await live.save(guest, part)
        await asyncio.to_thread(
            snapshots.complete,
            part,
            name=name,
            image=guest.wanted.image,
            machine=guest.wanted.machine,
            parent=origin,
            memory_bytes=written,
            run=run,
        )
    return snapshots.find(name)


async def _claim(held: contextlib.ExitStack, name: str) -> None:
    """Wait until nobody else makes or removes the snapshot. A thread that waited for the lock would
    get it even if whoever asked is cancelled.
    """
    while True:
        try:
            held.enter_context(snapshots.claimed(name))
            return
        except BlockingIOError:
            await asyncio.sleep(CLAIM_S)


def _fitting(name: str, wanted: Wanted, parent: Snapshot | None, function: str) -> Snapshot | None:
    """The snapshot of that name, if it is what `make` would make."""
    try:
        found = _usable(name, wanted, parent, function)
    except SnapshotError:
        return None
    return found if found.manifest.parent == (parent.manifest.name if parent else "") else None


async def _note_working_set(spawner: Spawner, wanted: Wanted, use: Prepare, new: Path) -> None:
    """Use a machine that goes on from the snapshot `new`: the pages that this reads are those that
    others will read first. If it comes to a bad end, that of the preparation stays.
    """
    scratch = new / "scratch"
    scratch.mkdir()
    await asyncio.to_thread(sync, new / MEMORY)  # what is not on the disk yet stays in the page cache
    try:
        await _run_and_save(spawner, wanted, use, scratch)
        await asyncio.to_thread((scratch / WORKING_SET).replace, new / WORKING_SET)
    except GuestError as error:
        log.warning("the working set of %s is not known: %s", new, error)
    finally:
        await asyncio.to_thread(remove_tree, scratch)


async def _run_and_save(spawner: Spawner, wanted: Wanted, prepare: Prepare | None, folder: Path) -> int:
    guest = await start(spawner, wanted.to_be_saved())
    try:
        if prepare:
            await prepare(guest)
        return await guest.process.snapshot(folder, timeout_s=wanted.timeout_s)
    finally:
        await guest.process.stop(0)
