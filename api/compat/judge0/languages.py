"""Judge0's numbers of languages, and the images that run them here."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mayfly.api.compat.images import find_images, full_version, is_interpreted
from mayfly.images.manifest import LanguageStep
from mayfly.images.store import InstalledImage

MULTI_FILE = 89
MULTI_FILE_NAME = "Multi-file program"


class Number(NamedTuple):
    """What a number stands for: our name of the language, Judge0's, and the version that it had. An
    archived one is listed, but takes no submissions.
    """

    language: str
    title: str
    version: str
    archived: bool = False


NUMBERS: Mapping[int, Number] = {
    1: Number("bash", "Bash", "4.4", archived=True),
    2: Number("bash", "Bash", "4.0", archived=True),
    **{number: Number("c", "C", "", archived=True) for number in range(4, 10)},
    **{number: Number("c++", "C++", "", archived=True) for number in range(10, 16)},
    22: Number("go", "Go", "1.9", archived=True),
    **{number: Number("java", "Java", "", archived=True) for number in range(26, 29)},
    29: Number("javascript", "JavaScript", "8.5", archived=True),
    30: Number("javascript", "JavaScript", "7.10", archived=True),
    34: Number("python", "Python", "3.6", archived=True),
    35: Number("python", "Python", "3.5", archived=True),
    42: Number("rust", "Rust", "1.20", archived=True),
    46: Number("bash", "Bash", "5.0"),
    48: Number("c", "C", "7.4"),
    49: Number("c", "C", "8.3"),
    50: Number("c", "C", "9.2"),
    52: Number("c++", "C++", "7.4"),
    53: Number("c++", "C++", "8.3"),
    54: Number("c++", "C++", "9.2"),
    60: Number("go", "Go", "1.13"),
    62: Number("java", "Java", "13"),
    63: Number("javascript", "JavaScript", "12.14"),
    71: Number("python", "Python", "3.8"),
    73: Number("rust", "Rust", "1.40"),
    74: Number("typescript", "TypeScript", "3.7"),
    75: Number("c", "C", ""),
    76: Number("c++", "C++", ""),
    # Of later ones, for clients that have their numbers built in.
    91: Number("java", "Java", "17"),
    92: Number("python", "Python", "3.11"),
    93: Number("javascript", "JavaScript", "18.15"),
    94: Number("typescript", "TypeScript", "5.0"),
    95: Number("go", "Go", "1.18"),
    97: Number("javascript", "JavaScript", "20.17"),
    100: Number("python", "Python", "3.12"),
    101: Number("typescript", "TypeScript", "5.6"),
    102: Number("javascript", "JavaScript", "22.08"),
    103: Number("c", "C", "14.1"),
    105: Number("c++", "C++", "14.1"),
    106: Number("go", "Go", "1.22"),
    107: Number("go", "Go", "1.23"),
    108: Number("rust", "Rust", "1.85"),
    109: Number("python", "Python", "3.13"),
    113: Number("python", "Python", "3.14"),
}
"""Only languages that there can be an image of."""


def image_of(installed: Sequence[InstalledImage], number: int) -> InstalledImage | None:
    """The image that runs a language: of the version that Judge0 had if it is installed, else the
    language's default.
    """
    if number not in NUMBERS:
        return None
    images = find_images(installed, NUMBERS[number].language)
    for image in images if NUMBERS[number].version else ():
        if image.answers(f"{image.manifest.language}@{NUMBERS[number].version}"):
            return image
    return images[0] if images else None


def languages_of(installed: Sequence[InstalledImage]) -> list[dict[str, Any]]:
    """All languages that run here, by name, as `/languages/ID` has them."""
    found = [describe(number, image) for number in NUMBERS if (image := image_of(installed, number))]
    if found:
        found.append({"id": MULTI_FILE, "name": MULTI_FILE_NAME, "is_archived": False, **_NO_COMMANDS})
    return sorted(found, key=lambda language: (str(language["name"]), int(language["id"])))


_NO_COMMANDS = dict.fromkeys(("source_file", "compile_cmd", "run_cmd"))


def name_of(number: int, image: InstalledImage) -> str:
    """A language's name, with the version that it has here."""
    return MULTI_FILE_NAME if number == MULTI_FILE else f"{NUMBERS[number].title} ({full_version(image.manifest)})"


def describe(number: int, image: InstalledImage) -> dict[str, Any]:
    """A language as it is here."""
    content = image.manifest
    return {
        "id": number,
        "name": name_of(number, image),
        "is_archived": NUMBERS[number].archived,
        "source_file": content.source_file,
        "compile_cmd": None if is_interpreted(image) or len(content.steps) < 2 else _command(content.steps[0]),
        "run_cmd": _command(content.steps[-1]),
    }


def _command(step: LanguageStep) -> str:
    return " ".join(part for part in step.argv if part != "{args}")
