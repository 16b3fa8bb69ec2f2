"""OCI and Docker documents: index, manifest, configuration. Bytes in, frozen values out; every
field is checked, for a registry may lie. Fields that are not named here may be anything.

OCI image-spec 1.1: descriptor.md, image-index.md, manifest.md, config.md; Docker's schema 2 has the
same shape under other media types.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Meta

from mayfly.errors import ImageError, MalformedError, RegistryError, SchemaError
from mayfly.files import file_digest
from mayfly.imagegen.digests import DIGEST, digest_of
from mayfly.schema import decode

_T = TypeVar("_T")
INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_TYPES = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
MACHINE_TO_GOARCH: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}
MAX_DOCUMENT = 4 << 20
"""Bytes of a manifest or configuration: what registries take at least (distribution-spec, Pushing
Manifests) and skopeo at most.
"""
MAX_LAYERS = 512
MAX_INDEX_DEPTH = 3
MAX_TRIED = 8
"""Entries of an index without a platform, whose configurations are looked at for it."""
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
_BASE_VARIANTS = {"amd64": "v1", "arm64": "v8"}
"""What containerd takes for the same as none (containerd/platforms, database.go)."""

Digest = Annotated[str, Meta(pattern=rf"^({DIGEST})\Z", extra={"allowed": "a digest (sha256 or sha512)"})]


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is for (image-index.md). Two are compared by their names."""

    os: str = ""
    architecture: str = ""
    variant: str | None = None

    @property
    def name(self) -> str | None:
        """`os/arch` or `os/arch/variant`, in the one spelling; None where it says too little."""
        if not self.os or not self.architecture:
            return None
        arch = _ARCHITECTURES.get(self.architecture.lower(), self.architecture.lower())
        base = _BASE_VARIANTS.get(arch, "")
        variant = self.variant or ""
        return f"{self.os.lower()}/{arch}" + (f"/{variant}" if variant not in ("", base, base[1:]) else "")


class Annotations(msgspec.Struct, frozen=True, kw_only=True):
    """Those of a descriptor that are read (annotations.md)."""

    tag: str | None = msgspec.field(default=None, name="org.opencontainers.image.ref.name")


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A pointer to a blob: what it is, its digest and its size in bytes (descriptor.md)."""

    digest: Digest
    size: Annotated[int, Meta(ge=0)]
    media_type: str = ""
    platform: Platform | None = None
    annotations: Annotations | None = None

    @property
    def platform_name(self) -> str | None:
        """What the blob is for, where an index says so."""
        return self.platform.name if self.platform else None

    @property
    def tag(self) -> str | None:
        """The name that a layout's index gives to the blob."""
        return self.annotations.tag if self.annotations else None


class Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An index if it has `manifests`, else a manifest (image-index.md, manifest.md). `entries` are
    those of the index that can be used.
    """

    schema_version: int = 2
    manifests: tuple[msgspec.Raw, ...] | msgspec.UnsetType = msgspec.UNSET
    config: Descriptor | None = None
    layers: Annotated[tuple[Descriptor, ...], Meta(max_length=MAX_LAYERS)] | None = None
    artifact_type: str | None = None

    @property
    def is_index(self) -> bool:
        """Which of the two it is."""
        return self.manifests is not msgspec.UNSET

    @property
    def entries(self) -> tuple[tuple[msgspec.Raw, Descriptor], ...]:
        """The index's descriptors, beside what they were read from. Entries without a size, or
        without a digest that can be checked, are passed over (image-index.md, manifests).
        """
        raws = () if self.manifests is msgspec.UNSET else self.manifests
        return tuple((raw, found) for raw in raws if (found := _read_entry(raw)) is not None)


class _RootFs(msgspec.Struct, frozen=True, kw_only=True):
    diff_ids: tuple[Digest, ...]


class _RunConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    env: tuple[Annotated[str, Meta(pattern=r"^[^\0]*\Z", extra={"allowed": "text without NUL"})], ...] | None = None
    working_dir: str | None = None
    user: str | None = None


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration (config.md)."""

    os: str
    architecture: str
    variant: str | None = None
    rootfs: _RootFs
    config: _RunConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What of an OCI configuration matters here."""

    platform: str
    env: Mapping[str, str]
    working_dir: str
    user: str
    diff_ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedImage:
    """One image for one platform: all that is known without reading a layer."""

    manifest_digest: str
    config_digest: str
    config: ImageConfig
    layers: tuple[Descriptor, ...]


class Source(Protocol):
    """Where documents come from: a registry or a layout. Contents are checked against their digests
    by the caller too.
    """

    def root(self) -> tuple[str, bytes]:
        """The media type (may be empty) and the bytes of the document that the reference names."""
        ...

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or a configuration."""
        ...

    def blob(self, descriptor: Descriptor) -> Path:
        """A file with the blob of a layer, fetched if need be."""
        ...


def resolve(source: Source, arch: str) -> ResolvedImage:
    """Follow a reference through index and manifest to the configuration, for machines of type
    `arch` (`x86_64`).

    Raises:
        ImageError: the index has no such platform, or the image is one for another.
        RegistryError: a document is not what its digest says, or makes no sense.
    """
    wanted = f"linux/{MACHINE_TO_GOARCH.get(arch, arch)}"
    return _resolve(source, source.root()[1], wanted, depth=0, stated=False)


class _OtherPlatformError(ImageError):
    """An image is for another platform than the one that is wanted, or an artifact for none."""


def _resolve(source: Source, data: bytes, wanted: str, *, depth: int, stated: bool) -> ResolvedImage:
    """Follow the document `data`, whose platform an index has `stated` to be the wanted one.

    What a document is its fields say, not its media type: registries and files get that wrong.
    """
    document = read(Document, data, "manifest")
    if not document.is_index:
        return _resolve_manifest(source, data, document, wanted, stated=stated)
    if document.layers is not None or document.config is not None:
        # Two tools would see two images in it (CVE-2021-41190).
        raise RegistryError("the image's manifest is an index too", hint="do not use the image")
    if depth == MAX_INDEX_DEPTH:
        raise RegistryError(f"the image has more than {MAX_INDEX_DEPTH} indexes inside one another")
    entries = [entry for _, entry in document.entries if entry.media_type in ("", *INDEX_TYPES, *MANIFEST_TYPES)]
    named = [entry for entry in entries if entry.platform_name == wanted][:1]
    other: ImageError | None = None
    for entry in named or [entry for entry in entries if entry.platform_name is None][:MAX_TRIED]:
        try:
            return _resolve(source, fetch_document(source, entry), wanted, depth=depth + 1, stated=stated or bool(named))
        except _OtherPlatformError as error:
            other = error
    if other is not None and len(entries) == 1:
        raise other
    found = ", ".join(sorted({entry.platform_name or "unnamed" for entry in entries})) or "nothing"
    raise _OtherPlatformError(f"the image is not there for {wanted}; its index has {found}", hint="choose another image, or give --arch")


def fetch_document(source: Source, descriptor: Descriptor) -> bytes:
    """The document behind a descriptor, of the size and the digest that it states."""
    if descriptor.size > MAX_DOCUMENT:
        raise RegistryError(f"{descriptor.digest} is said to have {descriptor.size} bytes; a document may have {MAX_DOCUMENT}")
    data = source.document(descriptor)
    found = digest_of(data, descriptor.digest)
    if found != descriptor.digest or len(data) != descriptor.size:
        raise RegistryError(
            f"asked for {descriptor.digest} of {descriptor.size} bytes, got {found} of {len(data)}",
            hint="the source is damaged or lies; do not use the image",
        )
    return data


def _resolve_manifest(source: Source, data: bytes, document: Document, wanted: str, *, stated: bool) -> ResolvedImage:
    if document.schema_version != 2 or document.config is None or document.layers is None:
        raise RegistryError("the image's manifest is not of schema version 2", hint="push it again with a present-day tool")
    layers, config_at = document.layers, document.config
    config_data = fetch_document(source, config_at)
    try:
        config = parse_config(config_data)
    except RegistryError as error:
        if config_at.media_type in ("", *CONFIG_TYPES):
            raise
        kind = str(document.artifact_type or config_at.media_type)[:100]
        raise _OtherPlatformError(
            f"what is there is an artifact of type {kind!r}, not a container image",
            hint="choose another image; for one that imagegen pushed: imagegen pull",
        ) from error
    if config.platform != wanted and not stated:  # containerd believes the index too, where both say something
        raise _OtherPlatformError(f"the image is for {config.platform}, not for {wanted}", hint="choose another image, or give --arch")
    if len(layers) != len(config.diff_ids):
        raise RegistryError(f"the manifest has {len(layers)} layers, the configuration {len(config.diff_ids)}")
    return ResolvedImage(manifest_digest=digest_of(data), config_digest=config_at.digest, config=config, layers=layers)


class Artifact(NamedTuple):
    """An artifact: its manifest, and what that says of its configuration and its layers."""

    manifest: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]


def write_artifact(artifact_type: str, config: Descriptor, layers: Sequence[Descriptor], subject: Descriptor | None = None) -> bytes:
    """An artifact's manifest (manifest.md, Guidelines for Artifact Usage); `subject`: what it is
    about.
    """
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": artifact_type,
        "config": _pointer(config),
        "layers": [_pointer(layer) for layer in layers],
        **({"subject": _pointer(subject)} if subject else {}),
    }
    return json.dumps(document, indent=2, sort_keys=True).encode()


def _pointer(to: Descriptor) -> dict[str, object]:
    return {"mediaType": to.media_type, "digest": to.digest, "size": to.size}


def descriptor_of(media_type: str, data: bytes) -> Descriptor:
    """The descriptor of a blob."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def descriptor_of_file(media_type: str, path: Path) -> Descriptor:
    """The descriptor of a blob that is in a file."""
    return Descriptor(media_type=media_type, digest=file_digest(path), size=path.stat().st_size)


def read_artifact(source: Source) -> Artifact:
    """The one artifact that `source` has.

    Raises:
        RegistryError: it has several, or something that is not an artifact.
    """
    data = source.root()[1]
    document = read(Document, data, "manifest")
    if document.is_index:  # a layout's
        entries = document.entries
        if len(entries) != 1:
            raise RegistryError(f"the layout holds {len(entries)} artifacts, not one", hint="give a folder with one artifact")
        data = fetch_document(source, entries[0][1])
        document = read(Document, data, "manifest")
    if document.config is None or document.layers is None:
        raise RegistryError("the manifest lacks a configuration or layers", hint="push it again with a present-day tool")
    return Artifact(data, document.config, document.layers)


def _read_entry(raw: msgspec.Raw) -> Descriptor | None:
    try:
        return msgspec.json.decode(raw, type=Descriptor)
    except (msgspec.DecodeError, RecursionError):
        return None


def parse_config(data: bytes) -> ImageConfig:
    """Read an image configuration (OCI image-spec, config.md).

    Raises:
        RegistryError: a field that we need is missing or of the wrong type.
    """
    found = read(_Config, data, "configuration")
    run = found.config or _RunConfig()
    return ImageConfig(
        platform=Platform(os=found.os, architecture=found.architecture, variant=found.variant).name or "",
        env=dict(item.split("=", 1) for item in run.env or () if "=" in item and not item.startswith("=")),
        working_dir=run.working_dir or "",
        user=run.user or "",
        diff_ids=found.rootfs.diff_ids,
    )


def read(kind: type[_T], data: bytes, what: str) -> _T:
    """Decode a document. Raises RegistryError, which names `what` it was to be."""
    try:
        return decode(kind, data)
    except MalformedError as error:
        raise RegistryError(f"the image's {what} is not JSON") from error
    except SchemaError as error:
        raise RegistryError(f"the image's {what}: {error.message}") from error
