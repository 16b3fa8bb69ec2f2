"""Measure each language's hello world, restored and cold, compiled and run, and its base snapshot.

Usage: python -m scripts.bench.languages FILE LANGUAGE…

The program is the first of the language's checks (`imagegen check`); the checks themselves run when
all languages are measured. It starts scripts/with-kvm's host itself, in which the images that are
there run. A time is that from the request to the end of the run, by the clock and as seconds that
the emulator took of a processor: on a busy machine the latter's ratios hold. A machine is asked for
when its host has been at rest, so the second one is a spare. FILE has a row for each language,
written whenever one of its figures is there; rows of other languages stay.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mayfly.errors import MayflyError
from mayfly.guests.converse import converse
from mayfly.guests.outcome import Outcome
from mayfly.guests.start import start
from mayfly.guests.zygote import Zygote
from mayfly.host.checks import time_factor
from mayfly.host.config import Config
from mayfly.host.plan import make_plan
from mayfly.host.snippet import Snippet
from mayfly.imagegen.checks import load_checks
from mayfly.runs.service import Service
from mayfly.snapshots import store

KINDS = ("restored", "restored", "cold")
REST_S = 3.0
"""Before each: a spare for the next machine is made by then, and what was written is stored."""
PYTHON = (sys.executable, "-P", "-m")


def say(language: str, what: str, value: Any) -> None:
    """Tell the process outside; `begin` is when its clock starts."""
    print(json.dumps([language, what, value]), flush=True)


async def measure(service: Service, language: str) -> None:
    """The figures of a language."""
    image = service.images.find(language)
    described = image.manifest
    plan = make_plan(Snippet(source=load_checks(language)[0].source.encode()), image, service.config)
    facts = {name: getattr(described, name) for name in ("compiler", "unpacked_size", "initramfs_size", "compression", "memory")}
    say(language, "begin", "base")
    began = time.monotonic()
    base = await service.supply.ensure_base(plan.wanted, again=True)
    say(language, "base", {**facts, "base_disk": store.disk_bytes(base), "wall_s": time.monotonic() - began})
    for kind in KINDS:
        await asyncio.sleep(REST_S)
        say(language, "begin", kind)
        began = time.monotonic()
        guest = await start(service.spawner, plan.wanted if kind == "cold" else plan.wanted.restored_from(base.chain))
        ready = time.monotonic() - began
        outcome = Outcome(plan.job.step_names, kept=2000)
        await converse(guest, plan.job, outcome)
        done = time.monotonic() - began
        if outcome.verdict().exit_status or outcome.tail != b"hello\n":
            raise SystemExit(f"bench: {language} failed: {outcome.tail!r}")
        steps = {step.name: step.exit.wall_us / 1e6 for step in outcome.steps}
        say(language, kind, {"hello_s": ready, "wall_s": done, "steps_s": steps})
        await guest.process.stop()


async def inside(languages: list[str]) -> None:
    """All figures, each as a line on standard output, then the checks."""
    config = Config.load({})
    config = config.scaled(time_factor(config))
    for language in languages:
        try:
            async with Service(config, Zygote.start) as service:
                await measure(service, language)
        except MayflyError as error:
            print(f"bench: {language}: {error}\n{getattr(error, 'console', '')}", file=sys.stderr, flush=True)
    for language in languages:
        command = [*PYTHON, "mayfly.cli.main", "image", "check", language, "--json"]
        say(language, "checks", json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout or "null"))


def processor_s(pid: int) -> float:
    """Seconds that this process, its children and those of them that ended have had of a
    processor.
    """
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK") + sum(processor_s(int(child)) for child in children)


def outside(file: Path, languages: list[str]) -> int:
    """Run `inside` in the emulated host, and write what it says; its exit status."""
    rows: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    command = [*PYTHON, "scripts.kvmhost.main", *PYTHON, "scripts.bench.languages", "--inside", str(file), *languages]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 (it is a pipe)
        began = 0.0
        for line in process.stdout:
            language, what, value = json.loads(line)
            if what == "begin":
                began = processor_s(process.pid)
                continue
            if what == "checks":
                rows[language]["checks"] = value
            else:
                value["processor_s"] = round(processor_s(process.pid) - began, 2)
                if what == "base":
                    rows[language] = {"base": value, "restored": [], "cold": []}
                else:
                    rows[language][what].append(value)
            print(line.rstrip(), flush=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")
    return process.returncode


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure each language's hello world.")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("file", type=Path)
    parser.add_argument("languages", nargs="+", metavar="LANGUAGE")
    arguments = parser.parse_args()
    if arguments.inside:
        asyncio.run(inside(arguments.languages))
        return 0
    return outside(arguments.file, arguments.languages)


if __name__ == "__main__":
    sys.exit(main())
