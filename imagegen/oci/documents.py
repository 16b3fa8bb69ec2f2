"""OCI and Docker documents: index, manifest, configuration. Bytes in, frozen values out; every
field is checked, for a registry may lie.

OCI image-spec 1.1: descriptor.md, image-index.md, manifest.md, config.md; Docker's schema 2 has the
same shape under other media types.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mayfly.errors import ImageError, RegistryError
from mayfly.imagegen.digests import digest_of, is_digest

INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descriptor:
    """A pointer to a blob: what it is, its digest and its size in bytes. `platform` is `os/arch` or
    `os/arch/variant` where an index gives it.
    """

    media_type: str
    digest: str
    size: int
    platform: str | None = None
    tag: str | None = None


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
    document = read_object(data, "manifest")
    if "manifests" not in document:
        return _resolve_manifest(source, data, document, wanted, stated=stated)
    if "layers" in document or "config" in document:
        # Two tools would see two images in it (CVE-2021-41190).
        raise RegistryError("the image's manifest is an index too", hint="do not use the image")
    if depth == MAX_INDEX_DEPTH:
        raise RegistryError(f"the image has more than {MAX_INDEX_DEPTH} indexes inside one another")
    entries = _image_entries(document["manifests"])
    other: ImageError | None = None
    for entry in [entry for entry in entries if entry.platform == wanted][:1] or [e for e in entries if e.platform is None][:MAX_TRIED]:
        try:
            return _resolve(source, fetch_document(source, entry), wanted, depth=depth + 1, stated=stated or entry.platform is not None)
        except _OtherPlatformError as error:
            other = error
    if other is not None and len(entries) == 1:
        raise other
    found = ", ".join(sorted({entry.platform or "unnamed" for entry in entries})) or "nothing"
    raise _OtherPlatformError(f"the image is not there for {wanted}; its index has {found}", hint="choose another image, or give --arch")


def _image_entries(raw: object) -> list[Descriptor]:
    """The entries of an index that are images or indexes. Others are passed over, as are digests of
    another kind (image-index.md, manifests).
    """
    if not isinstance(raw, list):
        raise RegistryError("the index has no list of descriptors")
    entries = [descriptor for item in raw if (descriptor := parse_descriptor(item)) is not None]
    return [entry for entry in entries if entry.media_type in ("", *INDEX_TYPES, *MANIFEST_TYPES)]


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


def _resolve_manifest(source: Source, data: bytes, document: Mapping[str, Any], wanted: str, *, stated: bool) -> ResolvedImage:
    if document.get("schemaVersion", 2) != 2 or not isinstance(document.get("config"), dict):
        raise RegistryError("the image's manifest is not of schema version 2", hint="push it again with a present-day tool")
    layers = parse_descriptors(document.get("layers"), "manifest")
    config_at = parse_descriptors([document["config"]], "manifest")[0]
    config_data = fetch_document(source, config_at)
    try:
        config = parse_config(config_data)
    except RegistryError as error:
        if config_at.media_type in ("", *CONFIG_TYPES):
            raise
        kind = str(document.get("artifactType") or config_at.media_type)[:100]
        raise _OtherPlatformError(
            f"what is there is an artifact of type {kind!r}, not a container image",
            hint="choose another image; for one that imagegen pushed: imagegen pull",
        ) from error
    if config.platform != wanted and not stated:  # containerd believes the index too, where both say something
        raise _OtherPlatformError(f"the image is for {config.platform}, not for {wanted}", hint="choose another image, or give --arch")
    if len(layers) > MAX_LAYERS:
        raise RegistryError(f"the image has {len(layers)} layers; at most {MAX_LAYERS} are allowed")
    if len(layers) != len(config.diff_ids):
        raise RegistryError(f"the manifest has {len(layers)} layers, the configuration {len(config.diff_ids)}")
    return ResolvedImage(manifest_digest=digest_of(data), config_digest=config_at.digest, config=config, layers=tuple(layers))


def parse_descriptors(raw: object, origin: str) -> list[Descriptor]:
    """Check and convert a list of descriptors out of JSON."""
    if not isinstance(raw, list):
        raise RegistryError(f"the {origin} has no list of descriptors")
    result = []
    for item in raw:
        if (descriptor := parse_descriptor(item)) is None:
            raise RegistryError(f"the {origin} has a descriptor without a digest (sha256 or sha512) and a size: {str(item)[:200]}")
        result.append(descriptor)
    return result


def parse_descriptor(item: Any) -> Descriptor | None:
    """A descriptor out of JSON, or None if it lacks a size or a digest that can be checked."""
    match item:
        case {"digest": str(digest), "size": int(size)} if is_digest(digest) and size >= 0 and not isinstance(size, bool):
            media_type = item.get("mediaType")
            return Descriptor(
                media_type=media_type if isinstance(media_type, str) else "",
                digest=digest,
                size=size,
                platform=_platform(item.get("platform")),
                tag=_tag(item.get("annotations")),
            )
        case _:
            return None


def _platform(raw: Any) -> str | None:
    match raw:
        case {"os": str(system), "architecture": str(arch)}:
            arch = _ARCHITECTURES.get(arch.lower(), arch.lower())
            variant = str(raw.get("variant") or "")
            base = _BASE_VARIANTS.get(arch, "")
            return f"{system.lower()}/{arch}" + (f"/{variant}" if variant not in ("", base, base[1:]) else "")
        case _:
            return None


def _tag(raw: object) -> str | None:
    match raw:
        case {"org.opencontainers.image.ref.name": str(name)}:
            return name
        case _:
            return None


def parse_config(data: bytes) -> ImageConfig:
    """Read an image configuration (OCI image-spec, config.md).

    Raises:
        RegistryError: a field that we need is missing or of the wrong type.
    """
    raw = read_object(data, "configuration")
    match raw:
        case {"os": str(), "architecture": str(), "rootfs": {"diff_ids": list(diff_ids)}}:
            platform = _platform(raw) or ""
        case _:
            raise RegistryError("the image's configuration lacks os, architecture or rootfs.diff_ids")
    if not all(isinstance(item, str) and is_digest(item) for item in diff_ids):
        raise RegistryError("the image's configuration has a diff_id that is not a digest (sha256 or sha512)")
    run = raw.get("config") or {}
    variables = (run.get("Env") or []) if isinstance(run, dict) else None
    if not isinstance(variables, list) or not all(isinstance(item, str) and "\0" not in item for item in variables):
        raise RegistryError("the image's configuration has an Env that is not a list of strings")
    working_dir, user = run.get("WorkingDir") or "", run.get("User") or ""
    if not isinstance(working_dir, str) or not isinstance(user, str):
        raise RegistryError("the image's configuration has a WorkingDir or User that is not a string")
    env = dict(item.split("=", 1) for item in variables if "=" in item and not item.startswith("="))
    return ImageConfig(platform=platform, env=env, working_dir=working_dir, user=user, diff_ids=tuple(diff_ids))


def read_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises RegistryError, which names `what` it was to be."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"the image's {what} is not JSON") from error
    if not isinstance(value, dict):
        raise RegistryError(f"the image's {what} is not a JSON object")
    return value
