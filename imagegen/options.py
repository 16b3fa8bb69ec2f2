"""What image to build, and how."""

import dataclasses
import platform
import re
from pathlib import Path

from mayfly.errors import ConfigError
from mayfly.imagegen.languages import Language, Packages
from mayfly.imagegen.oci.documents import MACHINE_TO_GOARCH
from mayfly.imagegen.oci.reference import Reference
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.images.manifest import COMPRESSIONS

_VERSION = re.compile(r"[0-9][A-Za-z0-9.+_-]{0,31}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to build, and how.

    With a `version` (`1.63`) the image must have that one. It is kept beside the one without, which
    is the language's default. `prepare_with` is put before the command that runs prepare steps, for
    hosts where no machine runs. `packages` are what the image is to have besides, each as the
    language's own tools write it, from the registry at `packages_from` or else the language's own.
    """

    language: Language
    version: str = ""
    reference: Reference
    arch: str = platform.machine()
    compression: str = "zstd"
    insecure: bool = False
    offline: bool = False
    force: bool = False
    prepare_with: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    packages_from: str = ""
    limits: Limits = dataclasses.field(default_factory=Limits)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.arch not in MACHINE_TO_GOARCH:
            raise ConfigError(f"architecture {self.arch!r} is none of {', '.join(MACHINE_TO_GOARCH)}")
        if self.compression not in COMPRESSIONS:
            raise ConfigError(f"compression {self.compression!r} is none of {', '.join(COMPRESSIONS)}")
        if self.version and not _VERSION.fullmatch(self.version):
            raise ConfigError(f"{self.version!r} is not a version", hint="write it as rust@1.63")
        if self.packages and self.language.packages is None:
            raise ConfigError(f"images of {self.language.name} take no packages", hint="leave out --package")

    @property
    def with_packages(self) -> Packages | None:
        """How the packages come in that are asked for, if any are."""
        return self.language.packages if self.packages else None

    @property
    def name(self) -> str:
        """The language, and the version if one is asked for: `rust`, `rust@1.63`."""
        return f"{self.language.name}@{self.version}" if self.version else self.language.name
