"""Images that a host lacks: fetched from a registry by digest, once however many runs wait."""

import asyncio
import logging
import os
import platform
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from mayfly import paths
from mayfly.cli.main import cli
from mayfly.errors import ConfigError, HostError
from mayfly.fleet import catalog, fetch
from mayfly.fleet.catalog import ImageChange, make_offer
from mayfly.fleet.engine import Engine
from mayfly.imagegen.digests import digest_of
from mayfly.imagegen.oci.artifact import export
from mayfly.images import manifest
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.kit.functions_kit import let_toys_load_functions
from tests.kit.registry_kit import FakeRegistry
from tests.unit.fleet.test_fleet import body, run
from tests.unit.fleet.test_functions import ask, create


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


def in_registry(folder: Path) -> tuple[Path, str, str]:
    """The toy is in a layout, and installed no more: that, its digest, and that of its archive."""
    place = paths.image_dir("toy", platform.machine())
    archive = os.urandom(200_000)
    about = msgspec.structs.replace(manifest.load(place), initramfs_digest=digest_of(archive), initramfs_size=len(archive))
    (place / "initramfs").write_bytes(archive)
    (place / "manifest.json").write_text(about.to_json())
    digest = export(place, folder)
    shutil.rmtree(place)
    return folder, digest, digest_of(archive)


async def offer(fleet: Fleet, way: Way, reference: str) -> None:
    """Have the fleet offer it, and see that the gateway knows."""
    made = await asyncio.to_thread(make_offer, reference)
    async with Engine.connect((fleet.server.url,), "operator") as engine:
        await catalog.change(engine, ImageChange(add=made))
    await until(lambda: any(image.manifest.language == "toy" for image in way.runner.installed()))


def test_a_host_fetches_what_it_lacks_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout, digest, archive = in_registry(tmp_path / "layout")
    caplog.set_level(logging.INFO, "mayfly.fleet.fetch")

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        with FakeRegistry(layout) as registry:
            async with fleet.gateway("g1") as way:
                async with way.client.post("/run", json=body("true")) as answer:
                    assert (answer.status, (await answer.json())["error"]["code"]) == (404, "unknown_language")
                reference = f"{registry.address}/test@{digest}"
                await offer(fleet, way, reference)
                found = await asyncio.gather(*(run(way.client, f"echo {number}") for number in range(4)))
                assert [each["steps"][1]["stdout"] for each in found] == [f"{number}\n" for number in range(4)]
                assert [path for path, _ in registry.requests].count(f"/v2/test/blobs/{archive}") == 1
                assert sum("fetching" in line for line in caplog.messages) == 1
                assert (paths.image_dir("toy@1.0", platform.machine()) / "initramfs").stat().st_size == 200_000
                listed = await asyncio.to_thread(_cli, "list", "--fleet", fleet.server.url)
                assert listed.split() == ["toy@1.0", platform.machine(), reference]
                await asyncio.to_thread(_cli, "rm", "toy@1.0", "--fleet", fleet.server.url)
                async with Engine.connect((fleet.server.url,), "operator") as engine:
                    with pytest.raises(ConfigError):
                        await catalog.change(engine, ImageChange(remove="toy@1.0"))
                assert (await run(way.client, "echo still"))["status"] == "ok", "what is installed stays"

    in_fleet(scenario)


def _cli(*words: str) -> str:
    done = CliRunner().invoke(cli, ["fleet", "image", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_what_is_not_of_its_digest_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, digest, _ = in_registry(tmp_path / "layout")
    monkeypatch.setattr(fetch, "RETRY_S", 0.5)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        with FakeRegistry(layout) as registry:
            async with fleet.gateway("g1") as way:
                await offer(fleet, way, f"{registry.address}/test@{digest}")
                registry.faults.garble = True
                running = asyncio.create_task(run(way.client, "echo there"))
                await until(lambda: any("blobs" in path for path, _ in registry.requests[4:]))
                assert not paths.image_dir("toy@1.0", platform.machine()).exists()
                assert not running.done()
                registry.faults.garble = False
                assert (await running)["steps"][1]["stdout"] == "there\n"

    in_fleet(scenario)


def test_an_image_that_is_another_one_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRY_S", 0.5)
    place = paths.image_dir("toy", platform.machine())
    shutil.copytree(place, tmp_path / "old")
    layout, digest, archive = in_registry(tmp_path / "layout")
    shutil.copytree(tmp_path / "old", paths.image_dir("toy@1.0", platform.machine()))

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        with FakeRegistry(layout) as registry:
            async with fleet.gateway("g1") as way:
                assert (await run(way.client, "echo old"))["status"] == "ok"
                await offer(fleet, way, f"{registry.address}/test@{digest}")
                registry.faults.garble = True
                found = paths.image_dir("toy@1.0", platform.machine()) / "manifest.json"
                asked, running = len(registry.requests), []
                async with asyncio.timeout(40):
                    while len(registry.requests) < asked + 3:  # until the host knows; then nothing runs in the old one
                        running.append(asyncio.create_task(run(way.client, "echo new")))
                        await asyncio.wait(running[-1:], timeout=1)
                assert not running[-1].done()
                registry.faults.garble = False
                assert {each["steps"][1]["stdout"] for each in await asyncio.gather(*running)} == {"new\n"}
                assert archive in found.read_text()

    in_fleet(scenario)


def test_a_function_s_image_is_fetched(tmp_path: Path) -> None:
    let_toys_load_functions(tmp_path)
    layout, digest, archive = in_registry(tmp_path / "layout")

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        with FakeRegistry(layout) as registry:
            async with fleet.gateway("g1") as way:
                await offer(fleet, way, f"{registry.address}/test@{digest}")
                await create(fleet, "echo", timeout_s=30)
                await until(lambda: bool(way.runner.functions.all()))
                assert await ask(way.client, "echo", b"there") == b"there"
                assert [path for path, _ in registry.requests].count(f"/v2/test/blobs/{archive}") == 1

    in_fleet(scenario)


def test_a_fetch_says_how_far_it_is_and_ends_when_it_shall() -> None:
    under_way = fetch.Fetch(catalog.Offer(reference="registry/image@sha256:0", manifest=b"{}"))
    assert under_way.percent == 0
    with under_way.task("pulling", 100) as advance, under_way.task("installing", 100) as install:
        advance(50)
        install(30)
        assert under_way.percent == 40
        under_way.stopped = True
        with pytest.raises(HostError):
            advance(1)
