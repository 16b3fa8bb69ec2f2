"""Build an image: resolve, pull, merge, prune, add what is ours, write. This file is the story; the
chapters are beside it.
"""

import dataclasses
import functools
import hashlib
import json
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from mayfly.errors import ImageError, LayerError
from mayfly.files import atomic_write, locked, replacing, storing
from mayfly.imagegen.cache import using_cache
from mayfly.imagegen.languages import Language, find_version
from mayfly.imagegen.oci.documents import ResolvedImage, Source, resolve
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.reference import LayoutReference, Reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.options import Options
from mayfly.imagegen.packages import add_packages, check_packages
from mayfly.imagegen.packages.target import Target
from mayfly.imagegen.prepared import add_packages_prepared, add_prepared, can_ask
from mayfly.imagegen.progress import Progress
from mayfly.imagegen.rootfs.dpkg import distribution, installed, keyring, left
from mayfly.imagegen.rootfs.furnish import furnish
from mayfly.imagegen.rootfs.layers import LAYERS_AT_ONCE, merge
from mayfly.imagegen.rootfs.prune import prune
from mayfly.imagegen.rootfs.spools import Layer, Limits, Spools
from mayfly.imagegen.rootfs.tree import Tree
from mayfly.imagegen.writing import Build, describe, large, write
from mayfly.images.manifest import Manifest, load
from mayfly.paths import cache_dir, image_dir
from mayfly.units import MIB

AGENTS = Path(__file__).parent / "agents"
MAX_DATABASE = 4 * MIB
"""A package database is read whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """The outcome: the image's manifest and folder, and whether it was there already."""

    manifest: Manifest
    folder: Path
    fresh: bool


def build(options: Options, progress: Progress) -> Built:
    """Build the image of a language, or find that it is there already, made of the same things.

    Raises:
        MayflyError: whatever stands in the way; the image that was there before is untouched.
    """
    check_packages(options)
    progress.say(f"{options.name} for {options.arch} from {options.reference}")
    source = source_of(options.reference, progress, insecure=options.insecure, offline=options.offline)
    agent = read_agent(options.arch)
    image = resolve(source, options.arch)
    runtime = read_runtime(options.arch) if options.language.checkpoint else b""
    recipe = recipe_digest(options, image, agent, runtime)
    folder = options.folder or image_dir(options.name, options.arch)
    with storing(folder), locked(folder), using_cache():
        if not options.force and (known := _same(folder, recipe)) is not None and (known.compiler or not can_ask(options, image)):
            return Built(manifest=known, folder=folder, fresh=False)
        layers = [
            Layer(path=path, digest=found.digest, diff_id=diff_id)
            for path, found, diff_id in zip(fetch_layers(source, image, options.limits), image.layers, image.config.diff_ids, strict=True)
        ]
        spool_folder = cache_dir() / "spool"
        with storing(spool_folder):
            spool_folder.mkdir(parents=True, exist_ok=True)
        with Spools(spool_folder) as spools:
            with progress.task("merging layers", sum(layer.path.stat().st_size for layer in layers)) as advance:
                tree = merge(layers, spools, options.limits, lambda index: advance(layers[index].path.stat().st_size))
            version = version_of(options.language, tree, spools, image.config.env)
            if options.version and not f"{version}.".startswith(f"{options.version}."):
                raise ImageError(f"the image has {options.language.name} {version}, not {options.version}", hint="give another --image")
            system = installed(tree, spools)
            of = distribution(tree, spools)
            keys = keyring(tree, spools)
            removed = prune(tree, options.language.globs(options.with_packages))
            progress.say(f"{options.language.name} {version}; pruned {removed.total() // MIB} MiB")
            furnish(tree, spools, agent, runtime)
            plain = Build(
                options=dataclasses.replace(options, packages=()),
                image=image,
                agent=agent,
                recipe=recipe,
                version=version,
                tree=tree,
                spools=spools,
                packages=(),
                progress=progress,
            )
            with storing(cache_dir()):
                compiler = add_prepared(plain)  # before there are packages: what it makes is for every image of this source
            target = Target(
                options=options,
                version=version,
                tree=tree,
                spools=spools,
                layer=len(layers) + 2,
                system=system,
                keyring=keys,
                progress=progress,
            )
            packages = add_packages(target)
            for package in packages:
                if package.kind.startswith("deb/"):
                    system.pop(package.name, None)  # of another version now
            furnish(tree, spools, agent, runtime)  # what packages brought is read-only to snippets too
            under_way = dataclasses.replace(plain, options=options, packages=packages)
            with storing(cache_dir()):
                add_packages_prepared(under_way)
            with replacing(folder) as part:
                archive = write(under_way, part / "initramfs")
                manifest = msgspec.structs.replace(
                    describe(under_way, archive), compiler=compiler, pruned=large(removed), distribution=of.name, system=left(tree, system)
                )
                with atomic_write(part / "manifest.json") as file:
                    file.write(manifest.to_json().encode())
    return Built(manifest=manifest, folder=folder, fresh=True)


def source_of(reference: Reference, progress: Progress, *, insecure: bool, offline: bool) -> Source:
    """The registry or layout that the reference names; nothing is asked of it yet."""
    if isinstance(reference, LayoutReference):
        return LayoutSource(reference)
    return RegistrySource(reference, cache_dir() / "blobs", insecure=insecure, offline=offline, progress=progress)


def fetch_layers(source: Source, image: ResolvedImage, limits: Limits) -> list[Path]:
    """The blobs of all layers, some at a time. A failure, or Ctrl-C, does not wait for those that
    are under way.

    Raises:
        LayerError: they are larger than the limits allow; nothing was fetched.
        RegistryError: one cannot be had.
    """
    if (size := sum({layer.digest: layer.size for layer in image.layers}.values())) > limits.unpacked:
        raise LayerError(
            f"the layers have {size} bytes packed; {limits.unpacked} unpacked are allowed",
            hint="if that is right for this image, raise --max-unpacked",
        )
    pool = ThreadPoolExecutor(LAYERS_AT_ONCE)
    try:
        return [future.result() for future in [pool.submit(source.blob, layer) for layer in image.layers]]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_agent(arch: str) -> bytes:
    """The agent's executable. Raises ImageError if it was never built."""
    return _read_executable(f"mayfly-agent.{arch}")


def read_runtime(arch: str) -> bytes:
    """The executable of the runtime for WebAssembly. Raises ImageError if it was never built."""
    return _read_executable(f"mayfly-wasm.{arch}")


def _read_executable(name: str) -> bytes:
    path = AGENTS / name
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path} is missing", hint="from a checkout, build it: make agents") from error


@functools.cache
def _generator_digest() -> str:
    """A digest over this package's own files: another generator may write another image of the same
    things.
    """
    hasher = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()


def recipe_digest(options: Options, image: ResolvedImage, agent: bytes, runtime: bytes = b"") -> str:
    """A digest over all that decides on the bytes of an image. Where they came from does not: the
    manifest's digest says what they are. Packages count as they were asked for: what they were
    resolved to stays until a build is forced.
    """
    recipe = {
        "agent": hashlib.sha256(agent).hexdigest(),
        "arch": options.arch,
        "compression": options.compression,
        "generator": _generator_digest(),
        "language": options.language.digest,
        "manifest": image.manifest_digest,
        "packages": [options.packages, options.packages_from],
        "runtime": hashlib.sha256(runtime).hexdigest(),
    }
    return f"sha256:{hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()}"


def _same(folder: Path, recipe: str) -> Manifest | None:
    try:
        known = load(folder)
    except ImageError:
        return None
    return known if known.recipe_digest == recipe else None


def version_of(language: Language, tree: Tree, spools: Spools, env: Mapping[str, str]) -> str:
    """The language's version as the image's files or environment show it. Raises ImageError if none
    does: it is another image then.
    """

    def read(path: str) -> bytes | None:
        node = tree.find(path.encode())
        if node is None or not stat.S_ISREG(node.inode.mode) or node.inode.size > MAX_DATABASE:
            return None
        return spools.read(node.inode.content)

    version = find_version(language.version, lambda: (path for path, _ in tree.walk()), read, env)
    if version is None:
        raise ImageError(f"the image shows no version of {language.name}", hint="is it an image of that language? give another --image")
    return version
