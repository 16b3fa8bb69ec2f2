"""Snapshots as the service uses them: made, found, refused; the pool within its budget. Machines
are ordinary processes.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mayfly import paths
from mayfly.errors import BusyError, ConfigError, FunctionCrashedError, RunEndedError, SnapshotError, SnapshotNotFoundError
from mayfly.guests.job import Wanted
from mayfly.guests.start import Guest
from mayfly.guests.told import network_words
from mayfly.host import supply
from mayfly.host.metrics import Metrics
from mayfly.host.plan import want_machine
from mayfly.host.snippet import Snippet
from mayfly.images.manifest import LanguageStep, Warmup
from mayfly.protocol import frames as p
from mayfly.protocol.conversation import Conversation
from mayfly.runs.service import Service
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.making import DAY_S, Prepare, base_name, find_base, make
from mayfly.snapshots.store import MANIFEST, Snapshot
from mayfly.units import MIB
from mayfly.vmm.config import Layer, NetworkBackend
from mayfly.vmm.snapshot import FILES, MEMORY, PAGES, STATE, WORKING_SET
from tests.kit.api_fakes import ROOT, FakeZygote, factory, install, install_toys, open_descriptors, small_config
from tests.kit.scale import scaled

Scenario = Callable[[Service], Awaitable[Any]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run a scenario with a service that uses snapshots; nothing may be left of it."""
    install_toys(monkeypatch, tmp_path)
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    sockets = tmp_path / "runs"
    sockets.mkdir()

    def call(scenario: Scenario, fault: str = "", made: list[FakeZygote] | None = None, lasting: bool = True, **config: Any) -> Any:
        async def whole() -> Any:
            values = small_config(tmp_path, **{"cold": False, **config})
            folder = sockets if lasting else None
            async with Service(values, factory(fault, made), sockets=folder, observer=Metrics()) as service:
                return await asyncio.wait_for(scenario(service), 60)

        before = open_descriptors()
        result = asyncio.run(whole())
        assert open_descriptors() == before
        assert not list(paths.snapshots_dir().glob(".*.part"))
        return result

    return call


def toy(service: Service, language: str = "toy") -> Wanted:
    return want_machine(service.images.find(language), service.config)


async def run(service: Service, language: str = "toy", source: bytes = b"echo hi") -> dict[str, Any]:
    found = service.start(Snippet(language=language, source=source))
    await service.settled(found)
    return found.to_json()


async def made(service: Service, language: str = "toy") -> Snapshot:
    return await service.supply.ensure_base(toy(service, language))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def based(service: Service) -> None:
    """Wait until the base of toy is there."""
    await until(lambda: find_base(toy(service)) is not None)


def test_the_first_runs_boot_and_the_base_is_made_once_behind_them(serve: Callable[..., Any]) -> None:
    """The first two ask at the same time; there is room for them and for no machine besides."""

    async def scenario(service: Service) -> list[str]:
        both = await asyncio.gather(run(service), run(service))
        await based(service)
        return [found["start"] for found in (*both, await run(service))]

    zygotes: list[FakeZygote] = []
    assert serve(scenario, made=zygotes, memory_budget=256 * MIB) == ["cold", "cold", "restored"]
    base = Layer(folder=str(paths.snapshots_dir() / "toy"), eager=True)
    assert [config.restore for config in zygotes[0].configs] == [(), (), (), (base,)]


def test_a_base_waits_behind_the_runs_that_wait(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        await asyncio.gather(*(run(service) for _ in range(3)))
        await based(service)

    zygotes: list[FakeZygote] = []
    serve(scenario, made=zygotes, memory_budget=128 * MIB)
    assert [config.page_by_page for config in zygotes[0].configs] == [False, False, False, True]


def test_a_base_is_made_behind_a_run_of_its_own_language(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        first = service.start(Snippet(language="toy", source=b"sleep 60"))
        await until(lambda: first.start is not None)
        await run(service, "py", b"")
        await until(lambda: (paths.snapshots_dir() / "py").exists() and not service.supply._making)
        assert [path.name for path in paths.snapshots_dir().glob("[!.]*")] == ["py"]
        assert not first.done.is_set()
        await service.end(first, "enough")
        await based(service)

    serve(scenario, run_wall_s=60)


def test_a_base_is_made_behind_a_run_that_was_ended(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> str:
        first = service.start(Snippet(language="toy", source=b"sleep 60"))
        await until(lambda: first.start is not None)
        await service.end(first, "enough")
        await based(service)
        return str((await run(service))["start"])

    assert serve(scenario) == "restored"


def test_a_server_that_stops_makes_no_base_to_its_end(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        await run(service)
        await until(lambda: bool(list(paths.snapshots_dir().glob(".*.part"))))

    serve(scenario)
    assert not list(snapshots.installed())


def test_a_base_that_cannot_be_made_is_no_reason_not_to_run(serve: Callable[..., Any]) -> None:
    zygotes: list[FakeZygote] = []

    async def scenario(service: Service) -> list[str]:
        first = await run(service)
        await until(lambda: service.admission.used == 0)  # nor is there a place for it left
        return [first["start"], (await run(service))["start"]]

    assert serve(scenario, fault="disk-full", made=zygotes) == ["cold", "cold"]
    assert len([config for config in zygotes[0].configs if config.page_by_page]) == 1  # and is not tried again at once


def test_without_a_server_no_base_is_made_behind_a_run(serve: Callable[..., Any]) -> None:
    assert serve(run, lasting=False)["start"] == "cold"
    assert not (paths.snapshots_dir() / "toy").exists()


def test_cold_runs_and_runs_with_an_unusual_machine(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> str:
        await made(service)
        return str((await run(service))["start"])

    assert serve(scenario, cold=True) == "cold"
    assert serve(scenario, cpus=2, memory=200 * MIB) == "restored"
    assert sorted(path.name for path in paths.snapshots_dir().glob("[!.]*")) == ["toy", "toy.2cpus.200mib"]


NETWORK: dict[str, Any] = {"network_backend": NetworkBackend.TAP, "network_taps": ("mayfly0", "mayfly1")}


async def run_with_network(service: Service) -> dict[str, Any]:
    found = service.start(Snippet(language="toy", source=b"echo $FAKE_NETWORK", network=True))
    await service.settled(found)
    return found.to_json()


def test_runs_with_a_network_start_from_a_base_of_their_own_that_has_none(serve: Callable[..., Any]) -> None:
    """Each is told its own MAC and addresses; the base takes no tap."""

    async def scenario(service: Service) -> list[dict[str, Any]]:
        await run_with_network(service)
        await until(lambda: (paths.snapshots_dir() / "toy.tap").exists())
        return list(await asyncio.gather(run_with_network(service), run_with_network(service)))

    zygotes: list[FakeZygote] = []
    runs = serve(scenario, made=zygotes, **NETWORK)
    assert [run["start"] for run in runs] == ["restored", "restored"]
    _, *restored = [config for config in zygotes[0].configs if not config.page_by_page]
    saved = [config.network for config in zygotes[0].configs if config.page_by_page]
    assert saved and not any(network and network.connected for network in saved)
    networks = [config.network for config in restored]
    assert {network.tap for network in networks if network} == {"mayfly0", "mayfly1"}
    told = {run["steps"][-1]["stdout"].strip() for run in runs}
    assert told == {" ".join(network_words(network)) for network in networks if network}
    assert len({word for words in told for word in words.split() if "gateway" not in word}) == 4  # MAC and address of each
    assert not (paths.snapshots_dir() / "toy").exists()


def test_a_run_that_finds_all_networks_taken_is_refused_and_counted(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        snippet = Snippet(language="toy", source=b"sleep 60", network=True)
        runs = [service.start(snippet) for _ in NETWORK["network_taps"]]
        with pytest.raises(BusyError, match="networks"):
            service.start(snippet)
        assert isinstance(service.observer, Metrics)
        assert "mayfly_refusals_total 1.0" in service.observer.text().decode()
        for run in runs:
            await service.forget(run.id)

    serve(scenario, **NETWORK)


def create_command(tmp_path: Path, *flags: str) -> list[str]:
    """`mayfly snapshot create toy`, on machines that are ordinary processes."""
    command = [sys.executable, "-m", "tests.kit.fake_mayfly", "-", "snapshot", "create", "toy", *flags]
    return [*command, "--time-factor", "1", "--memory-budget", "512M", "--kernel", str(tmp_path / "vmlinux")]


def test_a_base_with_a_network_can_be_made_beforehand(serve: Callable[..., Any], tmp_path: Path) -> None:
    refused = subprocess.run(create_command(tmp_path, "--network"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "no network" in refused.stderr
    flags = ("--network", "--network-backend", "tap", "--network-taps", "mayfly0")
    made = subprocess.run(create_command(tmp_path, *flags), cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout.startswith("toy.tap ")
    assert serve(run_with_network, **NETWORK)["start"] == "restored"


def test_a_network_that_is_not_there_is_no_reason_to_boot_or_to_make_the_base_again(serve: Callable[..., Any]) -> None:
    async def prepare(service: Service) -> None:
        network = service.networks.disconnected()
        await service.supply.ensure_base(want_machine(service.images.find("toy"), service.config, network))

    zygotes: list[FakeZygote] = []
    serve(prepare, **NETWORK)
    error = serve(run_with_network, fault="no-tap", made=zygotes, **NETWORK)["error"]
    assert (error["code"], error["message"]) == ("network_failed", "there is no tap")
    assert len(zygotes[0].configs) == 1


def test_the_pool_has_no_machines_with_a_network(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> str:
        await made(service)
        service.supply.expect(toy(service))
        await until(lambda: len(service.supply.pool) == 1)
        return str((await run_with_network(service))["start"])

    assert serve(scenario, warm=1, **NETWORK) == "cold"


def test_many_creators_do_the_work_once(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> set[str]:
        found = await asyncio.gather(*(made(service) for _ in range(50)))
        return {snapshot.manifest.created for snapshot in found}

    zygotes: list[FakeZygote] = []
    assert len(serve(scenario, made=zygotes)) == 1
    assert len(zygotes[0].configs) == 1


def test_a_base_notes_what_its_first_restored_machine_touches(serve: Callable[..., Any]) -> None:
    steps = (LanguageStep(name="warm", argv=("sh", "warm.toy")),)
    install("warm", ".warm", steps, warmup=Warmup(files={"warm.toy": "echo warm"}, steps=steps))

    async def scenario(service: Service) -> Snapshot:
        return await made(service, "warm")

    zygotes: list[FakeZygote] = []
    folder = serve(scenario, made=zygotes).folder
    booted, restored = zygotes[0].configs
    assert booted.restore == ()
    assert [Path(layer.folder).parent for layer in restored.restore] == [folder.parent]
    assert (folder / WORKING_SET).read_bytes() == struct.pack("<QQ", 0, 1)
    assert {path.name for path in folder.iterdir()} == {*FILES, MANIFEST, snapshots.VERIFIED}


def test_what_stands_by_is_started_last_a_day_ago(serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, moved = tmp_path / "log", list[p.Moved]()
    steps = (LanguageStep(name="run", argv=("sh", "-c", f"echo warm >>{log}"), standby=("sh", "-c", f"echo standby >>{log}")),)
    install("standing", ".standing", steps, warmup=Warmup(files={"x.standing": ""}, steps=steps))

    def note(_: Conversation, identity: p.Moved) -> bytes:
        moved.append(identity)
        return p.encode_frame(identity, 0)

    monkeypatch.setattr(Conversation, "moved", note)

    async def scenario(service: Service) -> Snapshot:
        return await made(service, "standing")

    serve(scenario)
    assert log.read_text().split() == ["warm", "standby", "warm"]  # the last in the machine that goes on from the base
    (identity,) = moved
    assert 0 <= time.time_ns() - identity.time_ns - DAY_S * 10**9 < 600 * 10**9


def test_a_base_does_without_what_fails_to_stand_by(serve: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    steps = (LanguageStep(name="run", argv=("true",), standby=("sh", "-c", "exit 3")),)
    install("standing", ".standing", steps, warmup=Warmup(files={"x.standing": ""}, steps=steps))

    async def scenario(service: Service) -> Snapshot:
        return await made(service, "standing")

    assert serve(scenario).manifest
    assert "nothing stands by in the snapshot" in caplog.text


def test_a_diff_notes_what_its_first_restored_machine_touches(serve: Callable[..., Any]) -> None:
    """Nothing is mapped ahead in machines that are to be saved."""
    seen: list[str] = []

    def note(what: str) -> Prepare:
        async def prepare(guest: Guest) -> None:
            seen.append(what)

        return prepare

    async def scenario(service: Service) -> Snapshot:
        base, wanted = await made(service), toy(service)
        return await make(service.spawner, wanted, note("prepared"), name="diff", parent=base, use=(wanted, note("used")))

    zygotes: list[FakeZygote] = []
    folder = serve(scenario, made=zygotes).folder
    _, prepared, used = zygotes[0].configs
    assert seen == ["prepared", "used"]
    assert prepared.restore == (Layer(folder=str(folder.with_name("toy"))),)
    assert used.restore[:1] == prepared.restore
    assert [Path(layer.folder).parent for layer in used.restore] == [folder.parent] * 2
    assert not any(layer.working_set or layer.eager for layer in used.restore)
    assert (folder / WORKING_SET).read_bytes() == struct.pack("<QQ", 0, 2)


def test_a_machine_that_comes_to_a_bad_end_notes_nothing(serve: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async def crash(guest: Guest) -> None:
        raise FunctionCrashedError("it exited")

    async def scenario(service: Service) -> Snapshot:
        base, wanted = await made(service), toy(service)
        return await make(service.spawner, wanted, None, name="diff", parent=base, use=(wanted, crash))

    folder = serve(scenario).folder
    assert (folder / WORKING_SET).read_bytes() == struct.pack("<QQ", 0, 1)
    assert {path.name for path in folder.iterdir()} == {*FILES, MANIFEST, snapshots.VERIFIED}
    assert "the working set of" in caplog.text


def test_a_full_disk_leaves_nothing_and_the_run_goes_on_without(serve: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(service: Service) -> str:
        with pytest.raises(SnapshotError, match="No space"):
            await made(service)
        return str((await run(service))["status"])

    assert serve(scenario, fault="disk-full") == "ok"
    assert not list(snapshots.installed())


@pytest.mark.parametrize("nowhere", ["/sys/kernel", "file"])
def test_a_state_folder_that_cannot_be_written_is_a_typed_error(serve: Callable[..., Any], tmp_path: Path, nowhere: str) -> None:
    """In /sys not even root makes a file."""
    (tmp_path / "file").write_text("not a folder")
    paths.snapshots_dir().symlink_to(tmp_path / nowhere)

    async def scenario(service: Service) -> str:
        with pytest.raises(SnapshotError) as caught:
            await made(service)
        assert "permissions" in caught.value.hint
        return str((await run(service))["status"])

    assert serve(scenario) == "ok"


def change_manifest(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def alter(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change_manifest(mayfly="0.0.0"), "made by another Mayfly"),
        (change_manifest(initramfs_digest="sha256:00"), "another image"),
        (change_manifest(kernel_digest="sha256:00"), "another kernel"),
        (change_manifest(machine={"memory": 1, "cpus": 1, "channel": "virtio", "devices": [], "network": None}), "another machine"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "make the snapshot again"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff{}"), "make the snapshot again"),
        (alter(MEMORY), "altered"),
        (alter(STATE), "altered"),
        (alter(PAGES), ""),
        (lambda folder: (folder / PAGES).unlink(), "cannot be read"),
        (lambda folder: os.truncate(folder / MEMORY, 4096), ""),
    ],
)
def test_what_does_not_fit_is_refused_and_made_again(
    serve: Callable[..., Any], caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], says: str
) -> None:
    async def scenario(service: Service) -> tuple[str, str]:
        before = await made(service)
        damage(before.folder)
        assert find_base(toy(service)) is None
        await made(service)
        return before.manifest.mayfly, str((await run(service))["start"])

    assert serve(scenario)[1] == "restored"
    assert "a snapshot is not used" in caplog.text
    assert says in caplog.text or says == "make the snapshot again"


def test_a_base_is_looked_at_again_when_it_has_changed(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look(wanted: Wanted) -> Snapshot | None:
        looks.append(wanted)
        return find_base(wanted)

    async def scenario(service: Service) -> list[tuple[str, int]]:
        base = await made(service)
        monkeypatch.setattr(supply, "find_base", look)
        starts = [(str((await run(service))["start"]), len(looks)) for _ in range(2)]
        alter(STATE)(base.folder)
        return [*starts, (str((await run(service))["start"]), len(looks))]

    assert serve(scenario, lasting=False) == [("restored", 1), ("restored", 1), ("cold", 2)]


def test_a_new_kernel_is_noticed(serve: Callable[..., Any], tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        await made(service)
        assert find_base(toy(service)) is not None
        (tmp_path / "vmlinux").write_bytes(b"a newer kernel")
        assert find_base(toy(service)) is None

    serve(scenario)


def test_a_chain_is_listed_followed_and_kept_together(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        base = await made(service)
        change_manifest(created="2026-01-01T00:00:00Z")(base.folder)  # one of the same second would be the same
        wanted = toy(service)
        one = await make(service.spawner, wanted, None, name="one", parent=base)
        two = await make(service.spawner, wanted, None, name="two", parent=one)
        assert [folder.name for folder in two.chain] == ["toy", "one", "two"]
        found = service.start(Snippet(language="toy", source=b"true"), snapshot=two)
        await service.settled(found)
        assert found.to_json()["start"] == "restored"
        with pytest.raises(SnapshotError, match="parent of one"):
            snapshots.remove("toy")
        await service.supply.ensure_base(wanted, again=True)
        with pytest.raises(SnapshotError, match="made anew"):
            snapshots.find("two")
        assert sum(isinstance(item, SnapshotError) for item in snapshots.installed()) == 2

    serve(scenario)
    for name in ("two", "one", "toy"):
        snapshots.remove(name)
    with pytest.raises(SnapshotNotFoundError):
        snapshots.remove("toy")
    assert not [path for path in paths.snapshots_dir().iterdir() if not path.name.endswith(".lock")]


def test_a_base_and_a_diff_never_take_each_others_place(serve: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(service: Service) -> None:
        base = await made(service)
        with pytest.raises(ConfigError, match="language's own"):
            await make(service.spawner, toy(service), None, name="toy", parent=base, again=True)
        diff = await make(service.spawner, toy(service), None, name="toy.2cpus", parent=base)
        other = want_machine(service.images.find("toy"), msgspec.structs.replace(service.config, cpus=2))
        with pytest.raises(ConfigError, match="over toy"):
            await make(service.spawner, other, None, name=base_name(other), again=True)
        assert find_base(other) is None
        assert "over toy" in caplog.text
        assert snapshots.find("toy.2cpus") == diff

    serve(scenario)


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "x" * 65, "é"])
def test_a_name_is_no_path(serve: Callable[..., Any], name: str) -> None:
    with pytest.raises(ConfigError):
        snapshots.find(name)


def test_what_a_killed_creator_left_is_swept_but_not_what_a_live_one_needs(serve: Callable[..., Any]) -> None:
    paths.snapshots_dir().mkdir(parents=True)
    (paths.snapshots_dir() / ".toy.part").mkdir()
    (paths.snapshots_dir() / ".toy.part" / MEMORY).write_bytes(b"half")
    with snapshots.claimed("toy"):
        snapshots.sweep()
        assert (paths.snapshots_dir() / ".toy.part").exists()
    snapshots.sweep()
    assert not (paths.snapshots_dir() / ".toy.part").exists()


def test_no_lock_is_left_of_a_save_whose_server_was_killed(serve: Callable[..., Any]) -> None:
    paths.snapshots_dir().mkdir(parents=True)
    (paths.snapshots_dir() / f".passing-{'0' * 16}.part").mkdir()
    (paths.snapshots_dir() / f".passing-{'0' * 16}.lock").touch()
    with snapshots.passing() as living:
        snapshots.sweep()
        assert {path.name for path in paths.snapshots_dir().iterdir()} == {living.name, f"{living.stem}.lock"}


def test_what_another_makes_is_left_alone_though_its_name_begins_the_same(serve: Callable[..., Any]) -> None:
    with snapshots.claimed("toy.tap"), snapshots.replacing("toy.tap") as part, snapshots.claimed("toy"), snapshots.replacing("toy"):
        assert part.exists()


def test_the_pool_gives_warm_machines_and_is_filled_again(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> list[str]:
        await made(service)
        service.supply.expect(toy(service))
        kinds = []
        for _ in range(3):
            await until(lambda: len(service.supply.pool) == 2)
            kinds.append(str((await run(service))["start"]))
        return kinds

    assert serve(scenario, warm=2) == ["warm", "warm", "warm"]


def test_a_machine_that_died_in_the_pool_is_not_given_out(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> str:
        await made(service)
        service.supply.expect(toy(service))
        await until(lambda: len(service.supply.pool) == 1)
        (kind,) = service.supply.pool._kinds.values()
        service.spawner.signal(kind.idle[0].guest.process.number, signal.SIGKILL)
        await kind.idle[0].guest.process.reaped.wait()
        await until(lambda: not kind.idle[0].guest.process.alive)
        return str((await run(service))["status"])

    assert serve(scenario, warm=1) == "ok"


def test_idle_machines_make_room_for_another_language(serve: Callable[..., Any]) -> None:
    """Of four places three are taken by idle machines; two runs of another language get theirs, a
    fifth machine is refused.
    """

    async def scenario(service: Service) -> None:
        await made(service, "toy")
        await made(service, "py")
        service.supply.expect(toy(service))
        await until(lambda: len(service.supply.pool) == 3)
        source = b"import time; time.sleep(60)"
        runs = [service.start(Snippet(language="py", source=source)) for _ in range(4)]
        with pytest.raises(BusyError) as refused:
            service.start(Snippet(language="py", source=source))
        assert refused.value.retry_after_s >= 1
        await until(lambda: all(run.start for run in runs))
        assert len(service.supply.pool) == 0
        metrics = service.observer
        assert isinstance(metrics, Metrics)
        text = metrics.text().decode()
        assert "mayfly_evictions_total 3.0" in text
        assert "mayfly_refusals_total 1.0" in text
        assert 'mayfly_starts_total{kind="restored",language="py"} 4.0' in text
        for run in runs:
            await service.forget(run.id)
        await service.supply.close()
        assert service.admission.used == 0

    serve(scenario, warm=3, queue=0, run_wall_s=60)


def test_a_run_that_is_cancelled_at_once_leaves_no_idle_machine(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> None:
        await made(service)
        service.supply.expect(toy(service))
        await until(lambda: len(service.supply.pool) == 1)
        found = service.start(Snippet(language="toy", source=b"sleep 60"))
        await service.forget(found.id)
        await until(lambda: service.admission.used == 128 * MIB)  # the pool is filled again

    serve(scenario, warm=1)


def test_names_of_bases_tell_machines_apart(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> str:
        return base_name(toy(service))

    assert serve(scenario) == "toy"
    assert serve(scenario, cpus=3) == "toy.3cpus"


def test_claims_are_held_against_others_who_wait_for_them(serve: Callable[..., Any]) -> None:
    async def scenario(service: Service) -> Snapshot:
        with snapshots.claimed("toy"):
            with pytest.raises(BlockingIOError), snapshots.claimed("toy"):
                pass
            making = asyncio.create_task(made(service))
            await asyncio.sleep(0)
            abandoned = asyncio.create_task(made(service))
            await asyncio.sleep(0)
            abandoned.cancel()
            await asyncio.wait([abandoned])
            assert not making.done()
        return await making

    assert serve(scenario).manifest.name == "toy"


def test_kill_9_of_a_creator_leaves_nothing_that_is_listed(serve: Callable[..., Any], tmp_path: Path) -> None:
    """At random moments of its life; afterwards what is there is whole, and the next creation
    works.
    """

    def create() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(create_command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert create().wait() == 0
    whole = time.monotonic() - began
    chance = random.Random(1)
    for _ in range(scaled(200)):
        creator = create()
        with contextlib.suppress(subprocess.TimeoutExpired):
            creator.wait(chance.uniform(whole / 2, whole))
        creator.kill()
        creator.wait()
        for found in snapshots.installed():
            assert isinstance(found, Snapshot)
            assert snapshots.digests(found.folder) == dict(found.manifest.files)
    assert create().wait() == 0
    assert [path.name for path in paths.snapshots_dir().iterdir() if path.name != ".toy.lock"] == ["toy"]


@pytest.mark.parametrize("cold", [False, True])
def test_a_run_is_saved_and_goes_on(serve: Callable[..., Any], cold: bool) -> None:
    async def scenario(service: Service) -> None:
        if not cold:
            await made(service)
        going = service.start(Snippet(language="toy", source=b"echo begun; cat; sleep 2; echo still here"))
        while not any(going.record.output(1)):
            await asyncio.wait_for(going.record.changed(), 30)
        saved = await service.save(going.id, "middle")
        assert (saved.manifest.run, saved.manifest.parent) == (going.id, "" if cold else "toy")
        with pytest.raises(ConfigError, match="already"):
            await service.save(going.id, "middle")
        await service.settled(going)
        assert going.to_json()["steps"][-1]["stdout"] == "begun\nstill here\n"
        with pytest.raises(RunEndedError, match="no machine"):
            await service.save(going.id, "late")
        other = service.start(Snippet(language="toy", source=b"echo hi"), snapshot=saved)
        await service.settled(other)
        assert "middle of the run" in other.to_json()["error"]["message"]
        assert not (paths.snapshots_dir() / "late").exists()

    serve(scenario, cold=cold)
