"""The server with real machines of the toy language: curl and socat as a user would, kill -9 of
each process, boots that fail.
"""

import functools
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.guests.cgroups import group_of
from mayfly.host.keys import create, default_path
from mayfly.units import MIB
from tests.kit import toy
from tests.kit.groups import delegated, inside

pytestmark = [pytest.mark.system, pytest.mark.timeout(600), pytest.mark.usefixtures("toy_language")]

DEADLINE_S = 300.0
GONE_S = 5.0
CONTRACTS = ("piston", "judge0", "polycode", "sandboxfusion", "codapi")
ENDLESS = "echo started; while :; do :; done"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mayfly.cli.main", *map(str, arguments)]


def direct_children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it is gone


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    return [descendant for child in direct_children(pid) for descendant in (child, *children(child))]


def wait_gone(pids: list[int]) -> bool:
    """Whether all of these processes, none of them our children, end within GONE_S each."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue  # gone: ESRCH, or EINVAL while the kernel takes it away
        try:
            if not select.select([fd], [], [], GONE_S)[0]:
                return False
        finally:
            os.close(fd)
    return True


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(self._path))


class Server:
    """A `mayfly serve`; `cold`, so that it has no machine but those of its runs."""

    def __init__(self, folder: Path, *options: str, cold: bool = True, group: Path | None = None) -> None:
        self.socket = folder / "api.sock"
        flags = [*options, "--cold"] if cold else options
        serve = command("serve", "--socket", self.socket, *flags)
        self.process = subprocess.Popen(inside(group, *serve) if group else serve, stderr=subprocess.PIPE, cwd=folder)
        assert self.process.stderr is not None
        said = b""
        while b"listening" not in (line := self.process.stderr.readline()):
            said += line
            assert line, f"the server did not come up: {said.decode()}"
        self.urls = re.findall(r"https?://[0-9.:]+", line.decode())

    def request(self, method: str, address: str, body: bytes = b"", media_type: str = "text/plain") -> tuple[int, Any]:
        connection = UnixConnection(self.socket)
        try:
            connection.request(method, address, body, {"Content-Type": media_type})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def start(self, source: str, output: str = "raw") -> tuple[str, Path]:
        status, answer = self.request("POST", f"/start?language=toy&output={output}", source.encode())
        assert status == 201, answer
        return answer["id"], Path(answer["output_socket"])

    def started(self) -> socket.socket:
        """A run that has printed and goes on for ever: its output socket."""
        _, output = self.start(ENDLESS)
        reader = connect(output)
        assert reader.recv(8, socket.MSG_WAITALL) == b"started\n"
        return reader

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()


def connect(path: Path) -> socket.socket:
    reader = socket.socket(socket.AF_UNIX)
    reader.settimeout(DEADLINE_S)
    reader.connect(str(path))
    return reader


def read_all(reader: socket.socket) -> bytes:
    return b"".join(iter(lambda: reader.recv(65536), b""))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for sockets, whose path is short enough for one."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all tests that do not harm it: starting one takes longer than a run."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        compat = [word for contract in CONTRACTS for word in ("--compat", contract)]
        server = Server(Path(name), "--listen", "127.0.0.1:0", *compat)
        yield server
        server.close()


def fail(server: Server, language: str) -> str:
    """Run something in a language whose image is broken; the error's text, hint and console."""
    status, result = server.request("POST", f"/run?language={language}", b"true")
    assert (status, result["status"], result["exit_status"]) == (200, "error", 125), result
    return " ".join(str(value) for value in result["error"].values())


@pytest.mark.aarch64
@pytest.mark.parametrize("channel", ["serial", "virtio"])
def test_curl_posts_and_socat_reads(folder: Path, channel: str) -> None:
    server = Server(folder, "--channel", channel)
    snippet = folder / "snippet.toy"
    snippet.write_text("echo one; echo two >&2; echo three")
    curl = ["curl", "-sS", "--unix-socket", str(server.socket), "--data-binary", f"@{snippet}", "http://localhost/start?language=toy"]
    answer = json.loads(subprocess.run(curl, capture_output=True, check=True).stdout)
    # As on a terminal: when its standard input ends, socat waits for half a second only.
    with subprocess.Popen(
        ["socat", "-", f"UNIX-CONNECT:{answer['output_socket']}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as socat:
        assert socat.stdout is not None
        output = socat.stdout.read()
    assert sorted(output.split()) == [b"one", b"three", b"two"]
    assert output.index(b"one") < output.index(b"three")
    assert (server.socket.stat().st_mode & 0o777, Path(answer["output_socket"]).stat().st_mode & 0o777) == (0o600, 0o600)
    server.close()
    assert not [path for path in folder.rglob("*") if path.is_socket()]


def test_run_answers_with_the_result(server: Server) -> None:
    status, result = server.request("POST", "/run?language=toy", b"echo out; echo err >&2; exit 3")
    assert (status, result["status"], result["exit_status"]) == (200, "failed", 3)
    assert [step["step"] for step in result["steps"]] == ["build", "run"]
    assert (result["steps"][1]["stdout"], result["steps"][1]["stderr"]) == ("out\n", "err\n")


def until(reader: socket.socket, text: bytes) -> bytes:
    """The output up to a text."""
    found = b""
    while text not in found:
        piece = reader.recv(1)
        assert piece, found
        found += piece
    return found


def test_a_program_is_talked_to_at_a_terminal_until_its_run_is_deleted(server: Server) -> None:
    """What is typed, a size, a signal and an interrupt; all in one machine, which then goes."""
    source = """
        trap 'echo caught INT' INT; trap 'echo caught TERM' TERM; trap 'echo now $(stty size)' WINCH
        tty; stty size; echo name?; read name; echo hello $name >/dev/tty
        while :; do sleep 0.1; done"""
    body = json.dumps({"language": "toy", "source": source, "tty": {"columns": 80, "rows": 24}}).encode()
    status, started = server.request("POST", "/start", body, "application/json")
    assert status == 201, started
    run = f"/runs/{started['id']}"
    reader = connect(Path(started["output_socket"]))
    assert until(reader, b"name?\r\n") == b"/dev/pts/0\r\n24 80\r\nname?\r\n"
    assert server.request("POST", f"{run}/stdin", b"Adx\x7fa\r")[0] == 204
    assert until(reader, b"hello Ada\r\n") == b"Adx\b \ba\r\nhello Ada\r\n"
    assert server.request("POST", f"{run}/resize", b'{"columns": 132, "rows": 43}')[0] == 204
    until(reader, b"now 43 132\r\n")
    assert server.request("POST", f"{run}/signal", b'{"signal": "TERM"}')[0] == 204
    until(reader, b"caught TERM\r\n")
    assert server.request("POST", f"{run}/stdin", b"\x03")[0] == 204
    until(reader, b"caught INT\r\n")
    (zygote,) = direct_children(server.process.pid)
    machines = children(zygote)
    assert len(machines) == 1
    assert server.request("DELETE", run)[0] == 204
    assert wait_gone(machines)
    read_all(reader)
    reader.close()


def test_killing_the_server_leaves_no_process_and_the_next_one_works(folder: Path) -> None:
    server = Server(folder)
    reader = server.started()
    family = children(server.process.pid)
    assert len(family) == 2
    server.process.kill()
    server.process.wait()
    assert wait_gone(family)
    read_all(reader)
    reader.close()
    server.close()
    after = Server(folder)
    assert after.request("POST", "/run?language=toy", b"echo again")[1]["steps"][1]["stdout"] == "again\n"
    after.close()


def test_killing_the_zygote_ends_the_run_and_the_next_one_works(server: Server) -> None:
    reader = server.started()
    family = children(server.process.pid)
    os.kill(direct_children(server.process.pid)[0], signal.SIGKILL)
    read_all(reader)
    reader.close()
    assert wait_gone(family)
    assert server.request("POST", "/run?language=toy", b"echo again")[1]["steps"][1]["stdout"] == "again\n"


def test_killing_a_vmm_process_ends_its_run_only(server: Server) -> None:
    first, second = server.started(), server.started()
    (zygote,) = direct_children(server.process.pid)
    machines = sorted(children(zygote))
    assert len(machines) == 2
    os.kill(machines[0], signal.SIGKILL)
    assert wait_gone(machines[:1])
    ready = select.select([first, second], [], [], DEADLINE_S)[0]
    assert len(ready) == 1
    read_all(ready[0])
    os.kill(machines[1], 0)  # still there
    first.close()
    second.close()


@pytest.mark.aarch64
def test_a_kernel_that_cannot_boot_shows_its_console(server: Server) -> None:
    toy.build("noinit", agent=b"#!/bin/nothing\n")
    assert "Kernel panic" in fail(server, "noinit")


def test_a_file_that_is_no_kernel_is_named(folder: Path) -> None:
    kernel, snippet = folder / "kernel", folder / "snippet.toy"
    kernel.write_text("no kernel")
    snippet.write_text("true")
    done = subprocess.run(command("run", "--kernel", kernel, snippet), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, "the kernel is not an" in done.stderr) == (125, True), done.stderr


def test_an_archive_larger_than_the_memory_is_named(server: Server) -> None:
    toy.build("toolarge", memory=64 * MIB, ballast=80 * MIB)
    error = fail(server, "toolarge")
    assert "does not fit" in error
    assert "more memory" in error


def test_a_root_that_does_not_fit_is_noticed(server: Server) -> None:
    toy.build("truncated", memory=160 * MIB, ballast=90 * MIB)
    error = fail(server, "truncated")
    assert "more memory" in error or "Kernel panic" in error


def test_an_image_without_its_end_is_noticed(server: Server) -> None:
    toy.build("endless", end_marker=False)
    assert "the root is incomplete" in fail(server, "endless")


def test_an_image_that_was_cut_short_is_refused(server: Server) -> None:
    archive = toy.build("short") / "initramfs"
    os.truncate(archive, archive.stat().st_size - 4096)
    status, answer = server.request("POST", "/run?language=short", b"true")
    assert "imagegen build" in json.dumps(answer), (status, answer)


def test_without_permission_for_kvm_the_error_says_what_to_do(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without permission")
    device = Path("/dev/kvm")
    mode = device.stat().st_mode & 0o777
    snippet = folder / "snippet.toy"
    snippet.write_text("true")
    # A copy that `nobody` may read, as the folders above are the test's own.
    shared = Path("/run/mayfly-test-nobody")
    shutil.copytree(paths.data_dir() / "images", shared / "mayfly/images")
    shutil.copy(snippet, shared)
    (shared / "mayfly/kernel").symlink_to((paths.data_dir() / "kernel").resolve())
    device.chmod(0o600)
    try:
        environment = {**os.environ, "XDG_DATA_HOME": str(shared), "XDG_RUNTIME_DIR": "/tmp", "HOME": "/nonexistent"}
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = subprocess.run(
            [*become, *command("run", shared / "snippet.toy")], capture_output=True, text=True, env=environment, check=False
        )
    finally:
        device.chmod(mode)
        shutil.rmtree(shared)
    assert (done.returncode, "usermod -aG kvm" in done.stderr) == (125, True), done.stderr


def test_a_body_over_the_limit_and_an_unknown_language_are_refused(server: Server) -> None:
    assert server.request("POST", "/run?language=toy", b"#" * (33 << 20))[0] == 413
    status, answer = server.request("POST", "/run?language=cobol", b"x")
    assert (status, answer["error"]["code"]) == (404, "unknown_language")


def test_the_example_backend_streams_a_run(server: Server) -> None:
    script = Path(__file__).resolve().parents[2] / "examples/polycode-backend/backend.py"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [sys.executable, "-u", str(script), "--socket", str(server.socket), "--port", str(port)]
    with subprocess.Popen(start, stdout=subprocess.PIPE) as backend:
        assert backend.stdout is not None
        backend.stdout.readline()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        body = json.dumps({"language": "toy", "source": "echo hello; exit 4"})
        connection.request("POST", "/run", body, {"Content-Type": "application/json"})
        lines = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        connection.close()
        backend.terminate()
    assert "hello\n" in [line.get("data") for line in lines]
    assert lines[-1]["exit_code"] == 4


def test_clients_of_other_contracts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx  # here: importing these takes seconds in the emulated host
    import judge0  # type: ignore[import-untyped]
    import requests
    import ultra_piston  # type: ignore[import-untyped]
    from sandbox_fusion import client as fusion  # type: ignore[import-untyped]
    from sandbox_fusion import models

    toy.build("python")
    (url,) = server.urls
    token = create(default_path(), "clients")
    source = "read line; echo $line; echo err >&2"

    monkeypatch.setattr(httpx, "post", functools.partial(httpx.post, timeout=DEADLINE_S))
    piston = ultra_piston.PistonClient(base_url=f"{url}/piston/api/v2/", api_key=token, rate_limit=0)
    run = piston.post_execute("py", "1.x", ultra_piston.File(content=source), stdin="in").run
    assert (run.code, run.stdout, run.stderr) == (0, "in\n", "err\n")

    judge = judge0.Client(endpoint=f"{url}/judge0", headers={"X-Auth-Token": token})
    cases = [judge0.TestCase("one", "one"), judge0.TestCase("two", "three")]
    found = judge0.run(client=judge, source_code=source, language=judge0.PYTHON, test_cases=cases)
    assert [one.status for one in found] == [judge0.Status.ACCEPTED, judge0.Status.WRONG_ANSWER]
    assert found[0].memory > 0

    headers = {"X-Auth-Token": token}
    monkeypatch.setattr(requests, "post", functools.partial(requests.post, headers=headers))
    asked = models.RunCodeRequest(code=source, language="python", stdin="in")
    assert fusion.run_code(asked, endpoint=f"{url}/sandboxfusion").run_result.stdout == "in\n"
    polycode: Any = {"id": "1", "source": "echo 1; exit 1", "compilerOptions": {"language": "python", "version": "3"}}
    answer = requests.post(f"{url}/polycode/run", json=polycode, timeout=DEADLINE_S)
    assert (answer.status_code, answer.json()) == (201, {"success": False, "output": {"stdout": "1", "stderr": ""}})
    codapi: Any = {"sandbox": "python", "command": "run", "files": {"": "echo 1"}}
    assert requests.post(f"{url}/codapi/v1/exec", json=codapi, timeout=DEADLINE_S).json()["stdout"] == "1"


def test_a_machine_that_takes_more_memory_than_its_group_may_ends_alone(folder: Path) -> None:
    with delegated() as group:
        server = Server(folder, "--drain-s", "0", group=group)
        one, other = server.started(), server.started()
        groups = [group_of(pid) for pid in children(server.process.pid)]
        machines = [found for found in groups if found and found.name.startswith("machine-")]
        assert (len(machines), len(set(machines))) == (2, 2)
        if not (machines[0] / "memory.max").exists():
            pytest.skip("this host's memory controller is version 1's")
        (machines[0] / "memory.max").write_text(str(MIB))
        first, second = (one, other) if select.select([one, other], [], [], DEADLINE_S)[0] == [one] else (other, one)
        assert first.recv(1) == b""
        assert not machines[0].exists()
        assert machines[1].exists()
        assert not select.select([second], [], [], 0)[0]
        for reader in (one, other):
            reader.close()
        server.close()
        assert [path.name for path in group.iterdir() if path.is_dir()] == ["server"]
