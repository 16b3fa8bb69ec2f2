"""Split a run of hello world by processor time, natively: what is ours, and what its language's.

Usage: python -m scripts.bench.split FILE [--rounds N]

Where KVM runs no Linux natively, no run can be measured there as a whole. So its parts are measured
one by one: the server's part of `POST /run` (scripts.bench.requests), the zygote's and the vmm
process's of a tiny guest that is restored (scripts.bench.quick), and each step of hello world in
the tree of its language's image. What a guest's kernel and agent take is in none of them. As root,
for chroot(2), and with /dev/kvm; a language without an image is left out.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from mayfly.errors import MayflyError
from mayfly.guests.zygote import Zygote
from mayfly.host.config import Config
from mayfly.host.plan import make_plan
from mayfly.host.snippet import Snippet
from mayfly.imagegen.rootfs.unpack import unpack
from mayfly.images.store import Images
from mayfly.vmm.kvm.system import call
from scripts.bench import quick, requests
from tests.kit.spawned import Spawned

HELLO = {
    "rust": 'fn main() { println!("hello"); }\n',
    "go": 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n',
    "python": "print('hello')\n",
}
WORK = "work"  # A guest's folder for snippets
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x2_0000, 0x4000, 0x4_0000  # unshare(2), mount(2)
STARTS = 100
REQUESTS = 200
"""So many, as Linux counts the processor time of processes in ticks of 10 ms."""


def of_server() -> float:
    """Milliseconds a request, with agents that answer at once."""
    return float(requests.measure(REQUESTS, clients=1)["loads"][0]["server_processor_ms"])


def of_machine() -> dict[str, float]:
    """Milliseconds of the zygote and of the vmm process, from its fork to its end."""
    with tempfile.TemporaryDirectory() as name, contextlib.closing(Zygote.start()) as zygote:
        _, restored = quick.saved_tiny(Path(name))
        before = _ticks(zygote.pid)
        for _ in range(STARTS):
            with Spawned(zygote, restored) as machine:
                machine.wait_running()
            zygote.receive()
        own, machines = (after - earlier for earlier, after in zip(before, _ticks(zygote.pid), strict=True))
    a_tick = 1000 / os.sysconf("SC_CLK_TCK") / STARTS
    return {"zygote": own * a_tick, "vmm process": machines * a_tick}


def _ticks(pid: int) -> tuple[int, int]:
    """Processor time of a process, and of its children that have ended (proc_pid_stat(5))."""
    user, system, of_children, by_children = map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
    return user + system, of_children + by_children


def of_steps(language: str, rounds: int) -> dict[str, float]:
    """Milliseconds of each step, the median of `rounds`. Raises MayflyError: there is no image."""
    image = Images().find(language)
    job = make_plan(Snippet(files={image.manifest.source_file: HELLO[language].encode()}), image, Config()).job
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        unpack(image.folder, tree)
        for folder in ("dev", "proc"):
            (tree / folder).mkdir(exist_ok=True)
        os.mknod(tree / "dev/null", 0o20666, os.makedev(1, 3))
        spent: dict[str, list[float]] = {}
        for _ in range(rounds):
            for folder in (WORK, "tmp"):
                shutil.rmtree(tree / folder, ignore_errors=True)
                (tree / folder).mkdir()
            (tree / WORK / image.manifest.source_file).write_text(HELLO[language])
            for step in job.start.steps:
                spent.setdefault(step.name, []).append(_run(tree, step.argv, dict(job.start.env) | dict(step.env)))
    return {name: statistics.median(times) for name, times in spent.items()}


def _run(tree: Path, argv: tuple[str, ...], environment: dict[str, str]) -> float:
    """Milliseconds of processor time of a program in `tree`."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            call("unshare", CLONE_NEWNS)
            call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
            call("mount", b"proc", bytes(tree / "proc"), b"proc", 0, None)
            os.chroot(tree)
            os.chdir(f"/{WORK}")
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            os.dup2(0, 1)
            os.execvpe(argv[0], argv, environment)  # noqa: S606
        os._exit(125)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"bench: {argv} ended with {os.waitstatus_to_exitcode(status)}")
    return 1000 * (usage.ru_utime + usage.ru_stime)


def measure(rounds: int) -> dict[str, Any]:
    """All of it, in milliseconds."""
    found: dict[str, Any] = {"machine": platform.platform(), "rounds": rounds, "server": of_server(), **of_machine(), "languages": {}}
    for language in HELLO:
        try:
            found["languages"][language] = of_steps(language, rounds)
        except MayflyError as error:
            print(f"left out: {language}: {error}")
    return found


def show(found: dict[str, Any]) -> None:
    """Print the split of each language's run."""
    ours = {name: found[name] for name in ("server", "zygote", "vmm process")}
    for language, steps in found["languages"].items():
        whole = sum(ours.values()) + sum(steps.values())
        parts = ", ".join(f"{name} {ms:.1f} ms" for name, ms in (ours | steps).items())
        print(f"{language}: {parts}; ours {100 * sum(ours.values()) / whole:.0f} % of {whole:.0f} ms")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Split a run of hello world by processor time.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # for the zygote
    found = measure(arguments.rounds)
    arguments.file.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


if __name__ == "__main__":
    main()
