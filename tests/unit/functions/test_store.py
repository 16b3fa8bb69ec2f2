"""Functions on the disk: whole or not at all, found at each use, read only as they were made."""

import os
from pathlib import Path

import pytest

from mayfly.errors import BusyError, ConfigError, HostError, UnknownFunctionError
from mayfly.functions import store
from mayfly.functions.spec import FunctionSpec
from mayfly.functions.store import Function

CODE = {"handler.py": b"def handle(event): return event\n", "lib/more.py": b"x = 1\n"}


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "mayfly" / "functions"


def make(name: str = "hello", code: dict[str, bytes] = CODE) -> Function:
    function = store.make_function(FunctionSpec(name=name, language="python", code="/src"), code)
    with store.claimed(name):
        store.save(function, code)
    return function


def test_what_was_made_is_found(data: Path) -> None:
    function = make()
    assert store.find("hello") == function
    assert store.load_code(function) == CODE
    assert [found.name for found in store.installed()] == ["hello"]
    make("a")
    assert [found.name for found in store.installed()] == ["a", "hello"]
    assert sorted(path.name for path in data.iterdir() if not path.name.endswith(".lock")) == ["a", "hello"]


def test_its_stamp_changes_with_it() -> None:
    assert store.stamp("hello") is None
    make()
    first = store.stamp("hello")
    assert first == store.stamp("hello") is not None
    make()
    assert store.stamp("hello") not in (None, first)
    store.remove("hello")
    assert store.stamp("hello") is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a.b", "-a", "a\n", "é", "x" * 49])
def test_a_name_is_never_a_path(name: str) -> None:
    for call in (store.find, store.stamp, store.remove):
        with pytest.raises(UnknownFunctionError):
            call(name)


def test_nothing_is_left_of_one_that_is_removed(data: Path) -> None:
    make()
    store.remove("hello")
    with pytest.raises(UnknownFunctionError):
        store.find("hello")
    with pytest.raises(UnknownFunctionError):
        store.remove("hello")
    assert [path.name for path in data.iterdir()] == [".hello.lock"]


def test_only_one_makes_it_at_a_time() -> None:
    with store.claimed("hello"), pytest.raises(BusyError), store.claimed("hello"):
        pass
    make()
    with store.claimed("hello"), pytest.raises(BusyError):
        store.remove("hello")


def test_code_that_was_altered_is_not_run(data: Path) -> None:
    function = make()
    (data / "hello/code/handler.py").write_text("other")
    with pytest.raises(HostError, match="altered"):
        store.load_code(function)
    (data / "hello/code/handler.py").unlink()
    with pytest.raises(HostError, match="altered"):
        store.load_code(function)


def test_code_of_one_that_was_changed_since() -> None:
    function = make()
    make(code={"handler.py": b"new"})
    with pytest.raises(UnknownFunctionError, match="changed"):
        store.load_code(function)


@pytest.mark.parametrize("text", ["", "{}", "[", '{"format": 9}'])
def test_a_function_that_cannot_be_read(data: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    make()
    (data / "hello/function.json").write_text(text)
    with pytest.raises(HostError, match=r"function\.json"):
        store.find("hello")
    assert store.installed() == []
    assert "hello" in caplog.text


def test_a_file_and_a_folder_are_code(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    for path, content in {**CODE, ".git/config": b"", "lib/__pycache__/more.pyc": b""}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    assert store.read_code(folder, "handler.py") == CODE
    assert store.read_code(folder / "lib/more.py", "handler.py") == {"handler.py": b"x = 1\n"}


def test_what_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            store.read_code(path, "handler.py")

    folder = tmp_path / "code"
    refused(folder, "No such file")
    folder.mkdir()
    refused(folder, "is empty")
    (folder / "link").symlink_to("/etc/passwd")
    refused(folder, "not a regular file")
    (folder / "link").unlink()
    (folder / "folder").symlink_to("/etc")
    refused(folder, "not a regular file")
    (folder / "folder").unlink()
    os.mkfifo(folder / "fifo")
    refused(folder, "not a regular file")
    (folder / "fifo").unlink()
    (folder / "big").write_bytes(b"12345")
    monkeypatch.setattr(store, "MAX_FILES_SIZE", 4)
    refused(folder, "too large")
    refused(folder / "big", "too large")


def test_a_digest_is_of_names_and_contents() -> None:
    digests = [store.digest(code) for code in ({"a": b"bc"}, {"ab": b"c"}, {"a": b"b", "c": b""}, {"a": b"", "b": b"c"})]
    assert len(set(digests)) == 4
    assert store.digest({"a": b"1", "b": b"2"}) == store.digest({"b": b"2", "a": b"1"})
