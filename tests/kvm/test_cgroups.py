"""A control group for each machine, where this process's own one is delegated."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import HostError
from mayfly.guests.cgroups import OVERHEAD, PROCESSES, Groups, group_of, is_delegated, limits
from mayfly.guests.spawner import Spawner
from mayfly.guests.zygote import Zygote
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.config import Channel, Layer, MachineConfig
from tests.kit import tiny
from tests.kit.api_fakes import ROOT
from tests.kit.groups import delegated, inside
from tests.kvm.test_spares import waiting

DEADLINE_S = 30.0
SPIN = "1: jmp 1b\n"


def test_only_a_group_that_is_marked_is_taken() -> None:
    own = group_of()
    assert own is None or not is_delegated(own)
    assert Groups.take() is None


def test_a_group_is_found_wherever_version_2_is_mounted(tmp_path: Path) -> None:
    for process in ("1", "self"):
        (tmp_path / process).mkdir()
    (tmp_path / "1/cgroup").write_text("4:memory:/elsewhere\n0::/system.slice/mayfly.service\n")
    mounts = "25 1 0:22 / /proc rw - proc proc rw\n30 1 0:26 /system.slice /some/where rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
    (tmp_path / "self/mountinfo").write_text(mounts)
    assert group_of(1, tmp_path) == Path("/some/where/mayfly.service")
    (tmp_path / "1/cgroup").write_text("0::/user.slice\n")
    assert group_of(1, tmp_path) is None  # it lies above what is mounted
    (tmp_path / "1/cgroup").write_text("4:memory:/elsewhere\n")
    assert group_of(1, tmp_path) is None


def test_the_event_loops_thread_counts() -> None:
    found = limits(MachineConfig(kernel="/k", memory=64 * MIB, cpus=3))
    assert found["cpu"] == {"cpu.max": "400000 100000"}
    assert found["memory"]["memory.max"] == str(68 * MIB + OVERHEAD)
    assert found["pids"] == {"pids.max": str(3 + PROCESSES)}


def in_a_group(group: Path, *arguments: str) -> dict[str, Any]:
    """What this file's `main` says in the delegated group."""
    command = inside(group, sys.executable, "-P", "-m", "tests.kvm.test_cgroups", *arguments)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.kvm
def test_a_machine_has_a_group_until_it_ends(tmp_path: Path) -> None:
    with delegated() as group:
        found = in_a_group(group, str(tiny.build(tmp_path, SPIN)))
        assert found["server"] == found["zygote"] == str(group / "server")
        assert [Path(name).parent for name in found["machines"]] == [group, group]
        assert len(set(found["machines"])) == 2
        wanted = limits(MachineConfig(kernel="/k", memory=16 * MIB))
        assert found["limits"] == {name: value for kind in found["controllers"] for name, value in wanted[kind].items()}
        assert found["spare"] == str(group / "server")
        assert Path(found["taken"]).parent == group
        assert found["taken"] not in (found["spare"], *found["machines"])
        assert found["left"] == ["server"]
        assert found["refused"] == "see cgroup.max.descendants of the groups above: too many are there"
        if not found["controllers"]:
            pytest.skip("no controller can be delegated here: the machines' limits were not seen")


async def machines(kernel: str) -> dict[str, Any]:
    """Two machines in a server that is in a delegated group."""
    groups = Groups.take()
    assert groups is not None
    server = group_of()
    assert server is not None
    spawner = Spawner(Zygote.start, groups)
    config = MachineConfig(kernel=kernel, memory=16 * MIB, channel=Channel.SERIAL)
    started = [await spawner.spawn(replace(config, cmdline=str(number))) for number in range(2)]  # no spare is made of two unlike ones
    for machine in started:
        await machine.comes_up()
    assert spawner._zygote is not None
    zygote = spawner._zygote.pid
    processes = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    found: dict[str, Any] = {
        "server": str(server),
        "zygote": str(group_of(zygote)),
        "machines": [str(group_of(pid)) for pid in processes],
        "controllers": groups.controllers,
        "limits": {
            name: (Path(str(group_of(processes[0]))) / name).read_text().strip()
            for kind in groups.controllers
            for name in limits(config)[kind]
        },
    }
    for machine in started:
        await machine.stop()
    found |= await spare(spawner, config, Path(kernel).with_name("base"))
    (server.parent / "cgroup.max.descendants").write_text("1")
    try:
        await spawner.spawn(config)
    except HostError as error:
        found["refused"] = error.hint
    await spawner.close()
    found["left"] = sorted(path.name for path in server.parent.iterdir() if path.is_dir())
    return found


async def spare(spawner: Spawner, config: MachineConfig, folder: Path) -> dict[str, str]:
    """The groups of a spare before and after a start has taken it."""
    folder.mkdir()
    saved = await spawner.spawn(config)
    await saved.comes_up()
    await saved.snapshot(folder, timeout_s=DEADLINE_S)
    restored = replace(config, restore=(Layer(folder=str(folder)),))
    first = await spawner.spawn(restored)
    await first.comes_up()
    await first.stop()
    assert spawner._zygote is not None
    pid = waiting(spawner._zygote)
    before = group_of(pid)
    taken = await spawner.spawn(restored)
    await taken.comes_up()
    after = group_of(pid)
    await taken.stop()
    return {"spare": str(before), "taken": str(after)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(machines(sys.argv[1]))))
