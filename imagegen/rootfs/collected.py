"""What a guest's agent collected, as a tar: a layer like those of a registry."""

import stat
import tarfile
from typing import BinaryIO

from mayfly.imagegen.rootfs.tar import BLOCK
from mayfly.protocol.frames import Collected

PERMISSIONS = 0o775
"""That a layer keeps: a snippet can write to nothing of an image."""
VERSION_FILE = "mayfly/version"
"""Where the layer has what the compiler said of itself."""


class CollectedTar:
    """Writes the answer to COLLECT as a tar: all root's, of time 0, in the agent's order, which is
    that of the names. mayfly.protocol.conversation has checked it.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._padding = 0

    def add_version(self, said: bytes) -> None:
        """Write VERSION_FILE."""
        self._out.write(_header(VERSION_FILE, 0o644, len(said)) + said + bytes(-len(said) % BLOCK))

    def add(self, piece: Collected) -> None:
        """Write a piece."""
        if piece.head is not None:
            self._out.write(_header(piece.head.path.removeprefix("/"), piece.head.mode, piece.head.size))
            self._padding = -piece.head.size % BLOCK
        self._out.write(piece.data)
        if piece.ends:
            self._out.write(bytes(self._padding))
            self._padding = 0

    def finish(self) -> None:
        """Write the tar's end."""
        self._out.write(bytes(2 * BLOCK))


def _header(name: str, mode: int, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE if stat.S_ISDIR(mode) else tarfile.REGTYPE
    member.mode, member.size = mode & PERMISSIONS, size
    return member.tobuf(tarfile.PAX_FORMAT)
