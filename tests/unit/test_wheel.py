"""What `pip install` brings, of a wheel and an sdist: `mayfly` alone, beside others' packages."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import mayfly
from mayfly.vmm.loader.elf import HEADER

ROOT = Path(__file__).parents[2]
AGENTS = {f"mayfly-agent.{arch}": machine for arch, machine in (("x86_64", 62), ("aarch64", 183))}
STATIC = ROOT / "api/playground/static"
SDIST = "import setuptools.build_meta, sys; setuptools.build_meta.build_sdist(sys.argv[1])"
NAMES = ("api", "vmm", "imagegen", "kernel")
"""Packages that a user's project may have too."""


def call(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """Run the command in `folder`, without the checkout on Python's path; what it printed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**kept, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wheel(source: Path, folder: Path) -> Path:
    """The wheel that pip makes of a tree or an sdist; it fetches nothing."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    call([*pip, "--wheel-dir", folder, source], folder)
    (made,) = folder.glob("mayfly_vm-*.whl")
    return made


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wheel of the checkout, and one of its sdist."""
    for name in AGENTS:
        assert (ROOT / "imagegen/agents" / name).exists(), "make agents"
    folder = tmp_path_factory.mktemp("wheels")
    for stale in (ROOT / "build").glob("lib*"):  # setuptools would put modules that are gone from it into the wheel
        shutil.rmtree(stale)
    for name in ("sdist", "direct", "through"):
        (folder / name).mkdir()
    call([sys.executable, "-c", SDIST, folder / "sdist"], ROOT)
    (sdist,) = (folder / "sdist").iterdir()
    return [wheel(ROOT, folder / "direct"), wheel(sdist, folder / "through")]


def names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


@pytest.mark.slow
def test_a_wheel_has_the_package_once_and_an_sdist_makes_the_same_one(wheels: list[Path]) -> None:
    direct, through = map(names, wheels)
    assert sorted(through) == sorted(direct)
    assert {name.split("/")[0] for name in direct} == {"mayfly", f"mayfly_vm-{mayfly.__version__}.dist-info"}
    assert len(direct) == len(set(direct))
    compiled = [name for name in direct if name.endswith(".so")]
    assert [re.sub(r"\..*", "", name) for name in compiled] == ["mayfly/vmm/kvm/_kvm"]
    files = ("vmm", "imagegen", "api", "kernel")
    tracked = subprocess.run(["git", "ls-files", "mayfly", *files], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    modules = {
        re.sub(rf"^(?={'|'.join(files)})", "mayfly/", name)
        for name in tracked
        if name.endswith((".py", ".yaml", ".config", ".h", ".go", ".rs"))
    }
    assert modules <= set(direct)


@pytest.mark.slow
def test_a_wheel_carries_the_agents_of_both_architectures(wheels: list[Path]) -> None:
    with zipfile.ZipFile(wheels[0]) as archive:
        found = {name: HEADER.unpack_from(archive.read(f"mayfly/imagegen/agents/{name}"))[2] for name in AGENTS}
    assert found == AGENTS


@pytest.mark.slow
@pytest.mark.skipif(not (STATIC / "page.js").exists(), reason="the playground's page is not built: make web")
def test_a_wheel_has_the_page_if_it_is_built(wheels: list[Path]) -> None:
    for made in wheels:
        with zipfile.ZipFile(made) as archive:
            for path in STATIC.iterdir():
                assert archive.read(f"mayfly/api/playground/static/{path.name}") == path.read_bytes()


@pytest.mark.slow
def test_it_runs_beside_packages_of_the_same_names(wheels: list[Path], tmp_path: Path) -> None:
    """A backend has an `api` of its own; both work, in whatever folder the commands start."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--disable-pip-version-check"]
    call([*pip, "--no-deps", "--no-compile", wheels[1]], tmp_path)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    libraries = Path(pytest.__file__).parents[1]
    linked = [path for path in libraries.iterdir() if "mayfly" not in path.name and not (packages / path.name).exists()]
    for path in linked:  # as if installed there; the checkout itself is not among them
        if path.suffix != ".pth" and not path.name.startswith("__editable__"):
            (packages / path.name).symlink_to(path)
    for name in NAMES:
        for folder in (packages, tmp_path):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(f"WHOSE = 'the user, in {folder.name}'\n")
    theirs = "; ".join(f"import {name}; assert {name}.WHOSE.startswith('the user'), {name}" for name in NAMES)
    where = "import mayfly.vmm.kvm.kvm, mayfly.api.app; print(mayfly.__file__)"
    assert Path(call([python, "-c", f"{theirs}; {where}"], tmp_path).strip()).parents[1] == packages
    for program in ("mayfly", "imagegen"):
        assert mayfly.__version__ in call([tmp_path / "venv/bin" / program, "--version"], tmp_path)
    zygote = "from mayfly.guests.zygote import Zygote; Zygote.start().close(); print('ended')"
    assert call([python, "-P", "-c", zygote], tmp_path) == "ended\n"


def test_the_agent_has_the_same_version() -> None:
    for name in ("Cargo.toml", "Cargo.lock"):
        document = tomllib.loads((ROOT / "agent" / name).read_text())
        package = document["package"][0] if name == "Cargo.lock" else document["package"]
        assert package["version"] == mayfly.__version__, name
    assert f'"{mayfly.__version__}"' in "".join(path.read_text() for path in (ROOT / "agent/src").glob("*.rs"))
