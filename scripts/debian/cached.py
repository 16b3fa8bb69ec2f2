"""What is unpacked into the cache once, and stays there."""

import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from mayfly import files, paths
from scripts.debian.root import HostFilesError


def cached(name: str, what: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache. On first use `make` makes it, as the new folder that it is
    given: it has its name when it is whole. `what` it is, for who waits meanwhile. Others can be
    made at the same time.
    """
    folder = paths.cache_dir() / name
    with files.locked(folder):
        if not folder.exists():
            print(f"fetching {what} (once)", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
                tree = Path(work) / "tree"
                make(tree)
                tree.chmod(0o755)
                tree.rename(folder)
    return folder


def print_path(program: str, choices: Collection[str], find: Callable[[str], Path]) -> None:
    """Print what `find` finds for the one argument of a program, which is one of `choices`."""
    wanted = sys.argv[1] if sys.argv[1:] else ""
    if wanted not in choices:
        sys.exit(f"{program}: give one of {', '.join(sorted(choices))}")
    try:
        print(find(wanted))
    except HostFilesError as error:
        sys.exit(f"{program}: {error}")
