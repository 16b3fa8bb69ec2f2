"""The files that a command is given, and their names in the guest's working folder."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mayfly.errors import HostError


def read_source(path: Path) -> bytes:
    """The snippet's text.

    Raises:
        HostError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror}", hint="give the path of a source file") from error


def name_files(paths: Sequence[Path], name_of: Callable[[str], str]) -> dict[str, Path]:
    """The names in the working folder of files, and of those in folders: a single one as `name_of`
    has it for its own name, several as they lie beneath the folder that they have in common.

    Raises:
        HostError: a folder is empty, or a file is not there.
    """
    found = [file for path in paths for file in files_in(path)]
    if len(found) == 1 and not paths[0].is_dir():
        return {name_of(found[0].name): found[0]}
    whole = [Path(os.path.abspath(path)) for path in found]  # noqa: PTH100  # resolve() would follow links
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in paths]  # noqa: PTH100
    common = os.path.commonpath(folders)
    return {path.relative_to(common).as_posix(): given for path, given in zip(whole, found, strict=True)}


def files_in(path: Path) -> list[Path]:
    """The file itself, or those of a folder that no leading dot hides.

    Raises:
        HostError: the folder is empty.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and not any(part.startswith(".") for part in _below(file, path)))
    if not found:
        raise HostError(f"{path}: has no files", hint="give the path of source files")
    return found


def _below(file: Path, folder: Path) -> tuple[str, ...]:
    return file.parts[len(folder.parts) :]
