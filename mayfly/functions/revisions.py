"""Functions as they are now: each use looks whether function and image are still the same."""

from typing import NamedTuple

from mayfly.errors import UnknownFunctionError
from mayfly.functions import store
from mayfly.functions.making import Revision, revise
from mayfly.functions.store import Function
from mayfly.host.config import Config
from mayfly.host.networks import Networks
from mayfly.images.store import Images, InstalledImage


class _Known(NamedTuple):
    """A revision, and what shows that it is still the present one."""

    revision: Revision
    function_stamp: store.Stamp
    image_stamp: store.Stamp | None


class Revisions:
    """The revisions of functions that were used, by name."""

    def __init__(self, config: Config, images: Images, networks: Networks) -> None:
        self._config = config
        self._images = images
        self._networks = networks
        self._known: dict[str, _Known] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the function was used."""
        return name in self._known

    def forget(self, name: str) -> None:
        """The function is no more."""
        self._known.pop(name, None)

    def find(self, name: str) -> Function:
        """The function `name`.

        Raises:
            UnknownFunctionError: there is none.
            HostError: it cannot be read.
        """
        known = self._known.get(name)
        if known is not None and known.function_stamp == store.stamp(name):
            return known.revision.function  # each request asks, and reading the file takes long
        return store.find(name)

    def current(self, name: str) -> Revision:
        """The function with its image.

        Raises:
            UnknownFunctionError: there is none.
            MayflyError: it cannot be used with its image.
        """
        stamp, known = store.stamp(name), self._known.get(name)
        if stamp is None:
            raise UnknownFunctionError(f"no function {name[:80]!r}", hint="mayfly function list shows them")
        if known is not None and known[1:] == (stamp, _image_stamp(known.revision.image)):
            return known.revision
        function = store.find(name)
        revision = revise(function, self._images.find(function.spec.language), self._config, self._networks)
        self._known[name] = _Known(revision, stamp, _image_stamp(revision.image))
        return revision


def _image_stamp(image: InstalledImage) -> store.Stamp | None:
    try:
        return store.file_stamp(image.folder / "manifest.json")
    except OSError:
        return None
