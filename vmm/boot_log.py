"""The last 64 KiB of the guest's boot console, for the error of a boot that fails."""

LIMIT = 64 * 1024
TAIL = 4096


class BootLog:
    """A bounded record of bytes. The guest chooses them, so a reader gets printable text only."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> None:
        """Add `data`, dropping what is oldest."""
        self._bytes += data
        if len(self._bytes) > LIMIT:
            del self._bytes[: len(self._bytes) - LIMIT]

    def tail(self, size: int = TAIL) -> str:
        """The last `size` bytes as text, without control characters but newlines and tabs."""
        text = self._bytes[-size:].decode("utf-8", "replace").replace("\r\n", "\n")
        return "".join(character for character in text if character.isprintable() or character in "\n\t")
