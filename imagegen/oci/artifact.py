"""A built image as an OCI artifact: `push` and `export` write it, `pull` and `import` install it
(OCI image-spec, manifest.md, artifacts).

The configuration is the image's manifest.json, the only layer its initramfs. The artifact's bytes
follow from these two files alone.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mayfly.errors import ConfigError, RegistryError
from mayfly.files import atomic_write, locked, making, replacing, storing
from mayfly.imagegen.digests import blob_path, digest_of, hasher_for, spell
from mayfly.imagegen.languages import NAME
from mayfly.imagegen.oci.documents import (
    MACHINE_TO_GOARCH,
    MANIFEST_TYPE,
    Descriptor,
    Source,
    descriptor_of,
    fetch_document,
    read_artifact,
    write_artifact,
)
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.oci.signature import FILE, Signer, fetch_signature, push_signature, verify
from mayfly.imagegen.progress import Progress
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.images.manifest import Manifest, load
from mayfly.paths import image_dir

ARTIFACT_TYPE = "application/vnd.mayfly.image.v1"
CONFIG_TYPE = "application/vnd.mayfly.image.config.v1+json"
INITRAMFS_TYPE = "application/vnd.mayfly.image.initramfs.v1"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
INSTALLED_NAME = re.compile(rf"{NAME.pattern}(@[0-9][A-Za-z0-9.+_-]*)?")
CHUNK = 1 << 20


def describe(manifest: Manifest, config: bytes) -> bytes:
    """The artifact's manifest for the image of `manifest`, which is what `config` says."""
    initramfs = Descriptor(media_type=INITRAMFS_TYPE, digest=manifest.initramfs_digest, size=manifest.initramfs_size)
    return write_artifact(ARTIFACT_TYPE, descriptor_of(CONFIG_TYPE, config), [initramfs])


def push(folder: Path, target: RegistrySource, signer: Signer | None = None) -> str:
    """Put the image in `folder` into a registry, with a signature if there is a signer; the
    artifact's digest.

    Raises:
        ImageError: there is no image, or it is broken.
        RegistryError: the registry does not take it.
    """
    manifest, config = load(folder), folder / "manifest.json"
    document = describe(manifest, config.read_bytes())
    target.push(folder / "initramfs", manifest.initramfs_digest)
    target.push(config, digest_of(config.read_bytes()))
    target.push_manifest(document, MANIFEST_TYPE)
    if signer is not None:
        push_signature(target, document, signer.sign(document, _comment(manifest)))
    return digest_of(document)


def _comment(manifest: Manifest) -> str:
    """What a signature says of an image in words."""
    return f"{manifest.language} {manifest.version} for {manifest.arch}, {manifest.initramfs_digest}"


def export(folder: Path, layout: Path, signer: Signer | None = None) -> str:
    """Write the image in `folder` as an OCI layout, into a folder that is empty or not there, with
    a signature if there is a signer; the artifact's digest.

    Raises:
        ImageError: there is no image, or it is broken, or the folder holds something.
    """
    manifest, config = load(folder), (folder / "manifest.json").read_bytes()
    document = describe(manifest, config)
    entry = {"mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE, "digest": digest_of(document), "size": len(document)}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}
    with storing(layout), making(layout) as part:
        blobs = part / "blobs"
        (blobs / "sha256").mkdir(parents=True)
        shutil.copyfile(folder / "initramfs", blob_path(blobs, manifest.initramfs_digest))
        for data in (config, document):
            blob_path(blobs, digest_of(data)).write_bytes(data)
        (part / "index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
        if signer is not None:
            (part / FILE).write_bytes(signer.sign(document, _comment(manifest)))
        (part / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return digest_of(document)


class Found(NamedTuple):
    """An image as a registry or layout has it: what it is, that as JSON, its archive, and the
    artifact's manifest.
    """

    manifest: Manifest
    data: bytes
    initramfs: Descriptor
    document: bytes


def inspect(source: Source) -> Found:
    """What the image of an artifact is; its archive is not read.

    Raises:
        RegistryError: it is not an image of ours.
    """
    document, config, initramfs = _parts(source)
    data = fetch_document(source, config)
    manifest = Manifest.from_json(data.decode(errors="replace"), "the artifact's configuration")
    if (manifest.initramfs_digest, manifest.initramfs_size) != (initramfs.digest, initramfs.size):
        raise RegistryError("the artifact's manifest and its configuration name different archives", hint="do not use it; push it again")
    if not NAME.fullmatch(manifest.language) or manifest.arch not in MACHINE_TO_GOARCH:
        raise RegistryError(f"the artifact is for the language {manifest.language[:80]!r} and architecture {manifest.arch[:80]!r}")
    if initramfs.size > Limits.unpacked:
        raise RegistryError(f"the artifact's archive has {initramfs.size} bytes; {Limits.unpacked} are allowed", hint="do not use it")
    return Found(manifest, data, initramfs, document)


def pull(source: Source, name: str, progress: Progress, keys: Sequence[str] = ()) -> tuple[Manifest, Path]:
    """Install the image of an artifact as `name`, or as the default image of its language where
    that is empty. If there are `keys`, one of them must have signed it.

    Raises:
        RegistryError: it is not an image of ours, or not what its digests say, or not signed.
    """
    if name and not INSTALLED_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not the name of an image", hint="write it as rust@1.63")
    manifest, data, initramfs, document = inspect(source)
    if keys:
        progress.say(f"signed: {verify(document, fetch_signature(source, document), keys)}")
    if name.partition("@")[0] not in ("", manifest.language):
        raise RegistryError(f"the artifact is for the language {manifest.language!r}, not for that of {name!r}")
    folder = image_dir(name or manifest.language, manifest.arch)
    with storing(folder), locked(folder), replacing(folder) as part:
        with progress.task(f"installing {manifest.language} {manifest.version}", initramfs.size) as advance:
            found = hasher_for(initramfs.digest)
            with source.blob(initramfs).open("rb") as blob, atomic_write(part / "initramfs") as file:
                while piece := blob.read(CHUNK):
                    found.update(piece)
                    file.write(piece)
                    advance(len(piece))
        if spell(found) != initramfs.digest:
            raise RegistryError(f"the artifact's archive hashes to {spell(found)}, not to {initramfs.digest}", hint="do not use it")
        with atomic_write(part / "manifest.json") as file:
            file.write(data)
    return manifest, folder


def _parts(source: Source) -> tuple[bytes, Descriptor, Descriptor]:
    """The artifact's manifest, and the descriptors of configuration and archive."""
    document, config, layers = read_artifact(source)
    if config.media_type != CONFIG_TYPE or [layer.media_type for layer in layers] != [INITRAMFS_TYPE]:
        raise RegistryError("this is not an image that imagegen pushed", hint="for a container image: imagegen build LANG --image REF")
    return document, config, layers[0]
