"""What has come so far of an agent's answer, to COLLECT or to a request: each piece is checked, and
why the rest must not come is said.
"""

import stat

from mayfly.errors import CollectError, GuestError, MayflyError
from mayfly.protocol.messages import MAX_BODY, MAX_CONTENT_TYPE, Collected, FileEntry, Response

MAX_COLLECTED_PATH = 4096
"""Bytes; Linux's PATH_MAX."""


class CollectedSoFar:
    """What has come of an answer to COLLECT, within its limits."""

    def __init__(self, paths: tuple[str, ...], entries: int, size: int) -> None:
        self._paths = paths
        self._limits = (entries, size)
        self._entries = self._size = 0
        self._open = ""
        self._left = 0

    def take(self, piece: Collected) -> MayflyError | None:
        """Count a piece; why the answer must not go on, if so. Each piece begins an entry, carries
        data or ends an entry, so that the limits bound their number too.
        """
        if piece.head is not None and (wrong := self._begin(piece.head)):
            return wrong
        if not piece.last and not self._open:
            return GuestError("the agent sent a piece of no file in its answer to COLLECT")
        self._left -= len(piece.data)
        if self._left < 0 or (piece.ends and self._left):
            return GuestError(f"the agent sent {self._open[:200]!r} in another size than it announced")
        if piece.ends:
            self._open = ""
        elif not piece.data and piece.head is None and not piece.last:
            return GuestError("the agent sent an empty piece in its answer to COLLECT")
        return GuestError(f"the agent ended its answer in the middle of {self._open[:200]!r}") if piece.last and self._open else None

    def _begin(self, head: FileEntry) -> MayflyError | None:
        path = head.path
        if self._open:
            return GuestError(f"the agent sent {path[:200]!r} before the file in front of it had ended")
        if not any(path == asked or path.startswith(f"{asked.rstrip('/')}/") for asked in self._paths) or len(path) > MAX_COLLECTED_PATH:
            return GuestError(f"the agent sent {path[:200]!r}, which was not asked for")
        if stat.S_ISDIR(head.mode) and head.size:
            return GuestError(f"the agent sent the folder {path[:200]!r} with {head.size} bytes")
        self._open, self._left = path, head.size
        self._entries += 1
        self._size += head.size
        entries, size = self._limits
        if self._entries > entries or self._size > size:
            return CollectError(f"there are more than {entries} files or {size} bytes to collect")
        return None


class ResponseSoFar:
    """What has come of the response to request `id`."""

    def __init__(self, id: int) -> None:
        self._id = id
        self._first: Response | None = None
        self._left = 0

    @property
    def whole(self) -> bool:
        """Whether all of it is there."""
        return self._first is not None and not self._left

    def take(self, piece: Response) -> str:
        """Count a piece; why the conversation must not go on, if so."""
        if self._first is None:
            self._first, self._left = piece, piece.size
        first = self._first
        if piece.id != self._id:
            return f"the agent sent a response to request {piece.id} instead of {self._id}"
        if piece.size > MAX_BODY:
            return f"the agent announced a response of {piece.size} bytes, at most {MAX_BODY} are taken"
        content_type = piece.content_type
        if len(content_type) > MAX_CONTENT_TYPE or not (content_type.isascii() and content_type.isprintable()):
            return f"the agent sent the content type {content_type[:200]!r}"
        if (piece.kind, piece.guest_us, piece.content_type, piece.size) != (first.kind, first.guest_us, first.content_type, first.size):
            return "the agent sent pieces of two responses"
        if len(piece.data) > self._left or (piece.size and not piece.data):
            return f"the agent sent a piece of {len(piece.data)} bytes where {self._left} of the response were left"
        self._left -= len(piece.data)
        return ""
