"""The hosts of a fleet as a gateway knows them, by what they say each second."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mayfly.errors import ImageError, UnknownLanguageError
from mayfly.fleet.message import About, Beat, Held, encode, name_of, queue_of
from mayfly.images.manifest import Manifest
from mayfly.images.store import InstalledImage
from mayfly.snapshots.store import not_found

log = logging.getLogger(__name__)
SILENT_S = 3.5
"""A host that says nothing for so long is not counted any more."""
KNOWN_S = 600.0
"""How long the languages of a host that is gone are known: runs of them wait for it."""


class Host:
    """One host: what it said last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.beat: Beat | None = None
        self.at = 0.0
        self.about: About | None = None
        self.images: list[InstalledImage] = []

    @property
    def digest(self) -> str:
        """Which About of it is known."""
        return hashlib.sha256(encode(self.about)).hexdigest()[:16] if self.about else ""

    def take(self, about: About) -> None:
        """Take what it is. An image that cannot be read is left out."""
        self.about = about
        self.images = []
        for text in about.images:
            try:
                manifest = Manifest.from_json(text, f"an image of the host {self.name}")
            except ImageError as error:
                log.warning("fleet: an image is left out: %s", error)
                continue
            self.images.append(InstalledImage(Path(manifest.language, manifest.arch), manifest))


class Totals(NamedTuple):
    """Sums over all hosts."""

    waiting: int
    idle: int
    running: int
    memory_used: int
    memory_budget: int


class Roll:
    """Hosts by name. `ask_about` is called with one whose About is not known.

    Attributes:
        offered, snapshots_offered: the images that hosts can fetch, and the snapshots, each with
            its architecture.
    """

    def __init__(self, ask_about: Callable[[str], object]) -> None:
        self._ask_about = ask_about
        self._hosts: dict[str, Host] = {}
        self.offered: list[InstalledImage] = []
        self.snapshots_offered: list[tuple[Held, str]] = []

    def heard(self, name: str, beat: Beat) -> None:
        """A host is there."""
        host = self._hosts.setdefault(name, Host(name))
        host.beat, host.at = beat, asyncio.get_running_loop().time()
        if beat.about and beat.about != host.digest:
            self._ask_about(name)

    def told(self, name: str, about: About) -> list[InstalledImage]:
        """A host says what it is; its images."""
        host = self._hosts.setdefault(name, Host(name))
        host.take(about)
        return host.images

    def expire(self) -> None:
        """Forget those that are gone for long."""
        now = asyncio.get_running_loop().time()
        for name in [name for name, host in self._hosts.items() if now - host.at > KNOWN_S]:
            del self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        """Those that are there, by name."""
        now = asyncio.get_running_loop().time()
        return iter(sorted((host for host in self._hosts.values() if now - host.at < SILENT_S), key=lambda host: host.name))

    def installed(self) -> list[InstalledImage]:
        """The images that hosts can fetch, and those that they have besides; each language, version
        and architecture once.
        """
        found: dict[tuple[str, str, str], InstalledImage] = {}
        for images in (self.offered, *(host.images for host in self._hosts.values())):
            for image in images:
                found.setdefault((image.manifest.language, image.manifest.version, image.manifest.arch), image)
        return [found[key] for key in sorted(found)]

    def snapshots(self) -> dict[str, set[tuple[str, str]]]:
        """Of which architecture and image there are snapshots, by their names."""
        found: dict[str, set[tuple[str, str]]] = {}
        abouts = [host.about for host in self._hosts.values() if host.about]
        for held, arch in [*self.snapshots_offered, *((held, about.arch) for about in abouts for held in about.snapshots)]:
            found.setdefault(held.name, set()).add((arch, held.image))
        return found

    def queues(self) -> set[tuple[str, str]]:
        """The queues of snapshots that hosts have, or can fetch."""
        return {(arch, queue_of(image, name)) for name, where in self.snapshots().items() for arch, image in where}

    def fitting(self) -> set[tuple[str, str]]:
        """Those of them that a host may take runs of: it does not say that its machines cannot."""
        abouts = [host.about for host in self._hosts.values() if host.about]
        offered = {(arch, queue_of(one.image, one.name)) for one, arch in self.snapshots_offered}
        return {
            (about.arch, queue)
            for about in abouts
            for arch, queue in offered | {(about.arch, queue_of(one.image, one.name)) for one in about.snapshots}
            if arch == about.arch and queue not in about.unfit
        }

    def unfit(self, arch: str, queue: str) -> list[str]:
        """The hosts that say that their machines cannot go on from its snapshot."""
        return [name for name, host in sorted(self._hosts.items()) if host.about and host.about.arch == arch and queue in host.about.unfit]

    def find(self, name: str, arch: str = "", snapshot: str = "") -> InstalledImage:
        """The image of a language, or of a version of it: of the architecture whose hosts have the
        most memory free, unless it is named. With `snapshot` there is one of that name on it.

        Raises:
            UnknownLanguageError: no host has it.
            SnapshotNotFoundError: no host has a snapshot of that name on it.
        """
        fitting = [image for image in self.installed() if image.answers(name) and arch in ("", image.manifest.arch)]
        if not fitting:
            known = ", ".join(sorted({f"{image.manifest.language}@{image.manifest.version}" for image in self.installed()}))
            where = f" and {arch} machines" if arch else ""
            hint = f"there are: {known}" if known else "see that hosts are there: mayfly fleet list"
            raise UnknownLanguageError(f"no host of the fleet has an image for the language {name[:80]!r}{where}", hint=hint)
        if snapshot:
            there, places = self.snapshots(), {(image.manifest.arch, name_of(image)) for image in fitting}
            fitting = [image for image in fitting if (image.manifest.arch, name_of(image)) in there.get(snapshot, ())]
            if not fitting:
                raise not_found(snapshot, name[:80], sorted(one for one, where in there.items() if where & places))
        return max(fitting, key=lambda image: (self._free(image.manifest.arch), image.manifest.version))

    def _free(self, arch: str) -> int:
        return sum(
            host.beat.memory_budget - host.beat.memory_used
            for host in self
            if host.about and host.about.arch == arch and host.beat and not host.beat.draining
        )

    def others(self, name: str, arch: str, wanted: str) -> list[str]:
        """The hosts that could have a run of the host `name`: of the same version, with an image of
        the language or version `wanted`, those with the most memory free first.
        """
        from_ = self._hosts.get(name)
        version = from_.about.version if from_ and from_.about else ""
        free = {
            host.name: host.beat.memory_budget - host.beat.memory_used
            for host in self
            if host.name != name and host.about and host.beat and not host.beat.draining
            if host.about.arch == arch and host.about.version == version
            if any(image.answers(wanted) for image in host.images)
        }
        return sorted(free, key=lambda host: -free[host])

    def totals(self) -> Totals:
        """What all have together."""
        beats = [host.beat for host in self if host.beat]
        return Totals(
            waiting=sum(beat.waiting for beat in beats),
            idle=sum(beat.idle for beat in beats),
            running=sum(beat.running for beat in beats),
            memory_used=sum(beat.memory_used for beat in beats),
            memory_budget=sum(beat.memory_budget for beat in beats),
        )
