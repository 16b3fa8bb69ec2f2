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


@pytest.mark.parametrize(
    ("library", "says"),
    [("raise RuntimeError('no machine')", "no machine"), ("print('hm', flush=True); import time; time.sleep(60)", "within 2 s; hm")],
)
def test_one_that_does_not_come_up_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, says: str
) -> None:
    monkeypatch.setattr(boxes, "DEADLINE_S", 2.0)
    (tmp_path / "smolvm").mkdir()
    (tmp_path / "smolvm" / "smol.py").write_text(library)
    with pytest.raises(SystemExit, match=says):
        boxes.one("smolvm", tmp_path, tmp_path)
