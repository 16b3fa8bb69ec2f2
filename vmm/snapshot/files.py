"""A vmm process's snapshots: `Layers` to restore from, and `write_snapshot`.

The layers' files are opened while the process has its privileges; those to write are handed to it.
"""

import os
from collections.abc import Sequence

from mayfly.errors import SnapshotError
from mayfly.protocol.pages import Runs, WorkingSet, common, pack_runs, unpack_runs, unpack_working_set
from mayfly.schema import Record, msgspec
from mayfly.units import PAGE
from mayfly.vmm.config import Channel, DeviceKind, Layer, MachineConfig, NetworkBackend
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.loader.placing import open_file
from mayfly.vmm.resources import Resources
from mayfly.vmm.snapshot import FILES, MEMORY, PAGES, STATE, WORKING_SET
from mayfly.vmm.snapshot.memory import SHORT, changed_pages, copy_pages, lay_base, lay_diff, working_set, write_pages
from mayfly.vmm.snapshot.state import AGAIN, U63, Saved


class Shape(Record, frozen=True, kw_only=True):
    """What must be the same in the machine that was saved and in the one that is restored."""

    memory: int
    cpus: int
    channel: Channel
    devices: tuple[DeviceKind, ...]
    network: tuple[NetworkBackend, int] | None  # Back end and MTU, which a driver negotiated


class MachineState(Record, tag_field="version", tag=3, frozen=True, kw_only=True):
    """The content of STATE. `kvm` and each part, by name, have a type and version of their own."""

    identity: str
    machine: Shape
    initrd_offset: U63 | None
    kvm: msgspec.Raw
    parts: dict[str, msgspec.Raw]


def shape(config: MachineConfig) -> Shape:
    """The shape of the machine."""
    network = (config.network.backend, config.network.mtu) if config.network else None
    return Shape(memory=config.memory, cpus=config.cpus, channel=config.channel, devices=config.devices, network=network)


class Layers:
    """The memory that a machine begins with, and the state that it goes on from.

    `layers` are a base and its diffs in order, none for a machine that boots. `initrd` is the
    base's: the snapshot does not hold it. Attributes: the last layer's `state`, the initramfs'
    descriptor `initrd` and `initrd_offset` in the mapping (set at boot), the pages of the
    `working_set` to map when that is asked for, what is to be there before (`eager`), and
    `pagemap`, this process's. Raises ConfigError: there is no `initrd`.
    SnapshotError: a file is missing or damaged.
    """

    def __init__(self, layers: Sequence[Layer], initrd: str | None, *, page_by_page: bool = False) -> None:
        self._page_by_page = page_by_page
        self.working_set: list[tuple[int, int]] = []
        self.eager = WorkingSet()
        self._files: list[tuple[int, int, Runs, bool]] = []  # descriptor, bytes and pages of each memory, and whether it is copied
        saved = None
        with Resources() as stack:
            self.pagemap = _open(stack, "/proc/self/pagemap")
            self.initrd = stack.own(open_file(initrd, "initramfs")).fileno() if initrd else None
            for number, layer in enumerate(layers):
                try:
                    fd = _open(stack, f"{layer.folder}/{MEMORY}")
                    size = os.fstat(fd).st_size
                    pages = unpack_runs(read_file(f"{layer.folder}/{PAGES}"), size)
                    self._files.append((fd, size, pages, layer.copied))
                    if layer.eager or layer.working_set:
                        noted = unpack_working_set(read_file(f"{layer.folder}/{WORKING_SET}"), size)
                        if layer.eager:  # what a base's guests write beside comes 2 MiB at a time
                            self.eager = noted if number else noted._replace(written=common(noted.written, pages))
                        else:
                            self.working_set += noted.read
                    saved = Saved("state", read_file(f"{layer.folder}/{STATE}"))
                except OSError as error:
                    raise SnapshotError(f"the snapshot {layer.folder} cannot be read: {error}", hint=AGAIN) from error
            self.state = saved.decode(MachineState) if saved else None
            self.initrd_offset = self.state.initrd_offset if self.state else None
            self.close = stack.keep().close  # closes the files; what is mapped of them stays

    def check(self, config: MachineConfig, identity: str) -> MachineState:
        """The state. Raises SnapshotError: another shape, or another processor or KVM here."""
        if self.state is None or self.state.machine != shape(config):
            raise SnapshotError(f"the snapshot is of a machine with {self.state and self.state.machine}, not {shape(config)}", hint=AGAIN)
        if self.state.identity != identity:
            raise SnapshotError("the snapshot was made on a host with another processor or KVM", hint=AGAIN)
        return self.state

    @property
    def pages(self) -> list[Runs]:
        """The pages of each layer."""
        return [pages for _, _, pages, _ in self._files]

    def lay_over(self, mapping: Mapping, count: int | None = None) -> None:
        """Give `mapping`, which is new, the content that the machine begins with, or that of the
        first `count` layers.
        """
        if self.initrd_offset is not None:
            size = os.fstat(self.initrd).st_size if self.initrd is not None else 0
            if self.initrd is None or self.initrd_offset % PAGE or not 0 < size <= mapping.size - self.initrd_offset:
                raise SnapshotError(f"the snapshot's initramfs is at {self.initrd_offset:#x}, where it has no place", hint=AGAIN)
            mapping.overlay_file(self.initrd_offset, self.initrd, size)
        for number, (fd, size, pages, copied) in enumerate(self._files[:count]):
            if size != mapping.size:
                raise SnapshotError(f"the snapshot's memory has {size} bytes, its machine {mapping.size}", hint=AGAIN)
            if self._page_by_page:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if copied:
                copy_pages(mapping, fd, pages)
            elif number:
                lay_diff(mapping, fd, pages, short=1 if self._page_by_page else SHORT)
            else:
                lay_base(mapping, fd, pages)
        if self._page_by_page:
            mapping.read_page_by_page()


def read_file(path: str) -> bytes:
    """A whole file, with a system call for each of its parts: a machine starts with several."""
    with Resources() as stack:
        fd, parts = _open(stack, path), []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)


def _open(stack: Resources, path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def write_snapshot(descriptors: Sequence[int], state: MachineState, mapping: Mapping, layers: Layers) -> int:
    """Write a machine that stands still to the empty files `descriptors`, in the order of FILES.

    `state` goes into STATE; the machine began with `layers`. The caller closes the files. Returns:
    the bytes of memory written. Raises SnapshotError: the disk is full, or fails.
    """
    fds = dict(zip(FILES, descriptors, strict=True))
    used = working_set(layers.pagemap, mapping) if layers.state else WorkingSet()
    with Mapping(mapping.size) as before:
        before.use_huge_pages()
        layers.lay_over(before)
        runs = changed_pages(layers.pagemap, mapping, before)
    try:
        write_pages(fds[MEMORY], mapping, runs)
        for name, data in ((PAGES, pack_runs(runs)), (WORKING_SET, used.pack()), (STATE, msgspec.json.encode(state))):
            view = memoryview(data)
            while view:
                view = view[os.write(fds[name], view) :]
    except OSError as error:
        raise SnapshotError(f"the snapshot cannot be written: {error.strerror}", hint="make room on the disk") from error
    return PAGE * sum(count for _, count in runs)
