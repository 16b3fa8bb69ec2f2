"""What `pip install` of a wheel brings."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mayfly.vmm.loader.elf import HEADER, Machine

ROOT = Path(__file__).parents[2]
AGENTS = {f"mayfly-agent.{arch}": machine for arch, machine in (("x86_64", Machine.X86_64), ("aarch64", Machine.AARCH64))}


@pytest.mark.slow
def test_a_wheel_carries_the_agents_of_both_architectures(tmp_path: Path) -> None:
    for name in AGENTS:
        assert (ROOT / "imagegen/agents" / name).exists(), "make agents"
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("mayfly_vm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        found = {name: HEADER.unpack_from(archive.read(f"mayfly/imagegen/agents/{name}"))[2] for name in AGENTS}
    assert found == AGENTS
    assert any(name.startswith("mayfly/vmm/kvm/_kvm.") and name.endswith(".so") for name in names)
    assert "mayfly/vmm/arch/aarch64/boot.py" in names
