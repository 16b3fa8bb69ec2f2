"""The protocol's conformance, in a real guest, over all that carries it: the same tests over
serial, virtio and TCP (tap and passt).
"""

import contextlib
import functools
import hashlib
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.guests.zygote import Zygote
from mayfly.protocol import frames as p
from mayfly.protocol.report import Ended
from mayfly.protocol.spawning import Reaped
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.config import CHANNEL_PORT, Channel, MachineConfig, NetworkBackend, NetworkConfig
from tests.kit import net_kit, toy
from tests.kit.agent_process import PATIENCE_S, AgentChannel, shell
from tests.kit.net_kit import ip, make_tap
from tests.kit.spawned import Spawned

pytestmark = [pytest.mark.system, pytest.mark.timeout(900), pytest.mark.usefixtures("toy_language")]

TAP, GATEWAY, GUEST = "mayfly0", "10.87.0.1", "10.87.0.2"
NETWORK = NetworkConfig(
    backend=NetworkBackend.TAP, tap=TAP, mac="02:00:00:00:00:02", addresses=(f"{GUEST}/16",), gateways=(GATEWAY,), nameservers=("9.9.9.9",)
)
CARRIERS: dict[str, tuple[Channel, NetworkConfig | None]] = {
    "serial": (Channel.SERIAL, None),
    "virtio": (Channel.VIRTIO, None),
    "tcp-tap": (Channel.TCP, NETWORK),
    "tcp-passt": (Channel.TCP, replace(NETWORK, backend=NetworkBackend.PASST, tap="")),
}
GARBAGE = (b"\xc0no frame\xc0", b"\xc0\x01\xdb\x00\xc0", p.encode_frame(p.StdinEof(), 9)[:-3] + b"\xc0", p.encode_frame(p.StdinEof(), 999))
"""Packets to be dropped and counted: nonsense, a bad escape, one that is cut short, a frame of
another run.
"""
SIGUSR1 = 10
WRITABLE = {"/dev/shm", "/tmp", "/var/tmp", "/work", "/work/visitor"}
"""Files and folders of a guest that a program can write to."""


class Machine(AgentChannel):
    """A guest whose agent has said HELLO. The tests share it, as runs do: each is a run of its
    own.
    """

    patience_s = max(120.0, 2 * PATIENCE_S)

    def __init__(self, process: Spawned) -> None:
        super().__init__(process.channel)
        self._process = process
        self._runs = itertools.count(1)
        self.run_id = 0
        self.dropped = 0

    def run(self, *steps: p.Step, **fields: Any) -> int:
        """Begin a run; its id."""
        self.run_id = next(self._runs)
        self.start(*steps, run=self.run_id, **fields)
        return self.run_id

    def tell(self, *messages: p.Message) -> None:
        """Send messages of the present run."""
        self.send(*messages, run=self.run_id)

    def output(self, script: str, **limits: Any) -> str:
        """What a script prints on both streams."""
        self.run(shell(script, **limits))
        result = self.result()
        return (result.stdout + result.stderr).decode()

    @functools.cached_property
    def ended(self) -> Ended:
        """What the vmm process says at its end."""
        return self._process.wait_ended()


@pytest.fixture(scope="module", params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def booted(channel: Channel, network: NetworkConfig | None) -> Iterator[Machine]:
    """A machine of the toy language; `ended` says afterwards how it ended."""
    initrd = paths.image_dir("toy", toy.MACHINE) / "initramfs"
    config = MachineConfig(
        kernel=str(paths.kernel_path(toy.MACHINE)), initrd=str(initrd), memory=96 * MIB, channel=channel, network=network, user="nobody"
    )
    initrd.parents[4].chmod(0o755)
    with contextlib.ExitStack() as stack:
        if network:
            stack.enter_context(net_kit.namespace())
            make_tap(TAP, f"{GATEWAY}/16")
            ip("route", "add", "default", "via", "10.87.0.99", "dev", TAP)
        zygote = Zygote.start()
        stack.callback(zygote.close)
        process = stack.enter_context(Spawned(zygote, config))
        machine = Machine(process)
        hello = machine.expect(p.Hello, run=0)
        assert (hello.version, hello.arch) == (p.PROTOCOL_VERSION, toy.MACHINE)
        assert len(hello.end_marker) == 64
        yield machine
        process.channel.close()
        assert machine.ended
        while not isinstance(zygote.receive(), Reaped):
            pass


@pytest.fixture(scope="module")
def machine(carrier: str, toy_language: None) -> Iterator[Machine]:
    with booted(*CARRIERS[carrier]) as machine:
        yield machine
        # SHUTDOWN ends the machine, and what was dropped was counted.
        machine.send(p.Shutdown(), run=0)
        with contextlib.suppress(ConnectionError):
            assert machine.socket.recv(1) == b""
    assert machine.ended.error is None
    said = f"{machine.dropped} packets were dropped" if machine.dropped else ""
    assert said in machine.ended.console
    assert ("packets were dropped" in machine.ended.console) == bool(said)


def test_a_cold_boot_costs_few_exits() -> None:
    """Up to HELLO, the boot console's included."""
    with booted(Channel.VIRTIO, None) as machine:
        pass
    assert machine.ended.exits["total"] <= (150 if toy.MACHINE == "x86_64" else 300)  # where registers are read by exits


def size_for(carrier: str, most: int) -> int:
    """Bytes to move: the serial port carries a few thousand a second in an emulated host."""
    return 4000 if carrier == "serial" else most


def test_steps_with_files_and_both_streams(machine: Machine) -> None:
    machine.run(
        shell("cat a/b; echo problem >&2", "first"), shell("exit 3", "second"), shell("echo never", "third"), files=[("a/b", b"content\n")]
    )
    result = machine.result()
    assert (result.stdout, result.stderr, result.stages) == (b"content\n", b"problem\n", ["first", "second"])
    assert [(exit.how, exit.code, exit.limit) for exit in result.exits] == [(p.ExitHow.EXITED, 0, 0), (p.ExitHow.EXITED, 3, 0)]


def test_runs_follow_one_another(machine: Machine) -> None:
    for number in range(3):
        assert machine.output(f"ls; echo {number} >left; echo {number}") == f"{number}\n"


def test_stdin_goes_against_credit(machine: Machine, carrier: str) -> None:
    data = hashlib.shake_256(b"stdin").digest(size_for(carrier, 600_000))
    run = machine.run(shell("sha256sum", stdin=True))
    sent, granted, output, exits = 0, 0, b"", []
    while True:
        frame = machine.receive()
        assert frame.run == run
        if isinstance(frame.message, p.Credit):
            granted += frame.message.count
            while sent < min(granted, len(data)):
                piece = data[sent : min(granted, sent + 16_384)]
                machine.tell(p.Stdin(piece))
                sent += len(piece)
            if sent == len(data):
                machine.tell(p.StdinEof())
                granted = 0
        elif isinstance(frame.message, p.Stdout):
            output += frame.message.data
        elif isinstance(frame.message, p.Exit):
            exits.append(frame.message)
        elif isinstance(frame.message, p.Done):
            break
    assert output, (sent, len(data), exits)  # all sent, and the step ended by its limit: a byte is lost
    assert output.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_stdin_that_was_not_granted_is_refused(machine: Machine) -> None:
    machine.run(shell("cat", stdin=True))
    machine.tell(p.StdinEof(), p.Stdin(b"too late"))
    result = machine.result()
    assert [error.code for error in result.errors] in ([], [p.ErrorCode.WRONG_STATE])  # dropped in silence once the step has gone
    assert result.stdout == b""


def test_a_signal_reaches_the_step(machine: Machine) -> None:
    machine.run(shell("trap 'echo caught; exit 5' USR1; echo ready; sleep 100 & wait"))
    for message in machine.until(p.Stdout):
        assert not isinstance(message, p.Exit)
    machine.tell(p.Signal(SIGUSR1))
    result = machine.result()
    assert (result.stdout, result.exit.code) == (b"caught\n", 5)


def test_limits(machine: Machine) -> None:
    machine.run(shell("echo before; sleep 100", wall_ms=500))
    result = machine.result()
    assert (result.stdout, result.exit.limit) == (b"before\n", p.Limit.WALL)
    machine.run(shell("yes | head -c 5000", output=1000))
    result = machine.result()
    assert (len(result.stdout), result.exit.cut) == (1000, (True, False))


SHIM = rb"""
printf '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' >&3
while dd bs=1 count=11 <&3 >/dev/null 2>&1; do
    body=$(dd bs=1 count=5 <&3 2>/dev/null)
    echo "$body"
    printf '\1\7\0\0\0\2\0\0\0\0\0\0\0\0\0\5\0\0\0%s' "$body" >&3
done
"""
"""A function for requests 7 of five bytes."""


def test_a_function_answers_requests(machine: Machine) -> None:
    run = machine.run(p.Step("function", ("sh", "shim"), output=5, function=True), files=[("shim", SHIM)])
    list(machine.until(p.Loaded))
    for body in (b"first", b"again"):
        machine.tell(p.Request(7, "", 5, body[:2]), p.Request(7, "", 5, body[2:]))
        printed, response = machine.until(p.Response)
        assert (printed, response) == (p.Stdout(body), p.Response(7, p.ResponseKind.ANSWER, 2, "", 5, body))
    machine.tell(p.Request(8, "", 5, b"other"))
    messages = [machine.receive() for _ in range(4)]
    assert {frame.run for frame in messages} == {run}
    assert [type(frame.message) for frame in messages] == [p.Stdout, p.Error, p.Exit, p.Done]


def test_collect(machine: Machine) -> None:
    machine.run(shell("mkdir out; echo one >out/1; echo two >out/2"))
    machine.result()
    machine.tell(p.Collect(("/work/out",)))
    content: dict[str, bytes] = {}
    path = ""
    while True:
        message = machine.receive().message
        assert isinstance(message, p.Collected)
        if message.head:
            path = message.head.path
        content[path] = content.get(path, b"") + message.data
        if message.last:
            break
    assert {path: data for path, data in content.items() if data} == {"/work/out/1": b"one\n", "/work/out/2": b"two\n"}


def test_what_is_no_frame_is_dropped_and_the_next_one_is_found(machine: Machine) -> None:
    for garbage in GARBAGE:
        machine.send_bytes(garbage)
        machine.dropped += 1
        assert machine.output("echo whole") == "whole\n"


def test_a_frame_in_the_wrong_state_changes_nothing(machine: Machine) -> None:
    machine.run(shell("read line; echo $line", stdin=True))
    machine.tell(p.Begin(), p.Collect(("/work",)))
    for _ in range(2):
        assert p.ErrorCode.WRONG_STATE in [m.code for m in machine.until(p.Error) if isinstance(m, p.Error)]
    machine.tell(p.Stdin(b"still here\n"), p.StdinEof())
    assert machine.result().stdout == b"still here\n"


def test_much_output_arrives_whole(machine: Machine, carrier: str) -> None:
    size = size_for(carrier, 8 * MIB)
    machine.run(shell(f"yes 0123456 | head -c {size}", wall_ms=300_000))
    result = machine.result()
    assert result.exit.cut == (False, False)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(b"0123456\n" * (size // 8)).digest()


def test_a_program_learns_and_disturbs_nothing(machine: Machine, carrier: str) -> None:
    """Over TCP: no program reads the token, listens where the agent did, or reaches it."""
    if not carrier.startswith("tcp"):
        pytest.skip("this carrier has no token")
    said = machine.output(
        f"""
        cat /proc/cmdline
        grep -c token /dev/kmsg
        /bin/busybox dmesg
        for address in {GUEST} 127.0.0.1; do nc $address {CHANNEL_PORT} </dev/null && echo reached; done
        nc -l -p {CHANNEL_PORT} </dev/null && echo listened
        cat /proc/1/environ /proc/1/cmdline | grep token
        unshare -Urpf --mount-proc cat /proc/cmdline
        """
    )
    assert "mayfly" not in said.replace("mayfly-agent", "")
    assert "token=" not in said
    assert not {"reached", "listened"} & set(said.split("\n"))
    assert said.count("Connection refused") == 2
    assert said.count("Permission denied") + said.count("Operation not permitted") >= 3
    assert machine.output("echo untouched") == "untouched\n"


def test_a_run_finds_nothing_of_the_one_before(machine: Machine, carrier: str, tmp_path: Path) -> None:
    """Of all that a program can leave in a guest: see visitor.c."""
    if carrier != "virtio":
        pytest.skip("one carrier is enough, and this one is quick")
    visitor = tmp_path / "visitor"
    subprocess.run(["gcc", "-static", "-O1", "-o", visitor, Path(__file__).with_name("visitor.c")], check=True)

    def visit() -> list[str]:
        machine.run(p.Step("run", ("./visitor",), wall_ms=300_000), files=[("visitor", visitor.read_bytes())], mode=0o755)
        result = machine.result()
        assert result.exit.code == 0, result.stderr
        return result.stdout.decode().splitlines()

    first = visit()
    assert first[-1] == "leaving: done"
    assert {line.removeprefix("writable: ") for line in first if line.startswith("writable: ")} == WRITABLE
    assert visit() == first
