"""Names that make no sense, or of what is not there: said before anything is fetched."""

import platform
from pathlib import Path

import pytest
from click.testing import CliRunner

from mayfly.cli.image import cli
from mayfly.errors import ConfigError, ImageError, ImageNotFoundError
from mayfly.paths import image_dir


@pytest.mark.parametrize("command", ["inspect", "rm", "unpack", "export"])
@pytest.mark.parametrize(
    ("image", "hint"),
    [("haskell", "languages are c, c-wasm, cpp"), ("rust@1.63", "build it: imagegen build rust@1.63; images here are toy")],
)
def test_an_image_that_is_not_there_says_which_are(
    command: str, image: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    there = image_dir("toy", platform.machine())
    there.mkdir(parents=True)
    (there / "manifest.json").touch()
    refused = CliRunner().invoke(cli, [command, image, *(["folder"] if command in ("unpack", "export") else [])]).exception
    assert isinstance(refused, ImageNotFoundError)
    assert refused.message.startswith(f"there is no image '{image}' for ")
    assert refused.hint.startswith(hint)
    assert refused.hint.endswith("; images here are toy")


@pytest.mark.parametrize(
    ("language", "package"),
    [("python", "nump y"), ("python", "a==>1"), ("rust", "ser de"), ("rust", "serde@1..2"), ("go", "left"), ("javascript", "lo dash"),
     ("typescript", "left@git+https://example.org/left"), ("java", "json"), ("c", "Zlib"), ("cpp", "zlib1g dev")],
)  # fmt: skip
def test_a_package_that_is_not_a_name_is_refused_before_anything_is_fetched(language: str, package: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(cli, ["build", language, "--image", f"oci:{tmp_path}/none", "--package", package])
    assert isinstance(refused.exception, ConfigError | ImageError)
    assert package.rpartition("@")[2] in refused.exception.message
    assert refused.exception.hint
    assert refused.output == ""
