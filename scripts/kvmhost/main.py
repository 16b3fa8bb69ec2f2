"""Run a command where KVM can run Linux guests: here, or in an emulated KVM host.

Usage: scripts/with-kvm [--arch ARCH] [--memory MIB] [--cpus N] [--loopback]
    [--forward PORT]… COMMAND [ARGUMENT…]

The command has this machine's files, the same folder, and `mayfly`, `imagegen` and `python` on its
PATH. An emulated host of another architecture than this machine's (x86_64, aarch64) has programs of
its own, and this machine's other files. Streams and exit status are the command's own; 125 means
that with-kvm itself failed.

In the emulated host the command runs as root. /run and TMPDIR are in memory. XDG_DATA_HOME and
XDG_CACHE_HOME are on a disk that stays; kernels and images made outside are copied there when they
are newer. --memory and --cpus are the emulated host's (default: a third of this machine's memory,
and 1: emulated processors that share memory have broken KVM's machines). Two emulated hosts may run
at a time.

--loopback: the command reaches services on this machine's loopback, at the address that is in its
environment as LOOPBACK. --forward PORT: besides, a connection to that port of this machine's
loopback reaches the same port of the command's host, where the service has to listen at 0.0.0.0.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from mayfly import paths
from scripts.debian.root import HostFilesError
from scripts.kvmhost import emulator, hostfiles

ROOT = Path(__file__).resolve().parents[2]
FOREIGN_PATH = "/usr/local/bin:/usr/bin:/usr/sbin"
PROGRAMS = {"mmdebstrap": "mmdebstrap", "busybox": "busybox-static", "mke2fs": "e2fsprogs"}


def say(text: str) -> None:
    print(f"with-kvm: {text}", file=sys.stderr, flush=True)


def native(arch: str, python: Path) -> tuple[bool, str]:
    """Can guests run right here, and why (not)?"""
    if arch != platform.machine():
        return False, f"this machine is {platform.machine()}, not {arch}"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False, "there is no /dev/kvm that may be opened"
    probe = subprocess.run([python, "-m", "mayfly.guests.probe"], cwd=ROOT, capture_output=True, text=True, check=False)
    if probe.returncode not in (0, 1) or "Traceback" in probe.stderr:
        raise HostFilesError(f"the probe of /dev/kvm failed; run 'make setup'\n{probe.stderr}")
    return probe.returncode == 0, probe.stdout.strip()


def port(text: str) -> int:
    number = int(text)
    if not 0 < number < 1 << 16:
        raise ValueError(text)
    return number


def install_missing() -> None:
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            raise HostFilesError(f"run this as root, then again: {' '.join(command)}")
        command.insert(0, "sudo")
    say(f"installing {' '.join(missing)}")
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode:
        raise HostFilesError(f"this failed: {' '.join(command)}")


def main() -> int:
    told, usage, more = (__doc__ or "").split("\n\n", 2)
    parser = argparse.ArgumentParser(
        prog="with-kvm",
        usage=usage.removeprefix("Usage: "),
        description=told,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", choices=sorted(hostfiles.HOSTS), default=platform.machine())
    parser.add_argument("--memory", type=int, metavar="MIB", help="of the emulated host (default: a third of this machine's)")
    parser.add_argument("--cpus", type=int, default=1, help="of the emulated host (default: 1)")
    parser.add_argument("--loopback", action="store_true", help="let the command reach services on this machine's loopback")
    parser.add_argument("--forward", type=port, metavar="PORT", action="append", help="let this machine reach that port of the host")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("a COMMAND is needed")
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    environment = dict(os.environ)
    try:
        python = Path(sys.executable)
        usable, reason = native(arguments.arch, python)
        if arguments.arch == platform.machine():
            environment["PATH"] = f"{python.parent}:{environment['PATH']}"
        else:
            environment = {name: value for name, value in environment.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "LD_"))}
            environment |= {"PATH": FOREIGN_PATH, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": "/run/state/cache/python"}
        has_network = arguments.loopback or arguments.forward
        if has_network:
            environment["LOOPBACK"] = "127.0.0.1" if usable else emulator.LOOPBACK
        if usable:
            say(f"running here: {reason}")
            os.execvpe(arguments.command[0], arguments.command, environment)  # noqa: S606 (no shell is wanted)
        say(f"using an emulated KVM host: {reason}")
        install_missing()
        environment |= {"TMPDIR": "/run/tmp", "XDG_RUNTIME_DIR": "/run/user/0"}
        environment |= {"XDG_DATA_HOME": "/run/state/data", "XDG_CACHE_HOME": "/run/state/cache"}
        third = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 3
        return emulator.run(
            arguments.command,
            arch=arguments.arch,
            project=ROOT,
            python=python,
            cache=paths.cache_dir() / "kvm-host",
            data=paths.data_dir(),
            environment=environment,
            memory=arguments.memory << 20 if arguments.memory else third,
            cpus=arguments.cpus,
            forwarded=(arguments.forward or []) if has_network else None,
        )
    except FileNotFoundError as error:
        say(str(error))
        return 127
    except (HostFilesError, OSError) as error:
        say(str(error))
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
