"""What is to be done: the machine that is wanted, and the job for its agent."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mayfly.images.store import InstalledImage
from mayfly.protocol.frames import Start, Step
from mayfly.schema import Record, replace
from mayfly.vmm.config import Channel, Layer, MachineConfig

ZERO_MEMORY = Step(name="zero", argv=("/init", "--zero-memory"))
"""Before a machine is saved: its free memory would be part of the snapshot."""
RATES: Mapping[Channel, float] = {Channel.SERIAL: 2048.0, Channel.VIRTIO: 256 * 1024.0, Channel.TCP: 256 * 1024.0}
"""Bytes a second that each channel surely reaches, even on an emulated host."""


class Wanted(Record, frozen=True, kw_only=True):
    """A machine of `image` that is to come up within `timeout_s`.

    `loaded` is the START of the function that is loaded in the snapshot that it is restored from.
    """

    image: InstalledImage
    machine: MachineConfig
    timeout_s: float
    loaded: Start | None = None

    def restored_from(self, chain: Sequence[Path], *, copy_base: bool = False, copy_diff: bool = False, load_ws: bool = True) -> "Wanted":
        """The same machine, but restored from the snapshots in these folders, a base and then its
        diffs.

        Either is mapped, or copied: read at once into memory of the machine's own. With `load_ws`
        the pages that the last one notes are mapped for the guest before it asks for them. Those of
        a base, and of a loaded function, are what the guest is going to use, whatever it is asked:
        they are mapped before it runs, and copied where it is going to write.
        """
        last = len(chain) - 1
        used = last == 0 or self.loaded is not None
        layers = (
            Layer(
                folder=str(folder),
                copied=copy_diff if number else copy_base,
                working_set=load_ws and number == last and not used,
                eager=load_ws and number == last and used,
            )
            for number, folder in enumerate(chain)
        )
        return replace(self, machine=replace(self.machine, restore=tuple(layers)))

    def to_be_saved(self) -> "Wanted":
        """The same machine for a snapshot: connected to no network, and with the pages that it
        reads noted exactly, so none are mapped ahead.
        """
        network = self.machine.network and self.machine.network.disconnected()
        return replace(self, machine=replace(self.machine, network=network, restore=self.layers, page_by_page=True))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that it is restored from, without a word of what is mapped ahead."""
        return tuple(replace(layer, working_set=False, eager=False) for layer in self.machine.restore)


class Job(Record, frozen=True, kw_only=True):
    """What an agent is to run. `files` holds the content of each entry of `start.files`.

    `deadline_s` is the time from START to DONE. Each byte of files, standard input and output
    extends it by 1/`rate` seconds.
    """

    start: Start
    files: tuple[bytes, ...] = ()
    deadline_s: float
    rate: float

    @property
    def step_names(self) -> tuple[str, ...]:
        """The names of its steps, in their order."""
        return tuple(step.name for step in self.start.steps)

    def zeroing(self) -> "Job":
        """The same with a step at its end that zeroes the machine's free memory."""
        steps = (*self.start.steps, ZERO_MEMORY)
        return replace(self, start=dataclasses.replace(self.start, steps=steps))
