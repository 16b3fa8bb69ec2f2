"""The layer that a machine makes of an image, by its language's prepare steps: made once, kept in
the cache, merged into the tree.
"""

import dataclasses
import hashlib
import json
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from mayfly.errors import HostError, ImageError
from mayfly.files import atomic_write, file_digest
from mayfly.imagegen.languages import Prepare
from mayfly.imagegen.oci.documents import ResolvedImage
from mayfly.imagegen.options import Options
from mayfly.imagegen.prepare import VERSION_STEP, prepare, why_not
from mayfly.imagegen.rootfs.collected import VERSION_FILE
from mayfly.imagegen.rootfs.furnish import RUNNER
from mayfly.imagegen.rootfs.layers import add_layer
from mayfly.imagegen.rootfs.spools import Layer
from mayfly.imagegen.rootfs.tree import Inode, Tree
from mayfly.imagegen.writing import Build, describe, environment, write
from mayfly.images.manifest import LanguageStep, Warmup
from mayfly.paths import cache_dir

VERSION_S = 120.0
"""For the compiler to say its version, on an emulated host too."""
MAX_COMPILER = 200
"""Letters of what it says."""


def can_ask(options: Options, image: ResolvedImage) -> bool:
    """Whether the compiler can say its version here: it did before, or there is a machine to run it
    in.
    """
    return bool(options.language.version_command) and (_is_whole(_prepared_path(options, image)) or _has_machine(options))


def _has_machine(options: Options) -> bool:
    return bool(options.prepare_with) or not why_not(options.arch)


def _prepared_path(options: Options, image: ResolvedImage, packages: Sequence[str] = ()) -> Path:
    """Where the layer is kept that a machine made of this image, by the hash of all that decides on
    it; of its packages, if what decides on those is given.
    """
    language = options.language
    made_of = {
        "manifest": image.manifest_digest,
        "prune": language.prune,
        "env": environment(msgspec.structs.replace(language, common_env={}), image),  # a locale changes nothing of it
        "prepare": msgspec.to_builtins(language.prepare),
        "version": language.version_command,
        **({"packages": packages} if packages else {}),
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
    """Merge into a tree without packages what the language's prepare steps make in a machine, which
    runs once for an image.

    Gives what the compiler said of itself there. Where there are no steps, and no machine to ask it
    in, that is nothing.

    Raises:
        HostError: there are steps, and no machine.
        ImageError: a step failed, or the compiler is of another version than the image's files
            show.
    """
    options = build.options
    language = options.language
    command = language.version_command
    path = _prepared_path(options, build.image)
    if _is_wanted(language.prepare, path, build) or can_ask(options, build.image):
        _add(build, path, language.prepare, command, layer=1)
    if not command:
        return ""
    said = build.tree.remove(VERSION_FILE.encode())  # it is for the manifest: the archive is the same where no machine could be asked
    if said is None:
        return ""
    compiler = "".join(letter for letter in build.spools.read(said.inode.content).decode(errors="replace").strip() if letter.isprintable())
    if build.version not in compiler:
        raise ImageError(f"the files show {language.name} {build.version}, the compiler says {compiler!r}", hint="give another --image")
    return compiler[:MAX_COMPILER]


def add_packages_prepared(build: Build) -> None:
    """Merge into the tree what a machine makes of its packages, once for each set of them.

    Raises:
        HostError: there are steps, and no machine.
        ImageError: a step failed.
    """
    if packages := build.options.with_packages:
        found = [build.recipe, *(package.digest for package in build.packages)]
        path = _prepared_path(build.options, build.image, found)
        if _is_wanted(packages.prepare, path, build):
            _add(build, path, packages.prepare, (), layer=3)


def _is_wanted(wanted: Prepare, path: Path, build: Build) -> bool:
    """Whether there are steps whose layer, kept at `path`, is there or is to be made: those that
    are optional where a machine can run.
    """
    if not wanted.steps or not wanted.optional or _is_whole(path) or _has_machine(build.options):
        return bool(wanted.steps)
    build.progress.say(f"no machine can run here: what it would make, {', '.join(step.name for step in wanted.steps)}, is left out")
    return False


def _add(build: Build, path: Path, wanted: Prepare, command: tuple[str, ...], *, layer: int) -> None:
    """Merge into the tree what these steps make, whose layer is kept at `path`. The `command` is
    asked for the compiler's version.
    """
    options, progress = build.options, build.progress
    again = options.force and (_has_machine(options) or (bool(wanted.steps) and not wanted.optional))
    whole = _is_whole(path)
    if not whole and path.exists():
        progress.say(f"{path} is damaged and is made anew")
    if not whole or again:
        name = f"{options.language.name} {build.version}"
        progress.say(f"{'preparing' if wanted.steps else 'asking'} {name} in a machine; this is done once")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="prepare.", dir=cache_dir()) as folder:
            _write_unprepared(build, Path(folder), wanted, command)
            if options.prepare_with:
                line = [*options.prepare_with, "imagegen", "prepare", folder, str(path), *wanted.collect]
                try:
                    done = subprocess.run(line, stdin=subprocess.DEVNULL, check=False)
                except OSError as error:
                    raise HostError(f"{line[0]} cannot be started: {error.strerror}", hint="look at --prepare-with") from error
                if done.returncode != 0:
                    raise ImageError(f"the image could not be prepared by {' '.join(options.prepare_with)}", hint="see above")
            else:
                prepare(Path(folder), wanted.collect, path, options.limits, progress)
        with atomic_write(_digest_path(path)) as file:
            file.write(file_digest(path).encode())
    digest = file_digest(path)
    add_layer(build.tree, len(build.image.layers) + layer, Layer(path=path, digest=digest, diff_id=digest), build.spools, options.limits)


def _write_unprepared(build: Build, folder: Path, wanted: Prepare, command: tuple[str, ...]) -> None:
    """Write the image as it is before the steps, which are those of its manifest; they may write
    where it is collected.
    """
    language = build.options.language
    _give(build.tree, wanted.collect, RUNNER)
    steps = wanted.steps
    if command:
        steps = (LanguageStep(name=VERSION_STEP, argv=command, wall_s=VERSION_S), *steps)
    memory = wanted.working_memory_mib or language.working_memory_mib
    language = msgspec.structs.replace(language, steps=steps, warmup=Warmup(), function=None, profiles={}, working_memory_mib=memory)
    # Without compression it is fastest to write, and to unpack where machines are emulated.
    unprepared = dataclasses.replace(build, options=dataclasses.replace(build.options, language=language, compression="none"), recipe="")
    archive = write(unprepared, folder / "initramfs")
    (folder / "manifest.json").write_text(describe(unprepared, archive).to_json())
    _give(build.tree, wanted.collect, 0)


def _give(tree: Tree, paths: Iterable[str], owner: int) -> None:
    """Give these folders, and those in them, to a user; what is not there is made."""
    for path in paths:
        node = tree.find(path.encode()) or tree.put(path.encode(), Inode(mode=stat.S_IFDIR | 0o755))
        todo = [node]
        while todo:
            node = todo.pop()
            node.inode.uid = node.inode.gid = owner
            todo += [child for child in node.children.values() if child.is_dir]
