"""Functions of real guests: loaded, saved, restored and ended alone; evicted for each other; asked
through a server and all its gateways, in Python, Rust and Go. The whole counts have more of them;
test_serve_functions.py asks the same of guests that are ordinary processes.
"""

import asyncio
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.cli.asking import ask as ask_server
from mayfly.client import AsyncClient, Client
from mayfly.errors import FunctionCrashedError, FunctionFailedError, FunctionTimeoutError
from mayfly.functions import store
from mayfly.functions.answer import Answer
from mayfly.functions.making import forget_snapshots
from mayfly.functions.service import Functions
from mayfly.functions.spec import FunctionSpec, load_specs
from mayfly.guests.zygote import Zygote
from mayfly.host.config import Config
from mayfly.images import manifest
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from mayfly.runs.service import Service
from mayfly.snapshots import store as snapshots
from mayfly.units import MIB
from mayfly.vmm.snapshot import STATE
from tests.kit import toy
from tests.kit.api_fakes import ROOT
from tests.kit.function_fakes import invocation
from tests.kit.functions_traffic import Host, from_file, over_frames, over_http, while_it_stops
from tests.kit.machines import machines_of
from tests.kit.scale import FULL, patience, time_factor
from tests.system.test_service import children, direct_children, wait_gone

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

TOYS = ("one", "two", "three")


@pytest.fixture(scope="module")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with this host's kernel and the toy language, which loads functions."""
    kernel = paths.data_dir() / "kernel"
    folder = tmp_path_factory.mktemp("data")
    shim = tmp_path_factory.mktemp("shim") / "shim"
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-o", shim, Path(__file__).with_name("shim.c")], check=True)
    steps = (manifest.LanguageStep(name="build", argv=("sh", "-n", "handler.toy")), manifest.LanguageStep(name="function", argv=("shim",)))
    loading = manifest.Function(files={}, steps=steps, source_file="handler.toy", entry="handle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder))
        paths.data_dir().mkdir()
        (paths.data_dir() / "kernel").symlink_to(kernel)
        toy.build(programs={"shim": shim.read_bytes()}, function=loading)
    return folder


@pytest.fixture
def toys(toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy language is what there is."""
    monkeypatch.setenv("XDG_DATA_HOME", str(toy_data))


@pytest.mark.aarch64
@pytest.mark.skipif(not FULL, reason="is of the whole counts; the next test has most of it")
def test_functions_are_loaded_once_and_go_on_in_copies_in_the_room_of_two(toys: None, tmp_path: Path, no_leaks: None) -> None:
    """Three functions: copies of one are different machines, and each time the guest used longest
    ago makes room. What ends by itself or hangs ends alone.
    """
    config = Config(kernel=paths.kernel_path(toy.MACHINE), memory_budget=200 * MIB, time_factor=time_factor())
    code = tmp_path / "code.toy"
    code.write_text("true\n")

    def spec(name: str, **fields: float) -> FunctionSpec:
        return FunctionSpec(name=name, language="toy", code=str(code), queue_s=120, **fields)  # type: ignore[arg-type]

    async def scenario(functions: Functions) -> None:
        for name in TOYS:
            await functions.create(spec(name))
        code.write_text("if\n")
        with pytest.raises(FunctionFailedError) as caught:
            await functions.create(spec("bad"))
        assert "syntax error" in caught.value.output
        assert len(snapshots.children("toy")) == 3

        async def ask(name: str, payload: bytes = b"x") -> Answer:
            return await functions.invoke(invocation(name, payload, "text/plain"))

        first = await ask("one", b"who")
        assert (first.start, first.payload.split()[1]) == ("restored", b"1")  # it was resumed once
        large = bytes(range(256)) * (p.MAX_BODY // 256)
        answer = await ask("one", large)
        assert (answer.start, answer.payload == large, answer.log) == ("warm", True, b"2\n")
        starts = [(await ask(name)).start for name in ("two", "one", "three", "one", "two")]
        assert starts == ["restored", "warm", "restored", "warm", "restored"]
        assert [(await functions.figures(name)).evicted for name in TOYS] == [0, 1, 1]
        with pytest.raises(FunctionCrashedError, match="exited with 3"):
            await ask("one", b"exit")
        other = await ask("one", b"who")
        assert (other.start, other.log) == ("restored", b"1\n")
        assert {*first.payload.split()[::2]}.isdisjoint(other.payload.split()[::2])  # random bytes and host name
        code.write_text("true # and quick\n")
        await functions.create(spec("two", timeout_s=1))
        with pytest.raises(FunctionTimeoutError):
            await ask("two", b"hang")
        several = await asyncio.gather(*(ask(name, f"{name} {number}".encode()) for number in range(5) for name in TOYS))
        assert [answer.payload.decode() for answer in several] == [f"{name} {number}" for number in range(5) for name in TOYS]
        assert {answer.content_type for answer in several} == {"text/plain"}

    async def whole() -> None:
        async with Service(config, Zygote.start) as service:
            functions = Functions(
                config, service.spawner, service.admission, service.supply, service.images, service.networks, service.observer
            )
            async with functions:
                await asyncio.wait_for(scenario(functions), patience(150))
            assert service.admission.used == 0

    asyncio.run(whole())


PYTHON = """
import os
import random
import time


def handle(event):
    if isinstance(event, bytes):
        deed, _, word = event.decode().partition(" ")
        if deed == "!exit":
            os._exit(int(word))
        elif deed == "!hang":
            time.sleep(1000)
        elif deed == "!raise":
            raise ValueError(word)
        elif deed == "!sleep":
            time.sleep(float(word))
        elif deed == "!who":
            return f"{os.urandom(8).hex()} {random.random()} {os.uname().nodename}"
    else:
        print(__import__("json").dumps(event))
    return event
"""
RUST = """
use std::time::Duration;

pub fn handle(event: &[u8]) -> Result<Vec<u8>, String> {
    let text = String::from_utf8_lossy(event);
    let (deed, word) = text.split_once(' ').unwrap_or((&text, ""));
    match deed {
        "!exit" => std::process::exit(word.parse().unwrap()),
        "!hang" => loop {},
        "!raise" => return Err(word.to_string()),
        "!sleep" => std::thread::sleep(Duration::from_secs_f64(word.parse().unwrap())),
        _ => println!("{text}"),
    }
    Ok(event.to_vec())
}
"""
SPEC = """
- {name: in-python, language: python, code: in-python.py, timeout_s: 2, queue: 200, queue_s: 60}
- {name: in-rust, language: rust, code: in-rust.rs, timeout_s: 2, queue: 200, queue_s: 60}
- {name: beside, language: python, code: in-python.py, timeout_s: 2, queue: 200, queue_s: 60}
"""
NAMES = ("in-python", "in-rust", "beside")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A user with this machine's kernel, images and bases, and functions of their own."""
    (tmp_path / "data" / "mayfly").mkdir(parents=True)
    for name in ("images", "kernel", "snapshots"):
        there = paths.data_dir() / name
        there.mkdir(exist_ok=True)
        (tmp_path / "data" / "mayfly" / name).symlink_to(there.resolve())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        found = Host(tmp_path, Path(name) / "x" / "api.sock", [sys.executable, "-m", "mayfly.cli.main"], [])
        try:
            yield found
        finally:
            found.close()
            for function in store.installed():
                forget_snapshots(function.name)


def need(*languages: str) -> None:
    """Skip the test on an emulated Arm host, which has not all images."""
    for language in languages:
        if not (paths.data_dir() / "images" / language / platform.machine()).is_dir() and platform.machine() == "aarch64":
            pytest.skip(f"there is no image of {language}")


def room_of_two() -> int:
    """Bytes for a guest of Rust and one of Python, but not for one more of Python."""
    images = Images()
    of_rust, of_python = (images.find(language).manifest.memory for language in ("rust", "python"))
    return of_rust + of_python + of_python // 2


def who(host: Host) -> set[str]:
    """What the guest that answers has as its own: random numbers of the kernel and of Python, and
    a name.
    """
    with Client(host.socket) as client:
        found = client.invoke("beside", b"!who")
    host.sent["ok"] += 1
    return set(found.payload.decode().split())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_500_requests_of_python_and_rust(host: Host) -> None:
    """Three functions in the room of two, a crash and a time-out amid others' requests."""
    need("python", "rust")
    (host.folder / "in-python.py").write_text(PYTHON)
    (host.folder / "in-rust.rs").write_text(RUST)
    (host.folder / "functions.yaml").write_text(SPEC)
    host.function("create", host.folder / "functions.yaml")
    host.serve("--memory-budget", str(room_of_two()))
    asyncio.run(asyncio.wait_for(over_http(host, NAMES, crashing=["in-rust"], hanging=["in-python"]), patience(120)))
    before = who(host)
    over_frames(host, NAMES)
    assert len(before | who(host)) == 6  # the former was evicted meanwhile
    from_file(host, NAMES)
    for name in NAMES:
        lines = ask_server(host.socket, "GET", f"/functions/{name}/logs?last=1000")["lines"]
        printed = {line["request_id"]: json.loads(line["text"]) for line in lines}
        known = {key: payload for key, payload in host.answered.items() if payload["of"] == name}
        assert {key: printed[key] for key in known} == known
    assert host.server is not None
    guests = children(host.server.pid)
    asyncio.run(asyncio.wait_for(while_it_stops(host, "in-python"), patience(60)))
    assert wait_gone(guests)
    host.check_records()
    assert host.sent["ok"] >= 500
    assert json.loads(host.statistics.read_text())["number of evictions"] >= 4


LASTING = """
import hashlib
import time

requests = 0


def handle(event):
    global requests
    requests += 1
    digest = b""
    for number in range(event["lines"]):
        until = time.monotonic() + event["each_s"]
        digest = hashlib.sha256(digest).digest()
        print(number, digest.hex(), flush=True)
        while time.monotonic() < until:
            pass
    return {"requests": requests, "digest": digest.hex()}
"""


@pytest.mark.slow
def test_a_request_of_python_outlasts_its_machine(host: Host) -> None:
    """It is killed after a save, and lines that it printed since then."""
    need("python")
    (host.folder / "lasting.py").write_text(LASTING)
    spec = {"name": "lasting", "language": "python", "code": "lasting.py", "checkpoint_every_s": 1}
    (host.folder / "functions.yaml").write_text(json.dumps(spec))
    host.function("create", host.folder / "functions.yaml")
    host.serve()
    assert host.server is not None
    [zygote] = direct_children(host.server.pid)
    unit_s = time_factor()  # between two saves
    lines = ["0 " + (digest := hashlib.sha256()).hexdigest()]
    for number in range(1, 120):
        digest = hashlib.sha256(digest.digest())
        lines.append(f"{number} {digest.hexdigest()}")

    async def until_saved() -> None:
        while not any(state.stat().st_size for state in paths.snapshots_dir().glob(f".passing-*/{STATE}")):
            await asyncio.sleep(0.1)

    async def scenario() -> None:
        async with AsyncClient(host.socket) as client:
            answering = asyncio.create_task(client.invoke("lasting", {"lines": len(lines), "each_s": unit_s / 40}))
            await until_saved()
            await asyncio.sleep(unit_s / 10)
            [lost] = machines_of(zygote)
            os.kill(lost, signal.SIGKILL)
            first = await answering
            assert first.json() == {"requests": 1, "digest": digest.hexdigest()}
            [guest] = machines_of(zygote)
            second = await client.invoke("lasting", {"lines": 1, "each_s": 0})
            assert (second.start, second.json()["requests"], machines_of(zygote)) == ("warm", 2, [guest])
            assert guest != lost
            logged = ask_server(host.socket, "GET", "/functions/lasting/logs?last=1000")["lines"]
            assert [line["text"] for line in logged if line["request_id"] == first.request_id] == lines
            assert [line["text"] for line in logged if line["request_id"] == second.request_id] == lines[:1]

    asyncio.run(asyncio.wait_for(scenario(), patience(10)))
    assert not list(paths.snapshots_dir().glob("*passing*"))
    host.sent["ok"] += 2
    host.close()
    host.check_records()


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="has images that only the whole counts have")
def test_the_examples_of_all_languages(host: Host) -> None:
    need("python", "rust", "go", "javascript", "java")
    file = ROOT / "examples" / "functions" / "functions.yaml"
    host.function("create", file)
    host.serve()
    for spec in load_specs(file):
        for number in (42, 7):
            answer = json.loads(host.function("invoke", spec.name, "--data", json.dumps({"request": number})))
            assert answer["request"] == number
            assert len(answer) > 1
    found = ask_server(host.socket, "GET", "/functions")["functions"]
    assert {function["figures"]["ok"] for function in found} == {2}
    assert {tuple(function["figures"]["starts"].items()) for function in found} == {(("restored", 1), ("warm", 1))}

    assert host.server is not None
    guests = children(host.server.pid)
    assert guests
    host.server.send_signal(signal.SIGKILL)
    host.server.wait()
    assert wait_gone(guests)
