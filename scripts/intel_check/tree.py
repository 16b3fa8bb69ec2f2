"""The root of an emulated Intel host, as an initramfs made in memory: this machine's Python and its
libraries, a few programs, the project, and the guests' kernel.

The emulated host has no disk and shares no files: all that the tests need is in here.
"""

import importlib.metadata
import importlib.util
import marshal
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from scripts.debian.root import HostFilesError
from scripts.kvmhost.hostfiles import cpio

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROJECT = "/project"
SITE = "/site"
DATA = "/data"
FOLDERS = ("bin", "dev", "proc", "sys", "tmp", "run", "root", "sbin", "usr/bin", "usr/sbin", "mnt")
PROGRAMS = ("as", "ip", "ld", "passt")
OURS = "mayfly-vm"
DISTRIBUTIONS = (OURS, "pytest", "pytest-timeout")
LOADED_LATE = ("libgcc_s.so.1",)
"""Of no program's list, but glibc loads it when a thread ends."""
STANDARD_LEFT_OUT = {"test", "tests", "idlelib", "ensurepip", "tkinter", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
BUILT = ("vmm/kvm/_kvm*.so", "imagegen/agents/mayfly-agent.x86_64")
NOT_NEEDED = ("docs/", "examples/", "agent/", ".ci/")
TEXTS = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}
UNCHECKED = 1
"""A compiled module that Python does not compare with its source (PEP 552)."""


class Tree:
    """Files of an initramfs by their paths, without the leading slash."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes]] = {}

    def folder(self, path: str) -> None:
        """Add a folder and those above it."""
        if path and path not in self._entries:
            self.folder(path.rpartition("/")[0])
            self._entries[path] = stat.S_IFDIR | 0o755, b""

    def add(self, path: str, content: bytes, mode: int = stat.S_IFREG | 0o644) -> None:
        """Add a file, or a link whose target is `content`."""
        self.folder(path.rpartition("/")[0])
        self._entries[path] = mode, content

    def copy(self, source: Path, path: str) -> None:
        """Add what is at `source`; a link stays one."""
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode):
            self.add(path, str(source.readlink()).encode(), status.st_mode)
        elif stat.S_ISREG(status.st_mode):
            self.add(path, source.read_bytes(), status.st_mode)

    def module(self, source: Path, path: str) -> None:
        """Add a file of a library; a Python module with its compiled form."""
        self.copy(source, path)
        if source.suffix == ".py":
            content = source.read_bytes()
            try:
                code = compile(content, f"/{path}", "exec", dont_inherit=True)
            except SyntaxError:
                return  # a template, not a module
            header = importlib.util.MAGIC_NUMBER + UNCHECKED.to_bytes(4, "little") + importlib.util.source_hash(content)
            self.add(importlib.util.cache_from_source(path), header + marshal.dumps(code))
        elif ".so" in source.name:
            self._libraries(source)

    def program(self, source: Path, path: str = "") -> None:
        """Add a program, at its own path if not told otherwise, and the libraries that it needs."""
        self.add(path or str(source).lstrip("/"), source.read_bytes(), stat.S_IFREG | 0o755)
        self._libraries(source)

    def _libraries(self, source: Path) -> None:
        listed = subprocess.run(["ldd", source], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(?:=> |^\s+)(/\S+)", listed, re.MULTILINE):
            if library.lstrip("/") not in self._entries:
                self.add(library.lstrip("/"), Path(library).read_bytes(), stat.S_IFREG | 0o755)

    def archive(self) -> bytes:
        """The cpio archive."""
        return cpio((path, mode, content) for path, (mode, content) in self._entries.items())


def root(kernels: Path) -> Tree:
    """The whole root; `kernels` is the folder of the guests' kernels.

    Raises:
        HostFilesError: a part is not there; the message says what makes it.
    """
    tree = Tree()
    for folder in FOLDERS:
        tree.folder(folder)
    for path, text in TEXTS.items():
        tree.add(path, text.encode())
    for name in PROGRAMS:
        tree.program(_program(name), f"usr/bin/{name}")
    tree.program(Path(sys.executable).resolve(), "usr/bin/python3")
    tree.add("usr/bin/gcc", (HERE / "gcc.sh").read_bytes(), stat.S_IFREG | 0o755)
    for library in LOADED_LATE:
        found = next((path for path in _library_folders() if (path / library).exists()), None)
        if found:
            tree.program(found / library)
    _standard_library(tree)
    for distribution, file in _distribution_files(DISTRIBUTIONS):
        tree.module(Path(str(distribution.locate_file(file))), f"{SITE[1:]}/{file}")
    _project(tree)
    for name in ("vmlinux", "bzImage"):
        if not (kernels / name).exists():
            raise HostFilesError(f"{kernels / name} is missing; run 'make kernel'")
        tree.copy(kernels / name, f"{DATA[1:]}/mayfly/kernel/x86_64/{name}")
    return tree


def _program(name: str) -> Path:
    for folder in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"):
        if Path(folder, name).exists():
            return Path(folder, name).resolve()
    raise HostFilesError(f"{name} is missing; run 'make setup'")


def _library_folders() -> list[Path]:
    triplet = str(sysconfig.get_config_var("MULTIARCH") or "")
    return [Path("/lib") / triplet, Path("/usr/lib") / triplet]


def _standard_library(tree: Tree) -> None:
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_dir() and not STANDARD_LEFT_OUT.intersection(inside.parts) and not inside.parts[0].startswith("config-"):
            tree.module(path, str(path).lstrip("/"))


def _distribution_files(names: Iterable[str]) -> Iterator[tuple[importlib.metadata.Distribution, importlib.metadata.PackagePath]]:
    """The files of Python distributions and of all that they require; not our own, which are the
    project's.
    """
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
        for file in (distribution.files or ()) if name != OURS else ():
            if ".." not in file.parts and file.suffix not in (".pyc", ".pth") and "__editable__" not in file.name:
                yield distribution, file


def _project(tree: Tree) -> None:
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and not name.startswith(NOT_NEEDED)]
    for pattern in BUILT:
        built = [str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)]
        if not built:
            raise HostFilesError(f"{pattern} is missing; run 'make agents'")
        names += built
    for name in names:
        path = ROOT / name
        if path.is_symlink() or path.is_file():
            (tree.copy if path.is_symlink() else tree.module)(path, f"{PROJECT[1:]}/{name}")
