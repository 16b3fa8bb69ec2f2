"""Which of our images and limits stand for what a request in another contract asks for."""

import re
from collections.abc import Mapping, Sequence

from mayfly.api.requests import MAX_SIZE, MAX_TIME_S
from mayfly.errors import UnknownLanguageError
from mayfly.host.config import Config
from mayfly.host.plan import largest_limit
from mayfly.images.manifest import Manifest
from mayfly.images.store import InstalledImage

NAMES = (
    ("rust", "rs"),
    ("go", "golang"),
    ("python", "py", "py3", "python3"),
    ("javascript", "js", "node", "nodejs", "node-js", "node-javascript"),
    ("typescript", "ts"),
    ("java",),
    ("c", "gcc"),
    ("c++", "cpp", "g++"),
    ("bash", "sh"),
)
"""Names that mean the same language, the common one first. An image may have any of them."""
INTERPRETED = ("python", "javascript", "bash")
"""Languages that the other contracts do not compile. What our images do before the run is a check:
where it finds something, that is what the run says.
"""


def names_of(language: str) -> tuple[str, ...]:
    """All names of a language, the common one first."""
    return next((names for names in NAMES if language in names), (language,))


def is_interpreted(image: InstalledImage) -> bool:
    """Whether other contracts know no compilation of the image's language."""
    return names_of(image.manifest.language)[0] in INTERPRETED


def find_images(installed: Sequence[InstalledImage], language: str) -> list[InstalledImage]:
    """Those of a language by that name, or else by another one of its names, the default first."""
    for name in (language, *names_of(language.lower())):
        if found := [image for image in installed if image.manifest.language == name]:
            return found
    return []


def find_image(installed: Sequence[InstalledImage], language: str, version: str = "") -> InstalledImage:
    """The one of a language by any of its names: the default, or one that fits the version.

    Raises:
        UnknownLanguageError: there is none.
    """
    images = find_images(installed, language)
    for image in images:
        if image.answers(f"{image.manifest.language}@{version}"):
            return image
    if images:
        known = ", ".join(image.manifest.version for image in images)
        raise UnknownLanguageError(f"no version {version[:80]!r} of the language {language[:80]!r}", hint=f"there are: {known}")
    known = ", ".join(sorted({names_of(image.manifest.language)[0] for image in installed}))
    raise UnknownLanguageError(f"no image for the language {language[:80]!r}", hint=f"there are: {known or 'none'}")


def full_version(manifest: Manifest) -> str:
    """The version in three numbers, as the compiler has it, or else with zeros."""
    found = re.search(r"\d+\.\d+\.\d+", manifest.compiler)
    if found and f"{found[0]}.".startswith(f"{manifest.version}."):
        return found[0]
    numbers = re.findall(r"\d+", manifest.version)[:3]
    return ".".join(str(int(number)) for number in [*numbers, "0", "0", "0"][:3])


def largest(image: InstalledImage, config: Config, name: str, *, building: bool) -> float:
    """The highest limit of that name that a step before the run, or the run, may have here; 0 if
    there is none.
    """
    steps = image.manifest.steps[:-1] if building else image.manifest.steps[-1:]
    return min((most for step in steps if (most := largest_limit(step, name, config))), default=0)


def limits_of(
    image: InstalledImage, config: Config, *, build: Mapping[str, float] = {}, run: Mapping[str, float] = {}
) -> dict[str, dict[str, float]]:
    """A snippet's limits by step, cut to what this server allows. 0 stands for its own limit."""
    limits = {}
    for step in image.manifest.steps:
        asked = run if step is image.manifest.steps[-1] else build
        cut = {}
        for name, value in asked.items():
            if value > 0:
                value = min(value, largest_limit(step, name, config) or (MAX_TIME_S if name.endswith("_s") else MAX_SIZE))
                cut[name] = value if name.endswith("_s") else max(1, int(value))
        limits[step.name] = cut
    return limits
