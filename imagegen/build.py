"""Build an image: resolve, pull, merge, prune, add what is ours, write. This file is the story; the
chapters are beside it.
"""

import dataclasses
import functools
import hashlib
import json
import platform
import re
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

import mayfly
from mayfly.errors import ConfigError, HostError, ImageError, LayerError
from mayfly.files import atomic_write, file_digest, locked, replacing, storing
from mayfly.imagegen.cache import using_cache
from mayfly.imagegen.languages import Language, find_version, offered
from mayfly.imagegen.oci.documents import MACHINE_TO_GOARCH, ResolvedImage, Source, resolve
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.reference import LayoutReference, Reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.prepare import VERSION_FILE, VERSION_STEP, prepare, why_not
from mayfly.imagegen.progress import Progress
from mayfly.imagegen.rootfs.compress import compressor
from mayfly.imagegen.rootfs.cpio import Summary, write_cpio
from mayfly.imagegen.rootfs.layers import LAYERS_AT_ONCE, Layer, Limits, Spools, add_layer, merge
from mayfly.imagegen.rootfs.prune import prune, sizes
from mayfly.imagegen.rootfs.tree import Inode, Tree
from mayfly.images.manifest import COMPRESSIONS, ImageSource, LanguageStep, Manifest, Warmup, load
from mayfly.paths import cache_dir, image_dir
from mayfly.units import MIB

AGENTS = Path(__file__).parent / "agents"
RUNNER = 1000
"""User and group id of who runs snippets in the guest."""
VERSION_S = 120.0
"""For the compiler to say its version, on an emulated host too."""
MAX_COMPILER = 200
"""Letters of what it says."""
SHOWN = 1 * MIB
"""Bytes of a directory that is worth a line."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNT_POINTS = ((b"proc", 0o555), (b"sys", 0o555), (b"dev", 0o755), (b"run", 0o755), (b"mayfly", 0o755), (b"tmp", 0o1777))
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+_-]{0,31}")
_MAX_TEXT = 4 * MIB
"""passwd, group and a package database are read whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to build, and how.

    With a `version` (`1.63`) the image must have that one. It is kept beside the one without, which
    is the language's default. `prepare_with` is put before the command that runs prepare steps, for
    hosts where no machine runs.
    """

    language: Language
    version: str = ""
    reference: Reference
    arch: str = platform.machine()
    compression: str = "zstd"
    insecure: bool = False
    offline: bool = False
    force: bool = False
    prepare_with: tuple[str, ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.arch not in MACHINE_TO_GOARCH:
            raise ConfigError(f"architecture {self.arch!r} is none of {', '.join(MACHINE_TO_GOARCH)}")
        if self.compression not in COMPRESSIONS:
            raise ConfigError(f"compression {self.compression!r} is none of {', '.join(COMPRESSIONS)}")
        if self.version and not _VERSION.fullmatch(self.version):
            raise ConfigError(f"{self.version!r} is not a version", hint="write it as rust@1.63")

    @property
    def name(self) -> str:
        """The language, and the version if one is asked for: `rust`, `rust@1.63`."""
        return f"{self.language.name}@{self.version}" if self.version else self.language.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """The outcome: the image's manifest and folder, and whether it was there already."""

    manifest: Manifest
    folder: Path
    fresh: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build:
    """A build under way: what was asked for, what it was resolved to, and the merged tree with the
    spools of its contents, which `furnish` and `add_prepared` complete.
    """

    options: Options
    image: ResolvedImage
    agent: bytes
    recipe: str
    version: str
    tree: Tree
    spools: Spools
    progress: Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """An initramfs that was written: what is in it, its bytes and its digest."""

    summary: Summary
    size: int
    digest: str


def build(options: Options, progress: Progress) -> Built:
    """Build the image of a language, or find that it is there already, made of the same things.

    Raises:
        MayflyError: whatever stands in the way; the image that was there before is untouched.
    """
    progress.say(f"{options.name} for {options.arch} from {options.reference}")
    source = source_of(options.reference, progress, insecure=options.insecure, offline=options.offline)
    agent = read_agent(options.arch)
    image = resolve(source, options.arch)
    recipe = recipe_digest(options, image, agent)
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
            version = version_of(options.language, tree, spools)
            if options.version and not f"{version}.".startswith(f"{options.version}."):
                raise ImageError(f"the image has {options.language.name} {version}, not {options.version}", hint="give another --image")
            removed = prune(tree, options.language.prune)
            progress.say(f"{options.language.name} {version}; pruned {removed.total() // MIB} MiB")
            furnish(tree, spools, agent)
            under_way = Build(
                options=options,
                image=image,
                agent=agent,
                recipe=recipe,
                version=version,
                tree=tree,
                spools=spools,
                progress=progress,
            )
            with storing(cache_dir()):
                compiler = add_prepared(under_way)
            with replacing(folder) as part:
                archive = _write(under_way, part / "initramfs")
                manifest = msgspec.structs.replace(_manifest(under_way, archive), compiler=compiler, pruned=_large(removed))
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
    path = AGENTS / f"mayfly-agent.{arch}"
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


def recipe_digest(options: Options, image: ResolvedImage, agent: bytes) -> str:
    """A digest over all that decides on the bytes of an image. Where they came from does not: the
    manifest's digest says what they are.
    """
    recipe = {
        "agent": hashlib.sha256(agent).hexdigest(),
        "arch": options.arch,
        "compression": options.compression,
        "generator": _generator_digest(),
        "language": options.language.digest,
        "manifest": image.manifest_digest,
    }
    return f"sha256:{hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()}"


def _same(folder: Path, recipe: str) -> Manifest | None:
    try:
        known = load(folder)
    except ImageError:
        return None
    return known if known.recipe_digest == recipe else None


def can_ask(options: Options, image: ResolvedImage) -> bool:
    """Whether the compiler can say its version here: it did before, or there is a machine to run it
    in.
    """
    return bool(options.language.version_command) and (_is_whole(_prepared_path(options, image)) or _has_machine(options))


def _has_machine(options: Options) -> bool:
    return bool(options.prepare_with) or not why_not(options.arch)


def _prepared_path(options: Options, image: ResolvedImage) -> Path:
    """Where the layer is kept that a machine made of this image, by the hash of all that decides on
    it.
    """
    language = options.language
    made_of = {
        "manifest": image.manifest_digest,
        "prune": language.prune,
        "env": _env(language, image),
        "prepare": msgspec.to_builtins(language.prepare),
        "version": language.version_command,
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "prepared" / f"{digest}.tar"


def _digest_path(prepared: Path) -> Path:
    return prepared.with_suffix(".sha256")


def _is_whole(prepared: Path) -> bool:
    """Whether a layer that a machine made is there as it was when it was made."""
    try:
        return _digest_path(prepared).read_text() == file_digest(prepared)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def add_prepared(build: Build) -> str:
    """Merge into the tree what the language's prepare steps make in a machine, which runs once for
    an image.

    Gives what the compiler said of itself there. Where there are no steps, and no machine to ask it
    in, that is nothing.

    Raises:
        HostError: there are steps, and no machine.
        ImageError: a step failed, or the compiler is of another version than the image's files
            show.
    """
    options, image, progress = build.options, build.image, build.progress
    language = options.language
    wanted = language.prepare
    if not wanted.steps and not can_ask(options, image):
        return ""
    path = _prepared_path(options, image)
    whole = _is_whole(path)
    if not whole and path.exists():
        progress.say(f"{path} is damaged and is made anew")
    if not whole or (options.force and (wanted.steps or _has_machine(options))):
        progress.say(f"{'preparing' if wanted.steps else 'asking'} {language.name} {build.version} in a machine; this is done once")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="prepare.", dir=cache_dir()) as folder:
            _write_unprepared(build, Path(folder))
            if options.prepare_with:
                command = [*options.prepare_with, "imagegen", "prepare", folder, str(path), *wanted.collect]
                try:
                    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
                except OSError as error:
                    raise HostError(f"{command[0]} cannot be started: {error.strerror}", hint="look at --prepare-with") from error
                if done.returncode != 0:
                    raise ImageError(f"the image could not be prepared by {' '.join(options.prepare_with)}", hint="see above")
            else:
                prepare(Path(folder), wanted.collect, path, options.limits, progress)
        with atomic_write(_digest_path(path)) as file:
            file.write(file_digest(path).encode())
    digest = file_digest(path)
    layer = Layer(path=path, digest=digest, diff_id=digest)
    add_layer(build.tree, len(image.layers) + 1, layer, build.spools, options.limits)
    if not language.version_command:
        return ""
    said = build.tree.remove(VERSION_FILE.encode())  # it is for the manifest: the archive is the same where no machine could be asked
    text = build.spools.read(said.inode.content).decode(errors="replace") if said is not None else ""
    compiler = "".join(letter for letter in text.strip() if letter.isprintable())[:MAX_COMPILER]
    if build.version not in compiler:
        raise ImageError(f"the files show {language.name} {build.version}, the compiler says {compiler!r}", hint="give another --image")
    return compiler


def _write_unprepared(build: Build, folder: Path) -> None:
    """Write the image as it is before the prepare steps, which are the steps of its manifest; they
    may write where it is collected.
    """
    language = build.options.language
    wanted = language.prepare
    for path in wanted.collect:
        build.tree.put(path.encode(), Inode(mode=stat.S_IFDIR | 0o755, uid=RUNNER, gid=RUNNER))
    steps = wanted.steps
    if language.version_command:
        steps = (LanguageStep(name=VERSION_STEP, argv=language.version_command, wall_s=VERSION_S), *steps)
    memory = wanted.working_memory_mib or language.working_memory_mib
    language = msgspec.structs.replace(language, steps=steps, warmup=Warmup(), working_memory_mib=memory)
    # Without compression it is fastest to write, and to unpack where machines are emulated.
    unprepared = dataclasses.replace(build, options=dataclasses.replace(build.options, language=language, compression="none"), recipe="")
    archive = _write(unprepared, folder / "initramfs")
    (folder / "manifest.json").write_text(_manifest(unprepared, archive).to_json())


def version_of(language: Language, tree: Tree, spools: Spools) -> str:
    """The language's version as the image's files show it. Raises ImageError if they show none: it
    is another image then.
    """

    def read(path: str) -> bytes | None:
        node = tree.find(path.encode())
        if node is None or not stat.S_ISREG(node.inode.mode) or node.inode.size > _MAX_TEXT:
            return None
        return spools.read(node.inode.content)

    version = find_version(language.version, lambda: (path for path, _ in tree.walk()), read)
    if version is None:
        raise ImageError(f"the image shows no version of {language.name}", hint="is it an image of that language? give another --image")
    return version


def furnish(tree: Tree, spools: Spools, agent: bytes) -> None:
    """Add what the guest needs beside the toolchain: the agent, mount points, the user that
    snippets run as, /etc/hosts. The rest of the tree is read-only to that user.
    """
    _forbid_writing(tree)
    for path, mode in _MOUNT_POINTS:
        if path != b"tmp":
            tree.root.children.pop(path, None)
        tree.put(path, Inode(mode=stat.S_IFDIR | mode))
    tree.put(b"work", Inode(mode=stat.S_IFDIR | 0o755, uid=RUNNER, gid=RUNNER))
    tree.put(b"init", Inode(mode=stat.S_IFREG | 0o755, content=agent))
    _add_user(tree, spools, b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", b"runner:x:%d:%d::/work:/bin/sh\n" % (RUNNER, RUNNER))
    _add_user(tree, spools, b"etc/group", b"root:x:0:\n", b"runner:x:%d:\n" % RUNNER)
    hosts = b"127.0.0.1 localhost\n::1 localhost\n"
    tree.put(b"etc/hosts", Inode(mode=stat.S_IFREG | 0o644, content=hosts))


def _forbid_writing(tree: Tree) -> None:
    """Leave the runner nothing to write to, but all that it could read and execute: a guest may
    serve several runs, and the agent renews only the places that it mounts.
    """
    for inode in (node.inode for node in tree.nodes() if not node.is_symlink):
        rights = inode.mode >> (6 if inode.uid == RUNNER else 3 if inode.gid == RUNNER else 0)
        inode.mode = inode.mode & ~0o007 | rights & 0o005
        inode.uid, inode.gid = (0 if owner == RUNNER else owner for owner in (inode.uid, inode.gid))


def _add_user(tree: Tree, spools: Spools, path: bytes, initial: bytes, line: bytes) -> None:
    """Add the runner's line to a database of users or groups. Who had its id or its name goes: the
    home of Ubuntu's user 1000 is not there for a snippet.
    """
    node = tree.find(path)
    text = initial
    if node is not None and stat.S_ISREG(node.inode.mode) and node.inode.size <= _MAX_TEXT:
        text = spools.read(node.inode.content)
    name, _, number, *_ = line.rstrip(b"\n").split(b":")
    kept = [known for known in text.splitlines(keepends=True) if not _is_of(known.rstrip(b"\n").split(b":"), name, number)]
    if kept and not kept[-1].endswith(b"\n"):
        kept.append(b"\n")
    tree.put(path, Inode(mode=stat.S_IFREG | 0o644, content=b"".join(kept) + line))


def _is_of(fields: list[bytes], name: bytes, number: bytes) -> bool:
    return fields[0] == name or fields[2:3] == [number]


def _write(build: Build, path: Path) -> Archive:
    compression = build.options.compression
    total = sum(node.inode.size for node in build.tree.nodes())
    title = f"writing ({compression})"
    with atomic_write(path) as file, build.progress.task(title, total) as advance, compressor(compression, file) as write:

        def put(data: bytes) -> None:
            write(data)
            advance(len(data))

        summary = write_cpio(build.tree, build.spools.chunks, put)
    return Archive(summary=summary, size=path.stat().st_size, digest=file_digest(path))


def _manifest(build: Build, archive: Archive) -> Manifest:
    options, image, summary = build.options, build.image, archive.summary
    language = options.language
    needed = archive.size + summary.rounded_size + language.working_memory
    return Manifest(
        language=language.name,
        version=build.version,
        arch=options.arch,
        extensions=language.extensions,
        source_file=language.source_file,
        steps=_steps(language.steps, image.config.working_dir),
        warmup=msgspec.structs.replace(language.warmup, steps=_steps(language.warmup.steps, image.config.working_dir)),
        options=offered(language, build.version),
        env=_env(language, image),
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
        sizes=_large(sizes(build.tree)),
    )


def _large(found: Mapping[str, int]) -> dict[str, int]:
    """The directories with at least SHOWN bytes, the rest as one."""
    large = {name: size for name, size in sorted(found.items()) if size >= SHOWN}
    return {**large, "others": sum(found.values()) - sum(large.values())}


def _env(language: Language, image: ResolvedImage) -> dict[str, str]:
    return {"PATH": DEFAULT_PATH, **image.config.env, **language.env}


def _steps(steps: tuple[LanguageStep, ...], working_dir: str) -> tuple[LanguageStep, ...]:
    """The steps; those that state no directory of their own run in the image's WorkingDir."""
    usual = working_dir if working_dir.startswith("/") else "/work"
    return tuple(msgspec.structs.replace(step, cwd=step.cwd or usual) for step in steps)
