"""Whatever befalls a server, no run is answered wrongly and nothing is left."""

import asyncio
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import pytest

from scripts import chaos
from scripts.disturb import DISTURBANCES, filled, limited, small_disk
from tests.kit.api_fakes import install_toys
from tests.kit.scale import FULL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if FULL else 600)]

SEEDS = range(1, 11) if FULL else (1,)
EVENTS = 200


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("no_leaks")
def test_a_server_survives(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder, small_disk(Path(folder)):  # short enough for sockets
        install_toys(monkeypatch, Path(folder))
        outcomes = asyncio.run(chaos.play(Path(folder), seed, EVENTS, clients=6))
    print(f"seed {seed}: {dict(sorted(outcomes.items()))}")
    assert outcomes["right"] > EVENTS // 10
    assert sum(outcomes[what] for what in DISTURBANCES) > EVENTS // 30


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a disk of its own")
def test_a_full_disk_is_full_and_this_processs_alone(tmp_path: Path) -> None:
    with small_disk(tmp_path):
        (tmp_path / "before").write_bytes(b"x")
        with filled(tmp_path, 4096):
            (tmp_path / "fits").write_bytes(bytes(4096))
            with pytest.raises(OSError, match="No space left"):
                (tmp_path / "one more").write_bytes(bytes(4096))
        (tmp_path / "later").write_bytes(bytes(1 << 20))
    assert list(tmp_path.iterdir()) == []


def test_a_limit_is_lifted_from_whoever_was_started_meanwhile() -> None:
    which = resource.RLIMIT_MSGQUEUE
    usual = resource.getrlimit(which)
    with limited(os.getpid(), which, usual[0] - 1):
        started = subprocess.Popen(["sleep", "60"])
        assert resource.prlimit(started.pid, which)[0] == usual[0] - 1
    with started:
        assert resource.prlimit(started.pid, which) == usual == resource.getrlimit(which)
        started.kill()
