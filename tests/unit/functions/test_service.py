"""Functions from their creation to their removal, on machines that are ordinary processes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.errors import (
    BodyTooLargeError,
    ConfigError,
    ForbiddenError,
    FunctionCrashedError,
    FunctionFailedError,
    FunctionTimeoutError,
    KeyLimitError,
    MayflyError,
    SnapshotError,
    StoppingError,
    UnknownFunctionError,
    UnknownRequestError,
    UnprocessableError,
)
from mayfly.functions import store
from mayfly.functions.making import revise
from mayfly.functions.service import Functions
from mayfly.functions.spec import FunctionSpec, SnapshotOptions
from mayfly.host.admission import Tenant
from mayfly.host.snippet import Snippet
from mayfly.images.store import Images
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.store import Snapshot
from tests.kit.api_fakes import factory, install, install_toys, open_descriptors, small_config
from tests.kit.function_fakes import invocation
from tests.kit.scale import patience

Scenario = Callable[[Functions, Service], Awaitable[Any]]
MAX_BODY = 6 << 20


def functions_of(service: Service) -> Functions:
    return Functions(service.config, service.spawner, service.admission, service.supply, service.images, service.networks, service.observer)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None) -> Callable[..., Any]:
    """Run a scenario with functions and a service of runs around it; nothing is left behind."""
    install_toys(monkeypatch, tmp_path)
    (tmp_path / "vmlinux").write_bytes(b"kernel")

    def call(scenario: Scenario, fault: str = "", **config: Any) -> Any:
        async def whole() -> Any:
            async with Service(small_config(tmp_path, **config), factory(fault)) as service, functions_of(service) as functions:
                return await asyncio.wait_for(scenario(functions, service), patience(60))

        before = open_descriptors()
        result = asyncio.run(whole())
        assert open_descriptors() == before
        return result

    return call


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., FunctionSpec]:
    """A function of the fake agent; its code is a shell script."""

    def make(code: str = "true", **fields: Any) -> FunctionSpec:
        path = tmp_path / "code.toy"
        path.write_text(code)
        return FunctionSpec(**{"name": "echo", "language": "toy", "code": str(path), **fields})

    return make


def made_snapshots() -> list[Snapshot]:
    return [found for found in snapshots.installed() if isinstance(found, Snapshot)]


async def fails(kind: type[MayflyError], work: Awaitable[Any]) -> Any:
    with pytest.raises(kind) as caught:
        await work
    return caught.value


def test_a_function_is_made_once_and_restored_for_each_guest(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        made = await functions.create(spec())
        assert functions.find("echo") == made
        assert functions.all() == [made]
        base, diff = sorted(made_snapshots(), key=lambda found: bool(found.manifest.function))
        assert diff.manifest.name.startswith("@echo.")
        assert (base.manifest.name, diff.manifest.parent, base.manifest.function) == ("toy", "toy", "")
        first = await functions.invoke(invocation("echo", b"one", "text/plain"))
        second = await functions.invoke(invocation("echo", b"!log two", "text/plain"))
        assert [(answer.status, answer.payload, answer.content_type, answer.start) for answer in (first, second)] == [
            ("ok", b"one", "text/plain", "restored"),
            ("ok", b"!log two", "text/plain", "warm"),
        ]
        times = second.times
        assert 0 <= times.queued_s <= times.started_s <= times.sent_s <= times.answered_s
        assert second.log == b"twotwo"
        assert [(line.stream, line.text, line.request_id) for line in (await functions.logs("echo"))] == [
            ("stdout", "two", second.request_id),
            ("stderr", "two", second.request_id),
        ]
        await functions.remove("echo")
        assert [found.manifest.name for found in made_snapshots()] == ["toy"]
        assert functions.all() == []
        await fails(UnknownFunctionError, functions.invoke(invocation("echo", b"")))
        await fails(UnknownFunctionError, functions.remove("echo"))

    serve(scenario, cold=False)


def test_its_snapshot_is_not_for_runs(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec(snapshot=SnapshotOptions(dump_ws=False)))
        diff = next(found for found in made_snapshots() if found.manifest.function)
        run = service.start(Snippet(language="toy", source=b"true"), snapshot=diff)
        await run.done.wait()
        assert run.to_json()["error"]["code"] == "snapshot_failed"
        assert "loaded function" in run.to_json()["error"]["message"]
        image = service.find_image("toy")
        snippet = Snippet(language="toy", source=b"true")
        await fails(SnapshotError, service.bases.make_over(snippet, image, name="mine", parent=diff.manifest.name))
        await fails(ConfigError, service.bases.make_over(snippet, image, name=diff.manifest.name))

    serve(scenario, cold=False)


@pytest.mark.parametrize(("base", "diff", "cold"), [(True, False, False), (False, True, False), (False, False, False), (True, True, True)])
def test_what_a_guest_starts_from(serve: Callable[..., Any], spec: Callable[..., FunctionSpec], base: bool, diff: bool, cold: bool) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec(snapshot=SnapshotOptions(base=base, diff=diff, dump_ws=False)))
        kept = {found.manifest.function != "": found.manifest.parent for found in made_snapshots()}
        expected = {True: "toy" if base else ""} if diff else {}
        assert kept == ({} if cold else {**expected, **({False: ""} if base else {})})
        answer = await functions.invoke(invocation("echo", b"x"))
        assert answer.start == ("cold" if cold or not (base or diff) else "restored")
        assert answer.payload == b"x"

    serve(scenario, cold=cold)


@pytest.mark.parametrize(
    ("language", "base", "diff", "cold", "steps"),
    [
        ("toy", True, True, False, ["build", "zero", "function"]),
        ("toy", True, False, False, ["build", "function"]),
        ("toy", True, True, True, ["build", "function"]),
        ("interpreted", True, True, False, ["function"]),
        ("interpreted", False, True, False, ["zero", "function"]),
    ],
)
def test_memory_is_zeroed_where_a_snapshot_would_hold_what_programs_left(
    serve: Callable[..., Any], spec: Callable[..., FunctionSpec], language: str, base: bool, diff: bool, cold: bool, steps: list[str]
) -> None:
    how = Images().find("toy").manifest.function
    assert how is not None
    install("interpreted", ".i", how.steps[1:], function=replace(how, steps=how.steps[1:]))
    function = store.make_function(spec(language=language, snapshot=SnapshotOptions(base=base, diff=diff)), {})

    async def scenario(functions: Functions, service: Service) -> None:
        revision = revise(function, service.images.find(language), service.config, service.networks)
        assert [step.name for step in revision.loaded.steps] == steps

    serve(scenario, cold=cold)


def test_what_does_not_build_is_not_created(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        error = await fails(FunctionFailedError, functions.create(spec("if")))
        assert "the step 'build' failed" in error.message
        assert "yntax error" in error.output
        assert (functions.all(), made_snapshots()) == ([], [])
        good = await functions.create(spec())
        await fails(FunctionFailedError, functions.create(spec("if")))
        assert functions.all() == [good]
        assert (await functions.invoke(invocation("echo", b"x"))).payload == b"x"

    serve(scenario)


def test_what_does_not_load_is_not_created(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        error = await fails(FunctionFailedError, functions.create(spec()))
        assert error.output == "loading"
        assert "the step 'function' failed (exited 1)" in error.message
        assert functions.all() == []

    serve(scenario, fault="load-fails")


def test_what_another_process_creates_changes_and_removes_counts_at_once(
    serve: Callable[..., Any], spec: Callable[..., FunctionSpec]
) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        options = SnapshotOptions(dump_ws=False)
        async with functions_of(service) as other:
            await other.create(spec(snapshot=options))
        assert (await functions.invoke(invocation("echo", b"x"))).start == "restored"
        assert (await functions.invoke(invocation("echo", b"x"))).start == "warm"
        (first,) = snapshots.of_function("echo")
        async with functions_of(service) as other:
            await other.create(spec("true # changed", snapshot=options))
        (second,) = snapshots.of_function("echo")
        assert first != second
        assert (await functions.invoke(invocation("echo", b"x"))).start == "restored"
        async with functions_of(service) as other:
            await other.remove("echo")
        await fails(UnknownFunctionError, functions.invoke(invocation("echo", b"")))
        assert functions.under_way == 0

    serve(scenario, cold=False)


def test_a_new_image_makes_the_snapshot_anew(serve: Callable[..., Any], spec: Callable[..., FunctionSpec], tmp_path: Path) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec(snapshot=SnapshotOptions(dump_ws=False)))
        (before,) = snapshots.of_function("echo")
        await functions.invoke(invocation("echo", b"x"))
        manifest = paths.image_dir("toy", service.images.arch) / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "initramfs_digest": "sha256:other"}))
        answer = await functions.invoke(invocation("echo", b"x"))
        assert (answer.start, answer.payload) == ("restored", b"x")
        (after,) = snapshots.of_function("echo")
        assert before != after

    serve(scenario, cold=False)


def test_a_crash_and_a_time_out_between_others_requests(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec(timeout_s=1))
        payloads = [b"a", b"!exit 3", b"b", b"!hang", b"c", b"!other", b"!raise X", b"!vanish", b"d", b"e", b"!answer-exit"]
        answers = await asyncio.gather(*(functions.invoke(invocation("echo", payload)) for payload in payloads), return_exceptions=True)
        ends = [type(answer) if isinstance(answer, BaseException) else answer.payload for answer in answers]
        del ends[6]  # what was raised
        crashed, late = FunctionCrashedError, FunctionTimeoutError
        assert ends == [b"a", crashed, b"b", late, b"c", crashed, crashed, b"d", b"e", b"!answer-exit"]
        figures = await functions.figures("echo")
        assert (figures.requests, figures.ok, figures.exceptions) == (11, 6, 1)
        assert figures.failures == {"function_crashed": 3, "function_timeout": 1}

    serve(scenario)


def test_a_function_that_answers_twice_answers_nobody_elses_request(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec())
        twice, other = await functions.submit(invocation("echo", b"!twice")), await functions.submit(invocation("echo", b"x"))
        await functions.settled(other)
        first = await functions.result(twice)
        assert first is not None
        assert first.payload == b"!twice"
        try:  # whether the second answer is seen before the next request goes out is the guest's to say
            second = await functions.result(other)
            assert second is not None
            assert (second.payload, second.start) == (b"x", "cold")
        except FunctionCrashedError as error:
            assert "instead of" in error.message
        assert (await functions.invoke(invocation("echo", b"y"))).payload == b"y"

    serve(scenario)


def test_an_answer_that_nobody_waits_for_is_kept(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec())
        good, bad = (
            await functions.submit(invocation("echo", b"x", request_id="ab" * 16)),
            await functions.submit(invocation("echo", b"!exit")),
        )
        assert good == "ab" * 16
        assert await functions.result(good) is None
        await functions.settled(good)
        answer = await functions.result(good, function="echo", owner="")
        assert answer is not None
        assert (answer.request_id, answer.payload) == (good, b"x")
        await functions.settled(bad)
        for wrong in ({"function": "other"}, {"owner": "ann"}):
            with pytest.raises(UnknownRequestError):
                await functions.result(good, **wrong)
        with pytest.raises(FunctionCrashedError):
            await functions.result(bad)
        await functions.settled("unknown")

    serve(scenario)


def test_who_goes_away_does_not_end_what_has_begun(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec())
        await functions.invoke(invocation("echo", b"x"))
        asking = [asyncio.create_task(functions.invoke(invocation("echo", payload))) for payload in (b"!sleep 0.2", b"y")]
        await asyncio.sleep(0)  # both have begun
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        assert functions.under_way == 1
        assert (await functions.invoke(invocation("echo", b"z"))).start == "warm"
        figures = await functions.figures("echo")
        assert (figures.ok, figures.failures, figures.created) == (3, {"cancelled": 1}, 1)

    serve(scenario)


def test_what_cannot_be_asked(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec(), owner="ann")
        await fails(UnknownFunctionError, functions.invoke(invocation("nobody", b"")))
        await fails(UnknownFunctionError, functions.invoke(invocation("../echo", b"")))
        await fails(BodyTooLargeError, functions.invoke(invocation("echo", bytes(MAX_BODY + 1))))
        await fails(UnprocessableError, functions.invoke(invocation("echo", b"", "é")))
        await fails(UnprocessableError, functions.invoke(invocation("echo", b"", "x" * 256)))
        await fails(ForbiddenError, functions.create(spec(), owner="bob"))
        tenant = Tenant("ann", concurrency=1)
        first = asyncio.create_task(functions.invoke(invocation("echo", b"x", tenant=tenant)))
        await asyncio.sleep(0)  # it has begun
        await fails(KeyLimitError, functions.invoke(invocation("echo", b"y", tenant=tenant)))
        assert (await first).payload == b"x"
        assert (tenant.runs, tenant.memory_used) == (0, 0)
        await fails(UnknownFunctionError, functions.logs("nobody"))
        await fails(UnknownFunctionError, functions.figures("nobody"))
        await fails(UnprocessableError, functions.create(spec(language="py")))
        await fails(ConfigError, functions.create(FunctionSpec(name="a", language="toy", code="/nowhere")))
        await fails(UnprocessableError, functions.create(spec(network=True)))

    serve(scenario)


def test_stopping_answers_what_is_under_way_and_writes_what_was_done(
    serve: Callable[..., Any], spec: Callable[..., FunctionSpec], tmp_path: Path
) -> None:
    statistics, lines = tmp_path / "statistics.json", tmp_path / "requests.jsonl"

    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec())
        asking = [asyncio.create_task(functions.invoke(invocation("echo", payload))) for payload in (b"!sleep 0.1", b"y")]
        await asyncio.sleep(0)  # both have begun
        await functions.drain(patience(10))
        assert [(await answer).payload for answer in asking] == [b"!sleep 0.1", b"y"]
        await fails(StoppingError, functions.invoke(invocation("echo", b"z")))

    serve(scenario, function_statistics=str(statistics), function_log=str(lines))
    assert json.loads(statistics.read_text())["number of requests completed"] == 2
    first, second = (json.loads(line) for line in lines.read_text().splitlines())
    assert [(line["function"], line["status"], line["start"]) for line in (first, second)] == [
        ("echo", "ok", "cold"),
        ("echo", "ok", "warm"),
    ]
    assert 0 < second["sent_s"] < second["answered_s"]


def test_guests_that_are_to_be_ready_are_there_before_the_first_request(
    serve: Callable[..., Any], spec: Callable[..., FunctionSpec]
) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        async with functions_of(service) as other:
            await other.create(spec(min_guests=1))
        functions.begin()
        assert (await functions.figures("echo")).guests["starting"] == 1
        while (await functions.figures("echo")).guests["idle"] < 1:
            await asyncio.sleep(0.01)  # what starts has no event to wait for here
        assert (await functions.invoke(invocation("echo", b"x"))).start == "warm"

    serve(scenario)


def test_code_that_was_altered_on_the_disk_is_not_loaded(serve: Callable[..., Any], spec: Callable[..., FunctionSpec]) -> None:
    async def scenario(functions: Functions, service: Service) -> None:
        await functions.create(spec())
        (paths.data_dir() / "functions/echo/code/main.toy").write_text("other")
        error = await fails(MayflyError, functions.invoke(invocation("echo", b"x")))
        assert "altered" in error.message
        assert store.find("echo").name == "echo"

    serve(scenario)
