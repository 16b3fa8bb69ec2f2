"""Replay SnapFaaS's medium workload for 30 s, and what warm requests cost at 100 a second.

Usage: python -m scripts.bench.workloads native FOLDER
       python -m scripts.bench.workloads warm FOLDER
       python -m scripts.bench.workloads linux FOLDER [--users N]

A server of its own process serves the functions over HTTP; `mayfly workload` makes the requests,
sends them and writes its report, workload-NAME.json and .png in FOLDER. With `native` and `warm`
guests are ordinary processes that answer at once, so that what is measured is Mayfly's own: the
workload with all its 150 users in two memory budgets, and requests to one warm function. `linux`
runs where KVM runs Linux, that is through scripts/with-kvm, with functions of examples/functions
and as many users as such a host can serve.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mayfly.functions import store
from mayfly.units import MIB
from tests.kit.api_fakes import ROOT
from tests.kit.functions_kit import install_echo
from tests.kit.functions_traffic import Host
from tests.kit.processor_time import processor_s

SECONDS = 30
USERS = 8
"""Of an emulated host."""
MEDIUM = yaml.safe_load((ROOT / "examples" / "workloads" / "medium.yaml").read_text()) | {"capped": False}
"""Not capped: in 30 s nobody would ask for what is asked for every 43 s on average."""
NAMES = [function["name"] for function in MEDIUM["functions"]]
EXAMPLES = ROOT / "examples" / "functions" / "functions.yaml"
BUDGETS_MIB = (256, 512)
"""Room for two fake guests, and for four."""
LIMITS = {"concurrency_limit": 4, "queue": 1000}
WARM = {"end_time": 60000, "num_users": 100, "functions": [{"name": "hello", "mu": 1000}], "capped": False}
"""A hundred requests a second."""
FAKE = [sys.executable, "-m", "tests.kit.fake_mayfly", "-"]
REAL = [sys.executable, "-m", "mayfly.cli.main"]


@contextlib.contextmanager
def host(program: Sequence[str], options: Sequence[str | Path] = ()) -> Iterator[Host]:
    """A user without a server."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        found = Host(Path(name), Path(name) / "x" / "api.sock", program, options)
        try:
            yield found
        finally:
            found.close()


def replay(on: Host, workload: Mapping[str, Any], name: str, *options: str) -> tuple[Path, float]:
    """Send the workload to a new server: the answers, and processor seconds of that server."""
    spec, requests, answers = (on.folder / f"{name}{suffix}" for suffix in (".yaml", ".requests", ".jsonl"))
    spec.write_text(yaml.safe_dump(dict(workload)))
    on.run("workload", "generate", spec, "--seconds", str(SECONDS), "--seed", "1", "-o", requests)
    on.serve(*options)
    assert on.server is not None  # noqa: S101 (it has started)
    for function in workload["functions"]:
        on.function("invoke", function["name"], "--data", '{"request": 42}')
    before = processor_s(on.server.pid)
    on.run("workload", "replay", requests, "--against", on.socket, "-o", answers)
    used = processor_s(on.server.pid) - before
    on.close()
    return answers, used


def report(on: Host, answers: Sequence[Path], folder: Path, name: str) -> dict[str, Any]:
    """Write the report of the experiments, print it, and give it."""
    path = folder / f"workload-{name}.json"
    print(on.run("workload", "report", *answers, "--json", path, "--plot", path.with_suffix(".png")))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@contextlib.contextmanager
def fakes(names: Sequence[str]) -> Iterator[Host]:
    """A user with functions whose guests are processes."""
    with tempfile.TemporaryDirectory() as data, pytest.MonkeyPatch.context() as patch:
        install_echo(patch, Path(data))
        with host(FAKE, ["--time-factor", "1", "--kernel", Path(data) / "vmlinux"]) as on:
            (on.folder / "code.toy").write_text("true")
            specs = [{"name": name, "language": "toy", "code": "code.toy", **LIMITS} for name in names]
            (on.folder / "functions.yaml").write_text(json.dumps(specs))
            on.function("create", on.folder / "functions.yaml")
            yield on


def native(folder: Path) -> None:
    """The workload with all users."""
    with fakes(NAMES) as on:
        each = [replay(on, MEDIUM, f"{mib}-mib", "--memory-budget", str(mib * MIB))[0] for mib in BUDGETS_MIB]
        report(on, each, folder, "medium-native")


def warm(folder: Path) -> None:
    """Requests to one function, and what each of them costs the server."""
    with fakes(["hello"]) as on:
        answers, used = replay(on, WARM, "warm", "--memory-budget", str(2048 * MIB))
        (found,) = report(on, [answers], folder, "warm")["experiments"]
        print(f"processor time of the server: {1000 * used / found['requests']:.2f} ms a request")


def linux(folder: Path, users: int) -> None:
    """The workload with fewer users, with the examples in real guests."""
    with host(REAL) as on:
        on.function("create", EXAMPLES, *NAMES)
        try:
            answers, _ = replay(on, {**MEDIUM, "num_users": users}, f"{users}-users")
        finally:
            on.run("function", "rm", *(name for name in NAMES if any(function.name == name for function in store.installed())))
        report(on, [answers], folder, "medium-emulated")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Replay workloads of functions.")
    parser.add_argument("what", choices=["native", "warm", "linux"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=USERS)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if arguments.what == "linux":
        linux(folder, arguments.users)
    else:
        {"native": native, "warm": warm}[arguments.what](folder)


if __name__ == "__main__":
    main()
