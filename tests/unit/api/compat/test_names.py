"""Every language of ours has its names in the other contracts."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mayfly.api.compat.images import find_image
from mayfly.api.compat.judge0.languages import NUMBERS, image_of
from mayfly.images.manifest import LanguageStep
from mayfly.images.store import Images, InstalledImage
from tests.kit.api_fakes import install

NAMES = {
    "rust": ("rust", "rs", "Rust"),
    "go": ("go", "golang"),
    "python": ("python", "py", "python3"),
    "javascript": ("javascript", "js", "node", "nodejs", "node-javascript"),
    "typescript": ("typescript", "ts"),
    "java": ("java",),
    "c": ("c", "gcc"),
    "cpp": ("c++", "cpp", "C++"),
}
"""Those that Piston, Polycode, SandboxFusion and codapi's clients send."""
NUMBERED = {
    "rust": (73, 108),
    "go": (60, 95, 106, 107),
    "python": (71, 92, 100, 109, 113),
    "javascript": (63, 93, 97, 102),
    "typescript": (74, 94, 101),
    "java": (62, 91),
    "c": (48, 49, 50, 75, 103),
    "cpp": (52, 53, 54, 76, 105),
}
"""Judge0's that take submissions."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[InstalledImage]:
    """An image of each language."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for number, name in enumerate(NAMES):
        install(name, f".{number}", (LanguageStep(name="run", argv=("x",)),))
    return Images().installed()


def test_names_find_the_image(installed: Sequence[InstalledImage]) -> None:
    found = {name: tuple(word for word in words if find_image(installed, word).manifest.language == name) for name, words in NAMES.items()}
    assert found == NAMES


def test_numbers_find_the_image(installed: Sequence[InstalledImage]) -> None:
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    for number, known in NUMBERS.items():
        image = image_of(installed, number)
        if image is not None and not known.archived:
            found[image.manifest.language].append(number)
    assert {name: tuple(numbers) for name, numbers in found.items()} == NUMBERED


@pytest.mark.parametrize(("number", "version", "other"), [(97, "20.17.0", "22.8.0"), (100, "3.12.5", "3.13.2")])
def test_the_version_that_a_number_had_is_taken_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, version: str, other: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    language = NUMBERS[number].language
    for folder, each in ((language, other), (f"{language}@{version}", version)):
        install(language, ".x", (LanguageStep(name="run", argv=("x",)),), each, folder)
    image = image_of(Images().installed(), number)
    assert image is not None
    assert image.manifest.version == version
