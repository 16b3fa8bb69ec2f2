"""API keys, which clients need who come over TCP. A file in the data folder has of each its limits
and a hash of its token; the token itself is shown once, when it is made.

The file is written anew with each change, and a server reads it again when it has changed.
"""

import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

from mayfly import paths
from mayfly.errors import ConfigError, HostError, MalformedError, SchemaError
from mayfly.files import atomic_write, locked
from mayfly.host.admission import Tenant
from mayfly.schema import Meta, Record, decode, msgspec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN = re.compile(r"mayfly_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_NOBODY = "0" * 64

Count = Annotated[int, Meta(ge=0)]


class ApiKey(Record, frozen=True, kw_only=True):
    """What is kept of a key. `hash` is the SHA-256 of its token, which is random enough to need no
    slower one; `created` is a date in UTC. The limits are those of a Tenant. With `moves` other
    servers may hand runs over.
    """

    id: str
    name: str
    hash: str
    created: str
    rate: Count = 0
    concurrency: Count = 0
    memory: Count = 0
    readers: Count = 0
    moves: bool = False


class _File(Record, frozen=True, kw_only=True):
    keys: tuple[ApiKey, ...] = ()


def default_path() -> Path:
    """Where the keys of the user who asks are kept."""
    return paths.data_dir() / "keys.json"


def load(path: Path) -> tuple[ApiKey, ...]:
    """All keys, the oldest first.

    Raises:
        HostError: the file cannot be read, or is not what it should be.
    """
    try:
        return from_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, SchemaError, MalformedError) as error:
        raise HostError(f"{path}: the keys cannot be read: {error}", hint="restore the file, or remove it and make new keys") from error


def create(path: Path, name: str, *, moves: bool = False, **limits: int) -> str:
    """Make a key with the limits of an ApiKey, and give its token.

    Raises:
        ConfigError: the name is taken, or is not one.
        HostError: the keys cannot be read or written.
    """
    key, token = make(name, moves=moves, **limits)
    with _changing(path) as keys:
        add(keys, key)
    return token


def add(keys: list[ApiKey], key: ApiKey) -> None:
    """Take a key in beside others.

    Raises:
        ConfigError: its name is taken, or is not one.
    """
    if not _NAME.fullmatch(key.name):
        raise ConfigError(f"{key.name[:80]!r} cannot be a key's name", hint="use up to 64 letters, digits, dots, underscores and hyphens")
    if any(known.name == key.name for known in keys):
        raise ConfigError(f"there is a key {key.name!r} already", hint=f"choose another name, or first: mayfly key revoke {key.name}")
    keys.append(key)


def remove(keys: list[ApiKey], name: str) -> None:
    """Take a key out of others.

    Raises:
        ConfigError: there is none of that name.
    """
    found = [key for key in keys if key.name == name]
    if not found:
        raise ConfigError(f"there is no key {name[:80]!r}", hint="mayfly key list")
    keys.remove(found[0])


def to_json(keys: Iterable[ApiKey]) -> bytes:
    """What a file of these keys holds."""
    return msgspec.json.format(msgspec.json.encode(_File(keys=tuple(keys)))) + b"\n"


def from_json(data: bytes) -> tuple[ApiKey, ...]:
    """The keys that a file holds.

    Raises:
        SchemaError, MalformedError: it is not what it should be.
    """
    return decode(_File, data).keys


def revoke(path: Path, name: str) -> None:
    """Take a key back: servers refuse its token from now on. Its runs go on.

    Raises:
        ConfigError: there is no such key.
        HostError: the keys cannot be read or written.
    """
    with _changing(path) as keys:
        remove(keys, name)


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[ApiKey]]:
    """The keys, which are written when the block is left, one changer after the other."""
    try:
        with locked(path):
            keys = list(load(path))
            yield keys
            with atomic_write(path, 0o600) as file:
                file.write(to_json(keys))
    except OSError as error:
        raise HostError(f"{path}: {error.strerror or error}", hint="keys are kept in $XDG_DATA_HOME: it must be writable") from error


def make(name: str, *, moves: bool = False, **limits: int) -> tuple[ApiKey, str]:
    """A new key and its token."""
    key_id = secrets.token_hex(8)
    token = f"mayfly_{key_id}_{secrets.token_urlsafe(32)}"
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return ApiKey(id=key_id, name=name, hash=_hash(token), created=created, moves=moves, **limits), token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Known(NamedTuple):
    """A key whose token was shown, and the tenant that its runs are accounted to."""

    key: ApiKey
    tenant: Tenant


class Keyring:
    """The keys as a server knows them: those that are in the file at each moment, those that it
    issued itself, which end with it, and those that `beside` gives.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: object = None
        self._keys: dict[str, Known] = {}
        self._issued: dict[str, Known] = {}
        self._beside: dict[str, Known] = {}
        self.beside: Callable[[], Sequence[ApiKey]] = tuple

    def __len__(self) -> int:
        self._refresh()
        return len(self._keys) + len(self._issued) + len(self._beside)

    def issue(self, name: str) -> str:
        """Make a key that is in no file, and give its token."""
        key, token = make(name)
        self._issued[key.id] = _known(key)
        return token

    def find(self, token: str) -> Known | None:
        """The key with that token. How long this takes tells nothing of any token.

        Raises:
            HostError: the keys cannot be read.
        """
        self._refresh()
        match = _TOKEN.fullmatch(token)
        known = (self._keys.get(match[1]) or self._issued.get(match[1]) or self._beside.get(match[1])) if match else None
        same = hmac.compare_digest(_hash(token if match else ""), known.key.hash if known else _NOBODY)
        return known if same else None

    def tenant(self, key_id: str) -> Tenant | None:
        """Who the runs of the key with that id are accounted to; None if there is no such key.

        Raises:
            HostError: the keys cannot be read.
        """
        self._refresh()
        known = self._keys.get(key_id) or self._issued.get(key_id) or self._beside.get(key_id)
        return known.tenant if known else None

    def _refresh(self) -> None:
        self._beside = {key.id: self._beside.get(key.id) or _known(key) for key in self.beside()}
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        except FileNotFoundError:
            seen = None
        except OSError as error:
            raise HostError(f"{self._path}: the keys cannot be read: {error.strerror}") from error
        if seen != self._seen:
            self._keys = {key.id: self._keys.get(key.id) or _known(key) for key in load(self._path)} if seen else {}
            self._seen = seen


def _known(key: ApiKey) -> Known:
    tenant = Tenant(key.id, rate=key.rate, concurrency=key.concurrency, memory=key.memory, readers=key.readers, moves=key.moves)
    return Known(key, tenant)
