"""The folder of the API's socket: private, one live server to a socket, and what a dead server has
left is removed.

DIR/api.sock        the API
DIR/api.sock.lock   locked (flock) by the live server
DIR/runs/ID.sock    output sockets
"""

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from mayfly import paths
from mayfly.errors import ConfigError, HostError
from mayfly.unix import MAX_PATH, listen

LONGEST_RUN_NAME = "runs/" + 32 * "0" + ".sock"


@contextlib.contextmanager
def claim(path: Path, activated: socket.socket | None = None) -> Iterator[tuple[socket.socket, Path]]:
    """Listen at `path` and make the folder for output sockets; give the listening socket and that
    folder. On leaving, all of it is removed, but for a socket that was `activated`: it listens at
    its own path, whoever made it.

    Raises:
        ConfigError: the path is too long for a socket, or is something other than one.
        HostError: a live server has it, or a folder belongs to somebody else.
    """
    path = Path(os.fsdecode(activated.getsockname())) if activated else path.absolute()
    if len(os.fsencode(path.parent / LONGEST_RUN_NAME)) > MAX_PATH or len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(f"{path}: too long, a socket's path has at most {MAX_PATH} bytes", hint="choose a shorter --socket")
    if path.parent == paths.runtime_dir() and not activated:  # else whoever made it says who may come
        make_private(path.parent)
    else:
        with _typed(path.parent):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    runs = path.parent / "runs"
    with _locked(path):
        make_private(runs)
        if not activated:
            remove_dead(path)
        for left in runs.glob("*.sock"):
            with contextlib.suppress(HostError, ConfigError):  # another server's, in the same folder
                remove_dead(left)
        try:
            listener = activated or listen(path)
        except OSError as error:
            raise HostError(f"{path}: cannot listen there: {error.strerror}", hint="choose another --socket") from error
        try:
            yield listener, runs
        finally:
            listener.close()
            if not activated:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: another server's
                runs.rmdir()


def make_private(folder: Path) -> None:
    """Make `folder` with mode 0700, or see that it is ours and nobody else's: its parent may be a
    folder in which all may write.

    Raises:
        HostError: it is a link, not a folder, belongs to another user, or cannot be made.
    """
    with _typed(folder):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise HostError(
            f"{folder} is not a folder of user {os.geteuid()}", hint="remove it, set XDG_RUNTIME_DIR, or choose another --socket"
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)


@contextlib.contextmanager
def _typed(folder: Path) -> Iterator[None]:
    """Errors about `folder` say whose the folder is that stands in the way."""
    try:
        yield
    except OSError as error:
        raise HostError(f"{folder}: {error.strerror}{_whose(folder)}", hint="set XDG_RUNTIME_DIR, or choose another --socket") from error


def _whose(folder: Path) -> str:
    """The deepest folder on the way to `folder` that is there, if it is another user's."""
    for parent in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            owner = parent.stat().st_uid
            return f" ({parent} belongs to user {owner}, not to {os.geteuid()})" if owner != os.geteuid() else ""
    return ""


def remove_dead(path: Path) -> None:
    """Remove the socket at `path` if nobody listens on it any more.

    Raises:
        HostError: somebody does.
        ConfigError: it is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} is there and is no socket", hint="choose another --socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)  # a full listen queue is a live server's
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    except OSError as error:
        raise HostError(f"{path}: {error.strerror or error}", hint="choose another --socket") from error
    raise HostError(f"{path}: a server is listening there", hint="stop it, or choose another --socket")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`."""
    lock = path.with_name(path.name + ".lock")
    for _ in range(10):  # again if a server that was just ending removed the file between our open and our lock
        with _typed(lock):
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), lock.stat()):
                break
        except BlockingIOError as error:
            os.close(fd)
            raise HostError(f"{path}: a server is running there", hint="stop it, or choose another --socket") from error
        except FileNotFoundError:
            pass
        os.close(fd)
    else:
        raise HostError(f"{lock}: changes all the time", hint="choose another --socket")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(fd)
