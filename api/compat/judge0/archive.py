"""The files in a zip archive that a client sent. Whatever it says, no more is unpacked than a run
may have.
"""

import io
import zipfile
import zlib

from mayfly.api.requests import MAX_ITEMS
from mayfly.errors import UnprocessableError
from mayfly.host.snippet import check_paths
from mayfly.protocol.frames import MAX_FILES_SIZE

ENTRY = b"PK\x01\x02"
"""Begins an entry of the directory (PKWARE APPNOTE.TXT, 4.3.12). What begins so elsewhere is
counted as one too.
"""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The others can ask for gigabytes of memory to be unpacked."""


def unpack(data: bytes) -> dict[str, bytes]:
    """The archive's files by name.

    Raises:
        MayflyError: it is broken, or a run cannot have these files.
    """
    if data.count(ENTRY) > MAX_ITEMS:
        raise UnprocessableError(f"the archive has more than {MAX_ITEMS} files")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _files(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError, RuntimeError) as error:
        raise UnprocessableError(f"it is not a zip archive that can be used: {error}") from error


def _files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if sum(entry.file_size for entry in entries) > MAX_FILES_SIZE:
        raise UnprocessableError(f"the archive's files have more than {MAX_FILES_SIZE} bytes")
    for entry in entries:
        if entry.compress_type not in METHODS or entry.flag_bits & 1:
            raise UnprocessableError(f"{entry.filename[:80]!r} is packed in another way than deflate, or encrypted")
    found: dict[str, bytes] = {}
    for entry in entries:
        with archive.open(entry) as file:  # never more than it says: read() alone would unpack a whole bomb first
            found.setdefault(entry.filename.removeprefix("./"), file.read(entry.file_size))
    check_paths(found)
    return found
