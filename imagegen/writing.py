"""A build under way, and how what there is of it is written: the archive and its manifest."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

import mayfly
from mayfly.files import atomic_write, file_digest
from mayfly.imagegen.languages import Language, offered
from mayfly.imagegen.oci.documents import ResolvedImage
from mayfly.imagegen.options import Options
from mayfly.imagegen.progress import Progress
from mayfly.imagegen.rootfs.compress import compressor
from mayfly.imagegen.rootfs.cpio import Summary, write_cpio
from mayfly.imagegen.rootfs.prune import sizes
from mayfly.imagegen.rootfs.spools import Spools
from mayfly.imagegen.rootfs.tree import Tree
from mayfly.images.manifest import ImageSource, LanguageStep, Manifest, Package, Profile
from mayfly.units import MIB

SHOWN = 1 * MIB
"""Bytes of a directory that is worth a line."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build:
    """A build under way: what was asked for, what it was resolved to, and the merged tree with the
    spools of its contents, which `furnish`, packages and prepare steps complete.
    """

    options: Options
    image: ResolvedImage
    agent: bytes
    recipe: str
    version: str
    tree: Tree
    spools: Spools
    packages: tuple[Package, ...]
    progress: Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """An initramfs that was written: what is in it, its bytes and its digest."""

    summary: Summary
    size: int
    digest: str


def write(build: Build, path: Path) -> Archive:
    """Write the tree as an initramfs."""
    compression = build.options.compression
    total = sum(node.inode.size for node in build.tree.nodes())
    title = f"writing ({compression})"
    with atomic_write(path) as file, build.progress.task(title, total) as advance, compressor(compression, file) as write:

        def put(data: bytes) -> None:
            write(data)
            advance(len(data))

        summary = write_cpio(build.tree, build.spools.chunks, put)
    return Archive(summary=summary, size=path.stat().st_size, digest=file_digest(path))


def describe(build: Build, archive: Archive) -> Manifest:
    """The manifest of the image that `archive` is."""
    options, image, summary = build.options, build.image, archive.summary
    language = options.language
    needed = archive.size + summary.rounded_size + language.working_memory
    function = language.function
    if function is not None:
        function = msgspec.structs.replace(function, steps=_steps(function.steps, image.config.working_dir))
    profiles: dict[str, Profile] = {
        name: msgspec.structs.replace(profile, steps=_steps(profile.steps, image.config.working_dir))
        for name, profile in language.profiles.items()
    }
    return Manifest(
        language=language.name,
        version=build.version,
        arch=options.arch,
        extensions=language.extensions,
        source_file=language.source_file,
        source_files=language.source_files,
        steps=_steps(language.steps, image.config.working_dir),
        warmup=msgspec.structs.replace(language.warmup, steps=_steps(language.warmup.steps, image.config.working_dir)),
        function=function,
        profiles=profiles,
        checkpoint=language.checkpoint,
        target=language.target,
        options=offered(language, build.version),
        env={**environment(language, image), **(options.with_packages.env if options.with_packages else {})},
        source=ImageSource(
            reference=str(options.reference),
            manifest_digest=image.manifest_digest,
            config_digest=image.config_digest,
            layers=tuple(layer.digest for layer in image.layers),
        ),
        compression=options.compression,
        initramfs_size=archive.size,
        initramfs_digest=archive.digest,
        end_marker=summary.end_marker,
        unpacked_size=summary.unpacked_size,
        entries=summary.entries,
        memory=-(-needed // MIB) * MIB,
        agent_digest=f"sha256:{hashlib.sha256(build.agent).hexdigest()}",
        generator=f"imagegen {mayfly.__version__}",
        recipe_digest=build.recipe,
        packages=build.packages,
        sizes=large(sizes(build.tree)),
    )


def large(found: Mapping[str, int]) -> dict[str, int]:
    """The directories with at least SHOWN bytes, the rest as one."""
    large = {name: size for name, size in sorted(found.items()) if size >= SHOWN}
    return {**large, "others": sum(found.values()) - sum(large.values())}


def environment(language: Language, image: ResolvedImage) -> dict[str, str]:
    """What all of a language's programs get."""
    return {"PATH": DEFAULT_PATH, **language.common_env, **image.config.env, **language.env}


def _steps(steps: tuple[LanguageStep, ...], working_dir: str) -> tuple[LanguageStep, ...]:
    """The steps; those that state no directory of their own run in the image's WorkingDir."""
    usual = working_dir if working_dir.startswith("/") else "/work"
    return tuple(msgspec.structs.replace(step, cwd=step.cwd or usual) for step in steps)
