"""The files that a program left and that its client asked for."""

import io
import stat
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mayfly.errors import CollectError, MayflyError
from mayfly.host.snippet import check_paths, has_controls
from mayfly.protocol.frames import WORK_FOLDER, Collected

MAX_FILES = 1000
"""Files that come back from a run, at most."""


class Left(NamedTuple):
    """A file: its permission bits and content."""

    mode: int
    data: bytes


class Files:
    """Takes the pieces of a guest's answer, and believes nothing of them. `error` is why there are
    no files; `by_name` has them by their relative paths.
    """

    def __init__(self) -> None:
        self.by_name: Mapping[str, Left] = {}
        self.error: MayflyError | None = None
        self._taken: dict[str, tuple[int, bytearray]] = {}
        self._name = ""

    def take(self, piece: Collected) -> None:
        """Take a piece; the conversation has checked their order and sizes."""
        if piece.head is not None:
            self._name = piece.head.path.removeprefix(f"{WORK_FOLDER}/")
            self._taken[self._name] = (piece.head.mode, bytearray())
        if not piece.last:
            self._taken[self._name][1].extend(piece.data)

    def finish(self) -> None:
        """All pieces have been taken.

        Raises:
            CollectError: a name is one that could do harm where the files are written.
        """
        for name, (mode, _) in self._taken.items():
            if has_controls(name) or not stat.S_ISREG(mode):
                raise CollectError(f"the program left {name[:80]!r}", hint="give it a name without control characters, in UTF-8")
        try:
            check_paths(self._taken)
        except MayflyError as error:
            raise CollectError(f"the program left files that cannot be given back: {error.message}", hint=error.hint) from error
        self.by_name = {name: Left(stat.S_IMODE(mode), bytes(data)) for name, (mode, data) in self._taken.items()}

    def hide(self, names: Iterable[str]) -> None:
        """Leave out the files of these names."""
        self.by_name = {name: left for name, left in self.by_name.items() if name not in set(names)}

    def __len__(self) -> int:
        """Bytes of their content."""
        return sum(len(left.data) for left in self.by_name.values())

    def as_tar(self) -> bytes:
        """The files as a tar: nobody's, of time 0, executable ones executable."""
        import tarfile  # only here: the command loads this module each time

        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, left in self.by_name.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(left.data), 0o755 if left.mode & 0o100 else 0o644
                tar.addfile(entry, io.BytesIO(left.data))
        return out.getvalue()
