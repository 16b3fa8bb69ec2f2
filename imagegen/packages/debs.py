"""Debian's packages in images of C and C++: from the archive of the image's own suite, unpacked as
layers are. No script of a package is run.

Debian policy 5 (control files) and 7 (relationships); deb(5); Debian's repository format.
"""

import hashlib
import lzma
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from mayfly.errors import ConfigError, ImageError, LayerError, RegistryError
from mayfly.imagegen.oci.documents import MACHINE_TO_GOARCH
from mayfly.imagegen.packages.archives import unpack_deb, unxz
from mayfly.imagegen.packages.debian_release import read_release
from mayfly.imagegen.packages.downloads import Downloads
from mayfly.imagegen.packages.target import Target
from mayfly.imagegen.rootfs.dpkg import Installed, distribution
from mayfly.imagegen.rootfs.layers import add_layer
from mayfly.imagegen.rootfs.prune import prune
from mayfly.imagegen.rootfs.spools import Layer, Limits
from mayfly.imagegen.rootfs.tree import Inode, Tree
from mayfly.images.manifest import Package
from mayfly.paths import cache_dir
from mayfly.units import MIB

MAX_INDEX = 512 * MIB
"""Bytes of a suite's index, unpacked: that of trixie has 55 MB."""
MAX_PACKAGES = 500
LINKED = "usr/lib/mayfly/libraries"
"""What a program is linked with besides: the libraries of packages that were asked for."""
UNWANTED = ("usr/share/{doc,doc-base,info,lintian,locale,man,bug}/**",)
_ASKED = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?:=([A-Za-z0-9.+:~-]+))?")
_NEEDED = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?::[a-z0-9]+)?\s*(?:\((<<|<=|=|>=|>>)\s*([^)\s]+)\s*\))?")
_FIELD = re.compile(r"^(Package|Version|Depends|Pre-Depends|Provides|Filename|SHA256|Size): (.*)$", re.MULTILINE)
_BUILT_AGAINST = re.compile(rb"usr/include/.|usr/lib/.*\.so(\.[0-9.]+)?$")
_LIBRARY = re.compile(rb"lib([A-Za-z0-9_.+-]+)\.so")


class Deb(NamedTuple):
    """A package of an archive."""

    name: str
    version: str
    needs: tuple[str, ...]
    provides: tuple[str, ...]
    path: str
    digest: str


def add(target: Target) -> tuple[Package, ...]:
    """Unpack what is asked for, and all that it needs and that the image has not got.

    Raises:
        ConfigError, ImageError, LayerError, RegistryError: as for any package.
    """
    downloads = target.downloads()
    system = distribution(target.tree, target.spools)
    if not system.suite:
        raise ImageError("the image does not say which suite of Debian it is of", hint="take an image of Debian: docker.io/library/gcc")
    index = read_index(downloads, system.suite, target)
    there = {name: package.version for name, package in target.system.items() if _is_whole(target.tree, package)}
    asked = {parse(text)[0] for text in target.options.packages}
    added, linked = [], set()
    for deb in resolve(target.options.packages, index, there):
        before = _libraries(target)
        url = f"{downloads.base}/{deb.path}"
        path = downloads.file(url, deb.digest, target.limits.unpacked)
        try:
            _unpack(target, path)
        except LayerError as error:
            raise LayerError(f"{url}: {error.message}", hint=error.hint) from error
        if deb.name in asked:
            linked |= _libraries(target) - before
        added.append(Package(kind=f"deb/{system.name}", name=deb.name, version=deb.version, digest=deb.digest, source=url))
    prune(target.tree, UNWANTED)
    text = f"-Wl,--as-needed {' '.join(f'-l{name}' for name in sorted(linked))}\n".encode()
    target.tree.put(LINKED.encode(), Inode(mode=0o100644, content=text), layer=target.layer)
    return tuple(added)


def _unpack(target: Target, path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=cache_dir() / "spool") as file:
        with path.open("rb") as deb:
            digest = _copy(unpack_deb(deb), file, target.limits)
        layer = Layer(path=Path(file.name), digest=digest, diff_id=digest)
        add_layer(target.tree, target.layer, layer, target.spools, target.limits, as_dpkg=True)


def _copy(pieces: Iterator[bytes], out: IO[bytes], limits: Limits) -> str:
    hasher, size = hashlib.sha256(), 0
    for piece in pieces:
        size += len(piece)
        if size > limits.unpacked:
            raise LayerError(f"it unpacks to more than {limits.unpacked} bytes", hint="if that is right, raise --max-unpacked")
        hasher.update(piece)
        out.write(piece)
    out.flush()
    return f"sha256:{hasher.hexdigest()}"


def _is_whole(tree: Tree, package: Installed) -> bool:
    """Whether pruning left all that programs are built against or linked with."""
    wanted = (path for path in package.paths if _BUILT_AGAINST.match(path.lstrip(b"/")) or _BUILT_AGAINST.match(b"usr" + path))
    return all(tree.find(path) is not None for path in wanted)


def _libraries(target: Target) -> set[str]:
    """What the libraries of all packages so far are called for the linker: those with a file or a
    link `libNAME.so`.
    """
    folder = target.tree.find(f"usr/lib/{target.options.arch}-linux-gnu".encode())
    names = folder.children.items() if folder is not None else ()
    found = (_LIBRARY.fullmatch(name) for name, node in names if node.layer == target.layer and not node.is_dir)
    return {match[1].decode() for match in found if match}


def read_index(downloads: Downloads, suite: str, target: Target) -> dict[str, Deb]:
    """The packages of a suite's section `main` for an image, by name.

    Raises:
        RegistryError: it is not there, or not what its InRelease file says, or that is not signed.
    """
    at = f"{downloads.base}/dists/{suite}"
    release = downloads.document(f"{at}/InRelease")
    if release is None:
        raise RegistryError(f"{at} is not a suite of Debian's", hint="give another --packages-from")
    said = read_release(release, f"{at}/InRelease", suite, target.keyring, target.progress)
    name = f"main/binary-{MACHINE_TO_GOARCH[target.options.arch]}/Packages.xz"
    found = re.search(rf"^ ([0-9a-f]{{64}}) +\d+ {re.escape(name)}$", said, re.MULTILINE)
    if found is None:
        raise RegistryError(f"{at}/InRelease names no {name}", hint="give another --packages-from")
    path = downloads.file(f"{at}/{name}", f"sha256:{found[1]}", MAX_INDEX)
    text = bytearray()
    try:
        with path.open("rb") as file:
            for piece in unxz(iter(lambda: file.read(1 << 16), b"")):
                text += piece
                if len(text) > MAX_INDEX:
                    raise RegistryError(f"{at}/{name} unpacks to more than {MAX_INDEX} bytes")
    except (lzma.LZMAError, EOFError) as error:
        raise RegistryError(f"{at}/{name} is damaged: {error}") from error
    return {deb.name: deb for paragraph in text.decode("utf-8", "replace").split("\n\n") if (deb := _read_deb(paragraph)) is not None}


def _read_deb(paragraph: str) -> Deb | None:
    fields = dict(_FIELD.findall(paragraph))
    if not {"Package", "Version", "Filename", "SHA256"} <= set(fields):
        return None
    needs = [clause.strip() for key in ("Pre-Depends", "Depends") for clause in fields.get(key, "").split(",") if clause.strip()]
    provides = [match[1] for clause in fields.get("Provides", "").split(",") if (match := _NEEDED.match(clause.strip()))]
    digest = f"sha256:{fields['SHA256']}"
    return Deb(fields["Package"], fields["Version"], tuple(needs), tuple(provides), fields["Filename"], digest)


def parse(text: str) -> tuple[str, str]:
    """`zlib1g-dev=1.3` as name and version, which may be empty.

    Raises:
        ConfigError: it makes no sense.
    """
    asked = _ASKED.fullmatch(text)
    if asked is None:
        raise ConfigError(f"--package {text!r} is not a name of Debian's", hint="write it as zlib1g-dev or zlib1g-dev=VERSION")
    return asked[1], asked[2] or ""


def resolve(wanted: Sequence[str], index: Mapping[str, Deb], there: Mapping[str, str]) -> list[Deb]:
    """The packages that are wanted, and what they need besides those that are `there`, sorted by
    name. One suite fits together: of versions only exact ones count.

    Raises:
        ConfigError: a package is named in a way that makes no sense.
        ImageError: the suite has not got one.
    """
    providers: dict[str, list[str]] = {}
    for deb in index.values():
        for name in deb.provides:
            providers.setdefault(name, []).append(deb.name)
    chosen: dict[str, Deb] = {}
    todo: list[str] = []

    def choose(name: str) -> None:
        if name not in chosen:
            chosen[name] = index[name]
            todo.append(name)
        if len(chosen) > MAX_PACKAGES:
            raise ImageError(f"these are more than {MAX_PACKAGES} packages", hint="ask for fewer")

    for name, version in map(parse, wanted):
        if name not in index:
            raise ImageError(f"the suite has no package {name!r}", hint="look it up: https://packages.debian.org")
        if version and version != index[name].version:
            raise ImageError(f"the suite has {name} {index[name].version}, not {version}", hint="ask for that, or for any")
        choose(name)
    while todo:
        name = todo.pop()
        for clause in index[name].needs:
            alternatives = [match for part in clause.split("|") if (match := _NEEDED.match(part.strip()))]
            if not any(_is_met(match, chosen, there, providers) for match in alternatives):
                names = [one for match in alternatives for one in (match[1], *providers.get(match[1], ())) if one in index]
                if not names:
                    raise ImageError(f"{name} needs {clause}, which the suite has not", hint="ask for other packages")
                choose(names[0])
    return [chosen[name] for name in sorted(chosen)]


def _is_met(need: re.Match[str], chosen: Mapping[str, Deb], there: Mapping[str, str], providers: Mapping[str, Sequence[str]]) -> bool:
    name, relation, version = need.groups()
    if name in chosen or any(provider in chosen or provider in there for provider in providers.get(name, ())):
        return True
    return name in there and (relation != "=" or there[name] == version)
