"""Cases: comparison of outputs."""

import pytest

from mayfly.host.snippet import Compare
from mayfly.runs.cases import matches


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (b"1 2\n", b"1 2\n", {"exact", "trimmed", "tokens"}),
        (b"1 2", b"1 2\n", {"trimmed", "tokens"}),
        (b"1 2\n3\n", b"1 2  \r\n3\t\n\n \n", {"trimmed", "tokens"}),
        (b"1 2\n", b" 1 2\n", {"tokens"}),
        (b"1 2\n", b"1\n\n2", {"tokens"}),
        (b"a\n\nb", b"a\nb", {"tokens"}),
        (b"", b"\n", {"trimmed", "tokens"}),
        (b"12", b"1 2", set()),
        (b"1", b"", set()),
        (b"a", b"A", set()),
        (b"\xff\0", b"\xff\0 ", {"trimmed", "tokens"}),
    ],
)
def test_comparisons(expected: bytes, found: bytes, same: set[str]) -> None:
    assert {how for how in Compare if matches(expected, found, how)} == same
    assert {how for how in Compare if matches(found, expected, how)} == same
