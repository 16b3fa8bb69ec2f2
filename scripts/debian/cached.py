"""What is unpacked into the cache once, and stays there."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from scripts.kvmhost.hostfiles import preparing


def cached(name: str, what: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache. On first use `make` makes it, as the new folder that it is
    given: it has its name when it is whole. `what` it is, for who waits meanwhile.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mayfly"
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with preparing(cache):
        if not folder.exists():
            print(f"fetching {what} (once)", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as work:
                tree = Path(work) / "tree"
                make(tree)
                tree.chmod(0o755)
                tree.rename(folder)
    return folder
