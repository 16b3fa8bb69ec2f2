"""Run an image's prepare steps in a machine, once, and bring home what they made, as a tar: one
more layer of the image.

A step named VERSION_STEP is the compiler's: what it says becomes the file VERSION_FILE of the
layer.

The guest is as hostile as any: mayfly.guests bounds what it sends, and the layer is read like one
from a registry.
"""

import asyncio
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from mayfly.errors import CollectError, HostError, ImageError
from mayfly.files import atomic_write
from mayfly.guests.converse import collect as collect_files
from mayfly.guests.converse import converse
from mayfly.guests.job import RATES, Job, Wanted
from mayfly.guests.outcome import Outcome
from mayfly.guests.probe import probe
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest, start
from mayfly.guests.zygote import Zygote
from mayfly.imagegen.progress import Progress
from mayfly.imagegen.rootfs.collected import CollectedTar
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.images.manifest import load
from mayfly.images.store import InstalledImage
from mayfly.paths import kernel_path
from mayfly.protocol.conversation import Event
from mayfly.protocol.frames import Collected, Stage, Start, Stdout, Step
from mayfly.vmm.config import Channel, MachineConfig

BOOT_S = 180.0
"""An emulated host unpacks a large image for a minute."""
STEP_S = 3600.0
"""For a prepare step that states no `wall_s`."""
STEP_OUTPUT = 4 << 20
"""Bytes that a prepare step may print to each stream."""
COLLECT_S = 600.0
"""For the answer to COLLECT, besides the time that its bytes take."""
MAX_CPUS = 8
OUTPUT_KEPT = 8 << 10
"""Bytes of the steps' output for the message if one fails."""
VERSION_STEP = "version"
VERSION_KEPT = 4 << 10


def why_not(arch: str) -> str:
    """Why no machine of this architecture can run here; empty if one can."""
    if arch != platform.machine():
        return f"this host's processor is of another architecture than {arch}"
    found = probe()
    if not found.usable:
        return found.reason
    return "" if kernel_path(arch).exists() else f"there is no {kernel_path(arch)} yet (mayfly kernel build)"


def prepare(folder: Path, collect: Sequence[str], out: Path, limits: Limits, progress: Progress) -> None:
    """Boot the image in `folder`, run the steps of its manifest, and write what lies beneath the
    paths `collect` to the tar `out`.

    Raises:
        HostError: no machine can run here.
        ImageError: a step failed, or what it made passes a limit.
        BootError, GuestError: the machine came to a bad end.
    """
    image = InstalledImage(folder, load(folder))
    arch = image.manifest.arch
    if reason := why_not(arch):
        raise HostError(
            f"{folder}: the image is to be prepared in a machine, and none can run here: {reason}",
            hint="without KVM, from a checkout: --prepare-with scripts/with-kvm, which is slow",
        )
    machine = MachineConfig(
        kernel=str(kernel_path(arch)),
        initrd=str(image.initramfs),
        memory=image.manifest.memory,
        cpus=min(len(os.sched_getaffinity(0)), MAX_CPUS),
        channel=Channel.VIRTIO,
    )
    with atomic_write(out) as file:
        asyncio.run(_prepare(Wanted(image=image, machine=machine, timeout_s=BOOT_S), collect, file, limits, progress))


async def _prepare(wanted: Wanted, collect: Sequence[str], out: BinaryIO, limits: Limits, progress: Progress) -> None:
    spawner = Spawner(Zygote.start)
    try:
        guest = await start(spawner, wanted)
        await bring_home(guest, prepare_job(wanted), collect, out, limits, progress)
    finally:
        await spawner.close()


def prepare_job(wanted: Wanted) -> Job:
    """The steps of the image's manifest as a job."""
    steps = tuple(
        Step(
            name=step.name,
            argv=step.argv,
            cwd=step.cwd,
            env=tuple(step.env.items()),
            wall_ms=round((step.wall_s or STEP_S) * 1000),
            output=STEP_OUTPUT,
        )
        for step in wanted.image.manifest.steps
    )
    begin = Start(env=tuple(wanted.image.manifest.env.items()), steps=steps, files=())
    return Job(start=begin, deadline_s=BOOT_S + sum(step.wall_ms for step in steps) / 1000, rate=RATES[Channel.VIRTIO])


async def bring_home(guest: Guest, job: Job, collect: Sequence[str], out: BinaryIO, limits: Limits, progress: Progress) -> None:
    """Let the guest do the job, and write to `out` what it left.

    Raises:
        MayflyError: as `prepare`.
    """
    steps = _Steps(job, progress)
    await converse(guest, job, steps)
    if failure := steps.failure():
        raise ImageError(f"a prepare step {failure}", hint="see `prepare` in the language's file")
    tar = CollectedTar(out)
    if steps.version:
        tar.add_version(steps.version)
    if collect:
        with progress.task("collecting what was prepared", None) as advance:

            def take(piece: Collected) -> None:
                tar.add(piece)
                advance(len(piece.data))

            try:
                await collect_files(guest, collect, take, entries=limits.entries, size=limits.unpacked, deadline_s=COLLECT_S, rate=job.rate)
            except CollectError as error:
                hint = "see `collect` in the language's file; if so much is right, raise --max-entries or --max-unpacked"
                raise ImageError(f"what was prepared cannot be collected: {error.message}", hint=hint) from error
    tar.finish()


class _Steps(Outcome):
    """What the steps do, shown as progress, and what the version step said."""

    def __init__(self, job: Job, progress: Progress) -> None:
        super().__init__(job.step_names, kept=OUTPUT_KEPT)
        self.version = b""
        self._progress = progress
        self._current = ""

    def note(self, event: Event) -> None:
        """Take what the conversation brings."""
        super().note(event)
        match event:
            case Stage(step=index, name=name):
                self._current = name
                self._progress.say(f"prepare: {name}, step {index + 1} of {len(self.step_names)}")
            case Stdout(data=data) if self._current == VERSION_STEP:
                self.version = (self.version + data)[:VERSION_KEPT]
