"""Small archives for the guest's kernel, and a language whose compiler is a shell: busybox and the
agent, which boot in no time.
"""

import hashlib
import platform
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from mayfly import paths
from mayfly.imagegen.rootfs.cpio import header
from mayfly.images import manifest
from mayfly.units import MIB

MACHINE = platform.machine()
AGENT = Path(__file__).resolve().parents[2] / f"imagegen/agents/mayfly-agent.{MACHINE}"
BUSYBOX = Path("/bin/busybox")
MOUNTS = {"devtmpfs": "dev", "proc": "proc", "sysfs": "sys"}
APPLETS = (
    *("sh", "cat", "echo", "sleep", "seq", "head", "yes", "kill", "true", "false"),
    *("dd", "nproc", "reboot", "sha256sum", "date", "touch", "tty", "stty"),
)
NETWORK_APPLETS = ("nc", "nslookup", "ls", "grep", "mkfifo", "md5sum")


def archive(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A newc archive, without its end, of (name, mode with file type, content)."""
    packed = bytearray()
    for number, (name, mode, data) in enumerate(entries, 1):
        packed += header(ino=number, mode=mode, uid=0, gid=0, nlink=1, size=len(data), name=name.encode()) + data
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


END = archive([("TRAILER!!!", 0, b"")])


def shell_root(init: str) -> bytes:
    """An initramfs of busybox and a script that is its init, with /dev, /proc and /sys mounted."""
    mounts = "".join(f"/bin/busybox mount -t {kind} {kind} /{folder}\n" for kind, folder in MOUNTS.items())
    script = f"#!/bin/busybox sh\n{mounts}{init}\n"
    return (
        archive(
            [
                *((folder, stat.S_IFDIR | 0o755, b"") for folder in ("bin", *MOUNTS.values())),
                ("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes()),
                ("init", stat.S_IFREG | 0o755, script.encode()),
            ]
        )
        + END
    )


def build(
    language: str = "toy",
    *,
    memory: int = 96 * MIB,
    ballast: int = 0,
    end_marker: bool = True,
    agent: bytes | None = None,
    programs: Mapping[str, bytes] | None = None,
    warmup: str = "",
    standby: str = "",
    function: manifest.Function | None = None,
) -> Path:
    """Write the image of a toy language (extension .toy) to where mayfly looks for it; its folder.

    Args:
        memory: what the manifest asks for.
        ballast: bytes of a file that only takes room.
        end_marker: whether the archive has one.
        agent: another init.
        programs: executables for /bin.
        warmup: a script to run before a base is saved.
        standby: a script that stands by for the run step.
        function: how it loads functions.
    """
    folders = ("bin", "dev", "proc", "sys", "tmp", "mayfly", "etc", "work", "run")
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    entries.append(("init", stat.S_IFREG | 0o755, AGENT.read_bytes() if agent is None else agent))
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes()))
    entries += [(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox") for applet in APPLETS + NETWORK_APPLETS]
    entries += [(f"bin/{name}", stat.S_IFREG | 0o755, content) for name, content in (programs or {}).items()]
    if ballast:
        entries.append(("ballast", stat.S_IFREG | 0o644, bytes(ballast)))
    packed = archive(entries)
    marker = hashlib.sha256(packed).hexdigest()
    if end_marker:
        packed += archive([("mayfly/end", stat.S_IFREG | 0o444, marker.encode())])
    packed += END

    folder = paths.image_dir(language, MACHINE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "initramfs").write_bytes(packed)
    described = manifest.Manifest(
        language=language,
        version="1.0",
        arch=MACHINE,
        extensions=(".toy",),
        source_file="main.toy",
        steps=(
            manifest.LanguageStep(name="build", argv=("sh", "-n", "main.toy")),
            manifest.LanguageStep(
                name="run", argv=("sh", "main.toy", "{args}"), stdin=True, standby=("sh", "-c", standby) if standby else ()
            ),
        ),
        env={"PATH": "/bin"},
        warmup=manifest.Warmup(steps=(manifest.LanguageStep(name="warm", argv=("sh", "-c", warmup)),) if warmup else ()),
        function=function,
        source=manifest.ImageSource(reference="made by a test", manifest_digest="", config_digest="", layers=()),
        compression="none",
        initramfs_size=len(packed),
        initramfs_digest=f"sha256:{hashlib.sha256(packed).hexdigest()}",
        end_marker=marker,
        unpacked_size=ballast + 4 * MIB,
        entries=len(entries) + 1,
        memory=memory,
        agent_digest="",
        recipe_digest="",
        generator="a test",
    )
    (folder / "manifest.json").write_text(described.to_json())
    return folder
