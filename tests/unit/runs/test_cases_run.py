"""Runs with cases: built once, a verdict on each, nothing left from one to the next."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mayfly import paths
from mayfly.host.snippet import Case, Compare, Snippet
from mayfly.protocol.phases import Phase
from mayfly.runs.record import Reader
from mayfly.runs.result import describe
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.units import MIB
from tests.kit.api_fakes import FakeZygote
from tests.unit.runs.test_service import serve as serve

Scenario = Callable[[Service], Awaitable[Any]]


def doing(*cases: Case, **snippet: Any) -> Callable[[Service], Awaitable[Run]]:
    async def scenario(service: Service) -> Run:
        run = service.start(Snippet(**{"language": "toy", "cases": cases, **snippet}))
        await run.done.wait()
        await service.settled(run)
        return run

    return scenario


def events(run: Run) -> list[dict[str, Any]]:
    reader, found = Reader(run.record), []
    while (event := reader.take()) is not None:
        found.append(msgspec.to_builtins(describe(event)))
    return found


def verdicts(run: Run) -> list[str]:
    return [result["verdict"] for result in run.to_json()["cases"]["results"]]


ECHO = b'read line; echo "got $line $1"; case $line in fail) exit 3;; die) kill -TERM $$;; slow) sleep 600;; esac'


def test_a_verdict_on_each_case(serve: Callable[..., Any]) -> None:
    cases = (
        Case(name="right", stdin=b"a", expected_stdout=b"got a x\n", compare=Compare.EXACT),
        Case(stdin=b"b", args=("y",), expected_stdout=b"got b y  \n\n"),
        Case(stdin=b"c", expected_stdout=b" got  c x", compare=Compare.TOKENS),
        Case(stdin=b"d", expected_stdout=b"got e x"),
        Case(stdin=b"f"),
        Case(expected_stdout=b"got from the snippet x"),
        Case(stdin=b"fail", expected_stdout=b"got fail x"),
        Case(stdin=b"die"),
        Case(stdin=b"slow", limits={"wall_s": 0.3}),
        Case(stdin=b"g" * 100, limits={"output": 10}, expected_stdout=b"got gggggg"),
    )
    run = serve(doing(*cases, source=ECHO, stdin=b"from the snippet", args=("x",)))
    result = run.to_json()
    assert verdicts(run) == [*["passed"] * 3, "wrong_answer", *["passed"] * 2, "failed", "signal", "limit", "wrong_answer"]
    assert (result["status"], result["exit_status"], result["error"]) == ("failed", 1, None)
    assert (result["cases"]["passed"], result["cases"]["parallel"]) == (5, 1)
    assert [step["step"] for step in result["steps"]] == ["build"]
    rows = result["cases"]["results"]
    assert [row["index"] for row in rows] == list(range(10))
    assert (rows[0]["name"], rows[0]["code"], rows[0]["stdout"], rows[0]["stderr"]) == ("right", 0, "got a x\n", "")
    assert (rows[7]["signal"], rows[8]["limit"], rows[9]["stdout"], rows[9]["stdout_truncated"]) == (15, "wall", "got gggggg", True)
    assert [event["event"] for event in events(run)] == ["stage", "exit", *["case"] * 10, "done"]
    assert {"build", "cases"} <= set(result["phases"])


def test_all_cases_pass(serve: Callable[..., Any]) -> None:
    run = serve(doing(*[Case(stdin=b"a", expected_stdout=b"got a")] * 5, source=ECHO))
    assert (run.to_json()["status"], run.to_json()["exit_status"]) == ("ok", 0)


def test_a_failed_build_skips_all_cases(serve: Callable[..., Any]) -> None:
    run = serve(doing(Case(name="a"), Case(), source=b"if"))
    assert (run.to_json()["status"], verdicts(run)) == ("build_failed", ["skipped"] * 2)
    assert run.to_json()["cases"]["results"][0] == {"index": 0, "name": "a", "verdict": "skipped", "stdout": "", "stderr": ""}


def test_a_language_without_a_build(serve: Callable[..., Any]) -> None:
    run = serve(doing(*[Case(stdin=text) for text in (b"1", b"2")], language="py", source=b"print(int(input()) * 2)"))
    assert [row["stdout"] for row in run.to_json()["cases"]["results"]] == ["2\n", "4\n"]
    assert (run.to_json()["steps"], run.to_json()["status"]) == ([], "ok")


def test_no_case_sees_what_another_left(serve: Callable[..., Any]) -> None:
    run = serve(doing(*[Case(expected_stdout=b"data main.toy\n")] * 3, source=b"echo *; rm data; touch left", files={"data": b""}))
    assert verdicts(run) == ["passed"] * 3


def test_the_first_failure_may_be_the_last(serve: Callable[..., Any]) -> None:
    cases = [Case(stdin=text) for text in (b"a", b"b", b"fail", b"c", b"fail")]
    run = serve(doing(*cases, source=ECHO, stop_at_first_failure=True))
    assert verdicts(run) == ["passed", "passed", "failed", "skipped", "skipped"]
    assert [event["verdict"] for event in events(run) if event["event"] == "case"] == verdicts(run)


def test_a_guest_that_is_gone_fails_the_cases_that_are_left(serve: Callable[..., Any]) -> None:
    made: list[FakeZygote] = []

    async def scenario(service: Service) -> Run:
        run = service.start(Snippet(language="toy", source=ECHO, cases=tuple(Case(stdin=text) for text in (b"a", b"slow", b"b"))))
        while not run.cases or not run.cases.results:
            await run.record.changed()
        (zygote,) = made
        zygote.kill(1)
        await run.done.wait()
        return run

    run = serve(scenario, made=made)
    assert verdicts(run) == ["passed", "error", "error"]
    result = run.to_json()
    assert (result["status"], result["exit_status"], result["error"]["code"]) == ("error", 125, "guest_failed")
    assert result["cases"]["results"][2]["error"]["code"] == "guest_failed"


def test_a_run_that_is_ended_between_cases(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> Run:
        run = service.start(Snippet(language="toy", source=ECHO, cases=tuple(Case(stdin=text) for text in (b"a", b"slow", b"b"))))
        while not run.cases or not run.cases.results:
            await run.record.changed()
        assert [row["verdict"] for row in run.to_json()["cases"]["results"]] == ["passed"]
        await service.end(run, "enough")
        return run

    run = serve(scenario)
    assert verdicts(run) == ["passed", "skipped", "skipped"]
    assert (run.to_json()["status"], run.to_json()["error"]["code"]) == ("error", "run_ended")
    assert events(run)[-1]["event"] == "done"


def test_little_is_kept_of_much_output(serve: Callable[..., Any]) -> None:
    source = b"head -c 300000 /dev/zero | tr '\\0' x"
    run = serve(doing(*[Case()] * 99, Case(expected_stdout=b"x" * 300_000), source=source))
    rows = run.to_json()["cases"]["results"]
    assert verdicts(run) == ["passed"] * 100
    assert {(len(row["stdout"]), row["stdout_truncated"]) for row in rows} == {((16 << 20) // 200, True)}
    assert len(run.record) < 17 << 20


COPYING = {"cold": False, "memory_budget": 4 * 128 * MIB, "run_wall_s": 600.0}


@pytest.fixture
def kernel(tmp_path: Path) -> None:
    """What a snapshot is checked against."""
    (tmp_path / "vmlinux").write_bytes(b"kernel")


async def make_base(service: Service) -> None:
    """Make what is beneath a guest that can be copied."""
    await service.bases.make(service.find_image("toy"))


def from_base(scenario: Callable[[Service], Awaitable[Run]]) -> Callable[[Service], Awaitable[Run]]:
    async def whole(service: Service) -> Run:
        await make_base(service)
        return await scenario(service)

    return whole


def test_copies_of_the_guest_give_the_same(serve: Callable[..., Any], kernel: None) -> None:
    """In the folder that the build left, which the programs spoil."""
    source = b'read line; ls; rm *; touch left; case $line in 7) exit 1;; esac; echo "$line"'
    cases = [Case(stdin=str(number).encode(), expected_stdout=f"data\nmain.toy\n{number}".encode()) for number in range(12)]

    async def scenario(service: Service) -> list[Run]:
        await make_base(service)
        runs = [await doing(*cases, source=source, files={"data": b""}, parallel=parallel)(service) for parallel in (1, 3, 100)]
        assert service.admission.used == 0
        assert {path.name for path in paths.snapshots_dir().iterdir()} == {"toy", ".toy.lock"}
        return runs

    runs = [run.to_json() for run in serve(scenario, **COPYING)]
    assert [(run["start"], run["cases"]["parallel"]) for run in runs] == [("restored", 1), ("restored", 3), ("restored", 3)], [
        run["phases"] for run in runs
    ]
    first, *others = [[(row["index"], row["verdict"], row["stdout"]) for row in run["cases"]["results"]] for run in runs]
    assert [verdict for _, verdict, _ in first] == ["passed"] * 7 + ["failed"] + ["passed"] * 4
    assert others == [first] * 2


def test_copies_stop_at_the_same_failure(serve: Callable[..., Any], kernel: None) -> None:
    cases = [Case(stdin=b"fail" if number in (3, 4, 6) else b"x") for number in range(9)]
    scenario = doing(*cases, source=ECHO, parallel=3, stop_at_first_failure=True)
    run = serve(from_base(scenario), **COPYING)
    assert run.cases.parallel == 3
    assert verdicts(run) == ["passed"] * 3 + ["failed"] + ["skipped"] * 5
    assert [event["verdict"] for event in events(run) if event["event"] == "case"] == verdicts(run)


def test_there_are_no_copies_without_room_or_need(serve: Callable[..., Any], kernel: None) -> None:
    cases = [Case(stdin=b"x")] * 4
    assert serve(from_base(doing(*cases, source=ECHO, parallel=3)), cold=False, memory_budget=2 * 128 * MIB).cases.parallel == 1
    assert serve(doing(*cases, source=ECHO, parallel=3), cold=True).cases.parallel == 1, "it has no snapshot beneath it"


def test_copies_go_on_without_a_guest_that_is_gone(serve: Callable[..., Any], kernel: None) -> None:
    made: list[FakeZygote] = []

    async def scenario(service: Service) -> Run:
        await make_base(service)
        cases = tuple(Case(stdin=b"slow" if number == 0 else b"x") for number in range(6))
        run = service.start(Snippet(language="toy", source=ECHO, cases=cases, parallel=2))
        while not run.cases or len(run.cases.results) < 5:
            await run.record.changed()
        made[0].kill(service.work[run.id].guests[0].process.number)
        await run.done.wait()
        return run

    run = serve(scenario, made=made, **COPYING)
    assert verdicts(run) == ["error"] + ["passed"] * 5
    assert (run.to_json()["status"], run.to_json()["error"]["code"]) == ("error", "guest_failed")


def test_a_signal_reaches_the_programs_in_all_guests(serve: Callable[..., Any], kernel: None, tmp_path: Path) -> None:
    up = tmp_path / "up"
    up.mkdir()
    source = f"trap 'exit 7' USR1; touch {up}/$$; sleep 600 & wait".encode()

    async def scenario(service: Service) -> Run:
        await make_base(service)
        run = service.start(Snippet(language="toy", source=source, cases=(Case(),) * 3, parallel=3))
        while len(list(up.iterdir())) < 3 or any(guest.conversation.phase is not Phase.STEP for guest in service.work[run.id].guests):
            assert not run.done.is_set()
            await asyncio.sleep(0.01)
        await service.signal(run, signal.SIGUSR1)
        await run.done.wait()
        return run

    run = serve(scenario, **COPYING)
    assert run.cases.parallel == 3
    assert [row["code"] for row in run.to_json()["cases"]["results"]] == [7, 7, 7]


def test_a_run_that_is_ended_leaves_no_copies(serve: Callable[..., Any], kernel: None) -> None:
    async def scenario(service: Service) -> None:
        await make_base(service)
        run = service.start(Snippet(language="toy", source=ECHO, cases=(Case(stdin=b"x"), *(Case(stdin=b"slow"),) * 6), parallel=3))
        while not run.cases or not run.cases.results:
            await run.record.changed()
        await service.end(run, "enough")
        assert (verdicts(run), run.cases.parallel) == (["passed"] + ["skipped"] * 6, 3)
        assert service.admission.used == 0

    serve(scenario, **COPYING)
