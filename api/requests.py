"""HTTP bodies and queries, decoded. The types below are also the schemas in openapi.json."""

import signal
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mayfly.errors import BodyTooLargeError, MalformedError, MediaTypeError, RequestError, SchemaError, UnprocessableError
from mayfly.host.snippet import MAX_CASES, MAX_GLOBS, MIN_CHECKPOINT_S, Case, Compare, Mode, Snippet, Terminal
from mayfly.protocol.frames import MAX_FILES_SIZE
from mayfly.runs.callbacks import Callback
from mayfly.runs.forks import MAX_CLONES
from mayfly.schema import Record, convert, decode, show

_T = TypeVar("_T")
HIGHEST_SIGNAL = 64
"""Linux include/uapi/asm-generic/signal.h, _NSIG."""
MAX_TIME_S = 86400
MAX_SIZE = 1 << 40
MAX_ITEMS = 1024
"""Arguments, environment variables or files in a request."""
MAX_LANGUAGE = 100
MAX_TEXT = 32 * 1024
"""Bytes of one argument, environment value or file name; all together must fit into a START frame
of 64 KiB.
"""
ESCAPED = 6
"""JSON's longest way to write one byte of text: \\u0001."""
MAX_BODY = 2 * MAX_FILES_SIZE * ESCAPED + (1 << 20)
"""The files and standard input, each byte escaped, and 1 MiB around them. The limits that count are
those of the decoded bytes.
"""
MAX_QUOTES = 64 * 1024
"""Quotation marks of JSON itself in a body: names and texts are at most some 10,000. More would
only be there to make the server build millions of objects.
"""
MAX_BATCH = 64
"""Runs in one request."""
PLAIN_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")
"""Besides text/*, what is taken as the snippet itself; the second is what `curl --data-binary` says
by default.
"""

Text = Annotated[str, Meta(max_length=MAX_TEXT, extra={"allowed": f"text of at most {MAX_TEXT} bytes without NUL"})]
Line = Annotated[str, Meta(max_length=2048, pattern=r"^[!-~]+$", extra={"allowed": "text of at most 2048 printable ASCII characters"})]
Texts = Annotated[Mapping[Text, Text], Meta(max_length=MAX_ITEMS)]
Time = Annotated[float, Meta(gt=0, le=MAX_TIME_S)]
Size = Annotated[int, Meta(gt=0, le=MAX_SIZE)]


class Encoded(Record, frozen=True, kw_only=True):
    """Any bytes, as base64 text."""

    base64: bytes


Content = Annotated[str | Encoded, Meta(extra={"allowed": 'text or {"base64": text}'})]


class Limits(Record, frozen=True, kw_only=True):
    """Limits of one step: at most what the server allows. Times in seconds, sizes in bytes."""

    wall_s: Time | UnsetType = UNSET
    cpu_s: Time | UnsetType = UNSET
    memory: Size | UnsetType = UNSET
    processes: Size | UnsetType = UNSET
    output: Size | UnsetType = UNSET


class CaseBody(Record, frozen=True, kw_only=True):
    """One input of the program. What is left out is as the snippet has it."""

    name: Annotated[Text, Meta(description="shown with its result")] = ""
    stdin: Annotated[Content, Meta(description="standard input")] | UnsetType = UNSET
    args: Annotated[tuple[Text, ...], Meta(max_length=MAX_ITEMS, description="arguments")] | UnsetType = UNSET
    expected_stdout: (
        Annotated[Content, Meta(description="what its output is compared with; without it, exit code 0 is all that is asked for")]
        | UnsetType
    ) = UNSET
    compare: Annotated[Compare, Meta(description="how: byte by byte, without white space at the ends of lines, or by tokens")] = (
        Compare.TRIMMED
    )
    limits: Annotated[Limits, Meta(description="limits of the program, where they are lower than the snippet's")] = Limits()


class Query(Record, frozen=True, kw_only=True):
    """What can stand in the address as well as in the body."""

    language: (
        Annotated[str, Meta(max_length=MAX_LANGUAGE, description="`rust`, or `rust@1.85` for the highest 1.85 there is")] | UnsetType
    ) = UNSET
    target: Annotated[Literal["wasm"], Meta(description="what the program is compiled to; without it machine code")] | UnsetType = UNSET
    output: Annotated[Mode, Meta(description="what the output socket gives")] | UnsetType = UNSET
    profile: (
        Annotated[Literal["run", "test", "format", "lint"], Meta(description="what is done with it; run if it says nothing")] | UnsetType
    ) = UNSET
    architecture: Annotated[Literal["x86_64", "aarch64"], Meta(description="of the machine; without it any")] | UnsetType = UNSET
    snapshot: (
        Annotated[str, Meta(max_length=64, description="what its machine starts from, in place of its language's own")] | UnsetType
    ) = UNSET
    network: Annotated[bool, Meta(description="give the program a network")] | UnsetType = UNSET
    interactive: Annotated[bool, Meta(description="keep standard input open to clients")] | UnsetType = UNSET
    detach: Annotated[bool, Meta(description="go on when the client that waits goes away")] | UnsetType = UNSET


class Body(Query, frozen=True, kw_only=True):
    """A snippet. Every field but one of `source` and `files` may be left out."""

    source: Annotated[Content, Meta(description="goes to the file that the language names")] | UnsetType = UNSET
    files: Annotated[Mapping[Text, Content], Meta(max_length=MAX_ITEMS, description="content by relative name")] = {}
    hidden_files: Annotated[
        Mapping[Text, Content], Meta(max_length=MAX_ITEMS, description="beside the files, but never given back: tests, say")
    ] = {}
    stdin: Annotated[Content, Meta(description="standard input of the program")] = ""
    args: Annotated[tuple[Text, ...], Meta(max_length=MAX_ITEMS, description="arguments of the program")] = ()
    env: Annotated[Texts, Meta(description="environment of the program")] = msgspec.field(default_factory=dict)
    build_env: Annotated[Texts, Meta(description="environment of the build step")] = msgspec.field(default_factory=dict)
    options: Annotated[
        Mapping[Text, Text | bool | int], Meta(max_length=MAX_ITEMS, description="the language's options, such as the edition")
    ] = {}
    limits: Annotated[Mapping[Text, Limits], Meta(max_length=MAX_ITEMS, description="limits by step")] = {}
    tty: Annotated[Terminal, Meta(description="give the program a terminal; the run is interactive unless it says no")] | UnsetType = UNSET
    callback_url: Annotated[Line, Meta(description="where the result is posted when the run is over")] | UnsetType = UNSET
    callback_secret: Annotated[Line, Meta(min_length=16, description="signs the result at callback_url")] | UnsetType = UNSET
    cases: (
        Annotated[tuple[CaseBody, ...], Meta(min_length=1, max_length=MAX_CASES, description="build once, run for each of these")]
        | UnsetType
    ) = UNSET
    stop_at_first_failure: Annotated[bool, Meta(description="skip the cases behind the first that does not pass")] = False
    parallel: Annotated[int, Meta(ge=1, le=MAX_CASES, description="most guests that do cases at a time")] | UnsetType = UNSET
    checkpoint_every_s: (
        Annotated[
            float, Meta(ge=MIN_CHECKPOINT_S, le=MAX_TIME_S, description="save its machine so often, and go on from there if that is lost")
        ]
        | UnsetType
    ) = UNSET
    collect: Annotated[tuple[Text, ...], Meta(max_length=MAX_GLOBS, description="patterns of files that are wanted back")] = ()


class Submission(NamedTuple):
    """All that a request for a run says."""

    snippet: Snippet
    callback: Callback | None = None


class Batch(Record, frozen=True, kw_only=True):
    """Requests for runs, each as the body of `POST /start`."""

    runs: Annotated[
        tuple[Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/Body"})], ...],
        Meta(min_length=1, max_length=MAX_BATCH, description="bodies of POST /start"),
    ]


class RunsQuery(Record, frozen=True, kw_only=True):
    """What can stand in the address of several runs."""

    ids: Annotated[str, Meta(max_length=MAX_BATCH * 33, description="ids of runs, with commas between them")]


class SaveBody(Record, frozen=True, kw_only=True):
    """A snapshot that is to be made."""

    name: str


class ForkBody(Record, frozen=True, kw_only=True):
    """How many clones of a run are to be made."""

    count: Annotated[int, Meta(ge=1, le=MAX_CLONES)] = 1


class Signalling(Record, frozen=True, kw_only=True):
    """A signal for a run's programs: its name, with or without SIG, or its number on Linux."""

    signal: Annotated[int, Meta(ge=1, le=HIGHEST_SIGNAL)] | Annotated[str, Meta(max_length=16)]

    def number(self) -> int:
        """Its number.

        Raises:
            UnprocessableError: there is no such signal.
        """
        if isinstance(self.signal, int):
            return self.signal
        found = signal.Signals.__members__.get(f"SIG{self.signal.removeprefix('SIG')}")
        if found is None:
            raise UnprocessableError(f"signal is {show(self.signal)}; there is no such signal", hint="say INT, TERM, KILL, or a number")
        return found


class StdinQuery(Record, frozen=True, kw_only=True):
    """What can stand in the address of a run's standard input."""

    eof: Annotated[bool, Meta(description="end it behind the body")] = False


class _Sniffed(msgspec.Struct):
    """As much of a body as shows whether it is meant as a Body."""

    source: msgspec.Raw | UnsetType = UNSET
    files: msgspec.Raw | UnsetType = UNSET


def parse_query(kind: type[_T], query: Mapping[str, str]) -> _T:
    """The parameters in the address. Raises UnprocessableError, which names the wrong one."""
    try:
        found = convert(kind, dict(query), strict=False)
    except SchemaError as error:
        message = error.message.replace("unknown field", "unknown parameter")
        raise UnprocessableError(message, hint=error.hint.replace("fields", "parameters")) from error
    if isinstance(found, Query) and found.language is not UNSET:
        check_text("language", found.language)
    return found


def parse_fields(kind: type[_T], fields: Mapping[str, Any]) -> _T:
    """An object that has been decoded. Raises UnprocessableError, which names the wrong field."""
    try:
        return convert(kind, fields)
    except SchemaError as error:
        raise UnprocessableError(error.message, hint=error.hint) from error


def check_type(kind: str) -> None:
    """Refuse a body of a type that cannot be a snippet."""
    if kind != "application/json" and not kind.startswith("text/") and kind not in PLAIN_TYPES:
        raise MediaTypeError(f"a body of the type {kind[:80]!r} is not taken", hint="send the snippet as text/plain, or application/json")


def parse_request(kind: str, body: bytes, query: Query = Query()) -> Snippet:  # noqa: B008  # frozen
    """The snippet in a request: JSON, declared as such or not, or the source itself.

    Raises:
        RequestError: the body is not a snippet; the message names the field.
    """
    return parse_submission(kind, body, query).snippet


def parse_submission(kind: str, body: bytes, query: Query = Query()) -> Submission:  # noqa: B008  # frozen
    """As parse_request, with where the result goes.

    Raises:
        RequestError: the body is not a snippet; the message names the field.
    """
    if kind == "application/json" or _looks_like_json(body):
        found = parse_object(Body, body)
        return Submission(_merged(_snippet(found), query), _callback(found))
    return Submission(Snippet(source=body, **_given(query)))


def parse_json(body: bytes) -> Snippet:
    """The snippet in a JSON body.

    Raises:
        RequestError: as of parse_object.
    """
    return _snippet(parse_object(Body, body))


def parse_object(kind: type[_T], body: bytes) -> _T:
    """The object in a JSON body.

    Raises:
        RequestError: it is not JSON, or not an object.
        UnprocessableError: a field is unknown, of the wrong type or out of range; the message names
            it.
    """
    check_quotes(body)
    try:
        return decode(kind, body)
    except MalformedError as error:
        raise RequestError(f"the body is not JSON: {error}", hint="JSON is UTF-8 text without lone surrogates") from error
    except SchemaError as error:
        if not body.lstrip().startswith(b"{"):
            raise RequestError("the body is not a JSON object") from error
        raise UnprocessableError(error.message, hint=error.hint) from error


def _callback(body: Body) -> Callback | None:
    if body.callback_url is UNSET and body.callback_secret is UNSET:
        return None
    if body.checkpoint_every_s is not UNSET:
        raise UnprocessableError("checkpoint_every_s is not for a run with a callback, which no save holds", hint="leave one of them out")
    if body.callback_url is UNSET or body.callback_secret is UNSET:
        raise UnprocessableError("callback_url and callback_secret go together", hint="give both: results are always signed")
    return Callback(body.callback_url, body.callback_secret)


def _snippet(body: Body) -> Snippet:
    if body.source is UNSET and not body.files:
        raise UnprocessableError("there is nothing to run", hint='give "source", or "files" by name')
    cases = () if body.cases is UNSET else body.cases
    options = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in body.options.items()}
    named = [
        ("args", body.args),
        ("files", body.files),
        ("hidden_files", body.hidden_files),
        ("limits", body.limits),
        ("collect", body.collect),
    ]
    named += [(f"cases[{index}]", (case.name, *(case.args or ()))) for index, case in enumerate(cases)]
    for name, texts in named:
        for text in texts:
            check_text(name, text)
    for name, table in (("env", body.env), ("build_env", body.build_env), ("options", options)):
        _check_env(name, table)
    given = _given(body)
    if "language" in given:
        check_text("language", given["language"])
    if body.tty is not UNSET:
        given = {"tty": body.tty, "interactive": True, **given}
    return Snippet(
        source=None if body.source is UNSET else _bytes(body.source),
        files={name: _bytes(content) for name, content in body.files.items()},
        hidden_files={name: _bytes(content) for name, content in body.hidden_files.items()},
        stdin=_bytes(body.stdin),
        args=body.args,
        env=body.env,
        build_env=body.build_env,
        options=options,
        limits={step: _given_limits(limits) for step, limits in body.limits.items()},
        cases=tuple(map(make_case, cases)),
        stop_at_first_failure=body.stop_at_first_failure,
        parallel=None if body.parallel is UNSET else body.parallel,
        collect=body.collect,
        checkpoint_every_s=0.0 if body.checkpoint_every_s is UNSET else body.checkpoint_every_s,
        **given,
    )


def make_case(case: CaseBody) -> Case:
    """The case in a request."""
    return Case(
        name=case.name,
        stdin=None if case.stdin is UNSET else _bytes(case.stdin),
        args=None if case.args is UNSET else case.args,
        expected_stdout=None if case.expected_stdout is UNSET else _bytes(case.expected_stdout),
        compare=case.compare,
        limits=_given_limits(case.limits),
    )


def _given(query: Query) -> dict[str, Any]:
    """What is set of the fields that the address may have."""
    return {name: value for name in Query.__struct_fields__ if (value := getattr(query, name)) is not UNSET}


def _given_limits(limits: Limits) -> dict[str, float]:
    return {name: value for name in limits.__struct_fields__ if (value := getattr(limits, name)) is not UNSET}


def _merged(snippet: Snippet, query: Query) -> Snippet:
    given = _given(query)
    if snippet.language and given.get("language", snippet.language) != snippet.language:
        raise UnprocessableError("the language in the address is not the one in the body", hint="give it once")
    return msgspec.structs.replace(snippet, **given)


def _looks_like_json(body: bytes) -> bool:
    """Whether a body that is not declared as JSON is a JSON object with `source` or `files`.

    `curl -d @body.json` and `fetch` do not declare it.
    """
    if not body.lstrip(b" \t\r\n").startswith(b"{"):
        return False
    try:
        found = msgspec.json.decode(body, type=_Sniffed)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return False
    return found.source is not UNSET or found.files is not UNSET


def check_quotes(body: bytes) -> None:
    """Refuse a body of very many names and texts, which would take much memory when decoded.

    Counts the quotation marks that are not escaped. (A mark behind an even number of backslashes is
    not escaped; up to five backslashes are told apart.)
    """
    if body.count(b'"') <= MAX_QUOTES:
        return
    found = sum((-1) ** slashes * body.count(b"\\" * slashes + b'"') for slashes in range(6))
    if found > MAX_QUOTES:
        raise BodyTooLargeError(f"the body has more than {MAX_QUOTES // 2} names and texts", hint="a request has some thousands at most")


def _bytes(content: str | Encoded) -> bytes:
    return content.encode() if isinstance(content, str) else content.base64


def check_text(name: str, value: str) -> None:
    """Refuse text that cannot go to the guest: it has a NUL, or too many bytes."""
    if "\0" in value or len(value.encode(errors="surrogatepass")) > MAX_TEXT:
        raise UnprocessableError(f"{name}: {show(value)} is not allowed; it must be text of at most {MAX_TEXT} bytes without NUL")


def _check_env(name: str, table: Mapping[str, str]) -> None:
    for key, value in table.items():
        check_text(name, key)
        check_text(f"{name}.{key[:80]}", value)
        if not key or "=" in key:
            raise UnprocessableError(f"{name} has the name {show(key)}; a name must not be empty nor have =")
