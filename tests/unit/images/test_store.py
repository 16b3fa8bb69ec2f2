"""Images are read once, and again when they have changed."""

from pathlib import Path

import msgspec
import pytest

from mayfly.errors import UnknownLanguageError
from mayfly.images import manifest
from mayfly.images.store import Images
from tests.kit.api_fakes import install_toys


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Images:
    install_toys(monkeypatch, tmp_path)
    return Images()


def test_an_image_is_read_once(images: Images) -> None:
    assert images.find("toy").manifest is images.find("toy").manifest


def test_an_image_that_was_built_again_counts_at_once(images: Images) -> None:
    found = images.find("toy")
    path = found.folder / "manifest.json"
    path.write_text(msgspec.structs.replace(found.manifest, version="77").to_json())
    assert images.find("toy").manifest.version == "77"


def test_an_image_that_was_damaged_or_removed_counts_no_more(images: Images) -> None:
    found = images.find("toy")
    found.initramfs.write_bytes(b"another size")
    with pytest.raises(UnknownLanguageError, match="broken"):
        images.find("toy")
    found.initramfs.unlink()
    assert manifest.stamps(found.folder) is None
    with pytest.raises(UnknownLanguageError, match="missing"):
        images.find("toy")
