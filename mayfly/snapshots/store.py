"""The snapshots of this host: a folder for each, with the vmm process's files (vmm/snapshot) and a
manifest of ours beside them.

A snapshot is made in a folder beside its place and moved there whole, so that half of one is never
found. Before one is used, everything it depends on is compared: version, kernel, image, shape of
the machine, parent, and the digests of its files. Reading all of its memory for that would take
longer than a boot; so the digests are computed when it is made and again whenever a file's inode,
size or times are others than those that were noted then (`verified.json`).
"""

import contextlib
import itertools
import json
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from mayfly import __version__, paths
from mayfly.errors import ConfigError, SchemaError, SnapshotError, SnapshotNotFoundError
from mayfly.files import ASIDE, PART, clear, file_digest, locked, remove_tree, stamp, sync
from mayfly.files import passing as passing_folder
from mayfly.files import replacing as replacing_folder
from mayfly.images.store import InstalledImage
from mayfly.protocol.frames import PROTOCOL_VERSION
from mayfly.schema import Record, convert
from mayfly.snapshots.digest import memory_digest
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.snapshot import FILES, MEMORY
from mayfly.vmm.snapshot.files import Shape, shape

FORMAT = 5
MANIFEST, VERIFIED = "manifest.json", "verified.json"
NAME = re.compile(r"[a-z0-9][A-Za-z0-9@._+-]{0,63}")
SHOWN = 20
"""Names of snapshots in an error."""
_PASSING = re.compile(r"passing-[0-9a-f]{16}")
FUNCTION_PREFIX = "@"
"""What the names of functions' snapshots begin with, and no other."""
FUNCTION_NAME = re.compile(rf"{FUNCTION_PREFIX}([A-Za-z0-9_-]{{1,48}})\.[0-9a-f]{{12}}")


class SnapshotManifest(Record, frozen=True, kw_only=True):
    """What a snapshot is, as `manifest.json`. Digests are `sha256:` and hexadecimal;
    `parent_digest` is of the parent's manifest.

    `memory_bytes` is what the pages in it have, `machine` what its machine is made of. With `run`,
    the id of a run, its agent was not idle but in the middle of that; with `function`, which stands
    for one that is loaded in it, it takes requests to that.
    """

    name: str
    language: str
    version: str
    arch: str
    parent: str
    parent_digest: str
    kernel_digest: str
    initramfs_digest: str
    end_marker: str
    machine: Shape
    files: Mapping[str, str]
    memory_bytes: int
    created: str
    run: str = ""
    function: str = ""
    mayfly: str = __version__
    protocol: int = PROTOCOL_VERSION
    format: int = FORMAT

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(msgspec.to_builtins(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: bytes, origin: str) -> Self:
        """Parse and check.

        Raises:
            SnapshotError: it is not one of ours, or of another version of Mayfly.
        """
        try:
            raw = json.loads(text)
            if (raw.get("format"), raw.get("mayfly"), raw.get("protocol")) != (FORMAT, __version__, PROTOCOL_VERSION):
                made_by = f"{raw.get('mayfly')}, protocol {raw.get('protocol')}, format {raw.get('format')}"
                this_is = f"{__version__}, protocol {PROTOCOL_VERSION}, format {FORMAT}"
                raise ValueError(f"it was made by another Mayfly ({made_by}; this is {this_is})")
            return convert(cls, raw)
        except (ValueError, AttributeError, RecursionError, SchemaError) as error:
            raise SnapshotError(f"{origin}: {error}", hint="make the snapshot again") from error


class Snapshot(NamedTuple):
    """A snapshot that is there, and the one that it differs from; a base has none."""

    folder: Path
    manifest: SnapshotManifest
    parent: "Snapshot | None" = None

    @property
    def chain(self) -> tuple[Path, ...]:
        """The folders from its base to itself."""
        return (*(self.parent.chain if self.parent else ()), self.folder)


def digests(folder: Path) -> dict[str, str]:
    """The digests of a snapshot's files, computed from them."""
    return {name: memory_digest(folder) if name == MEMORY else file_digest(folder / name) for name in FILES}


def stamps(folder: Path | str, kernel: Path | str) -> dict[str, list[int]]:
    """What shows that neither the kernel nor a file of the snapshot has changed, for
    `verified.json`.
    """
    return {name: stamp(f"{folder}/{name}") for name in (MANIFEST, *FILES)} | {"kernel": stamp(kernel)}


def find(name: str) -> Snapshot:
    """The snapshot `name`, with its chain; its files are not looked at (see `check`).

    Raises:
        SnapshotNotFoundError: there is none.
        SnapshotError: its manifest, or that of one it depends on, is not usable.
    """
    folder = _folder(name)
    try:
        manifest = SnapshotManifest.from_json((folder / MANIFEST).read_bytes(), str(folder))
    except FileNotFoundError as error:
        raise SnapshotNotFoundError(f"no snapshot {name!r}", hint="mayfly snapshot list shows them") from error
    except OSError as error:
        raise SnapshotError(f"{folder}: {error.strerror}", hint="look at its permissions") from error
    if not manifest.parent:
        return Snapshot(folder, manifest)
    parent = find(manifest.parent)
    if file_digest(parent.folder / MANIFEST) != manifest.parent_digest:
        raise SnapshotError(f"{name}: its parent {manifest.parent} was made anew since", hint="make this one again too")
    return Snapshot(folder, manifest, parent)


def is_current(snapshot: Snapshot) -> bool:
    """Whether the snapshot is still what its name stands for."""
    try:
        return find(snapshot.manifest.name).manifest == snapshot.manifest
    except (SnapshotError, ConfigError):
        return False


def _folder(name: str) -> Path:
    if not NAME.fullmatch(name) and not FUNCTION_NAME.fullmatch(name):
        raise ConfigError(f"{name[:80]!r} cannot be a snapshot's name", hint="use up to 64 letters, digits and @ . _ + -")
    return paths.snapshots_dir() / name


def installed() -> Iterator[Snapshot | SnapshotError]:
    """All snapshots by name; for one that is not usable, why."""
    for path in sorted(paths.snapshots_dir().glob(f"[!.]*/{MANIFEST}")):
        try:
            yield find(path.parent.name)
        except (SnapshotError, ConfigError) as error:
            yield SnapshotError(error.message, hint=error.hint)


def named(name: str, image: InstalledImage) -> Snapshot:
    """The snapshot `name`, from which any run of the image may start; its files are not looked at.

    Raises:
        SnapshotNotFoundError: there is none, or it is not for that.
        SnapshotError: as of `find`.
    """
    if NAME.fullmatch(name):
        with contextlib.suppress(SnapshotNotFoundError):
            if (found := find(name)) in startable([found]) and _is_of(found, image):
                return found
    language = f"{image.manifest.language} {image.manifest.version}".rstrip()
    others = (one.manifest.name for found in installed() for one in startable([found]) if _is_of(one, image))
    raise not_found(name, language, list(itertools.islice(others, SHOWN)))  # each is read


def _is_of(found: Snapshot, image: InstalledImage) -> bool:
    of = found.manifest.language, found.manifest.initramfs_digest
    return of == (image.manifest.language, image.manifest.initramfs_digest)


def startable(found: Iterable[Snapshot | SnapshotError]) -> list[Snapshot]:
    """Those from which runs may start: not those of functions, or of runs in their midst."""
    return [one for one in found if isinstance(one, Snapshot) and not (one.manifest.run or one.manifest.function)]


def not_found(name: str, language: str, known: Sequence[str]) -> SnapshotNotFoundError:
    """What is raised for a name that is not among those that are `known`."""
    hint = f"there are: {', '.join(known[:SHOWN])}" if known else "mayfly snapshot create"
    return SnapshotNotFoundError(f"no snapshot {name[:80]!r} of {language}", hint=hint)


def of_function(name: str) -> list[str]:
    """The names of the snapshots of the function `name`."""
    folders = paths.snapshots_dir().glob(f"{FUNCTION_PREFIX}*")
    return [path.name for path in folders if (match := FUNCTION_NAME.fullmatch(path.name)) and match[1] == name]


def check(snapshot: Snapshot, image: InstalledImage, machine: MachineConfig, *, function: str = "") -> None:
    """See that a machine of `image` and of this shape can go on from `snapshot`, in which
    `function` is loaded, or none.

    Raises:
        SnapshotError: it says what does not fit.
    """
    manifest = snapshot.manifest
    if manifest.run:
        raise SnapshotError(
            f"the snapshot {manifest.name} was taken in the middle of the run {manifest.run}", hint="no other run can start from it"
        )
    if manifest.function != function:
        holds = "a loaded function" if manifest.function else "no loaded function"
        raise SnapshotError(
            f"the snapshot {manifest.name} has {holds}{' of another kind' if function and manifest.function else ''}",
            hint="create the function again" if function else "only requests to the function start from it: mayfly function invoke",
        )
    for what, is_, should in (
        ("image", image.manifest.initramfs_digest, manifest.initramfs_digest),
        ("machine", shape(machine), manifest.machine),
    ):
        if is_ != should:
            raise SnapshotError(f"the snapshot {manifest.name} is of another {what}: {should}, not {is_}", hint="make it again")
    _check_files(snapshot, Path(machine.kernel))


def _check_files(snapshot: Snapshot, kernel: Path) -> None:
    """Compare the kernel and the files of the chain with the digests in the manifests, unless that
    was done and they are the same since.
    """
    if snapshot.parent:
        _check_files(snapshot.parent, kernel)
    folder, manifest = snapshot.folder, snapshot.manifest
    try:
        now = stamps(folder, kernel)
        noted = json.loads((folder / VERIFIED).read_text()) if (folder / VERIFIED).exists() else {}
        if noted == now:
            return
        if file_digest(kernel) != manifest.kernel_digest:
            raise SnapshotError(f"the snapshot {manifest.name} is of another kernel than {kernel}", hint="make it again")
        for name, found in digests(folder).items():
            if found != manifest.files.get(name):
                raise SnapshotError(f"{folder / name} was altered", hint="remove the snapshot and make it again")
    except (OSError, ValueError, struct.error) as error:
        raise SnapshotError(f"the snapshot {manifest.name} cannot be read: {error}", hint="remove it and make it again") from error
    with contextlib.suppress(OSError):  # a state folder that cannot be written costs time, no more
        (folder / VERIFIED).write_text(json.dumps(now))


@contextlib.contextmanager
def claimed(name: str) -> Iterator[None]:
    """Be the only one who makes or removes the snapshot `name`.

    Raises:
        BlockingIOError: somebody else does.
        SnapshotError: the folder cannot be written.
    """
    folder = _folder(name)
    with _explained(folder), locked(folder, wait=False):
        yield


@contextlib.contextmanager
def replacing(name: str) -> Iterator[Path]:
    """An empty folder that becomes the snapshot `name` at the end; at an error nothing is left.
    Claim the name first.

    Raises:
        SnapshotError: the folder cannot be written.
    """
    folder = _folder(name)
    with _explained(folder), replacing_folder(folder) as part:
        yield part


@contextlib.contextmanager
def passing() -> Iterator[Path]:
    """An empty folder for a snapshot without a name, which is removed on leaving.

    Raises:
        SnapshotError: the folder cannot be written.
    """
    folder = _folder(f"passing-{os.urandom(8).hex()}")
    with _explained(folder), passing_folder(folder) as part:
        yield part


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise SnapshotError(f"{folder}: {error.strerror}", hint="make room on the disk, or look at its permissions") from error


def complete(
    part: Path,
    *,
    name: str,
    image: InstalledImage,
    machine: MachineConfig,
    parent: Snapshot | None,
    memory_bytes: int,
    run: str = "",
    function: str = "",
) -> None:
    """Write the manifest of the files in `part`."""
    manifest = SnapshotManifest(
        name=name,
        language=image.manifest.language,
        version=image.manifest.version,
        arch=image.manifest.arch,
        parent=parent.manifest.name if parent else "",
        parent_digest=file_digest(parent.folder / MANIFEST) if parent else "",
        kernel_digest=file_digest(Path(machine.kernel)),
        initramfs_digest=image.manifest.initramfs_digest,
        end_marker=image.manifest.end_marker,
        machine=shape(machine),
        files=digests(part),
        memory_bytes=memory_bytes,
        run=run,
        function=function,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    (part / MANIFEST).write_text(manifest.to_json())
    (part / VERIFIED).write_text(json.dumps(stamps(part, Path(machine.kernel))))
    for item in (MANIFEST, VERIFIED, *FILES):
        sync(part / item)


def check_name(name: str, *, function: str = "") -> None:
    """Refuse a name that a snapshot of this kind cannot have.

    Raises:
        ConfigError: it is a function's, and this is none, or the other way round.
    """
    if not (FUNCTION_NAME if function else NAME).fullmatch(name):
        raise ConfigError(f"{name[:80]!r} cannot be a snapshot's name", hint="use up to 64 letters, digits and @ . _ + -")


def children(name: str) -> list[str]:
    """The snapshots that `name` is the parent of."""
    return [found.manifest.name for found in installed() if isinstance(found, Snapshot) and found.manifest.parent == name]


def remove(name: str) -> None:
    """Remove a snapshot.

    Raises:
        SnapshotNotFoundError: there is none.
        SnapshotError: others depend on it.
    """
    folder = _folder(name)
    if dependent := children(name):
        raise SnapshotError(f"{name} is the parent of {', '.join(dependent)}", hint="remove those first")
    with locked(folder):
        if not (folder / MANIFEST).exists():
            raise SnapshotNotFoundError(f"no snapshot {name!r}", hint="mayfly snapshot list shows them")
        (folder / MANIFEST).unlink()  # from here on it is not found
        remove_tree(folder)


def sweep() -> None:
    """Remove what killed creators have left."""
    left = {path.with_name(path.stem[1:]) for suffix in (PART, ASIDE) for path in paths.snapshots_dir().glob(f".*{suffix}")}
    for folder in left:
        with contextlib.suppress(OSError), locked(folder, wait=False):  # else its creator is alive
            clear(folder)
            if _PASSING.fullmatch(folder.name):  # nobody takes such a name again
                (folder.parent / f".{folder.name}.lock").unlink()


def disk_bytes(snapshot: Snapshot) -> int:
    """What it takes on the disk."""
    return sum((snapshot.folder / name).stat().st_blocks * 512 for name in FILES)
