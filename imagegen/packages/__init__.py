"""Third-party packages of an image: found in the language's own registry, pinned by digest,
unpacked into its tree.
"""

from collections.abc import Callable, Mapping

from mayfly.files import storing
from mayfly.imagegen.options import Options
from mayfly.imagegen.packages import crates, debs, maven, modules, npm, wheels
from mayfly.imagegen.packages.target import Target
from mayfly.images.manifest import Package
from mayfly.paths import cache_dir

ADD: Mapping[str, Callable[[Target], tuple[Package, ...]]] = {
    "crates": crates.add,
    "deb": debs.add,
    "maven": maven.add,
    "modules": modules.add,
    "npm": npm.add,
    "wheels": wheels.add,
}
"""By the kind that a language's file says."""
PARSE: Mapping[str, Callable[[str], object]] = {
    "crates": crates.parse,
    "deb": debs.parse,
    "maven": maven.parse,
    "modules": modules.parse,
    "npm": npm.parse,
    "wheels": wheels.parse,
}
"""What reads the name of one that is asked for."""


def check_packages(options: Options) -> None:
    """Refuse packages whose names make no sense, before anything is fetched.

    Raises:
        ConfigError: one is named so.
        ImageError: one is wanted in versions that no registry has.
    """
    known = options.with_packages
    if known is not None:
        for text in options.packages:
            PARSE[known.kind](text)


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
        added = ADD[known.kind](target)
    target.progress.say(f"packages: {', '.join(f'{package.name} {package.version}' for package in added)}")
    return added
