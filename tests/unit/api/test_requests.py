"""Any body gives a Snippet, or an error that a client's mistake has."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.api import requests
from mayfly.api.answers import status_of
from mayfly.api.requests import Body, Query, parse_json, parse_query, parse_request, parse_submission
from mayfly.errors import BodyTooLargeError, MayflyError, UnprocessableError
from mayfly.host.snippet import MAX_CASES, Case, Compare, Snippet
from mayfly.protocol.frames import MAX_FILES_SIZE

API = (Path(__file__).parents[3] / "docs/api.md").read_text()
FIELDS = Body.__struct_fields__

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["base64", "run", "build", "wall_s", "memory", "a/b", "a", "A=B", ""]), inner, max_size=3)
    ),
    max_leaves=10,
)
bodies = st.dictionaries(st.sampled_from([*FIELDS, "x"]), values, max_size=5)


@given(values | bodies | bodies.map(lambda body: {"source": "", **body}))
def test_any_json_gives_a_snippet_or_a_4xx(value: object) -> None:
    try:
        assert isinstance(parse_json(json.dumps(value).encode()), Snippet)
    except MayflyError as error:
        assert 400 <= status_of(error) < 500


@given(st.binary(max_size=200) | st.binary(max_size=50).map(lambda tail: b'{"source":' + tail))
def test_any_bytes_give_a_snippet_or_a_4xx(body: bytes) -> None:
    for kind in ("application/json", "text/plain"):
        try:
            assert isinstance(parse_request(kind, body), Snippet)
        except MayflyError as error:
            assert 400 <= status_of(error) < 500


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/octet-stream"])
def test_json_is_understood_without_its_type(kind: str) -> None:
    snippet = parse_request(kind, b' {"language": "rust", "source": "fn main() {}"}')
    assert (snippet.language, snippet.source) == ("rust", b"fn main() {}")
    with pytest.raises(UnprocessableError, match="unknown field 'lang'"):
        parse_request(kind, b'{"lang": "rust", "source": ""}')


@pytest.mark.parametrize("source", [b"{}", b'{"a": 1}', b"{ x }", b"[1]", b"print(1)", b"", b"{" * 100_000, b'{"source": 1} + 1'])
def test_other_text_is_the_source(source: bytes) -> None:
    assert parse_request("text/plain", source).source == source


def test_limits_count_decoded_bytes() -> None:
    text = "\u4e2d" * (MAX_FILES_SIZE // 3)
    body = json.dumps({"source": "", "stdin": text}).encode()
    assert MAX_FILES_SIZE * 1.9 < len(body) < requests.MAX_BODY
    assert parse_json(body).stdin == text.encode()
    with pytest.raises(BodyTooLargeError, match="stdin has"):
        parse_json(json.dumps({"source": "", "stdin": text + "xyz"}).encode())


def test_quotation_marks_within_texts_are_no_names() -> None:
    text = '"\\"' * requests.MAX_QUOTES
    assert parse_json(json.dumps({"source": text}).encode()).source == text.encode()


def test_very_many_names_are_refused_before_they_are_decoded() -> None:
    body = b'{"source": "", "env": {' + b",".join(b'"%x": ""' % number for number in range(requests.MAX_QUOTES // 2)) + b"}}"
    with pytest.raises(BodyTooLargeError, match="names and texts"):
        parse_json(body)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "", "a/b": ""}, "'a' is both a file and the folder of 'a/b'"),
        ({"x/a/b/c": "", "x/a": ""}, "'x/a' is both"),
        ({"x" * 256: ""}, "its longest part has 256 bytes"),
        ({"é" * 128: ""}, "its longest part has 256 bytes"),
        ({"/".join(["d" * 200] * 21): ""}, "too long"),
        ({"../a": ""}, "not allowed"),
    ],
)
def test_names_that_cannot_be_written_are_named(files: dict[str, str], message: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        parse_json(json.dumps({"files": files}).encode())
    assert message in caught.value.message


def test_names_that_can() -> None:
    parse_json(json.dumps({"files": {"a": "", "ab/c": "", "x" * 255: "", "a.d/e": ""}}).encode())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"limits": {"build": {"wall_s": "x"}}}, "limits.build.wall_s is 'x'; it must be a number above 0"),
        ({"limits": {"run": {"wal_s": 1}}}, "unknown field 'limits.run.wal_s'"),
        ({"source": {"base64": "?"}}, "source.base64 is '?'; it must be base64"),
        ({"args": ["\0"]}, "args: "),
        ({"build_env": {"": "x"}}, "build_env has the name ''"),
        ({"output": "loud"}, "output is 'loud'; it must be raw or events"),
    ],
)
def test_messages_name_the_value(body: dict[str, object], message: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        parse_json(json.dumps({"source": "", **body}).encode())
    assert message in caught.value.message


def test_the_query_has_the_same_fields() -> None:
    assert set(requests.Query.__struct_fields__) < set(FIELDS)
    query = parse_query(Query, {"language": "rust", "output": "events", "network": "true"})
    assert parse_request("text/plain", b"x", query) == parse_json(
        b'{"source": "x", "language": "rust", "output": "events", "network": true}'
    )
    with pytest.raises(UnprocessableError, match="unknown parameter 'langage'") as caught:
        parse_query(Query, {"langage": "rust"})
    assert "'language'" in caught.value.hint


def test_fields_are_in_the_documentation() -> None:
    ours = {*Snippet.__struct_fields__, "callback_url", "callback_secret"} - {"steps"}  # which no client of this API brings
    assert set(FIELDS) == ours
    for name in (*FIELDS, *requests.Limits.__struct_fields__):
        assert f"`{name}`" in API or f'"{name}"' in API, name


def test_cases() -> None:
    body = {
        "source": "",
        "cases": [
            {},
            {"name": "a", "stdin": "x", "args": ["b"], "expected_stdout": {"base64": "/w=="}, "compare": "exact", "limits": {"wall_s": 1}},
        ],
        "parallel": 2,
        "stop_at_first_failure": True,
    }
    snippet = parse_json(json.dumps(body).encode())
    limits = {"wall_s": 1.0}
    given_all = Case(name="a", stdin=b"x", args=("b",), expected_stdout=b"\xff", compare=Compare.EXACT, limits=limits)
    assert snippet.cases == (Case(), given_all)
    assert (snippet.parallel, snippet.stop_at_first_failure) == (2, True)
    assert parse_json(b'{"source": ""}').cases == ()


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"cases": []}, "cases"),
        ({"cases": [{}] * (MAX_CASES + 1)}, "cases"),
        ({"cases": [{"compare": "same"}]}, r"cases\[0\]\.compare"),
        ({"cases": [{"stdin": 1}]}, r"cases\[0\]\.stdin"),
        ({"cases": [{"args": ["\0"]}]}, r"cases\[0\]"),
        ({"cases": [{"expected": ""}]}, "expected"),
        ({"parallel": 0}, "parallel"),
    ],
)
def test_cases_that_are_wrong(field: dict[str, object], words: str) -> None:
    with pytest.raises(UnprocessableError, match=words):
        parse_json(json.dumps({"source": "", **field}).encode())


def test_much_in_all_cases_is_too_large() -> None:
    half = "x" * (MAX_FILES_SIZE // 2)
    parse_json(json.dumps({"source": "", "cases": [{"stdin": half}, {"expected_stdout": half}]}).encode())
    with pytest.raises(BodyTooLargeError, match="16777217 bytes"):
        parse_json(json.dumps({"source": "", "cases": [{"stdin": half}, {"expected_stdout": half}, {"stdin": "x"}]}).encode())


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"checkpoint_every_s": 0.5}, "checkpoint_every_s is 0.5"),
        ({"callback_url": "https://example.com/", "callback_secret": "s" * 16}, "a callback"),
        ({"interactive": True}, "open standard input"),
    ],
)
def test_what_a_run_that_is_saved_cannot_have(field: dict[str, object], words: str) -> None:
    assert parse_json(b'{"source": "", "checkpoint_every_s": 5}').checkpoint_every_s == 5
    with pytest.raises(UnprocessableError, match=words):
        parse_submission("application/json", json.dumps({"source": "", "checkpoint_every_s": 5, **field}).encode())
