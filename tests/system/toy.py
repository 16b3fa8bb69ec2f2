"""A language whose compiler is a shell: an image of busybox and the agent, small enough to boot in no time."""

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

from imagegen.cpio import header
from mayfly import manifest, paths
from vmm.config import MIB

AGENT = Path(__file__).resolve().parents[2] / "imagegen/agents/mayfly-agent.x86_64"
BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "echo", "sleep", "seq", "head", "yes", "kill", "true", "false", "dd", "reboot")
NETWORK_APPLETS = ("nc", "nslookup", "sha256sum", "ls", "grep", "mkfifo")


def build(
    language: str = "toy",
    *,
    memory: int = 96 * MIB,
    ballast: int = 0,
    end_marker: bool = True,
    agent: bytes | None = None,
    programs: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the image of a toy language (extension .toy) to where mayfly looks for it; its folder.

    Args:
        memory: what the manifest asks for.
        ballast: bytes of a file that only takes room.
        end_marker: whether the archive has one.
        agent: another init.
        programs: executables for /bin.
    """
    archive, inode = bytearray(), 0

    def put(name: str, mode: int, data: bytes = b"") -> None:
        nonlocal inode
        inode += 1
        archive.extend(header(ino=inode, mode=mode, uid=0, gid=0, nlink=1, size=len(data), name=name.encode()))
        archive.extend(data)
        archive.extend(bytes(-len(archive) % 4))

    for name in ("bin", "dev", "proc", "sys", "tmp", "mayfly", "etc", "work", "run"):
        put(name, stat.S_IFDIR | 0o755)
    put("init", stat.S_IFREG | 0o755, AGENT.read_bytes() if agent is None else agent)
    put("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes())
    for applet in APPLETS + NETWORK_APPLETS:
        put(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    for name, content in (programs or {}).items():
        put(f"bin/{name}", stat.S_IFREG | 0o755, content)
    if ballast:
        put("ballast", stat.S_IFREG | 0o644, bytes(ballast))
    marker = hashlib.sha256(archive).hexdigest()
    if end_marker:
        put("mayfly/end", stat.S_IFREG | 0o444, marker.encode())
    put("TRAILER!!!", 0)

    folder = paths.image_dir(language, "x86_64")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "initramfs").write_bytes(archive)
    described = manifest.Manifest(
        language=language,
        version="1.0",
        arch="x86_64",
        extensions=(".toy",),
        source_file="main.toy",
        steps=(
            manifest.Step(name="build", argv=("sh", "-n", "main.toy")),
            manifest.Step(name="run", argv=("sh", "main.toy", "{args}"), stdin=True),
        ),
        env={"PATH": "/bin"},
        source=manifest.Source(reference="made by a test", manifest_digest="", config_digest="", layers=()),
        compression="none",
        initramfs_size=len(archive),
        initramfs_digest="",
        end_marker=marker,
        unpacked_size=ballast + 4 * MIB,
        entries=inode,
        memory=memory,
        agent_digest="",
        recipe_digest="",
        generator="a test",
    )
    (folder / "manifest.json").write_text(described.to_json())
    return folder
