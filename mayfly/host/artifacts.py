"""Snapshots as OCI artifacts: `push` writes one to a registry, as a base, `pull` installs it under
its name (OCI image-spec, manifest.md, artifacts).

The configuration is the snapshot's manifest.json. The layers are its files: of the memory those
pages that are mapped, packed by zstd. What is pulled is compared with the digests of the manifest,
and its state is checked like a guest's input when a machine starts from it; the kernel and the
image that it is of must be on the host then.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from mayfly.errors import RegistryError, SnapshotError
from mayfly.files import atomic_write, file_digest, storing
from mayfly.imagegen.digests import digest_of
from mayfly.imagegen.oci.documents import (
    MANIFEST_TYPE,
    MAX_DOCUMENT,
    Descriptor,
    Source,
    descriptor_of_file,
    fetch_document,
    read_artifact,
    write_artifact,
)
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.oci.signature import Signer, fetch_signature, push_signature, verify
from mayfly.imagegen.progress import Progress
from mayfly.paths import cache_dir
from mayfly.protocol.pages import joined, unpack_runs
from mayfly.snapshots import store
from mayfly.snapshots.flat import flatten
from mayfly.snapshots.store import MANIFEST, Snapshot, SnapshotManifest
from mayfly.units import PAGE
from mayfly.vmm.config import MAX_MEMORY
from mayfly.vmm.snapshot import FILES, MEMORY, PAGES

ARTIFACT_TYPE = "application/vnd.mayfly.snapshot.v1"
CONFIG_TYPE = "application/vnd.mayfly.snapshot.config.v1+json"
LAYERS = {name: f"application/vnd.mayfly.snapshot.{name.partition('.')[0]}.v1" for name in FILES}
"""The media type of each of a snapshot's files."""
CHUNK = 1 << 20
LEVEL = 3


def push(name: str, target: RegistrySource, signer: Signer | None = None) -> str:
    """Put the snapshot `name` into a registry, with those that it differs from, and with a
    signature if there is a signer; the artifact's digest.

    Raises:
        SnapshotError: there is none, no run can start from it, it was altered, or a file is too
            large.
        RegistryError: the registry does not take it.
    """
    found = store.find(name)
    if not store.startable([found]):
        raise SnapshotError(f"{name} is of a function, or in the midst of a run", hint="push one from which runs start")
    _check(found)
    with storing(cache_dir()), tempfile.TemporaryDirectory(prefix="snapshot.", dir=_made(cache_dir())) as scratch:
        folder, packed = found.folder, Path(scratch) / MEMORY
        if found.parent:
            folder = _made(Path(scratch) / "flat")
            flatten(found, folder)
        config = folder / MANIFEST
        for path in (config, *(folder / file for file in FILES if file != MEMORY)):
            if path.stat().st_size > MAX_DOCUMENT:  # what fetch_document takes at a pull
                raise SnapshotError(f"{path} has {path.stat().st_size} bytes; {MAX_DOCUMENT} can be pushed", hint="make it of less memory")
        _pack(folder, packed)
        paths = {file: packed if file == MEMORY else folder / file for file in FILES}
        layers = [descriptor_of_file(LAYERS[file], path) for file, path in paths.items()]
        data = write_artifact(ARTIFACT_TYPE, descriptor_of_file(CONFIG_TYPE, config), layers)
        for path in (*paths.values(), config):
            target.push(path, file_digest(path))
        of = digest_of(config.read_bytes())
    target.push_manifest(data, MANIFEST_TYPE)
    if signer is not None:
        push_signature(target, data, signer.sign(data, f"snapshot {name}, {of}"))
    return digest_of(data)


def _check(snapshot: Snapshot) -> None:
    """Raises SnapshotError: a file of its chain was altered."""
    if snapshot.parent:
        _check(snapshot.parent)
    if store.digests(snapshot.folder) != snapshot.manifest.files:
        raise SnapshotError(f"{snapshot.folder} was altered", hint="remove the snapshot and make it again")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _runs(folder: Path, size: int) -> list[tuple[int, int]]:
    return list(joined(unpack_runs((folder / PAGES).read_bytes(), size)))


def _pack(folder: Path, out: Path) -> None:
    """Write a snapshot's mapped pages, packed."""
    packer = zstandard.ZstdCompressor(level=LEVEL)
    with (folder / MEMORY).open("rb") as memory, out.open("wb") as file, packer.stream_writer(file) as write:
        for first, count in _runs(folder, os.fstat(memory.fileno()).st_size):
            memory.seek(first * PAGE)
            for size in _pieces(count * PAGE):
                write.write(memory.read(size))


def _pieces(size: int) -> Iterator[int]:
    while size:
        yield min(size, CHUNK)
        size -= min(size, CHUNK)


def pull(source: Source, progress: Progress, keys: Sequence[str] = ()) -> SnapshotManifest:
    """Install the snapshot of an artifact under its name. If there are `keys`, one of them must
    have signed it.

    Raises:
        RegistryError: it is not a snapshot of ours, or not what its digests say, or not signed.
        SnapshotError: it is of another version of Mayfly, cannot be written, is being made or
            removed, or what is here of its name is another language's, or another one's parent.
    """
    document, data, layers = _read(source)
    if keys:
        progress.say(f"signed: {verify(document, fetch_signature(source, document), keys)}")
    manifest = _manifest(data)
    with _claimed(manifest.name), store.replacing(manifest.name) as part:
        _check_place(manifest)
        for name, layer in zip(FILES, layers, strict=True):
            if name != MEMORY:
                (part / name).write_bytes(fetch_document(source, layer))
        _unpack(source, layers[FILES.index(MEMORY)], part, manifest.machine.memory, progress)
        if store.digests(part) != manifest.files:
            raise RegistryError("the artifact's files are not those of its configuration", hint="do not use it")
        with atomic_write(part / MANIFEST) as file:
            file.write(data)
    return manifest


def inspect(source: Source) -> bytes | None:
    """What the snapshot of an artifact is, as its manifest.json; None if the artifact is of
    something else.

    Raises:
        RegistryError: it cannot be had, or no run can start from it.
        SnapshotError: it is of another version of Mayfly.
    """
    if read_artifact(source).config.media_type != CONFIG_TYPE:
        return None
    data = _read(source)[1]
    _manifest(data)
    return data


def _read(source: Source) -> tuple[bytes, bytes, Sequence[Descriptor]]:
    """The artifact's manifest, its configuration, and its layers."""
    document, config, layers = read_artifact(source)
    if config.media_type != CONFIG_TYPE or [layer.media_type for layer in layers] != [*LAYERS.values()]:
        raise RegistryError("this is not a snapshot that mayfly pushed", hint="for an image: imagegen pull")
    return document, fetch_document(source, config), layers


def _manifest(data: bytes) -> SnapshotManifest:
    manifest = SnapshotManifest.from_json(data, "the artifact's configuration")
    store.check_name(manifest.name)
    if manifest.parent or manifest.run or manifest.function:
        raise RegistryError("the artifact's snapshot is not a base", hint="do not use it")
    if set(manifest.files) != set(FILES):
        raise RegistryError("the artifact's configuration has not the digests of its files", hint="do not use it")
    return manifest


def _check_place(manifest: SnapshotManifest) -> None:
    """Raises SnapshotError: what is here under that name is not to be replaced."""
    name, there = manifest.name, None
    with contextlib.suppress(SnapshotError):  # what cannot be used may be replaced
        there = store.find(name)
    if there and there.manifest == manifest:
        return  # what stands on it can stand on the same again
    if dependent := store.children(name):
        raise SnapshotError(f"{name} is here the parent of {', '.join(dependent)}", hint="remove those first")
    if there and there.manifest.language != manifest.language:
        raise SnapshotError(f"{name} is here a snapshot of {there.manifest.language}", hint="push one that has another --name")


@contextlib.contextmanager
def _claimed(name: str) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(store.claimed(name))
        except BlockingIOError as error:
            raise SnapshotError(f"the snapshot {name} is being made or removed now", hint="try again") from error
        yield


def _unpack(source: Source, layer: Descriptor, part: Path, memory: int, progress: Progress) -> None:
    """Write the memory, with holes between the pages that are mapped."""
    if not 0 < memory <= MAX_MEMORY:
        raise RegistryError(f"the artifact's machine has {memory} bytes of memory; {MAX_MEMORY} are allowed", hint="do not use it")
    try:
        runs = _runs(part, memory)
        with source.blob(layer).open("rb") as blob, open(part / MEMORY, "xb", opener=_private) as out:
            out.truncate(memory)
            with (
                zstandard.ZstdDecompressor().stream_reader(blob) as read,
                progress.task("installing the snapshot's memory", sum(count for _, count in runs) * PAGE) as advance,
            ):
                for first, count in runs:
                    out.seek(first * PAGE)
                    for size in _pieces(count * PAGE):
                        out.write(read.read(size))
                        advance(size)
                if out.tell() != sum(runs[-1]) * PAGE or read.read(1):
                    raise RegistryError("the artifact's memory has another size than its list of pages", hint="do not use it")
    except (zstandard.ZstdError, SnapshotError, IndexError) as error:
        raise RegistryError(f"the artifact's memory is damaged: {error}", hint="do not use it") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
