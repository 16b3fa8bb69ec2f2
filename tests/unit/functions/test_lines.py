"""Requests and answers as lines of JSON."""

import io
import json
from typing import Any

import pytest

from mayfly.errors import SchemaError
from mayfly.functions.lines import MAX_LINE, AnswerLine, BadLine, RequestLine, answer_payload, parse_line, read_lines
from mayfly.schema import decode, msgspec


def read(text: bytes) -> tuple[list[tuple[int, RequestLine]], list[BadLine]]:
    bad: list[BadLine] = []
    return list(read_lines(io.BytesIO(text), bad.append)), bad


def test_snapfaas_s_own_lines() -> None:
    line = parse_line(b'{"time": 15, "user_id": 2, "function":"hello",\t"payload" : {"request": 42}}\n')
    assert (line.time, line.user_id, line.function, bytes(line.payload)) == (15, 2, "hello", b'{"request": 42}')
    assert parse_line(b'{"function": "hello", "payload": null, "more": 1}').time == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"hello", "malformed"),
        (b"[]", "an object"),
        (b'{"payload": {}, "function": 5}', "function is 5"),
        (b'{"payload": {}, "function": ""}', "function is ''"),
        (b'{"function": "hello"}', "'payload' is missing"),
        (b'{"function": "hello", "payload": {}, "time": -1}', "time is -1"),
        (b'{"function": "hello", "payload": {}, "time": 1e300}', "time is 1e+300"),
        (b'{"function": "hello", "payload": {}, "user_id": []}', "user_id is list"),
        (b'{"function": "hello", "payload": {"a": 01}}', "malformed"),
        (b'{"function": "hello", "payload": "\xff"}', "not UTF-8 at byte 34"),
        (b'{"function": "hello", "payload": %s1%s}' % (b"[" * 9999, b"]" * 9999), "recursion"),
    ],
)
def test_what_is_not_a_request_is_named(text: bytes, message: str) -> None:
    with pytest.raises(SchemaError) as refused:
        parse_line(text)
    assert message in refused.value.message


def test_bad_lines_are_named_with_their_number_and_skipped() -> None:
    good = b'{"time": %d, "function": "f", "payload": {}}\n'
    found, bad = read(good % 1 + b"\n  \n" + b"nonsense\n" + good % 2 + b'{"function": "f"}\n' + (good % 3).strip())
    assert [(number, line.time) for number, line in found] == [(1, 1), (5, 2), (7, 3)]
    assert [number for number, _ in bad] == [4, 6]
    assert "missing" in bad[1].message


def test_a_line_that_is_too_long_is_passed_over_in_pieces() -> None:
    good = b'{"function": "f", "payload": {}}\n'
    found, bad = read(good + b"x" * (2 * MAX_LINE + 5) + b"\n" + good + b"y" * (MAX_LINE + 1))
    assert [number for number, _ in found] == [1, 3]
    assert [number for number, _ in bad] == [2, 4]


@pytest.mark.parametrize(
    ("content_type", "payload", "expected"),
    [
        ("application/json", b'{\n "a": 1.00000000000000000001}', {"a": 1}),
        ("application/json; charset=utf-8", b"[1,\r\n2]", [1, 2]),
        ("text/plain; charset=utf-8", "ü\n".encode(), "ü\n"),
        ("text/plain", b"\xff", {"base64": "/w=="}),
        ("application/json", b"{", {"base64": "ew=="}),
        ("application/json", b'"\xff"', {"base64": "Iv8i"}),
        ("", b"x", {"base64": "eA=="}),
        ("application/octet-stream", b"", {"base64": ""}),
    ],
)
def test_an_answer_s_payload_is_json_on_one_line(content_type: str, payload: bytes, expected: Any) -> None:
    answer = AnswerLine(line=1, function="f", status="ok", due_ms=0, payload=answer_payload(content_type, payload))
    text = msgspec.json.encode(answer)
    assert b"\n" not in text
    assert json.loads(text)["payload"] == expected
    assert decode(AnswerLine, text).status == "ok"
