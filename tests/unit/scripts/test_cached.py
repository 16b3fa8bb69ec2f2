"""What is unpacked into the cache is made once, and waits for nothing else that is made."""

import threading
from pathlib import Path

import pytest

from scripts.debian.cached import cached
from tests.kit.scale import patience


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mayfly"


def fill(tree: Path) -> None:
    tree.mkdir()
    (tree / "program").write_text("made")


def test_one_is_made_while_another_is(cache: Path) -> None:
    begun, other_is_there = threading.Event(), threading.Event()

    def make(tree: Path) -> None:
        begun.set()
        assert other_is_there.wait(patience(30))
        fill(tree)

    slow = threading.Thread(target=cached, args=("slow", "a compiler", make))
    slow.start()
    assert begun.wait(patience(30))
    assert (cached("quick", "an emulator", fill) / "program").read_text() == "made"
    other_is_there.set()
    slow.join()
    assert (cache / "slow/program").read_text() == "made"


def test_who_wants_the_same_waits_and_does_not_make_it_again(cache: Path) -> None:
    made: list[Path] = []

    def make(tree: Path) -> None:
        made.append(tree)
        fill(tree)

    both = [threading.Thread(target=cached, args=("one", "a compiler", make)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(made) == 1
    assert sorted(path.name for path in cache.iterdir()) == [".one.lock", "one"]


def test_what_could_not_be_made_leaves_nothing(cache: Path) -> None:
    def make(tree: Path) -> None:
        fill(tree)
        raise OSError("the mirror is gone")

    with pytest.raises(OSError, match="the mirror is gone"):
        cached("one", "a compiler", make)
    assert [path.name for path in cache.iterdir()] == [".one.lock"]
