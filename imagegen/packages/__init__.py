"""Third-party packages of an image: found in the language's own registry, pinned by digest,
unpacked into its tree.
"""

from collections.abc import Mapping
from typing import Protocol

from mayfly.files import storing
from mayfly.imagegen.options import Options
from mayfly.imagegen.packages import crates, debs, maven, modules, npm, wheels
from mayfly.imagegen.packages.target import Target
from mayfly.images.manifest import Package
from mayfly.paths import cache_dir


class Kind(Protocol):
    """A module for packages of one kind."""

    def add(self, target: Target) -> tuple[Package, ...]:
        """Put those that are asked for, with all that they need, into the image's tree."""

    def parse(self, text: str) -> object:
        """Read the name of one that is asked for. Raises ConfigError, ImageError."""


KINDS: Mapping[str, Kind] = {"crates": crates, "deb": debs, "maven": maven, "modules": modules, "npm": npm, "wheels": wheels}
"""By the kind that a language's file says."""


def check_packages(options: Options) -> None:
    """Refuse packages whose names make no sense, before anything is fetched.

    Raises:
        ConfigError: one is named so.
        ImageError: one is wanted in versions that no registry has.
    """
    known = options.with_packages
    if known is not None:
        for text in options.packages:
            KINDS[known.kind].parse(text)


def add_packages(target: Target) -> tuple[Package, ...]:
    """Put the packages that are asked for, with all that they need, into the image's tree.

    Raises:
        ConfigError: one is named in a way that makes no sense.
        ImageError: no set of packages fits together, or one is unsafe.
        RegistryError: the registry has not got them.
    """
    known = target.options.with_packages
    if known is None:
        return ()
    with storing(cache_dir()):
        added = KINDS[known.kind].add(target)
    target.progress.say(f"packages: {', '.join(f'{package.name} {package.version}' for package in added)}")
    return added
