"""Self-tests of languages: snippets, each with what it must do, in `languages/checks/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from msgspec import Meta

from mayfly.errors import ConfigError, SchemaError
from mayfly.imagegen.languages import FOLDER, Name
from mayfly.protocol.frames import Exit, Limit
from mayfly.schema import Record, convert


class Check(Record, frozen=True, kw_only=True):
    """A snippet, and what it must do.

    It ends in its last step, or in the step `ends_in`, with this exit status (None: with any but
    0) or by that limit. `stdout` is what the last step puts out; `says` stands somewhere in that
    step's output. `limits` are of the step `run`.
    """

    name: Name
    source: str
    stdin: str = ""
    stdout: str = ""
    status: int | None = 0
    ends_in: str = "run"
    says: str = ""
    limits: Mapping[str, Annotated[float, Meta(gt=0)]] = {}
    limit: str = ""


def load_checks(language: str, folder: Path = FOLDER / "checks") -> tuple[Check, ...]:
    """The checks of a language, in the order of its file.

    Raises:
        ConfigError: it has none, or the file says something that makes no sense.
    """
    path = folder / f"{language}.yaml"
    try:
        return convert(tuple[Check, ...], yaml.safe_load(path.read_bytes()))
    except FileNotFoundError as error:
        known = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise ConfigError(f"{language} has no checks", hint=f"those that have: {known}") from error
    except (yaml.YAMLError, SchemaError) as error:
        raise ConfigError(f"{path}: {error}") from error


def fault(check: Check, step: str, exit: Exit, stdout: bytes, stderr: bytes) -> str:  # as the frame is called
    """What the last step did otherwise than it must; empty if nothing."""
    texts = [text.decode("utf-8", "replace") for text in (stdout, stderr)]
    ended = exit.limit.name.lower() if exit.limit is not Limit.NONE else ""
    if step != check.ends_in:
        return f"it ended in the step {step}, not {check.ends_in}: {_short(texts[1])}"
    if ended != check.limit:
        return f"it was ended by the limit {ended or 'none'}, not {check.limit or 'none'}: {_short(texts[1])}"
    right = exit.code != 0 if check.status is None else exit.code == check.status
    if not check.limit and not right:
        return f"its exit status is {exit.code}, not {'another than 0' if check.status is None else check.status}: {_short(texts[1])}"
    if check.says and check.says not in texts[0] + texts[1]:
        return f"it does not say {check.says!r}, but {_short(texts[0] + texts[1])}"
    if texts[0] != check.stdout and not check.says:
        return f"standard output is {_short(texts[0])}, not {_short(check.stdout)}"
    return ""


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
