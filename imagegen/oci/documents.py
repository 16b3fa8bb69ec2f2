"""OCI and Docker documents: index, manifest, configuration. Bytes in, frozen values out; every
field is checked, for a registry may lie.

OCI image-spec 1.1: descriptor.md, image-index.md, manifest.md, config.md; Docker's schema 2 has the
same shape under other media types.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mayfly.errors import ImageError, RegistryError
from mayfly.imagegen.oci.reference import is_digest

INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
MACHINE_TO_GOARCH: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}
MAX_DOCUMENT = 8 << 20
MAX_LAYERS = 512
MAX_INDEX_DEPTH = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descriptor:
    """A pointer to a blob: what it is, its digest and its size in bytes. `platform` is `os/arch`
    where an index gives it.
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


def digest_of(data: bytes) -> str:
    """The digest of `data` in OCI's spelling."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def resolve(source: Source, arch: str) -> ResolvedImage:
    """Follow a reference through index and manifest to the configuration, for machines of type
    `arch` (`x86_64`).

    Raises:
        ImageError: the index has no such platform, or the image is one for another.
        RegistryError: a document is not what its digest says, or makes no sense.
    """
    media_type, data = source.root()
    wanted = f"linux/{MACHINE_TO_GOARCH.get(arch, arch)}"
    for _ in range(MAX_INDEX_DEPTH):
        document = read_object(data, "manifest")
        if not _is_index(media_type, document):
            return _resolve_manifest(source, data, document, wanted)
        chosen = _choose(parse_descriptors(document.get("manifests"), "index"), wanted)
        media_type, data = chosen.media_type, fetch_document(source, chosen)
    raise RegistryError(f"the image has more than {MAX_INDEX_DEPTH} indexes inside one another")


def fetch_document(source: Source, descriptor: Descriptor) -> bytes:
    """The document behind a descriptor, of the size and the digest that it states."""
    if descriptor.size > MAX_DOCUMENT:
        raise RegistryError(f"{descriptor.digest} is said to have {descriptor.size} bytes; a document may have {MAX_DOCUMENT}")
    data = source.document(descriptor)
    found = digest_of(data)
    if found != descriptor.digest or len(data) != descriptor.size:
        raise RegistryError(
            f"asked for {descriptor.digest} of {descriptor.size} bytes, got {found} of {len(data)}",
            hint="the source is damaged or lies; do not use the image",
        )
    return data


def _resolve_manifest(source: Source, data: bytes, document: Mapping[str, Any], wanted: str) -> ResolvedImage:
    if document.get("schemaVersion") != 2 or not isinstance(document.get("config"), dict):
        raise RegistryError("the image's manifest is not of schema version 2", hint="push it again with a present-day tool")
    layers = parse_descriptors(document.get("layers"), "manifest")
    config_at = parse_descriptors([document["config"]], "manifest")[0]
    config = parse_config(fetch_document(source, config_at))
    if config.platform != wanted:
        raise ImageError(f"the image is for {config.platform}, not for {wanted}", hint="choose another image, or give --arch")
    if len(layers) > MAX_LAYERS:
        raise RegistryError(f"the image has {len(layers)} layers; at most {MAX_LAYERS} are allowed")
    if len(layers) != len(config.diff_ids):
        raise RegistryError(f"the manifest has {len(layers)} layers, the configuration {len(config.diff_ids)}")
    return ResolvedImage(manifest_digest=digest_of(data), config_digest=config_at.digest, config=config, layers=tuple(layers))


def _is_index(media_type: str, document: Mapping[str, Any]) -> bool:
    stated = media_type or document.get("mediaType") or ""
    if stated in MANIFEST_TYPES:
        return False
    return stated in INDEX_TYPES or "manifests" in document


def _choose(descriptors: Sequence[Descriptor], wanted: str) -> Descriptor:
    """The first entry for `wanted`. One without a platform is taken only if it is alone (a layout
    of one image says none).
    """
    for descriptor in descriptors:
        if descriptor.platform == wanted:
            return descriptor
    if len(descriptors) == 1 and descriptors[0].platform is None:
        return descriptors[0]
    found = ", ".join(sorted({d.platform or "unnamed" for d in descriptors})) or "nothing"
    raise ImageError(f"the image is not there for {wanted}; its index has {found}", hint="choose another image, or give --arch")


def parse_descriptors(raw: object, origin: str) -> list[Descriptor]:
    """Check and convert a list of descriptors out of JSON."""
    if not isinstance(raw, list):
        raise RegistryError(f"the {origin} has no list of descriptors")
    result = []
    for item in raw:
        match item:
            case {"digest": str(digest), "size": int(size)} if is_digest(digest) and size >= 0 and not isinstance(size, bool):
                media_type = item.get("mediaType")
                result.append(
                    Descriptor(
                        media_type=media_type if isinstance(media_type, str) else "",
                        digest=digest,
                        size=size,
                        platform=_platform(item.get("platform")),
                        tag=_tag(item.get("annotations")),
                    )
                )
            case _:
                raise RegistryError(f"the {origin} has a descriptor without a sha256 digest and a size: {str(item)[:200]}")
    return result


def _platform(raw: object) -> str | None:
    match raw:
        case {"os": str(system), "architecture": str(arch)}:
            return f"{system}/{arch}"
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
        case {"os": str(system), "architecture": str(arch), "rootfs": {"diff_ids": list(diff_ids)}}:
            pass
        case _:
            raise RegistryError("the image's configuration lacks os, architecture or rootfs.diff_ids")
    if not all(isinstance(item, str) and is_digest(item) for item in diff_ids):
        raise RegistryError("the image's configuration has a diff_id that is no sha256 digest")
    run = raw.get("config") or {}
    variables = (run.get("Env") or []) if isinstance(run, dict) else None
    if not isinstance(variables, list) or not all(isinstance(item, str) and "\0" not in item for item in variables):
        raise RegistryError("the image's configuration has an Env that is no list of strings")
    working_dir, user = run.get("WorkingDir") or "", run.get("User") or ""
    if not isinstance(working_dir, str) or not isinstance(user, str):
        raise RegistryError("the image's configuration has a WorkingDir or User that is no string")
    env = dict(item.split("=", 1) for item in variables if "=" in item and not item.startswith("="))
    return ImageConfig(platform=f"{system}/{arch}", env=env, working_dir=working_dir, user=user, diff_ids=tuple(diff_ids))


def read_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises RegistryError, which names `what` it was to be."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"the image's {what} is not JSON") from error
    if not isinstance(value, dict):
        raise RegistryError(f"the image's {what} is not a JSON object")
    return value
