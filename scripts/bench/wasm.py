"""What the runtime of WebAssembly costs: processor time against wasmtime and native code,
with hot functions compiled and without, and checkpoints' sizes and times.

Usage: python -m scripts.bench.wasm FILE [--wasmtime PYTHON]

PYTHON is an interpreter that has the package `wasmtime`. Times are of the processor, medians of
three in turns; what a compiler takes before the program runs is not in them. The machine's own code
is of rustc (-O) and cc (-O2), where they are, and of Go as the WebAssembly is.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.debian.wasm_toolchain import toolchain
from tests.kit.wasm import build
from tests.kit.wasm_programs import LANGUAGES, SOURCES

PROGRAMS = {"sieve.rs": "800", "nbody.rs": "2000000", "tree.rs": "1000", "chans.go": "1000", "gemm.c": "10000"}
"""Programs and their argument: some seconds of the interpreter."""
ROUNDS = 3
DIRTY = """
fn main() {
    let mut seed = 1u64;
    let data: Vec<u64> = (0..16 << 20).map(|_| { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; seed }).collect();
    println!("{}", data.len());
    std::io::stdin().read_line(&mut String::new()).unwrap();
    println!("{:x}", data.iter().fold(0, |all, one| all ^ one));
}
"""
"""128 MiB of what cannot be compressed."""
IN_WASMTIME = """
import sys, time, wasmtime
engine = wasmtime.Engine()
store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
linker.define_wasi()
wasi = wasmtime.WasiConfig()
wasi.argv = sys.argv[1:]
wasi.inherit_stdout()
store.set_wasi(wasi)
instance = linker.instantiate(store, wasmtime.Module.from_file(engine, sys.argv[1]))
began = time.process_time()
try:
    instance.exports(store)["_start"](store)
except wasmtime.ExitTrap as end:
    assert end.code == 0
print(time.process_time() - began, file=sys.stderr)
"""


def natively(source: Path, to: Path) -> bool:
    """Compile a program for this machine; false if there is no compiler."""
    go = next(toolchain("go").parent.glob("usr/lib/go-*/bin/go")) if source.suffix == ".go" else None
    words: dict[str, list[str | Path]] = {
        ".rs": ["rustc", "--edition", "2021", "-O", "-o", to, source],
        ".c": ["cc", "-O2", "-o", to, source, "-lm"],
        ".go": [go or "go", "build", "-o", to, source],
    }
    command = words[source.suffix]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    if go is not None:
        environment |= {"GOROOT": str(go.parents[1]), "GOCACHE": str(to.parent / "go-cache")}
    if shutil.which(command[0]) is None:
        return False
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return True


def spent(command: Sequence[str | Path], cwd: Path) -> float:
    """Seconds of the processor that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_wasmtime(python: str, module: Path, argument: str, cwd: Path) -> float:
    """The same in wasmtime, without compiling."""
    done = subprocess.run([python, "-c", IN_WASMTIME, module, argument], check=True, capture_output=True, text=True, cwd=cwd)
    return float(done.stderr.split()[-1])


def measure(python: str) -> dict[str, Any]:
    """All figures."""
    programs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for source, argument in PROGRAMS.items():
            module, path = work / f"{source}.wasm", SOURCES / source
            subprocess.run([toolchain(LANGUAGES[path.suffix]), path, module], check=True)
            runs: dict[str, Callable[[], float]] = {
                name: functools.partial(spent, [build(), "--compile", how, module, argument], work)
                for name, how in (("interpreted_s", "never"), ("compiled_s", "hot"))
            }
            if natively(path, work / path.stem):
                runs["native_s"] = functools.partial(spent, [work / path.stem, argument], work)
            if python:
                runs["wasmtime_s"] = functools.partial(in_wasmtime, python, module, argument, work)
            rounds = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS)]
            found = {name: statistics.median(times[name] for times in rounds) for name in runs}
            if python:
                found["interpreted"] = round(found["interpreted_s"] / found["wasmtime_s"], 1)
                found["compiled"] = round(found["compiled_s"] / found["wasmtime_s"], 1)
            programs[source] = found
        load = os.getloadavg()[0]
        return {"load": load, "programs": programs, "checkpoint": checkpoint(work)}


def checkpoint(work: Path) -> dict[str, Any]:
    """A program with 128 MiB of random numbers, stopped while it waits for input."""
    source, module, state = (work / name for name in ("dirty.rs", "dirty.wasm", "state"))
    source.write_text(DIRTY)
    subprocess.run([toolchain("rust"), source, module], check=True)
    with subprocess.Popen(
        [build(), "--stats", "--save", state, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr  # noqa: S101 (they are pipes)
        process.stdout.readline()
        process.send_signal(10)
        saved = json.loads(process.stderr.read().split(b": ", 1)[1])
    done = subprocess.run([build(), "--stats", state], check=True, input=b"\n", capture_output=True)
    loaded = json.loads(done.stderr.split(b": ", 1)[1])
    return {"bytes": state.stat().st_size, "save_s": saved["save_s"], "load_s": loaded["load_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--wasmtime", default="", metavar="PYTHON")
    options = parser.parse_args()
    figures = measure(options.wasmtime)
    options.file.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
