"""The memory for machines is what the host has available, within every control group's limit."""

from pathlib import Path

import pytest

from mayfly.errors import HostError
from mayfly.host.memory import available_memory
from mayfly.units import MIB

UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal:  8388608 kB\nMemAvailable:  4194304 kB\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def group_v2(root: Path, path: str, limit: str, used: int, inactive: int = 0) -> None:
    folder = f"sys/fs/cgroup/{path}"
    write(root, f"{folder}/memory.max", f"{limit}\n")
    write(root, f"{folder}/memory.current", f"{used}\n")
    write(root, f"{folder}/memory.stat", f"anon 1\ninactive_file {inactive}\n")


def group_v1(root: Path, path: str, limit: str, used: int, inactive: int = 0) -> None:
    folder = f"sys/fs/cgroup/memory/{path}"
    write(root, f"{folder}/memory.limit_in_bytes", f"{limit}\n")
    write(root, f"{folder}/memory.usage_in_bytes", f"{used}\n")
    write(root, f"{folder}/memory.stat", f"cache 1\ntotal_inactive_file {inactive}\n")


def test_without_control_groups_it_is_the_hosts(root: Path) -> None:
    assert available_memory(root) == 4096 * MIB


def test_a_container_with_version_2(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    group_v2(root, "", str(1024 * MIB), used=300 * MIB, inactive=100 * MIB)
    assert available_memory(root) == 824 * MIB


@pytest.mark.parametrize(("inner", "outer", "expected"), [("max", 512, 412), (str(256 * MIB), 512, 156), (str(900 * MIB), 512, 412)])
def test_each_group_above_counts(root: Path, inner: str, outer: int, expected: int) -> None:
    write(root, "proc/self/cgroup", "0::/system.slice/mayfly.service\n")
    group_v2(root, "system.slice", str(outer * MIB), used=100 * MIB)
    group_v2(root, "system.slice/mayfly.service", inner, used=100 * MIB)
    assert available_memory(root) == expected * MIB


def test_a_container_with_version_1_is_told_the_hosts_path(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/docker/0123\n1:cpu:/docker/0123\n0::/\n")
    group_v1(root, "", str(1024 * MIB), used=200 * MIB, inactive=50 * MIB)
    assert available_memory(root) == 874 * MIB


def test_version_1_without_a_limit(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/\n")
    group_v1(root, "", UNLIMITED_V1, used=200 * MIB)
    assert available_memory(root) == 4096 * MIB


def test_a_group_over_its_limit_has_no_room(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    group_v2(root, "", str(100 * MIB), used=101 * MIB)
    assert available_memory(root) == 0


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::/../../other\n"])
def test_groups_that_cannot_be_read_do_not_count(root: Path, text: str) -> None:
    write(root, "proc/self/cgroup", text)
    write(root, "sys/fs/cgroup/memory.max", "nonsense")
    assert available_memory(root) == 4096 * MIB


def test_a_host_that_does_not_say(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:  8388608 kB\n")
    with pytest.raises(HostError) as caught:
        available_memory(tmp_path)
    assert caught.value.hint == "set memory_budget"
