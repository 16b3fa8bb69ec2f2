"""What tests of builds share."""

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

import mayfly.imagegen.build
from tests.kit.package_kit import PackageServer


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and a cache of the test's own, and something that stands for this machine's agent."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / f"mayfly-agent.{platform.machine()}").write_bytes(b"\x7fELF agent")
    monkeypatch.setattr(mayfly.imagegen.build, "AGENTS", tmp_path / "agents")


@pytest.fixture
def server() -> Iterator[PackageServer]:
    """A package registry without a package."""
    with PackageServer() as server:
        yield server
