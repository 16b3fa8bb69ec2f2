"""Runs from acceptance to result, on machines that are ordinary processes: what the snippet, the
guest and the host may do.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import BusyError, HostError, UnknownRunError
from mayfly.host.snippet import Mode, Snippet
from mayfly.runs.render import Renderer
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from tests.kit.api_fakes import FakeZygote, factory, install_toys, open_descriptors, small_config
from tests.kit.scale import patience, scaled

Scenario = Callable[[Service], Awaitable[Any]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run a scenario with a service around it, and check that no descriptor is left."""
    install_toys(monkeypatch, tmp_path)
    sockets = tmp_path / "runs"
    sockets.mkdir()

    def call(scenario: Scenario, fault: str = "", made: list[FakeZygote] | None = None, **config: Any) -> Any:
        async def whole() -> Any:
            async with Service(small_config(tmp_path, **config), factory(fault, made), sockets=sockets) as service:
                return await asyncio.wait_for(scenario(service), patience(60))

        before = open_descriptors()
        result = asyncio.run(whole())
        assert open_descriptors() == before
        assert list(sockets.iterdir()) == []
        return result

    return call


async def finish(service: Service, **snippet: Any) -> dict[str, Any]:
    run = service.start(Snippet(**{"language": "toy", **snippet}))
    await run.done.wait()
    return run.to_json()


def one(**snippet: Any) -> Scenario:
    return lambda service: finish(service, **snippet)


def test_a_snippet_is_built_and_run(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"echo out; echo err >&2; exit 7"))
    build, run = result["steps"]
    assert (result["state"], result["status"], result["exit_status"], result["error"]) == ("done", "failed", 7, None)
    assert (build["step"], build["code"], build["stdout"]) == ("build", 0, "")
    assert (run["code"], run["signal"], run["limit"], run["stdout"], run["stderr"]) == (7, None, None, "out\n", "err\n")
    assert {"queue", "start", "guest_boot", "build", "run", "steps"} <= set(result["phases"])


def test_a_failed_build_ends_the_run(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"if"))
    assert (result["status"], result["exit_status"]) == ("build_failed", 1)
    assert [step["step"] for step in result["steps"]] == ["build"]
    assert "yntax error" in result["steps"][0]["stderr"]


def test_stdin_args_env_and_files(serve: Callable[..., Any]) -> None:
    source = b'cat; echo "$1|$X"; cat sub/data'
    result = serve(one(source=source, stdin=b"in\n", args=("a b",), env={"X": "y"}, files={"sub/data": b"file\n"}))
    assert result["steps"][1]["stdout"] == "in\na b|y\nfile\n"


def test_much_stdin_goes_against_credit(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"wc -c", stdin=b"x" * 1_000_000))
    assert result["steps"][1]["stdout"].strip() == "1000000"


def test_a_program_that_ends_while_stdin_is_being_sent(serve: Callable[..., Any]) -> None:
    assert serve(one(source=b"exit 3", stdin=b"x" * 1_000_000))["exit_status"] == 3


def test_a_signal_and_a_limit(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"kill -TERM $$"))
    assert (result["status"], result["exit_status"], result["steps"][1]["signal"]) == ("signal", 143, 15)
    result = serve(one(source=b"echo before; sleep 60", limits={"run": {"wall_s": 0.3}}))
    assert (result["status"], result["exit_status"], result["steps"][1]["limit"]) == ("limit", 124, "wall")
    assert result["steps"][1]["stdout"] == "before\n"


def test_output_over_its_limit_is_cut_and_flagged(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"head -c 5000 /dev/zero | tr '\\0' x; exit 0", limits={"run": {"output": 1000}}))
    step = result["steps"][1]
    assert (result["status"], step["stdout"], step["stdout_truncated"], step["stderr_truncated"]) == ("ok", "x" * 1000, True, False)


def test_a_guest_that_ignores_the_output_limit_is_cut_here(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"head -c 5000 /dev/zero | tr '\\0' x", limits={"run": {"output": 1000}}), fault="flood")
    assert (len(result["steps"][1]["stdout"]), result["steps"][1]["stdout_truncated"]) == (1000, True)


def test_a_guest_that_floods_without_end_is_ended(serve: Callable[..., Any]) -> None:
    result = serve(one(source=b"yes", limits={"run": {"output": 1000}}), fault="flood", build_output=1000)
    assert (result["status"], result["error"]["code"]) == ("error", "guest_failed")
    assert "allow" in result["error"]["message"]


def test_output_that_is_no_text(serve: Callable[..., Any]) -> None:
    assert serve(one(source=b"printf '\\377'"))["steps"][1]["stdout_base64"] == "/w=="


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("marker", "boot_failed", "end marker"),
        ("arch", "boot_failed", "'vax'"),
        ("version", "boot_failed", "protocol 99"),
        ("incomplete", "boot_failed", "no end marker"),
        ("still-born", "boot_failed", "before its agent said HELLO"),
        ("mute", "boot_failed", "no HELLO"),
        ("vmm-error", "bad_configuration", "no such user"),
        ("refuse", "guest_failed", "no reason"),
        ("disorder", "guest_failed", "STDOUT"),
        ("vanish", "guest_failed", "middle of the run"),
        ("endless", "guest_failed", "did not finish"),
    ],
)
def test_what_goes_wrong_is_in_the_result(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fault: str, code: str, words: str
) -> None:
    monkeypatch.setattr("mayfly.host.plan.SLACK_S", 0.2)
    source = b"sleep 60" if fault == "endless" else b"true"
    if fault == "vmm-error":
        serve(one(source=b"true"), fault="still-born")
    result = serve(one(source=source), fault=fault, boot_timeout_s=0.5 if fault == "mute" else 10, run_wall_s=0.2, build_wall_s=0.2)
    if fault == "vmm-error":
        assert result["status"] == "ok"  # its error came after DONE
        return
    assert (result["status"], result["exit_status"], result["error"]["code"]) == ("error", 125, code)
    assert words in result["error"]["message"]
    if fault in ("still-born", "disorder"):
        assert result["error"]["console"] == "last words\n"


def test_a_bad_report_harms_nobody(serve: Callable[..., Any]) -> None:
    assert serve(one(source=b"true"), fault="bad-report")["status"] == "ok"


def test_the_zygote_dies_and_is_started_again(serve: Callable[..., Any]) -> None:
    made: list[FakeZygote] = []

    async def scenario(service: Service) -> tuple[dict[str, Any], dict[str, Any]]:
        run = service.start(Snippet(language="toy", source=b"echo here; sleep 60"))
        reader = Renderer.of(run.record, Mode.RAW)
        while (reader.take() or b"") != b"here\n":
            await reader.wait()
        made[0].die()
        await run.done.wait()
        return run.to_json(), await finish(service, source=b"echo again")

    broken, again = serve(scenario, made=made)
    assert (broken["status"], broken["error"]["code"]) == ("error", "host_failed")
    assert "zygote" in broken["error"]["message"]
    assert again["steps"][1]["stdout"] == "again\n"
    assert len(made) == 2


def test_a_run_that_is_ended_leaves_nothing(serve: Callable[..., Any]) -> None:
    made: list[FakeZygote] = []

    async def scenario(service: Service) -> Run:
        run = service.start(Snippet(language="toy", source=b"sleep 60"))
        while not run.record.closed and len(run.record) == 0:
            await run.record.changed()
        began = time.monotonic()
        await service.forget(run.id)
        assert time.monotonic() - began < 20
        assert all(child.poll() is not None for child in made[0].children.values())
        await service.forget(run.id)
        with pytest.raises(UnknownRunError):
            service.get(run.id)
        assert service.admission.used == 0
        return run

    run = serve(scenario, made=made)
    assert run.to_json()["error"]["code"] == "run_ended"


def test_more_runs_than_memory_wait_their_turn_and_the_queue_has_an_end(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        runs = [service.start(Snippet(language="toy", source=b"sleep 0.2; echo $1", args=(str(n),))) for n in range(6)]
        assert service.admission.waiting == 2
        with pytest.raises(BusyError) as caught:
            service.start(Snippet(language="toy", source=b"true"))
        assert caught.value.retry_after_s >= 1
        await service.end(runs[5], "not any more")  # it never had a machine
        assert service.admission.waiting == 1
        for run in runs:
            await run.done.wait()
        assert [run.to_json()["status"] for run in runs] == ["ok"] * 5 + ["error"]

    serve(scenario, queue=2)


def test_ended_runs_are_dropped_by_time_number_and_bytes(serve: Callable[..., Any]) -> None:
    async def kept(service: Service) -> int:
        runs = []
        for _ in range(3):
            run = service.start(Snippet(language="toy", source=b"head -c 100000 /dev/zero"))
            await run.done.wait()
            runs.append(run)
            while service.admission.used:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        return sum(run in service.runs for run in runs)

    assert serve(kept) == 3
    assert serve(kept, keep_s=0.1) == 0
    assert serve(kept, keep_runs=2) == 2
    assert serve(kept, keep_bytes=150_000) == 1


def test_late_slow_and_early_readers(serve: Callable[..., Any]) -> None:
    """A reader that never reads does not hold up the run, nor those who read, live or late."""

    async def scenario(service: Service) -> None:
        run = service.start(
            Snippet(language="toy", source=b"echo first; read x; head -c 600000 /dev/zero; echo last", stdin=b"go\n", output=Mode.EVENTS)
        )
        path = str(service.output_socket(run))
        assert Path(path).stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as lazy:
            lazy.connect(path)
            reader, writer = await asyncio.open_unix_connection(path, limit=1 << 22)
            live = await reader.read()
            writer.close()
            await run.done.wait()
            reader, writer = await asyncio.open_unix_connection(path, limit=1 << 22)
            late = await reader.read()
            writer.close()
        events = [json.loads(line) for line in late.splitlines()]
        assert [event["event"] for event in events if event["event"] != "stdout"] == ["stage", "exit", "stage", "exit", "done"]
        for whole in (live, late):
            text = "".join(json.loads(line).get("data", "") for line in whole.splitlines())
            assert text == "first\n" + "\0" * 600000 + "last\n"
        assert events[-1] == {"event": "done", "status": "ok", "exit_status": 0}

    serve(scenario)


def test_output_arrives_while_the_program_runs(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        run = service.start(Snippet(language="toy", source=b"echo first; sleep 60"))
        reader, writer = await asyncio.open_unix_connection(str(service.output_socket(run)))
        assert await reader.readline() == b"first\n"
        assert not run.done.is_set()
        await service.forget(run.id)
        assert await reader.read() == b""
        writer.close()

    serve(scenario)


def test_many_runs_leak_nothing(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        tasks = asyncio.all_tasks()

        async def quiet() -> int:
            # A run's socket is closed by a task of its own, after its machine is gone.
            while asyncio.all_tasks() > tasks:
                await asyncio.sleep(0.01)
            return open_descriptors()

        await finish(service, source=b"true")
        before = await quiet()
        for _ in range(scaled(25)):
            results = await asyncio.gather(*(finish(service, source=b"echo $1", args=(str(n),)) for n in range(4)))
            assert [result["steps"][1]["stdout"] for result in results] == [f"{n}\n" for n in range(4)]
        assert await quiet() == before
        assert (service.runs.under_way, service.admission.used) == (0, 0)

    serve(scenario, keep_runs=0, queue=8)


@pytest.mark.parametrize("where", ["mayfly.runs.output.listen", "socket.socketpair"])
def test_a_host_without_descriptors_says_so(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Once; the next run is served, and nothing is kept of the first."""

    async def settled(service: Service, source: bytes) -> dict[str, Any]:
        run = service.start(Snippet(language="toy", source=source))
        await service.settled(run)
        return run.to_json()

    async def scenario(service: Service) -> str:
        await settled(service, b"echo before")  # the zygote is there

        def exhausted(*_: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patched, contextlib.suppress(HostError):
            patched.setattr(where, exhausted)
            error = (await settled(service, b"echo x"))["error"]
            assert error["code"] == "host_failed"
            assert error["message"].endswith("Too many open files")
        assert service.admission.used == 0
        return str((await settled(service, b"echo after"))["status"])

    assert serve(scenario) == "ok"
