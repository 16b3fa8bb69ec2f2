"""The functions of this host: a folder for each, with what it is (`function.json`) and its code.

A function is made in a folder beside its place and moved there whole. It is looked up at each use,
so that one that another process has created, changed or removed counts at once.
"""

import contextlib
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from mayfly import paths
from mayfly.errors import BusyError, ConfigError, HostError, SchemaError, UnknownFunctionError
from mayfly.files import locked, remove_tree, replacing
from mayfly.functions.spec import NAME, FunctionSpec
from mayfly.protocol.frames import MAX_FILES_SIZE
from mayfly.schema import Record, decode

log = logging.getLogger(__name__)
FORMAT = 1
MANIFEST, CODE = "function.json", "code"
MAX_FILES = 10_000
LEFT_OUT = frozenset({".git", "__pycache__"})
"""Folders that are no part of a function's code."""
ATTEMPTS = 3
"""To read a function that is being replaced meanwhile."""
Stamp = tuple[int, int, int]
"""What shows that a file is the same: inode, size, time of change."""


class Function(Record, frozen=True, kw_only=True):
    """A function that was created. `owner` is the tenant whose it is, or empty; `code_digest` is
    over its files.
    """

    spec: FunctionSpec
    owner: str = ""
    code_digest: str
    created: str
    format: int = FORMAT

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name


def make_function(spec: FunctionSpec, code: Mapping[str, bytes], owner: str = "") -> Function:
    """A function that is being created now."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Function(spec=spec, owner=owner, code_digest=digest(code), created=now)


def digest(code: Mapping[str, bytes]) -> str:
    """The digest of a function's files, by their paths."""
    found = hashlib.sha256()
    for path in sorted(code):
        found.update(f"{len(path.encode())} {len(code[path])}\n{path}".encode())
        found.update(code[path])
    return f"sha256:{found.hexdigest()}"


def read_code(path: Path, source_file: str) -> dict[str, bytes]:
    """The files of a function, by their paths relative to its folder; one that is a file is
    `source_file`.

    Raises:
        ConfigError: there are none, too many, or something that is neither file nor folder.
    """
    try:
        if not path.is_dir():
            if path.stat().st_size > MAX_FILES_SIZE:
                raise ConfigError(f"{path} is too large; a function has at most {MAX_FILES_SIZE} bytes")
            return {source_file: path.read_bytes()}
        return _read_folder(path)
    except OSError as error:
        raise ConfigError(
            f"code: {error.filename or path}: {error.strerror}", hint="give the path of the function's file or folder"
        ) from error


def _read_folder(folder: Path) -> dict[str, bytes]:
    code: dict[str, bytes] = {}
    size = 0
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        for name in sorted(names) + [name for name in folders if Path(place, name).is_symlink()]:
            path = Path(place, name)
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"code: {path} is not a regular file", hint="a function's folder has files and folders, no links")
            size += status.st_size
            if size > MAX_FILES_SIZE or len(code) >= MAX_FILES:
                raise ConfigError(
                    f"code: {folder} is too large; a function has at most {MAX_FILES} files with {MAX_FILES_SIZE} bytes together",
                    hint="leave out what it does not need",
                )
            try:
                relative = str(path.relative_to(folder))
                relative.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(f"code: the name {str(path)[:200]!r} is not UTF-8", hint="rename the file") from error
            code[relative] = path.read_bytes()
    if not code:
        raise ConfigError(f"code: {folder} is empty", hint="give the path of the function's file or folder")
    return code


def _refuse(error: OSError) -> None:
    raise error


def _folder(name: str) -> Path:
    if not re.fullmatch(NAME, name):
        raise UnknownFunctionError(f"no function {name[:80]!r}", hint="a name has up to 48 letters, digits, - and _")
    return paths.data_dir() / "functions" / name


def find(name: str) -> Function:
    """The function `name`.

    Raises:
        UnknownFunctionError: there is none.
        HostError: it cannot be read, or was made by another version.
    """
    folder = _folder(name)
    try:
        data = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnknownFunctionError(f"no function {name!r}", hint="mayfly function list shows them") from error
    except OSError as error:
        raise HostError(f"{folder}: {error.strerror}", hint="look at its permissions") from error
    try:
        function = decode(Function, data)
    except (SchemaError, ConfigError) as error:
        raise HostError(f"{folder / MANIFEST}: {error.message}", hint="create the function again") from error
    if (function.format, function.name) != (FORMAT, name):
        raise HostError(f"{folder / MANIFEST} is of another version, or of another function", hint="create the function again")
    return function


def stamp(name: str) -> Stamp | None:
    """What changes whenever the function does; None if there is none."""
    try:
        return file_stamp(_folder(name) / MANIFEST)
    except OSError:
        return None


def file_stamp(path: Path) -> Stamp:
    """The stamp of a file."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def load_code(function: Function) -> dict[str, bytes]:
    """The files of a function that was created.

    Raises:
        UnknownFunctionError: it was removed or changed since.
        HostError: its files are not those that it was created with.
    """
    folder = _folder(function.name)
    for _ in range(ATTEMPTS):
        if find(function.name).code_digest != function.code_digest:
            raise UnknownFunctionError(f"the function {function.name!r} was changed meanwhile", hint="try again")
        with contextlib.suppress(ConfigError):  # it is being replaced, or files are missing
            code = _stored_code(folder / CODE)
            if digest(code) == function.code_digest:
                return code
    raise HostError(f"{folder / CODE} was altered", hint="create the function again")


def _stored_code(folder: Path) -> dict[str, bytes]:
    try:
        return _read_folder(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from error


def installed() -> list[Function]:
    """All functions by name; one that cannot be read is logged and left out."""
    found = []
    for path in sorted((paths.data_dir() / "functions").glob(f"[!.]*/{MANIFEST}")):
        try:
            found.append(find(path.parent.name))
        except UnknownFunctionError:
            continue  # it was removed
        except HostError as error:
            log.warning("a function is left out: %s", error)
    return found


@contextlib.contextmanager
def claimed(name: str) -> Iterator[None]:
    """Be the only one who creates or removes the function.

    Raises:
        BusyError: somebody else does.
        HostError: the folder cannot be written.
    """
    folder = _folder(name)
    try:
        with locked(folder, wait=False):
            yield
    except BlockingIOError as error:
        raise BusyError(f"the function {name!r} is being created or removed by somebody else", hint="try again") from error
    except OSError as error:
        raise HostError(f"{folder}: {error.strerror}", hint="make room on the disk, or look at its permissions") from error


def save(function: Function, code: Mapping[str, bytes]) -> None:
    """Put the function in its place, whole. Claim its name first.

    Raises:
        OSError: the folder cannot be written.
    """
    with replacing(_folder(function.name)) as part:
        for path, data in code.items():
            file = part / CODE / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        (part / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(function), indent=2) + b"\n")


def remove(name: str) -> None:
    """Remove a function.

    Raises:
        UnknownFunctionError: there is none.
        BusyError, HostError: as `claimed`.
    """
    folder = _folder(name)
    with claimed(name):
        if not (folder / MANIFEST).exists():
            raise UnknownFunctionError(f"no function {name!r}", hint="mayfly function list shows them")
        (folder / MANIFEST).unlink()  # from here on it is not found
        remove_tree(folder)
