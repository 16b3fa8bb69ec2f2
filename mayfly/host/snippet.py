"""What a client asks for, after decoding: nothing about HTTP, images or machines."""

import enum
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec

from mayfly.errors import BodyTooLargeError, UnprocessableError
from mayfly.images.manifest import LanguageStep
from mayfly.protocol.frames import MAX_FILES_SIZE, MAX_PAYLOAD
from mayfly.schema import Meta, Record

RUN = "run"
"""The profile of a snippet that says none."""
MAX_CASES = 200
MIN_CHECKPOINT_S = 1.0
MAX_OF_A_SAVE = 3
"""Times that a run or a request goes on from one save: a program that brings its machine down does
it again.
"""
MAX_GLOBS = 64
MAX_PATTERN = 1000
"""Bytes of a pattern of files."""
MAX_NAME = 255
"""Bytes of one component of a path (NAME_MAX, Linux include/uapi/linux/limits.h)."""
MAX_PATH = 4000
"""Bytes of a whole path below /work: PATH_MAX is 4096."""


class Mode(enum.StrEnum):
    """What the output socket gives: the programs' bytes alone, or a JSON object a line."""

    RAW = "raw"
    EVENTS = "events"


class Compare(enum.StrEnum):
    """How a case's standard output is compared with what is expected.

    EXACT: byte by byte. TRIMMED: without white space at the ends of lines, and without empty lines
    at the end. TOKENS: what stands between white space, in its order.
    """

    EXACT = "exact"
    TRIMMED = "trimmed"
    TOKENS = "tokens"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a run's program. What is None is as the snippet has it; `limits` are by name.

    Without `expected_stdout` an exit code of 0 is all that is asked for.
    """

    name: str = ""
    stdin: bytes | None = None
    args: tuple[str, ...] | None = None
    expected_stdout: bytes | None = None
    compare: Compare = Compare.TRIMMED
    limits: Mapping[str, float] = {}


class Terminal(Record, frozen=True, kw_only=True):
    """The size of a terminal, in characters."""

    columns: Annotated[int, Meta(ge=1, le=0xFFFF)]
    rows: Annotated[int, Meta(ge=1, le=0xFFFF)]


class Snippet(msgspec.Struct, frozen=True, kw_only=True):
    """A request. `source` goes to the file that the language names.

    `env` is the program's environment, `build_env` that of the build step. `options` are the
    language's own choices (`edition`). `limits` are by step, then by name, as in the configuration.
    `steps` are run in place of the language's. What is done with it is its `profile`; the
    program's user cannot read `hidden_files` back, which are beside its `files`.
    Standard input is at its end behind `stdin`, unless the run is `interactive`. With `tty` the
    program has a terminal of that size, which its standard input, output and error are. With
    `detach` the run goes on when the client that waits for it goes away.

    Its program is compiled to `target`, or to the machine's own code if that is empty. It runs on a
    machine of `architecture`, or of any if that is empty. That begins as the `snapshot` of that
    name was left, or as its language's own if that is empty.
    With `cases` the program is built once and runs for each; `parallel` is the most machines that
    do so at a time (None: as there is room). `collect` are patterns of files in the working folder
    that are wanted back. Its machine is saved every `checkpoint_every_s` seconds (0: never), so
    that the run outlasts it.
    """

    language: str = ""
    source: bytes | None = None
    files: Mapping[str, bytes] = {}
    hidden_files: Mapping[str, bytes] = {}
    profile: str = RUN
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    build_env: Mapping[str, str] = {}
    options: Mapping[str, str] = {}
    limits: Mapping[str, Mapping[str, float]] = {}
    steps: tuple[LanguageStep, ...] = ()
    output: Mode = Mode.RAW
    network: bool = False
    target: str = ""
    architecture: str = ""
    snapshot: str = ""
    cases: tuple[Case, ...] = ()
    stop_at_first_failure: bool = False
    parallel: int | None = None
    collect: tuple[str, ...] = ()
    interactive: bool = False
    tty: Terminal | None = None
    detach: bool = False
    checkpoint_every_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.stdin) > MAX_FILES_SIZE:
            raise BodyTooLargeError(f"stdin has {len(self.stdin)} bytes; at most {MAX_FILES_SIZE} are taken")
        size = sum(len(case.stdin or b"") + len(case.expected_stdout or b"") for case in self.cases)
        if size > MAX_FILES_SIZE:
            raise BodyTooLargeError(f"the cases have {size} bytes of input and expected output; at most {MAX_FILES_SIZE} are taken")
        if len(self.cases) > MAX_CASES:
            raise UnprocessableError(f"there are {len(self.cases)} cases; at most {MAX_CASES} are taken", hint="send several runs")
        if self.cases and (self.interactive or self.tty):
            raise UnprocessableError("a run with cases is not interactive", hint="give each case its stdin, or send a run of its own")
        if self.cases and self.collect:
            raise UnprocessableError('"collect" and "cases" do not go together', hint="collect the files of a run without cases")
        if self.checkpoint_every_s:
            self._check_lasting()
        check_globs(self.collect)
        check_paths([*self.files, *self.hidden_files])
        if both := sorted({*self.files} & {*self.hidden_files}):
            raise UnprocessableError(f'"files" and "hidden_files" both hold {both[0][:80]!r}', hint="give it once")
        if self.profile != RUN and (self.cases or self.checkpoint_every_s):
            raise UnprocessableError(
                f"the profile {self.profile[:80]!r} takes no cases and no checkpoint_every_s", hint="they are for the profile run"
            )

    def _check_lasting(self) -> None:
        """Refuse what no save of a machine holds."""
        if not self.checkpoint_every_s >= MIN_CHECKPOINT_S:  # nor if it is no number
            raise UnprocessableError(f"checkpoint_every_s is {self.checkpoint_every_s:g}; at least {MIN_CHECKPOINT_S:g} is taken")
        what = (
            "cases, which run in several machines"
            if self.cases
            else "a network, whose connections would be lost"
            if self.network
            else "an open standard input, of which what came after the last save would be lost"
            if self.interactive or self.tty
            else ""
        )
        if what:
            raise UnprocessableError(f"checkpoint_every_s is not for a run with {what}", hint="leave one of them out")


def check_globs(globs: Sequence[str]) -> None:
    """Refuse patterns that no file in the working folder could match.

    Raises:
        UnprocessableError: there are too many, or one is absolute, too long, or has an empty, `.`
            or `..` component, or a control character.
    """
    if len(globs) > MAX_GLOBS:
        raise UnprocessableError(f"collect has {len(globs)} patterns; at most {MAX_GLOBS} are taken")
    for glob in globs:
        if {"", ".", ".."} & set(glob.split("/")) or has_controls(glob) or len(glob.encode(errors="surrogatepass")) > MAX_PATTERN:
            raise UnprocessableError(f"collect has the pattern {glob[:80]!r}", hint="use a relative path, as in *.png or out/**/*.json")


def has_controls(text: str) -> bool:
    """Whether a text has characters that control a terminal or break lines, or lone surrogates."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def check_paths(paths: Iterable[str]) -> None:
    """Refuse file names that the guest could not write.

    Raises:
        UnprocessableError: a name is absolute, too long, or has an empty, `.` or `..` component; or
            one name is the folder of another.
    """
    known = set(paths)
    if sum(map(len, known)) > MAX_PAYLOAD:
        raise BodyTooLargeError("the files' names are too long together", hint=f"all of a run's names must fit into {MAX_PAYLOAD} bytes")
    for path in sorted(known):
        parts = path.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in path:
            raise UnprocessableError(f"the file name {path[:80]!r} is not allowed", hint="use a relative path without . and ..")
        size = max(len(part.encode()) for part in parts)
        if size > MAX_NAME or len(path.encode()) > MAX_PATH:
            raise UnprocessableError(
                f"the file name {path[:80]!r} is too long: its longest part has {size} bytes, the whole {len(path.encode())}",
                hint=f"a part may have {MAX_NAME} bytes, the whole {MAX_PATH}",
            )
        folder = ""
        for part in parts[:-1]:
            folder = f"{folder}/{part}" if folder else part
            if folder in known:
                raise UnprocessableError(f"{folder[:80]!r} is both a file and the folder of {path[:80]!r}", hint="rename one of the two")
