"""What a client asks a server to run, and how that is written as JSON (docs/api.md)."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

Content = str | bytes
"""Text, or any bytes."""


class LimitsInput(TypedDict, total=False):
    """Limits of a step: at most what the server allows. Times in seconds, sizes in bytes."""

    wall_s: float
    cpu_s: float
    memory: int
    processes: int
    output: int


class CaseInput(TypedDict, total=False):
    """One input of a program that is built once. `compare` is `exact`, `trimmed` or `tokens`."""

    name: str
    stdin: Content
    args: Sequence[str]
    expected_stdout: Content
    compare: str
    limits: LimitsInput


class TerminalSize(TypedDict):
    """A terminal's size in characters."""

    columns: int
    rows: int


class RunOptions(TypedDict, total=False):
    """What a run may have besides its source. What is not given is as the server has it."""

    language: str
    target: str
    profile: str
    files: Mapping[str, Content]
    hidden_files: Mapping[str, Content]
    stdin: Content
    args: Sequence[str]
    env: Mapping[str, str]
    build_env: Mapping[str, str]
    options: Mapping[str, str | bool | int]
    limits: Mapping[str, LimitsInput]
    network: bool
    architecture: str
    snapshot: str
    cases: Sequence[CaseInput]
    stop_at_first_failure: bool
    parallel: int
    collect: Sequence[str]
    checkpoint_every_s: float
    interactive: bool
    tty: TerminalSize
    callback_url: str


def body(source: Content | None, options: RunOptions) -> dict[str, Any]:
    """The body of a request."""
    found: dict[str, Any] = dict(options)
    if source is not None:
        found["source"] = _content(source)
    if "stdin" in options:
        found["stdin"] = _content(options["stdin"])
    if "files" in options:
        found["files"] = {name: _content(content) for name, content in options["files"].items()}
    if "hidden_files" in options:
        found["hidden_files"] = {name: _content(content) for name, content in options["hidden_files"].items()}
    if "cases" in options:
        found["cases"] = [_case(case) for case in options["cases"]]
    for name in ("args", "collect"):
        if name in found:
            found[name] = list(found[name])
    return found


def _case(case: CaseInput) -> dict[str, Any]:
    found: dict[str, Any] = dict(case)
    if "args" in case:
        found["args"] = list(case["args"])
    if "stdin" in case:
        found["stdin"] = _content(case["stdin"])
    if "expected_stdout" in case:
        found["expected_stdout"] = _content(case["expected_stdout"])
    return found


def _content(content: Content) -> str | dict[str, str]:
    if isinstance(content, str):
        return content
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}
