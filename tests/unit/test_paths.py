"""Folders of a user without a home: an error that says what to set, unless nothing needs a home."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.errors import HostError
from mayfly.host.config import Config
from mayfly.imagegen.oci.accounts import find_account

VARIABLES = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")


@pytest.fixture(autouse=True)
def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "DOCKER_CONFIG", *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321)  # which no password database has


@pytest.mark.parametrize("folder", [paths.config_file, paths.data_dir, paths.cache_dir])
def test_what_to_set_is_said(folder: Callable[[], Path]) -> None:
    with pytest.raises(HostError, match="has no home folder") as caught:
        folder()
    assert "set HOME, or all of XDG_CONFIG_HOME" in caught.value.hint


def test_nothing_needs_a_home_when_all_folders_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "/x")
    config = Config.load({})
    assert config.socket == paths.runtime_dir() / "api.sock"
    assert str(config.kernel).startswith("/x/mayfly/kernel/")
    assert find_account("registry.example") is None
    assert os.environ.get("HOME") is None


@pytest.mark.parametrize(("variable", "folder"), [("HOME", "/.local/share/mayfly"), ("XDG_DATA_HOME", "/mayfly")])
def test_folders_below_the_root_have_one_slash(monkeypatch: pytest.MonkeyPatch, variable: str, folder: str) -> None:
    monkeypatch.setenv(variable, "/")
    assert str(paths.data_dir()) == folder
