"""Files that a program left come back if they were asked for, and nothing else does."""

import base64
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from mayfly.errors import CollectError, UnprocessableError
from mayfly.host.snippet import Snippet
from mayfly.protocol.frames import Collected, FileEntry
from mayfly.runs.files import MAX_FILES, Files
from tests.unit.runs.test_service import one
from tests.unit.runs.test_service import serve as serve

WRITE = b"mkdir out; printf abc > out/a.txt; printf '\\377' > b.bin; chmod 755 b.bin; ln -s /etc/passwd c.txt; exit 3"


def contents(result: dict[str, Any]) -> dict[str, bytes]:
    return {name: base64.b64decode(file["base64"]) for name, file in result["files"].items()}


def test_what_matches_comes_back_whatever_the_exit_code(serve: Callable[..., Any]) -> None:
    result = serve(one(source=WRITE, collect=("out/*", "*.bin")))
    assert contents(result) == {"out/a.txt": b"abc", "b.bin": b"\xff"}
    assert (result["status"], result["exit_status"], "files_error" in result) == ("failed", 3, False)
    assert contents(serve(one(source=b"true", collect=("*.png",)))) == {}


def test_nothing_comes_back_unasked_or_unbuilt(serve: Callable[..., Any]) -> None:
    assert "files" not in serve(one(source=WRITE))
    assert "files" not in serve(one(source=b"if", collect=("*",)))


def test_more_than_is_allowed_is_an_error_that_leaves_the_result(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"head -c 5000 /dev/zero > a; head -c 5001 /dev/zero > b; echo out", collect=("?",)), collect_bytes=10_000)
    assert (result["status"], result["steps"][1]["stdout"], result["files"]) == ("ok", "out\n", {})
    assert (result["files_error"]["code"], "10000 bytes" in result["files_error"]["message"]) == ("collect_failed", True)
    many = serve(one(source=f"seq {MAX_FILES + 1} | xargs touch".encode(), collect=("*",)))
    assert many["files_error"]["code"] == "collect_failed"


@pytest.mark.parametrize("name", ["a\\033[1m", "a\\nb", "\\377"])
def test_a_name_that_could_do_harm_is_refused(serve: Callable[..., Any], name: str) -> None:
    result = serve(one(source=f"touch \"$(printf '{name}')\"".encode(), collect=("*",)))
    assert (result["status"], result["files"], result["files_error"]["code"]) == ("ok", {}, "collect_failed")


def test_a_guest_that_makes_names_up(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"touch x", collect=("x",)), fault="escape")
    assert (result["status"], result["files"], result["files_error"]["code"]) == ("ok", {}, "collect_failed")
    files = Files()
    for path in ("/work/a", "/work/a/b"):
        files.take(Collected(0, FileEntry(path, 0o100644, 0), ends=True, last=False, data=b""))
    with pytest.raises(CollectError, match="both a file and the folder"):
        files.finish()


def test_a_tar_of_them() -> None:
    files = Files()
    for name, mode, data in (("ä/b", 0o100755, b"abc"), ("x" * 200, 0o100600, b"")):
        files.take(Collected(0, FileEntry(f"/work/{name}", mode, len(data)), ends=True, last=False, data=data))
    files.take(Collected(2, None, ends=False, last=True, data=b""))
    files.finish()
    with tarfile.open(fileobj=io.BytesIO(files.as_tar())) as tar:
        entries = {entry.name: (entry.mode, entry.mtime, entry.uid) for entry in tar}
        reader = tar.extractfile("ä/b")
        assert reader is not None and reader.read() == b"abc"
    assert entries == {"ä/b": (0o755, 0, 0), "x" * 200: (0o644, 0, 0)}


@pytest.mark.parametrize("glob", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\nb", "x" * 1001])
def test_patterns_that_are_refused(glob: str) -> None:
    with pytest.raises(UnprocessableError, match="collect has the pattern"):
        Snippet(source=b"", collect=(glob,))
