"""Programs of Rust, Go and C are stopped at random moments and go on in other processes, on this
architecture and on another one, with every byte of output as if nothing had been.
"""

import random
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kit.scale import FULL
from tests.kit.wasm import PATIENCE_S, STOPPED, build, execute
from tests.kit.wasm_programs import PROGRAMS, SOURCES, Program, compiled, emulated_runtime

pytestmark = pytest.mark.timeout(7200 if FULL else 1800)  # the first run fetches compilers, and builds what Go's library is made of
STOPS = 200 if FULL else 20
STOPS_ELSEWHERE = 200 if FULL else 4


def stop_and_resume(program: Program, tmp_path: Path, stops: int, second: Sequence[Path] = (), back: bool = False) -> None:
    """Stop a program `stops` times, once in each of its runs, and resume it by another runtime. A
    run that was over before its tick does not count.
    """
    module = compiled(SOURCES / program.source)
    folder, other, state = (tmp_path / name for name in ("folder", "other", "state"))
    folder.mkdir()
    other.mkdir()
    whole = execute("--stats", "--dir", folder, module, stdin=program.stdin)
    assert (whole.status, bool(whole.stdout)) == (program.status, True), whole
    chance = random.Random(program.source)
    ticks = int(whole.stats["ticks"])
    stopped = tries = 0
    while stopped < stops:
        tries += 1
        assert tries <= 4 * stops, f"{stopped} of {tries} stops came while the program ran"
        tick = chance.randrange(1, ticks * 9 // 10)  # time is in the ticks of some
        first, then = ((), second) if not back else (second, ())
        begun = execute("--save", state, "--stop-at", str(tick), "--dir", folder, module, stdin=program.stdin, runtime=first)
        if begun.status != STOPPED:
            assert (begun.status, begun.stdout) == (program.status, whole.stdout)
            continue
        stopped += 1
        ended = execute("--dir", other, state, runtime=then)
        assert (ended.status, begun.stdout + ended.stdout) == (program.status, whole.stdout), f"stopped at tick {tick} of {ticks}"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.source)
def test_a_stopped_program_goes_on_in_another_process(program: Program, tmp_path: Path) -> None:
    stop_and_resume(program, tmp_path, STOPS)


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.source)
def test_a_stopped_program_goes_on_on_another_architecture(program: Program, back: bool, tmp_path: Path) -> None:
    stop_and_resume(program, tmp_path, STOPS_ELSEWHERE, emulated_runtime(), back)


def test_goroutines_run_while_one_waits_for_input(tmp_path: Path, no_leaks: None) -> None:
    """Here and from a checkpoint."""
    state = tmp_path / "state"
    sums = [1.5, 1.5 * 1.1 + 4, (1.5 * 1.1 + 4) * 1.1 + 4]
    for file, before in ((compiled(SOURCES / "sums.go"), b"ready\n"), (state, b"")):
        with subprocess.Popen([build(), "--save", state, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin and process.stdout
            assert not before or process.stdout.readline() == before
            process.stdin.write(b"one\n")
            process.stdin.flush()
            sums.pop(0)
            assert float(process.stdout.readline()) == sums[0]
            process.send_signal(signal.SIGUSR1)
            assert process.wait(PATIENCE_S) == STOPPED


def test_what_a_program_wrote_is_in_its_folder_at_the_end(tmp_path: Path) -> None:
    program = next(program for program in PROGRAMS if program.source == "lines.rs")
    folder, other, state = (tmp_path / name for name in ("folder", "other", "state"))
    folder.mkdir()
    other.mkdir()
    (folder / "log.txt").write_text("old")
    (folder / "kept.txt").write_text("kept")
    module = compiled(SOURCES / program.source)
    assert execute("--dir", folder, module, stdin=program.stdin).status == 0
    assert (folder / "log.txt").read_text().count("\n") == 64
    assert execute("--save", state, "--stop-at", "5000", "--dir", folder, module, stdin=program.stdin).status == STOPPED
    assert execute("--dir", other, state).status == 0
    assert {path.name: path.read_bytes() for path in other.iterdir()} == {path.name: path.read_bytes() for path in folder.iterdir()}
