"""The images and snapshots that a fleet has in a registry, by digest: hosts that lack one fetch it
there when a run wants it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mayfly.errors import ConfigError, ImageError
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine
from mayfly.fleet.functions.messages import FleetFunction
from mayfly.fleet.message import Held, decode, encode, exact_name, name_of
from mayfly.fleet.shared import Shared, ask
from mayfly.images.manifest import Manifest
from mayfly.images.store import InstalledImage
from mayfly.snapshots.store import SnapshotManifest
from mayfly.vmm.snapshot import STATE

SUBJECT = "images"


class Offer(msgspec.Struct, kw_only=True, frozen=True):
    """An image in a registry, or a snapshot: where, with its digest; what it is, as JSON; whether
    the registry speaks plain HTTP. Of a snapshot also what another version of Mayfly can read: how
    hosts have it that have fetched it, and its architecture.
    """

    reference: str
    manifest: bytes
    insecure: bool = False
    snapshot: Held | None = None
    arch: str = ""

    @property
    def what(self) -> tuple[str, str]:
        """Its name and architecture, which no other offer of its kind has; of an image that
        cannot be read here, its reference.
        """
        if self.snapshot:
            return self.snapshot.name, self.arch
        try:
            return name_of(self.image), self.image.manifest.arch
        except ImageError:
            return self.reference, ""

    def read(self) -> object:
        """Its manifest. Raises ImageError, SnapshotError: hosts of this version cannot use it."""
        return SnapshotManifest.from_json(self.manifest, f"the snapshot {self.reference}") if self.snapshot else self.image

    @property
    def image(self) -> InstalledImage:
        """The image as it will be when it is installed, without its folder."""
        manifest = Manifest.from_json(self.manifest.decode(), f"the image {self.reference}")
        return InstalledImage(Path(manifest.language, manifest.arch), manifest)


class ImageChange(msgspec.Struct, kw_only=True):
    """An image to be offered, or the name of one that is no longer; neither: nothing changes."""

    add: Offer | None = None
    remove: str = ""


class Ask(msgspec.Struct, kw_only=True):
    """A host of that architecture asks for offers and functions, unless they are still those."""

    arch: str
    known: str = ""


class Offers(msgspec.Struct, kw_only=True):
    """The offers and functions, if there are others than those that are known."""

    known: str
    offers: list[Offer] | None = None
    functions: list[FleetFunction] | None = None


def load(data: bytes) -> list[Offer]:
    """The offers as they are kept."""
    return decode(data, type=list[Offer])


def images(bucket: Bucket) -> Shared[Offer]:
    """The images that are offered."""
    return Shared(bucket, "images", load, encode, Offer.read)


def snapshots(bucket: Bucket) -> Shared[Offer]:
    """The snapshots that are offered, where gateways do not see them that know of none."""
    return Shared(bucket, "snapshots", load, encode, Offer.read)


async def change_images(images: Shared[Offer], snapshots: Shared[Offer], data: bytes) -> bytes:
    """Do what an operator asks for; all that is offered then."""
    change = decode(data, type=ImageChange)
    removed: list[Offer] = []

    def add(offers: list[Offer]) -> None:
        if change.add is not None:
            offers[:] = [*(offer for offer in offers if offer.what != change.add.what), change.add]

    def remove(offers: list[Offer]) -> None:
        gone = [offer for offer in offers if offer.what[0] == change.remove]
        removed.extend(gone)
        offers[:] = [offer for offer in offers if offer not in gone]

    def keep(_: list[Offer]) -> None:
        pass

    found: list[Offer] = []
    for shared, is_here in ((images, change.add and not change.add.snapshot), (snapshots, change.add and change.add.snapshot)):
        found += load(await shared.change(add if is_here else remove if change.remove else keep))
    if change.remove and not removed:
        raise ConfigError(f"{change.remove[:80]!r} is not offered", hint="mayfly fleet image list")
    return encode(found)


async def change(engine: Engine, wanted: ImageChange) -> Sequence[Offer]:
    """Have a gateway change what is offered; all of it after that.

    Raises:
        ConfigError: there is no such image.
        FleetError: no gateway answers.
    """
    return load(await ask(engine, SUBJECT, encode(wanted)))


def make_offer(reference: str, *, insecure: bool = False) -> Offer:
    """What a registry has under a reference, as it can be offered.

    Raises:
        ConfigError: it names no registry, or a language's own snapshot, which each host makes.
        RegistryError: it cannot be had, or is no image of ours, and no snapshot.
        SnapshotError: it is a snapshot of another version of Mayfly.
    """
    from mayfly.host import artifacts
    from mayfly.imagegen.build import source_of
    from mayfly.imagegen.digests import digest_of
    from mayfly.imagegen.oci.artifact import inspect
    from mayfly.imagegen.oci.reference import RegistryReference, parse_reference
    from mayfly.imagegen.progress import Silent

    parsed = parse_reference(reference)
    if not isinstance(parsed, RegistryReference):
        raise ConfigError(f"{reference} is not in a registry", hint="put it into one: mayfly image push")
    source = source_of(parsed, Silent(), insecure=insecure, offline=False)
    snapshot = artifacts.inspect(source)
    data = snapshot or inspect(source).data
    where = f"{parsed.registry}/{parsed.repository}@{parsed.digest or digest_of(source.root()[1])}"
    if snapshot is None:
        return Offer(reference=where, manifest=data, insecure=insecure)
    found = SnapshotManifest.from_json(data, where)
    if re.split("[@.]", found.name)[0] == found.language:
        raise ConfigError(f"{found.name} is the name of a language's own snapshot", hint="push one that has another --name")
    held = Held(name=found.name, image=exact_name(found.language, found.version), digest=found.files[STATE])
    return Offer(reference=where, manifest=data, insecure=insecure, snapshot=held, arch=found.arch)
