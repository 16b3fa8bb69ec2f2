"""The digest of a snapshot's memory."""

from pathlib import Path

from mayfly.errors import SnapshotError
from mayfly.protocol.pages import joined, unpack_runs
from mayfly.units import PAGE
from mayfly.vmm.snapshot import MEMORY, PAGES

READ_BYTES = 1 << 20


def memory_digest(folder: Path) -> str:
    """The digest of the pages that are mapped of a snapshot, without the holes between."""
    import hashlib  # only here: it loads OpenSSL

    found = hashlib.sha256()
    with (folder / MEMORY).open("rb") as file:
        runs = joined(unpack_runs((folder / PAGES).read_bytes(), (folder / MEMORY).stat().st_size))
        for first, count in runs:
            file.seek(first * PAGE)
            left = count * PAGE
            while left:
                data = file.read(min(left, READ_BYTES))
                if not data:
                    raise SnapshotError(f"{folder / MEMORY} ends too early")
                found.update(data)
                left -= len(data)
    return f"sha256:{found.hexdigest()}"
