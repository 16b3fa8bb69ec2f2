"""A snapshot and those that it differs from as one, which needs no other on another host."""

import shutil
from pathlib import Path

from mayfly.protocol.pages import pack_runs, runs_of, unpack_runs, unpack_working_set
from mayfly.schema import replace
from mayfly.snapshots.store import MANIFEST, Snapshot, SnapshotManifest, digests
from mayfly.units import PAGE
from mayfly.vmm.snapshot import MEMORY, PAGES, STATE, WORKING_SET

CHUNK = 1 << 20


def flatten(snapshot: Snapshot, into: Path) -> SnapshotManifest:
    """Write the files of a base into an empty folder from which a machine goes on as from the
    snapshot: the pages of its chain, each as it was last; what it is.

    Raises:
        SnapshotError: a file of the chain is damaged.
        OSError: a file cannot be read or written.
    """
    size = snapshot.manifest.machine.memory
    there = bytearray(size // PAGE)
    with (into / MEMORY).open("xb") as out:
        out.truncate(size)
        for folder in snapshot.chain:
            with (folder / MEMORY).open("rb") as memory:
                for first, count in unpack_runs((folder / PAGES).read_bytes(), size):
                    there[first : first + count] = b"\1" * count
                    for at in range(first * PAGE, (first + count) * PAGE, CHUNK):
                        memory.seek(at)
                        out.seek(at)
                        out.write(memory.read(min(CHUNK, (first + count) * PAGE - at)))
    (into / PAGES).write_bytes(pack_runs(list(runs_of(there))))
    shutil.copyfile(snapshot.folder / STATE, into / STATE)
    noted = unpack_working_set((snapshot.folder / WORKING_SET).read_bytes(), size)
    if snapshot.parent and not snapshot.manifest.function:  # of its preparation: the machines that go on do not write all that again
        noted = noted._replace(written=())
    (into / WORKING_SET).write_bytes(noted.pack())
    manifest = replace(snapshot.manifest, parent="", parent_digest="", files=digests(into), memory_bytes=sum(there) * PAGE)
    (into / MANIFEST).write_text(manifest.to_json())
    return manifest
