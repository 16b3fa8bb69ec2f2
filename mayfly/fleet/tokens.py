"""Who may come into a fleet: an nkey for each, with the least that it needs to say and to hear.

The servers read a file of users, one a line, from `authorization { include FILE }`, and again when
they are told to reload. A host can take only its own architecture's work, speak only in its own
name, and store nothing: a result goes to a gateway, which looks whether the host was given the run.
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
ANSWER_MIN = 30
"""How long a gateway may take to answer: it is asked to create functions."""
HEAD = "# Written by `mayfly fleet token`. The servers include it: authorization { include FILE }\nusers: [\n"


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
            heard += ["keys", "images", "functions"]
        case _:
            said, heard = ["about.*", "wish.*", "keys", "images", "functions"], ["beat.*"]
    answers = {"max": 1, "expires": f"{ANSWER_MIN if kind == 'gateway' else 1}m"}
    return {"publish": said, "subscribe": [*heard, inbox], "allow_responses": answers}


def load(path: Path) -> list[Member]:
    """The members in a file; none if there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    found = [match for line in lines if (match := _LINE.fullmatch(line))]
    return [Member(match["name"], match["kind"], match["arch"] or "", match["user"]) for match in found]


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
        members = load(path)
        if any(member.name == name for member in members):
            raise ConfigError(f"there is a token {name!r} already", hint="revoke it first, or choose another name")
        _save(path, [*members, Member(name, kind, arch, user)])
    return seed


def revoke(path: Path, name: str) -> None:
    """Let somebody in no more.

    Raises:
        ConfigError: there is no such token.
    """
    with locked(path.parent):
        members = load(path)
        left = [member for member in members if member.name != name]
        if left == members:
            raise ConfigError(f"there is no token {name[:80]!r}", hint="mayfly fleet token list shows them")
        _save(path, left)


def _save(path: Path, members: Sequence[Member]) -> None:
    lines = [f"  {member.user}, # {' '.join(filter(None, (member.kind, member.name, member.arch)))}\n" for member in members]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((HEAD + "".join(lines) + "]\n").encode())


def make_key() -> tuple[bytes, str]:
    """A seed, and the public key that belongs to it."""
    import nkeys  # type: ignore[import-untyped]  # only here

    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    return bytes(seed), nkeys.from_seed(bytearray(seed)).public_key.decode()
