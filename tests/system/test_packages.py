"""Images of Rust and Go with packages that a machine compiled, and snippets that use these in
machines restored from the languages' bases.

`scripts/debian/package_images.py` makes the images beforehand, outside of the emulated host.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from tests.kit import toy
from tests.kit.packaged import CARGO, DERIVED, DERIVES, GO_MISSING, GO_MOD, GO_OWN, IMPORTS, PLAIN, POINT, SAID
from tests.kit.scale import FULL
from tests.system.test_service import Server
from tests.system.test_snapshots import mayfly

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not FULL, reason="its images are made for the whole counts"),
    pytest.mark.skipif(toy.MACHINE != "x86_64", reason="its images are of x86-64"),
]


@contextlib.contextmanager
def serving(language: str, data: Path) -> Iterator[Server]:
    """A server that has this language's image alone, and its base."""
    kernel = (paths.data_dir() / "kernel").resolve()
    folder = ROOT / "build" / f"{language}-packages"
    assert folder.is_dir(), f"make it first: python -m scripts.debian.package_images {language} {folder}"
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        patch.setenv("XDG_DATA_HOME", str(data))
        paths.image_dir(language, toy.MACHINE).parent.mkdir(parents=True)
        paths.image_dir(language, toy.MACHINE).symlink_to(folder)
        (paths.data_dir() / "kernel").symlink_to(kernel)
        mayfly("snapshot", "create", language)
        server = Server(Path(name), "--build-wall-s", "600", cold=False)
        yield server
        server.close()


@pytest.fixture(scope="module")
def rust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("rust", tmp_path_factory.mktemp("rust")) as server:
        yield server


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("go", tmp_path_factory.mktemp("go")) as server:
        yield server


def run(server: Server, language: str, files: Mapping[str, str]) -> list[dict[str, Any]]:
    """The steps of a snippet of these files."""
    body = json.dumps({"language": language, "files": files})
    status, result = server.request("POST", "/run", body.encode(), "application/json")
    assert (status, result.get("start")) == (200, "restored"), result
    print(language, sorted(files), [(step["step"], step["code"], step["cpu_ms"], step["wall_ms"]) for step in result["steps"]])
    steps: list[dict[str, Any]] = result["steps"]
    return steps


@pytest.mark.parametrize("source", [PLAIN, DERIVED, PLAIN, DERIVED])
def test_deriving_finds_its_macros(rust: Server, source: str) -> None:
    """What it costs beside the same snippet without is printed: it is to take at most half as much
    again.
    """
    steps = run(rust, "rust", {"main.rs": source})
    assert (steps[-1]["step"], steps[-1]["stdout"]) == ("run", POINT), steps


@pytest.mark.parametrize(
    "files",
    [{"main.rs": DERIVES}, {"Cargo.toml": f'{CARGO}serde_json = "1"\nrand = "0.8"\n', "src/main.rs": DERIVES}],
    ids=["a snippet", "a project"],
)
def test_rust_has_its_crates(rust: Server, files: Mapping[str, str]) -> None:
    steps = run(rust, "rust", files)
    assert (steps[-1]["step"], steps[-1]["stdout"]) == ("run", SAID), steps


def test_a_crate_that_is_not_there_is_a_failed_build(rust: Server) -> None:
    (step,) = run(rust, "rust", {"Cargo.toml": f'{CARGO}tokio = "1"\n', "src/main.rs": DERIVES})
    assert (step["step"], step["code"]) == ("build", 1)
    assert step["stderr"] == "Cargo.toml: the image has no tokio; add it: imagegen build rust --package 'tokio@1'\n"


@pytest.mark.parametrize("mod", ["", GO_OWN, GO_MOD], ids=["a snippet", "a module", "a module with its requirements"])
def test_go_has_its_modules(go: Server, mod: str) -> None:
    steps = run(go, "go", {"main.go": IMPORTS, **({"go.mod": mod} if mod else {})})
    assert (steps[-1]["step"], steps[-1]["stdout"]) == ("run", "[a b] 36\n"), steps


def test_a_module_that_is_not_there_is_a_failed_build(go: Server) -> None:
    (step,) = run(go, "go", {"main.go": IMPORTS.replace("x/exp/maps", "x/text/cases")})
    assert (step["step"], step["code"]) == ("build", 1)
    assert GO_MISSING in step["stderr"]
