"""The images that are installed here: found by language, version or file name, looked up at each
call, so that a new one counts at once.
"""

import contextlib
import logging
import platform
import re
from pathlib import Path
from typing import NamedTuple

from mayfly import paths
from mayfly.errors import ImageError, ImageNotFoundError, UnknownLanguageError
from mayfly.files import remove_folder
from mayfly.images import manifest
from mayfly.images.manifest import Manifest

log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z][a-z0-9+_-]*(@[A-Za-z0-9][A-Za-z0-9._-]*)?")
"""What may be a language: nothing that could be a path."""


class InstalledImage(NamedTuple):
    """An installed image."""

    folder: Path
    manifest: Manifest

    @property
    def initramfs(self) -> Path:
        """The guest's root."""
        return self.folder / "initramfs"

    @property
    def is_default(self) -> bool:
        """Whether it was built for the language as such (`rust`), not for a version of it
        (`rust@1.63`).
        """
        return "@" not in self.folder.parent.name

    def answers(self, name: str) -> bool:
        """Whether it is meant by `rust`, or by `rust@1.85` when its version is 1.85 or 1.85.1."""
        language, _, version = name.partition("@")
        return language == self.manifest.language and (not version or f"{self.manifest.version}.".startswith(f"{version}."))


def targeted(language: str, target: str) -> str:
    """The language whose programs are those of `language`, compiled to a target: `rust-wasm@1.85`
    for `rust@1.85` and `wasm`.
    """
    name, at, version = language.partition("@")
    return f"{name}-{target}{at}{version}" if target and name != target else language


class Images:
    """The images of this host's architecture, or of those only the ones in `languages`."""

    def __init__(self, languages: tuple[str, ...] = (), arch: str = "") -> None:
        self.arch = arch or platform.machine()
        self._languages = languages
        self._known: dict[Path, tuple[object, Manifest]] = {}  # with what shows that it is still the same

    def installed(self) -> list[InstalledImage]:
        """All that are whole, by language, of each the default first, then the highest version; a
        broken one is logged and left out.
        """
        found = []
        base = paths.data_dir() / "images"
        for folder in sorted(base.glob(f"*/{self.arch}")):
            try:
                image = InstalledImage(folder, self._load(folder))
            except ImageNotFoundError:
                continue  # being built, or removed
            except (ImageError, OSError) as error:
                log.warning("an image is left out: %s", error)
                continue
            if self._is_served(image):
                found.append(image)
        found.sort(key=lambda image: _sortable(image.manifest.version), reverse=True)
        found.sort(key=lambda image: (image.manifest.language, not image.is_default))
        return found

    def default(self) -> str:
        """The language of a request that names none.

        Raises:
            UnknownLanguageError: the server was not started with exactly one.
        """
        if len(self._languages) != 1:
            raise UnknownLanguageError("no language is given", hint="add ?language=NAME; GET /languages lists them")
        return self._languages[0]

    def find(self, name: str) -> InstalledImage:
        """The default image of a language, or its highest version if it has none; with a version
        (`rust@1.85`) one that fits it.

        Raises:
            UnknownLanguageError: there is none, or it is not served here.
        """
        is_name = _NAME.fullmatch(name)
        if is_name and "@" not in name:  # the usual case, for which the others need not be read
            with contextlib.suppress(ImageError, OSError):
                folder = paths.image_dir(name, self.arch)
                image = InstalledImage(folder, self._load(folder))
                if image.answers(name) and self._is_served(image):
                    return image
        images = self.installed()
        if is_name:
            for image in images:
                if image.answers(name):
                    return image
            self._refuse_broken(name)
        known = ", ".join(f"{image.manifest.language}@{image.manifest.version}" for image in images)
        hint = f"there are: {known}" if known else "no image is installed; build one: imagegen build rust"
        raise UnknownLanguageError(f"no image for the language {name[:80]!r} and {self.arch} machines", hint=hint)

    def _is_served(self, image: InstalledImage) -> bool:
        return not self._languages or any(image.answers(name) for name in self._languages)

    def _load(self, folder: Path) -> manifest.Manifest:
        now = manifest.stamps(folder)
        before, known = self._known.get(folder, (None, None))
        if known is not None and now == before:
            return known
        found = manifest.load(folder)
        if found.arch != self.arch:
            raise ImageError(
                f"{folder}: the image is for {found.arch}, machines here are {self.arch}", hint="build it again: imagegen build LANG"
            )
        self._known[folder] = now, found
        return found

    def _refuse_broken(self, name: str) -> None:
        """Say so if there is an image by this name which was left out because it is broken."""
        try:
            self._load(paths.image_dir(name, self.arch))
        except ImageNotFoundError:
            pass
        except (ImageError, OSError) as error:
            hint = f"build the image again: imagegen build {name}"
            raise UnknownLanguageError(f"the image for the language {name!r} is broken: {error}", hint=hint) from error

    def for_file(self, path: Path, target: str = "") -> InstalledImage:
        """The image whose language has the extension of `path`, and the target.

        Raises:
            UnknownLanguageError: none has it.
        """
        images = [image for image in self.installed() if image.manifest.target == target or image.manifest.language == target]
        for image in images:
            if path.suffix and path.suffix in image.manifest.extensions:
                return image
        known = ", ".join(sorted({extension for image in images for extension in image.manifest.extensions}))
        hint = f"name the language with --language; extensions known here: {known}" if known else "build an image: imagegen build rust"
        which = f"language with the target {target}" if target else "language"
        raise UnknownLanguageError(f"{path}: no {which} has the extension {path.suffix!r}", hint=hint)


def image_folders() -> list[Path]:
    """The folders of all images, sorted by language and architecture."""
    root = paths.data_dir() / "images"
    return sorted(path.parent for path in root.glob("*/[!.]*/manifest.json"))


def remove(folder: Path) -> None:
    """Remove an image, in one step for those who look for it."""
    remove_folder(folder)
    with contextlib.suppress(OSError):  # another image of the language is there
        folder.parent.rmdir()


def _sortable(version: str) -> tuple[tuple[int, str], ...]:
    """A version as something whose order is that of its numbers: 1.9 before 1.85.

    Only ASCII digits are a number: `int` refuses other characters that `str.isdigit` takes.
    """
    return tuple((int(part), "") if re.fullmatch("[0-9]{1,64}", part) else (-1, part) for part in re.split(r"[.\-+_]", version))
