"""What a command says on standard error when it fails. No traceback, unless MAYFLY_DEBUG asks."""

import errno
import os
import sys
import traceback

from mayfly.errors import MayflyError

CONSOLE_LINES = 30
DEBUG = "MAYFLY_DEBUG"
OS_HINTS = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space, or raise the quota",
    errno.EMFILE: "allow more open files: ulimit -n",
    errno.ENFILE: "this host has too many open files",
    errno.ENOMEM: "free some memory",
    errno.EACCES: "check the permissions, or run it as another user",
    errno.EPERM: "check the permissions, or run it as another user",
    errno.EROFS: "the file system is read-only",
}


def report(error: Exception, program: str = "mayfly") -> None:
    """Say what went wrong and what to do. A guest's error comes with the end of its console."""
    message, hint = _described(error)
    print(f"{program}: {plain(message)}", file=sys.stderr)
    if hint:
        print(f"  hint: {plain(hint)}", file=sys.stderr)
    if console := getattr(error, "console", ""):
        print(f"  the last {CONSOLE_LINES} lines of the guest's console:", file=sys.stderr)
        for line in plain(console).splitlines()[-CONSOLE_LINES:]:
            print(f"  | {line}", file=sys.stderr)
    if os.environ.get(DEBUG):
        traceback.print_exception(error)


def _described(error: Exception) -> tuple[str, str]:
    """The message and the hint."""
    if isinstance(error, MayflyError):
        return str(error), error.hint
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*files, error.strerror]), OS_HINTS.get(error.errno or 0, f"{DEBUG}=1 shows where this happened")
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in where)  # noqa: PTH119 (pathlib loads slowly)
    return f"a fault of Mayfly's own: {type(error).__name__}: {error}{place}", f"please report it, with what {DEBUG}=1 prints"


def plain(text: str) -> str:
    """The text without what a terminal would obey: parts of it are an image's or a guest's."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)
