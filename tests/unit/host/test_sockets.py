"""The folder of the API's socket, where it is another user's or cannot be made."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.errors import HostError
from mayfly.host.sockets import claim

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder that all may enter, with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a folder of its own and become another user")
@pytest.mark.parametrize("inside", ["0", "missing/1000"])
def test_a_runtime_folder_of_another_user(short: Path, inside: str) -> None:
    """As `sudo -E -u nobody` has it: XDG_RUNTIME_DIR is the first user's."""
    theirs = short / "0"
    theirs.mkdir(mode=0o700)
    code = (
        f"import os, sys; from pathlib import Path; from mayfly import paths; from mayfly.host.sockets import claim\n"
        f"from mayfly.errors import HostError\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try:\n    claim(paths.runtime_dir() / 'api.sock').__enter__()\n"
        "except HostError as error:\n    print(error, '->', error.hint)\n"
    )
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(short / inside)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    owner = theirs if inside == "0" else short
    assert done.stdout == (
        f"{short / inside / 'mayfly'}: Permission denied ({owner} belongs to user 0, not to {NOBODY})"
        " -> set XDG_RUNTIME_DIR, or choose another --socket\n"
    ), done.stderr


def test_a_folder_that_cannot_be_made(short: Path) -> None:
    (short / "file").write_text("")
    with pytest.raises(HostError, match="File exists") as caught, claim(short / "file" / "api.sock"):
        pass
    assert "choose another --socket" in caught.value.hint


def test_a_lock_that_cannot_be_made(short: Path) -> None:
    (short / "api.sock.lock").symlink_to("elsewhere")
    with pytest.raises(HostError, match=r"api\.sock\.lock: Too many levels of symbolic links"), claim(short / "api.sock"):
        pass
