"""What a submission asks for: its fields, their defaults and ranges, and what is said of a wrong
one, as Rails says it.
"""

import base64
import math
import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from mayfly.api.compat.judge0.languages import MULTI_FILE, NUMBERS
from mayfly.schema import Record

MAX_WORDS = 512
"""Characters of the compiler's options, and of the program's arguments."""
TEXTS = ("source_code", "stdin", "expected_output")
"""Fields that are base64 where the request says so."""
FORBIDDEN = re.compile(r"[$&;<>|`]")
"""What Judge0 takes out of options and arguments."""


class Range(NamedTuple):
    """A number's default and limits; `above` is a limit that it must be over."""

    default: float
    most: float
    least: float | None = None
    above: float | None = None
    whole: bool = False


RANGES: Mapping[str, Range] = {
    "number_of_runs": Range(1, 20, above=0, whole=True),
    "cpu_time_limit": Range(5, 15, least=0),
    "cpu_extra_time": Range(1, 5, least=0),
    "wall_time_limit": Range(10, 20, least=1),
    "memory_limit": Range(128_000, 512_000, least=2048, whole=True),
    "stack_limit": Range(64_000, 128_000, least=0, whole=True),
    "max_processes_and_or_threads": Range(60, 120, above=0, whole=True),
    "max_file_size": Range(1024, 4096, least=0, whole=True),
}
"""Times in seconds, sizes in KiB."""
FLAGS = (
    "enable_per_process_and_thread_time_limit",
    "enable_per_process_and_thread_memory_limit",
    "redirect_stderr_to_stdout",
    "enable_network",
)


class Fields(Record, frozen=True, kw_only=True):
    """A submission's fields. `numbers` are those of RANGES, `flags` those of FLAGS."""

    language_id: int
    source_code: bytes | None
    stdin: bytes | None
    expected_output: bytes | None
    additional_files: bytes | None
    compiler_options: str | None
    command_line_arguments: str | None
    callback_url: str | None
    numbers: dict[str, float]
    flags: dict[str, bool]

    @property
    def size(self) -> int:
        """Bytes of memory that they take, about."""
        texts = (self.source_code, self.stdin, self.expected_output, self.additional_files)
        return 1000 + sum(len(text) for text in texts if text)

    def to_json(self) -> dict[str, Any]:
        """The fields as answers have them, but for those that can be base64."""
        return {
            "language_id": self.language_id,
            **{name: int(value) if RANGES[name].whole else str(float(value)) for name, value in self.numbers.items()},
            **self.flags,
            "compiler_options": self.compiler_options,
            "command_line_arguments": self.command_line_arguments,
            "callback_url": self.callback_url,
            "additional_files": None if self.additional_files is None else encode(self.additional_files),
        }


class Errors(dict[str, list[str]]):
    """What is wrong, by field."""

    def note(self, name: str, text: str) -> None:
        """One more thing."""
        self.setdefault(name, []).append(text)


def parse(given: Mapping[str, Any], *, encoded: bool, network: bool) -> Fields | Errors:
    """The fields of a submission, or what is wrong with them. Texts are base64 if `encoded`;
    `network`: whether this server gives runs one.
    """
    errors = Errors()
    texts = {name: _content(given.get(name), encoded=encoded) for name in TEXTS}
    files = _content(given.get("additional_files"), encoded=True)
    number = _number(given.get("language_id"))
    language = None if number is None or number % 1 else int(number)
    _check_source(language, texts["source_code"], files, errors)
    _check_language(given.get("language_id"), language, errors)
    words = {name: _words(name, given.get(name), errors) for name in ("compiler_options", "command_line_arguments")}
    numbers = {name: _limited(name, given.get(name), errors) for name in RANGES}
    flags = {name: _flag(given.get(name)) for name in FLAGS}
    if flags["enable_network"] and not network:
        errors.note("enable_network", "enabling network is not allowed")
    if errors or language is None:
        return errors
    return Fields(
        language_id=language,
        source_code=texts["source_code"],
        stdin=texts["stdin"],
        expected_output=texts["expected_output"],
        additional_files=files or None,
        compiler_options=words["compiler_options"],
        command_line_arguments=words["command_line_arguments"],
        callback_url=_text(given.get("callback_url")),
        numbers=numbers,
        flags=flags,
    )


def _check_source(language: int | None, source: bytes | None, files: bytes | None, errors: Errors) -> None:
    if language != MULTI_FILE:
        if source is None or not source.strip():
            errors.note("source_code", "can't be blank")
        return
    if source is not None and source.strip():
        errors.note("source_code", "must be blank")
    if not files:
        errors.note("additional_files", "can't be blank")


def _check_language(given: object, language: int | None, errors: Errors) -> None:
    if given in (None, ""):
        errors.note("language_id", "can't be blank")
    number = None if language is None else NUMBERS.get(language)
    if number is not None and number.archived:
        errors.note("language_id", f"language with id {language} is archived and cannot be used anymore")
    elif number is None and language != MULTI_FILE:
        errors.note("language_id", unknown_language(str(given)[:20] if language is None and given is not None else language))


def unknown_language(number: object) -> str:
    """What is said of a language that is not there."""
    return f"language with id {'' if number is None else number} doesn't exist"


def _text(value: object) -> str | None:
    """A scalar as text; anything else is as if it were not there, as Rails' permit has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else None


def _content(value: object, *, encoded: bool) -> bytes | None:
    text = _text(value)
    return None if text is None else decode(text) if encoded else text.encode()


def decode(text: str) -> bytes:
    """Base64 as Ruby takes it: what does not belong there is passed over."""
    plain = re.sub(r"[^A-Za-z0-9+/]", "", text.partition("=")[0])
    return base64.b64decode(plain[: len(plain) - (len(plain) % 4 == 1)] + "==")


def encode(data: bytes) -> str:
    """Base64 as Ruby gives it: lines of 60 characters."""
    text = base64.b64encode(data).decode()
    return "".join(f"{text[at : at + 60]}\n" for at in range(0, len(text), 60))


def _number(value: object) -> float | None:
    """A number, or a text that is one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _limited(name: str, value: object, errors: Errors) -> float:
    limits = RANGES[name]
    if value is None or value == "":
        return limits.default
    number = _number(value)
    if number is None:
        errors.note(name, "is not a number")
        return limits.default
    if limits.whole:
        number = float(int(number))
    if limits.above is not None and number <= limits.above:
        errors.note(name, f"must be greater than {limits.above:g}")
    if limits.least is not None and number < limits.least:
        errors.note(name, f"must be greater than or equal to {limits.least:g}")
    if number > limits.most:
        errors.note(name, f"must be less than or equal to {limits.most:.9g}")
    return number


def _flag(value: object) -> bool:
    """As Rails reads a boolean column: these are false, what is not there too."""
    return value not in (None, "", False, 0, "0", "f", "F", "false", "FALSE", "off", "OFF") and _text(value) is not None


def _words(name: str, value: object, errors: Errors) -> str | None:
    text = _text(value)
    if text is None:
        return None
    if len(text) > MAX_WORDS:
        errors.note(name, f"is too long (maximum is {MAX_WORDS} characters)")
    try:
        split(text)
    except ValueError as error:
        errors.note(name, f"is not a list of words: {error}")
    return text


def split(text: str | None) -> tuple[str, ...]:
    """Options or arguments as words, as a shell has them. Raises ValueError."""
    words = tuple(shlex.split(FORBIDDEN.sub("", text or "")))
    if any("\0" in word for word in words):
        raise ValueError("it has a NUL")
    return words
