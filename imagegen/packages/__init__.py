"""Third-party packages of an image: found in the language's own registry, pinned by digest,
unpacked into its tree.
"""

from mayfly.imagegen.packages import wheels
from mayfly.imagegen.packages.target import Target
from mayfly.images.manifest import Package


def add_packages(target: Target) -> tuple[Package, ...]:
    """Put the packages that are asked for, with all that they need, into the image's tree.

    Raises:
        ConfigError: one is named in a way that makes no sense.
        ImageError: no set of packages fits together, or one is unsafe.
        RegistryError: the registry has not got them.
    """
    if not target.options.packages:
        return ()
    added = wheels.add(target)
    target.progress.say(f"packages: {', '.join(f'{package.name} {package.version}' for package in added)}")
    return added
