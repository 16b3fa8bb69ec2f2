"""The cases of a run: one program, many inputs, a verdict on each."""

from mayfly.host.snippet import Compare


def matches(expected: bytes, found: bytes, how: Compare) -> bool:
    """Whether a program's output is what was expected of it."""
    if expected == found:
        return True
    match how:
        case Compare.EXACT:
            return False
        case Compare.TRIMMED:
            return _trimmed(expected) == _trimmed(found)
        case Compare.TOKENS:
            return expected.split() == found.split()


def _trimmed(text: bytes) -> bytes:
    return b"\n".join(line.rstrip() for line in text.rstrip().split(b"\n"))
