"""Runs that name a snapshot go to hosts that have it."""

import asyncio
import logging
import platform
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from mayfly.cli.main import cli
from mayfly.errors import ConfigError, SnapshotError
from mayfly.fleet import catalog, fetch, queues, watch, worker
from mayfly.fleet.catalog import ImageChange
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.held import held
from mayfly.fleet.message import Held, Work, name_of, queue_of, token_of
from mayfly.fleet.queues import Stale
from mayfly.fleet.worker import Worker
from mayfly.guests.start import Guest, StartKind
from mayfly.host import artifacts
from mayfly.host.snippet import Snippet
from mayfly.imagegen.oci.reference import RegistryReference, parse_reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.progress import Silent
from mayfly.images.store import Images
from mayfly.paths import cache_dir
from mayfly.schema import replace
from mayfly.snapshots import store
from mayfly.units import MIB
from scripts.debian.local_registry import serving
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.kit.named_snapshots import make_snapshot
from tests.unit.fleet.test_fleet import body, events, output, run, start

ANOTHER = 160 * MIB
"""Memory of machines that cannot go on from the snapshot."""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


def test_runs_that_name_a_snapshot_go_where_it_is() -> None:
    async def scenario(fleet: Fleet) -> None:
        h1 = await fleet.add_host("h1")
        h2 = await fleet.add_host("h2", memory=ANOTHER)
        await make_snapshot(h1, "ours")
        async with fleet.two_gateways() as (one, two):
            await until(lambda: all("ours" in way.runner.roll.snapshots() for way in (one, two)))
            found = await asyncio.gather(*(run((one, two)[n % 2].client, f"echo {n}", snapshot="ours") for n in range(6)))
            assert [each["steps"][1]["stdout"] for each in found] == [f"{n}\n" for n in range(6)]
            assert {each["start"] for each in found} == {StartKind.RESTORED}
            assert not list(h2.runs)
            assert (await run(two.client, "echo any"))["start"] == StartKind.COLD

    in_fleet(scenario)


def test_a_run_waits_for_a_host_with_its_snapshot() -> None:
    async def scenario(fleet: Fleet) -> None:
        await make_snapshot(await fleet.add_host("h1"), "ours")
        async with fleet.gateway("g1") as way:
            await until(lambda: "ours" in way.runner.roll.snapshots())
            await fleet.remove_host("h1")
            await fleet.add_host("h2", memory=ANOTHER)
            run_id = await start(way.client, "echo end", snapshot="ours")
            assert (await run(way.client, "echo other"))["status"] == "ok"
            assert not (await way.runner.find(run_id)).done.is_set()
            async with Engine.connect((fleet.server.url,), "operator") as engine:  # as an operator may do, by mistake
                await engine.remove_consumer(platform.machine(), queue_of(name_of(Images().find("toy")), "ours"))
            await fleet.add_host("h3")
            assert output(await events(way.client, run_id)) == "end\n"

    in_fleet(scenario)


@pytest.mark.parametrize(("name", "language"), [("theirs", "toy"), ("ours", "py")])
def test_a_snapshot_that_no_host_has(name: str, language: str) -> None:
    async def scenario(fleet: Fleet) -> None:
        await make_snapshot(await fleet.add_host("h1"), "ours")
        async with fleet.gateway("g1") as way:
            await until(lambda: "ours" in way.runner.roll.snapshots())
            asked = {**body("", snapshot=name), "language": language}
            for path in ("/run", "/start"):
                async with way.client.post(path, json=asked) as answer:
                    error = (await answer.json())["error"]
                    assert (answer.status, error["code"]) == (404, "snapshot_not_found")
                    assert ("ours" in error["hint"]) == (language == "toy")

    in_fleet(scenario)


def test_a_host_that_cannot_start_from_a_snapshot_is_handed_no_more_runs_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        await make_snapshot(await fleet.add_host("h1"), "ours")
        other = await fleet.add_host("h2")
        tried = []

        async def fail(*_: object) -> Guest:
            tried.append(1)
            raise SnapshotError("its processor is another one")

        monkeypatch.setattr(other, "_machine", fail)
        async with fleet.gateway("g1") as way:
            await until(lambda: "ours" in way.runner.roll.snapshots())
            async with asyncio.timeout(40):
                while not tried:  # either of them is chosen
                    assert (await run(way.client, "true", snapshot="ours"))["status"] == "ok"
            for _ in range(8):
                assert (await run(way.client, "true", snapshot="ours"))["status"] == "ok"
            assert len(tried) == 1

    in_fleet(scenario)


def test_why_a_snapshot_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are its files read again until they change."""

    async def scenario(fleet: Fleet) -> None:
        host = await fleet.add_host("h1")
        made = await make_snapshot(host, "ours")
        images, failed = host.installed(), {}  # type: ignore[var-annotated]
        assert [one.name for one in held(images, host.config, failed)] == ["ours"]
        (made.folder / "memory").write_bytes(b"x" * 8192)
        caplog.clear()
        assert not held(images, host.config, failed)
        monkeypatch.setattr(store, "digests", lambda _: pytest.fail("it is read again"))
        assert not held(images, host.config, failed)
        assert sum("ours is left out" in line and "was altered" in line for line in caplog.messages) == 1

    monkeypatch.setattr(worker, "held", lambda *_: [])  # who would say it too
    in_fleet(scenario)


def test_a_run_whose_snapshot_is_removed_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GONE_S", 0.5)

    async def scenario(fleet: Fleet) -> None:
        await make_snapshot(await fleet.add_host("h1"), "ours")
        async with fleet.gateway("g1") as way:
            await until(lambda: "ours" in way.runner.roll.snapshots())
            store.remove("ours")
            run_id = await start(way.client, "true", snapshot="ours")
            assert (await events(way.client, run_id))[-1]["status"] == "error"
            error = (await way.runner.find(run_id)).outcome.error
            assert error is not None
            assert error.code == "snapshot_not_found"
            async with way.client.post("/run", json=body("true", snapshot="ours")) as answer:
                assert answer.status == 404
            await until(lambda: not way.runner.under_way)
            load = await way.runner._engine.load(platform.machine(), queue_of(name_of(Images().find("toy")), "ours"))
            assert load.waiting == 0

    in_fleet(scenario)


def test_a_run_from_whose_snapshot_no_host_can_go_on_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the gateway that took it is gone, by one that is asked for it."""
    monkeypatch.setattr(watch, "GONE_S", 0.5)

    async def fail(*_: object) -> Guest:
        raise SnapshotError("its processor is another one")

    async def scenario(fleet: Fleet) -> None:
        host = await fleet.add_host("h1")
        await make_snapshot(host, "ours")
        monkeypatch.setattr(host, "_machine", fail)
        queue = platform.machine(), queue_of(name_of(Images().find("toy")), "ours")

        async def check(way: Way, run_id: str) -> None:
            assert (await events(way.client, run_id))[-1]["status"] == "error"
            error = (await way.runner.find(run_id)).outcome.error
            assert error is not None and error.code == "snapshot_failed", error
            assert "does not fit to h1" in error.message

        async with fleet.gateway("g2") as two:
            async with fleet.gateway("g1") as one:
                await until(lambda: all("ours" in way.runner.roll.snapshots() for way in (one, two)))
                await check(one, await start(one.client, "true", snapshot="ours"))
                error = (await run(one.client, "true", snapshot="ours"))["error"]
                assert error["code"] == "snapshot_failed"
                assert one.runner.roll.unfit(*queue) == ["h1"]
                monkeypatch.setattr(watch, "GONE_S", 1000)
                waiting = await start(one.client, "true", snapshot="ours")
            monkeypatch.setattr(watch, "GONE_S", 0.5)
            await check(two, waiting)

    in_fleet(scenario, limit_s=100)


def test_the_queue_of_a_snapshot_goes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before, nor while a run waits there; and it comes again."""
    monkeypatch.setattr(queues, "STALE_S", 0)
    monkeypatch.setattr(watch, "GONE_S", 1000)

    async def scenario(fleet: Fleet) -> None:
        host = await fleet.add_host("h1")
        await make_snapshot(host, "ours")
        queue = platform.machine(), queue_of(name_of(Images().find("toy")), "ours")
        async with fleet.gateway("g1") as way:
            engine = way.runner._engine
            stale = Stale(engine, way.runner.roll, way.runner._queues)

            async def is_there() -> bool:
                await stale.look()
                return queue[1] in await engine.consumers(queue[0])

            await until(lambda: "ours" in way.runner.roll.snapshots())
            assert (await run(way.client, "true", snapshot="ours"))["status"] == "ok"
            assert await is_there()
            store.remove("ours")
            waiting = await start(way.client, "echo end", snapshot="ours")
            await until(lambda: "ours" not in way.runner.roll.snapshots())
            assert await is_there()
            await make_snapshot(host, "ours")
            assert output(await events(way.client, waiting)) == "end\n"
            store.remove("ours")
            await until(lambda: "ours" not in way.runner.roll.snapshots())
            while await is_there():  # until the run's work is acknowledged
                await asyncio.sleep(0.02)
            assert any(not name.startswith("SN-") for name in await engine.consumers(queue[0]))
            await make_snapshot(host, "ours")
            await until(lambda: "ours" in way.runner.roll.snapshots())
            assert (await run(way.client, "true", snapshot="ours"))["status"] == "ok"

    in_fleet(scenario)


@pytest.mark.parametrize("path", ["/run", "/start"])
def test_a_snapshot_with_a_network_is_refused(path: str) -> None:
    """Before a host has it: that would take it for one that cannot start from the snapshot."""

    async def scenario(fleet: Fleet) -> None:
        await make_snapshot(await fleet.add_host("h1"), "ours")
        async with fleet.gateway("g1") as way:
            await until(lambda: "ours" in way.runner.roll.snapshots())
            async with way.client.post(path, json=body("true", snapshot="ours", network=True)) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (422, "invalid_value"), error
                assert "without a network" in error["message"]
            assert (await run(way.client, "true", snapshot="ours"))["start"] == StartKind.RESTORED

    in_fleet(scenario)


def test_a_snapshot_that_is_offered_anew_while_one_is_fetched_is_fetched_next() -> None:
    """What is remembered as unfit is what was fetched."""

    async def scenario() -> None:
        queue, offered = queue_of("toy", "ours"), Held(name="ours", image="toy", digest="a")
        host, work = object.__new__(Worker), Work(id="r", token="t", gateway="g", snippet=Snippet(language="toy", snapshot="ours"))
        image = SimpleNamespace(manifest=SimpleNamespace(initramfs_digest="sha256:i"))
        host.__dict__.update(_unfit={}, _failed={}, _snapshots={}, _images={token_of("toy"): image})
        host._fetches = fetches = fetch.Fetches(lambda: None)
        given = []

        async def give_back(*_: object) -> None:
            given.append(1)

        host._engine, host._carrying = SimpleNamespace(give_back=give_back), SimpleNamespace(release=lambda _: None)  # type: ignore[assignment]
        fetches._snapshots[queue] = offered

        async def fetched(lang: str) -> None:
            if not given:
                host._snapshots, fetches._snapshots[queue] = {queue: offered}, replace(offered, digest="b")

        fetches.fetch = fetched  # type: ignore[method-assign]
        active: Any = SimpleNamespace(work=work, delivery=SimpleNamespace(ack=""))
        await host._fetch(active, [queue])
        assert (len(given), host._fits(work)) == (1, True), "the other one may fit"
        await host._fetch(active, [queue])
        assert (len(given), host._fits(work)) == (2, False), "it was fetched, and is not there"

    asyncio.run(scenario())


def test_a_host_is_there_while_it_reads_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may take longer than it may be silent."""
    read = threading.Event()

    def held(*_: object) -> list[Held]:
        read.wait(60)
        return []

    monkeypatch.setattr(worker, "held", held)

    async def scenario(fleet: Fleet) -> None:
        async with Engine.connect((fleet.server.url,), "g1") as engine:
            beats: asyncio.Queue[Message] = asyncio.Queue()
            await engine.listen("beat.h1", beats.put_nowait)
            adding = asyncio.create_task(fleet.add_host("h1"))
            try:
                for _ in range(3):
                    await asyncio.wait_for(beats.get(), 30)
            finally:
                read.set()
            await adding

    in_fleet(scenario)


def test_names_that_would_be_one_word_are_told_apart() -> None:
    found = {queue_of("rust@1.85", name) for name in ("a.b", "a@b", "a_b", "")} | {queue_of("rust@1.86", "a.b")}
    assert len(found) == 5
    assert queue_of("rust@1.85") == "rust-1_85"
    assert all(len(queue.split(".")) == 1 for queue in found)


needs_registry = pytest.mark.skipif(not shutil.which("docker-registry"), reason="docker-registry is missing: scripts/setup")


def push(name: str, reference: str) -> str:
    """Put a snapshot into a registry, and remove it here; where it is, with its digest."""
    parsed = parse_reference(reference)
    assert isinstance(parsed, RegistryReference)
    digest = artifacts.push(name, RegistrySource(parsed, cache_dir() / "blobs", progress=Silent()))
    store.remove(name)
    return f"{parsed.registry}/{parsed.repository}@{digest}"


async def offer(fleet: Fleet, reference: str) -> None:
    made = await asyncio.to_thread(catalog.make_offer, reference)
    async with Engine.connect((fleet.server.url,), "operator") as engine:
        await catalog.change(engine, ImageChange(add=made))


@needs_registry
def test_a_host_fetches_a_snapshot_that_is_offered(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for many runs, by its digest; and no more once it is there. One whose machines cannot go
    on from it leaves such runs to others.
    """
    caplog.set_level(logging.INFO, "mayfly.fleet.fetch")
    monkeypatch.setattr(worker, "FETCH", 1)  # either host may be the first to ask
    monkeypatch.setattr(fetch, "RETRY_S", 0.5)  # they have one folder, where one of them may write at a time

    async def scenario(fleet: Fleet) -> None:
        with serving() as address:
            h1 = await fleet.add_host("h1")
            h2 = await fleet.add_host("h2", memory=ANOTHER)
            made = await make_snapshot(h1, "ours")
            reference = await asyncio.to_thread(push, "ours", f"{address}/snapshots/ours:1")
            async with fleet.two_gateways() as (one, two):
                await offer(fleet, reference)
                await until(lambda: all(way.runner.roll.snapshots_offered for way in (one, two)))
                found = await asyncio.gather(*(run((one, two)[n % 2].client, "true", snapshot="ours") for n in range(4)))
                assert {(each["status"], each["start"]) for each in found} == {("ok", StartKind.RESTORED)}
                assert not list(h2.runs)
                pulled = store.find("ours").manifest
                assert (pulled.parent, pulled.files["state.json"]) == ("", made.manifest.files["state.json"])
                assert (await run(one.client, "true", snapshot="ours"))["status"] == "ok"
                fetched = sum(line.startswith("fleet: fetched") for line in caplog.messages)
                assert 1 <= fetched <= 2, "once at each host; the other one may have failed at first"
                listed = await asyncio.to_thread(_cli, "list", "--fleet", fleet.server.url)
                assert listed.split() == ["ours", platform.machine(), reference]
                await asyncio.to_thread(_cli, "rm", "ours", "--fleet", fleet.server.url)
                await until(lambda: not one.runner.roll.snapshots_offered and "ours" in one.runner.roll.snapshots())
                assert (await run(one.client, "true", snapshot="ours"))["status"] == "ok"

    in_fleet(scenario)


@needs_registry
def test_the_base_of_a_language_is_not_offered() -> None:
    async def scenario(fleet: Fleet) -> None:
        with serving() as address:
            await make_snapshot(await fleet.add_host("h1"), "ours")
            store.remove("ours")
            reference = await asyncio.to_thread(push, "toy", f"{address}/snapshots/toy:1")
            with pytest.raises(ConfigError, match="a language's own"):
                await offer(fleet, reference)

    in_fleet(scenario)


def _cli(*words: str) -> str:
    done = CliRunner().invoke(cli, ["fleet", "image", *words])
    assert done.exit_code == 0, done.output
    return done.output
