"""Who may come into a fleet: an nkey for each, with the least that it needs to say and to hear.

The servers read a file of users, one a line, from `authorization { include FILE }`, and again when
they are told to reload. Lines of others in it stay. A host can take only its own architecture's
work, speak only in its own name, and store nothing: a result goes to a gateway, which looks whether
the host was given the run.
"""

import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mayfly.errors import ConfigError
from mayfly.files import atomic_write, locked
from mayfly.fleet.engine import INBOX
from mayfly.fleet.message import ANY, GROUP

_LINE = re.compile(r"  (?P<user>\{.*\}),? # (?P<kind>host|gateway|operator) (?P<name>[A-Za-z0-9_-]{1,64})(?: (?P<arch>[a-z0-9_]+))?")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BEGIN = re.compile(r"\s*users\s*[:=]?\s*\[\s*(?:#.*)?")
ANSWER_MIN = 30
"""How long a gateway may take to answer: it is asked to create functions."""
HEAD = ("# Written by `mayfly fleet token`. The servers include it: authorization { include FILE }", "users: [")
END = "]"


class Member(NamedTuple):
    """Who may come in; `user` is what the servers read of it."""

    name: str
    kind: str
    arch: str
    user: str


def permissions(name: str, kind: str, arch: str) -> dict[str, Any]:
    """What a member may publish and subscribe to."""
    inbox = f"{INBOX}{name}.>"
    match kind:
        case "host":
            stream = f"RUNS_{arch}"
            said = [f"begin.{name}.*", f"settle.*.{name}.*", f"gw.*.{name}.*", f"beat.{name}", f"offers.{name}"]
            said += [f"fn.begin.{name}.*", f"fn.settle.*.{name}.*", f"fn.code.{name}"]
            said += [f"ping.{name}", f"wish.{name}", f"seek.{name}.*", f"fn.seek.{name}.*", f"move.*.{name}.*", f"take.*.{name}.*"]
            said += [f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*", f"$JS.ACK.{stream}.>"]
            heard = [f"run.now.{arch}.* {GROUP}", f"host.{name}.*", f"move.{name}.*.*", f"take.{name}.*.*"]
            heard += [*(f"{subject}.{name}" for subject in ("ping", "about", "measure", "wish", "fn.ask", "beat"))]
        case "gateway":
            said = ["run.*.*.*", "host.*.*", "ping.*", "about.*", "measure.*", "wish.*", "over.*", "fn.ask.*"]
            said += ["$JS.API.>", "$JS.ACK.>", "$KV.runs.>", "$KV.results.>", "$KV.accounts.>", "$KV.fleet.>"]
            heard = [f"gw.{name}.*.*", "begin.*.*", f"settle.{name}.*.*", f"settle.{ANY}.*.*", "beat.*", "over.*", "seek.*.*"]
            heard += ["fn.begin.*.*", "fn.seek.*.*", f"fn.settle.{name}.*.*", f"fn.settle.{ANY}.*.*", "fn.code.*", "offers.*"]
            heard += [f"ping.{name}", "keys", "images", "functions"]
        case _:
            said, heard = ["about.*", "wish.*", "keys", "images", "functions"], ["beat.*"]
    answers = {"max": 1, "expires": f"{ANSWER_MIN if kind == 'gateway' else 1}m"}
    return {"publish": said, "subscribe": [*heard, inbox], "allow_responses": answers}


def load(path: Path) -> list[Member]:
    """The members in a file; none if there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    return [member for line in _lines(path) if (member := _read(line))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return [*HEAD, END]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(line: str) -> Member | None:
    """The member of a line; None if that is another one."""
    found = _LINE.fullmatch(line)
    return Member(found["name"], found["kind"], found["arch"] or "", found["user"]) if found else None


def _end(lines: Sequence[str], path: Path) -> int:
    """Where the users end: other lists may be in them, and behind them."""
    begun = next((number for number, line in enumerate(lines) if _BEGIN.fullmatch(line)), len(lines))
    indent = "".join(lines[begun : begun + 1]).partition("users")[0]
    for number, line in enumerate(lines[begun:], begun):
        if line.rstrip() == indent + END:
            return number
    raise ConfigError(f"{path} has no users that end with a line {END}", hint="choose another file: it is made if it is not there")


def create(path: Path, name: str, kind: str, arch: str = "") -> bytes:
    """Let somebody in; gives the seed, which is kept nowhere else.

    Raises:
        ConfigError: the name cannot be used, or is taken.
    """
    if not _NAME.fullmatch(name) or name == ANY:
        raise ConfigError(f"the name {name[:80]!r} cannot be used in a fleet", hint="take 1 to 64 letters, digits, - and _")
    seed, public = make_key()
    user = json.dumps({"nkey": public, "permissions": permissions(name, kind, arch)})
    with locked(path.parent):
        lines = _lines(path)
        if any((member := _read(line)) and member.name == name for line in lines):
            raise ConfigError(f"there is a token {name!r} already", hint="revoke it first, or choose another name")
        lines.insert(_end(lines, path), f"  {user}, # {' '.join(filter(None, (kind, name, arch)))}")
        _save(path, lines)
    return seed


def revoke(path: Path, name: str) -> None:
    """Let somebody in no more.

    Raises:
        ConfigError: there is no such token.
    """
    with locked(path.parent):
        lines = _lines(path)
        left = [line for line in lines if not ((member := _read(line)) and member.name == name)]
        if left == lines:
            raise ConfigError(f"there is no token {name[:80]!r}", hint="mayfly fleet token list shows them")
        _save(path, left)


def _save(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def make_key() -> tuple[bytes, str]:
    """A seed, and the public key that belongs to it."""
    import nkeys  # type: ignore[import-untyped]  # only here

    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    return bytes(seed), nkeys.from_seed(bytearray(seed)).public_key.decode()
