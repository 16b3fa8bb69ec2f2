"""Decoding gives a record or a SchemaError that names path, value and what is allowed."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from mayfly.errors import MalformedError, SchemaError
from mayfly.schema import MAX_EXPLAINED, Record, convert, decode


class Inner(Record, frozen=True, kw_only=True):
    wall_s: Annotated[float, Meta(gt=0, le=10)] = 1.0


class Outer(Record, frozen=True, kw_only=True):
    name: str
    limits: Mapping[str, Inner] = {}
    args: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"name": "x", "limits": {"build": {"wall_s": "y"}}}', "limits.build.wall_s is 'y'; it must be a number above 0, at most 10"),
        (b'{"name": "x", "limits": {"a": {}, "build": {"wall_s": 11}}}', "limits.build.wall_s is 11; it must be"),
        (b'{"name": "x", "limits": {"build": {"wall_s": true}}}', "limits.build.wall_s is True"),
        (b'{"name": "x", "limits": {"build": {"wall_s": 1e999}}}', "out of range"),
        (b'{"name": "x", "limits": {"build": {"wal_s": 1}}}', "unknown field 'limits.build.wal_s'"),
        (b'{"name": "x", "args": ["a", 3]}', "args[1] is 3; it must be text"),
        (b"{}", "the field 'name' is missing"),
        (b"[]", "the value is list []; it must be an object with name, limits, args"),
        (b'{"name": ' + b"[" * 100_000, ""),
    ],
)
def test_the_value_is_named(text: bytes, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Outer, text)
    assert message in caught.value.message


def test_the_nearest_field_is_suggested() -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Outer, b'{"nam": ""}')
    assert "did you mean 'name'?" in caught.value.hint


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"name": "\xff"}', b'{"name": "\\ud800"}', b'{"name": NaN}', b"[" * 100_000])
def test_what_is_not_json(text: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(Outer, text)


def test_a_large_text_is_not_decoded_again_for_the_message() -> None:
    with pytest.raises(SchemaError, match=r"\$\.args\[0\]"):
        decode(Outer, b'{"name": "", "args": [' + b"[]," * MAX_EXPLAINED + b"0]}")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400])
def test_numbers_are_finite(number: float) -> None:
    with pytest.raises(SchemaError, match=r"limits\.run\.wall_s"):
        convert(Outer, {"name": "", "limits": {"run": {"wall_s": number}}})


NAMES = st.sampled_from(["name", "limits", "args", "wall_s", "x"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_any_object_gives_a_record_or_the_error(value: object) -> None:
    try:
        assert isinstance(convert(Outer, value), Outer)
    except SchemaError as error:
        assert error.message


def test_the_schema_loads_no_second_typing_module() -> None:
    """msgspec would load typing_extensions, which costs as much as msgspec itself."""
    program = "import sys, mayfly.schema; assert 'msgspec' in sys.modules; print('typing_extensions' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
