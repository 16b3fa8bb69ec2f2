"""What is measured beside ours from PyPI: the root that they get, and what is said of one that does
not come up.
"""

import tarfile
from pathlib import Path

import msgspec
import pytest

from mayfly.imagegen.oci.documents import Descriptor, Document, read
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.reference import LayoutReference
from scripts.bench import boxes


def test_the_root_is_an_image_with_busybox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"program")
    monkeypatch.setattr(boxes, "BUSYBOX", busybox)
    boxes.make_layout(tmp_path / "layout")
    source = LayoutSource(LayoutReference(path=tmp_path / "layout", tag="busybox:bench"))
    [(_, image)] = read(Document, source.root()[1], "index").entries
    layer = msgspec.json.decode(source.document(image))["layers"][0]
    with tarfile.open(source.blob(msgspec.convert(layer, Descriptor))) as tar:
        program = tar.extractfile("bin/busybox")
        assert program is not None
        assert program.read() == b"program"


LIBRARY = """
import time
from types import SimpleNamespace as MachineConfig, SimpleNamespace as ResourceSpec

class Machine:
    def create(config):
        return Machine()
    def branch(self, name):
        assert not name.endswith("1") or not DEAD, "no fork"
        return Machine()
    def exec(self, command):
        time.sleep(0.01)
    def delete(self):
        print("deleted")
"""


def library(folder: Path, text: str) -> None:
    """A package that is none of theirs."""
    (folder / "fetched" / "smolvm").mkdir(parents=True)
    (folder / "fetched" / "smolvm" / "smol.py").write_text(text)
    (folder / "work").mkdir()


def test_each_start_and_fork_is_timed_but_the_first(tmp_path: Path) -> None:
    library(tmp_path, LIBRARY + "DEAD = False")
    times = boxes.measure("smolvm", tmp_path / "fetched", tmp_path / "work", 9)
    assert {kind: len(each) for kind, each in times.items()} == {"cold": 9, "restored": 9, "by api": 9}
    assert all(each["first_s"] >= 0.01 and each["answer_s"] >= 0.01 for each in [*times["cold"], *times["restored"]])
    assert times["by api"] == [each["first_s"] for each in times["restored"]]
    assert (tmp_path / "work" / "said").read_text().count("deleted") == 19  # all but the one that is forked


@pytest.mark.parametrize(("text", "says"), [("raise RuntimeError('no machine')", "no machine"), (LIBRARY + "DEAD = True", "no fork")])
def test_one_that_does_not_come_up_is_left_out_with_its_reason(tmp_path: Path, text: str, says: str) -> None:
    library(tmp_path, text)
    with pytest.raises(SystemExit, match=says):
        boxes.measure("smolvm", tmp_path / "fetched", tmp_path / "work", 1)


def test_one_that_hangs_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(boxes, "DEADLINE_S", 3.0)
    library(tmp_path, "print('hm', flush=True); import time; time.sleep(60)")
    with pytest.raises(SystemExit, match="within 6 s; hm"):
        boxes.measure("smolvm", tmp_path / "fetched", tmp_path / "work", 1)
