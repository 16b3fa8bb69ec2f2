"""What is saved of runs that outlast their machine, and their server: a folder for each, which
always holds one save, whole.

    DATA/runs/ID/              its machine, as a diff over the base (vmm/snapshot)
    DATA/runs/ID/run.msgpack   all else: SavedRun
    DATA/runs/.ID.lock         locked by the server that has the run
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from mayfly import __version__, paths
from mayfly.errors import SnapshotError
from mayfly.files import ASIDE, clear, file_digest, locked, replacing, sync
from mayfly.runs.described import ID, Description, Happened
from mayfly.runs.moments import Moment
from mayfly.schema import Record, msgspec
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.store import MANIFEST, Snapshot
from mayfly.vmm.snapshot import FILES

RUN = "run.msgpack"
_ID = re.compile(ID)


class SavedRun(Record, frozen=True, kw_only=True):
    """A run, but for its machine. Only the server at `socket` goes on with it. `image` is the
    digest of its initramfs, `parent` the snapshot beneath its machine, and the digest of that one's
    manifest; `lives` are of Record, `came` is of Run.
    """

    mayfly: str = __version__
    socket: str
    run: Description
    cpus: int
    image: str
    parent: tuple[str, str]
    moment: Moment
    events: tuple[Happened, ...]
    lives: tuple[tuple[int, int], ...]
    came: str = ""
    phases: dict[str, float]


def parent_of(origin: Snapshot | None) -> tuple[str, str]:
    """What a SavedRun has as its `parent`."""
    return (origin.manifest.name, file_digest(origin.folder / MANIFEST)) if origin else ("", "")


def find_parent(parent: tuple[str, str]) -> Snapshot | None:
    """The snapshot that this was said of.

    Raises:
        SnapshotError: it is not there, or was made anew.
    """
    name, digest = parent
    if not name:
        return None
    found = snapshots.find(name)
    if parent_of(found)[1] != digest:
        raise SnapshotError(f"{name}, which the run's machine stands on, was made anew since", hint="start the run again")
    return found


def folder_of(run_id: str) -> Path:
    """Where a run is saved."""
    return paths.saved_runs_dir() / run_id


def claimed(run_id: str) -> contextlib.AbstractContextManager[None]:
    """Have a run's folder to oneself during the block.

    Raises:
        BlockingIOError: another server has it.
        OSError: it cannot be had.
    """
    return locked(folder_of(run_id), wait=False)


@contextlib.contextmanager
def saving(run_id: str) -> Iterator[Path]:
    """An empty folder for a save, which takes the place of the last one when the block is left.

    Raises:
        SnapshotError: the folder cannot be written.
    """
    folder = folder_of(run_id)
    try:
        with replacing(folder) as part:
            yield part
            for name in (RUN, *FILES):
                sync(part / name)
    except OSError as error:
        raise SnapshotError(f"{folder}: {error.strerror}", hint="make room on the disk, or look at its permissions") from error


def write(folder: Path, saved: SavedRun) -> None:
    """Write what a save holds besides the machine, for this user alone. Raises OSError."""
    (folder / RUN).touch(mode=0o600)
    (folder / RUN).write_bytes(msgspec.msgpack.encode(saved))


def drop(run_id: str) -> None:
    """Forget what is saved of a run, if anything is, in one step that lasts through a crash. Raises
    OSError.
    """
    folder = folder_of(run_id)
    clear(folder)
    if folder.exists():
        folder.rename(folder.with_name(f".{folder.name}{ASIDE}"))
        sync(folder.parent)
        clear(folder)


def forget(run_id: str) -> None:
    """Leave nothing of a run that one has claimed."""
    with contextlib.suppress(OSError):
        drop(run_id)
        (folder_of(run_id).parent / f".{run_id}.lock").unlink()


def left() -> Iterator[str]:
    """The ids of the runs of which something is there."""
    folder = paths.saved_runs_dir()
    names = {path.name.lstrip(".").partition(".")[0] for path in folder.iterdir()} if folder.is_dir() else set()
    yield from sorted(filter(_ID.fullmatch, names))


def read(run_id: str) -> SavedRun:
    """What is saved of a run.

    Raises:
        SnapshotError: nothing that can be used here.
    """
    try:
        found = msgspec.msgpack.decode((folder_of(run_id) / RUN).read_bytes(), type=SavedRun)
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotError(f"what was saved of the run {run_id} cannot be read: {error}") from error
    if found.mayfly != __version__ or found.run.id != run_id:
        raise SnapshotError(f"what was saved of the run {run_id} was saved by another Mayfly ({found.mayfly}; this is {__version__})")
    return found
