"""scripts/with-kvm: the command's streams, arguments, folder and exit status are its own, and
nothing outlives it.

Outside an emulated host these tests start one, several seconds each; inside, they see the direct
way."""

import hashlib
import os
import pty
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit.scale import patience
from tests.system.test_service import direct_children

ROOT = Path(__file__).resolve().parents[2]
WITH_KVM = [str(ROOT / "scripts/with-kvm")]
DEADLINE_S = patience(60)
BLOB = random.Random(6).randbytes(1 << 20)  # any bytes, the same each time

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EVERYTHING = """
import hashlib, os, sys
data = sys.stdin.buffer.read()
print(hashlib.sha256(data).hexdigest(), os.getcwd(), sys.argv[1:], os.environ["SPECIAL"], file=sys.stderr)
sys.stdout.buffer.write(data[::-1])
sys.stdout.flush()
open("/dev/stdout", "wb").write(b"reopened")
open("/dev/kvm", "r+b").close()
sys.exit(7)
"""


def test_streams_arguments_and_exit_status_are_the_commands_own(tmp_path: Path) -> None:
    arguments = ["two words", "it's", 'a "quote"', "", "$HOME `id` \\", "new\nline", "ü"]
    done = subprocess.run(
        [*WITH_KVM, sys.executable, "-c", EVERYTHING, *arguments],
        input=BLOB,
        capture_output=True,
        cwd=ROOT / "tests",
        env={**os.environ, "SPECIAL": "a 'b'\n\"c\""},
        timeout=DEADLINE_S,
        check=False,
    )
    lines = done.stderr.decode()
    assert done.returncode == 7, lines
    assert lines.startswith("with-kvm: ")
    assert f"{hashlib.sha256(BLOB).hexdigest()} {ROOT / 'tests'} {arguments} a 'b'\n\"c\"\n" in lines
    assert done.stdout == BLOB[::-1] + b"reopened"


def test_on_a_terminal_and_with_a_child_left_behind() -> None:
    """Standard streams that are a terminal carry the same bytes; a process that the command leaves
    behind delays nothing.
    """
    ours, theirs = pty.openpty()
    started = subprocess.Popen([*WITH_KVM, "sh", "-c", "sleep 1000 & echo done; kill -9 $$"], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    until = time.monotonic() + DEADLINE_S
    while b"done\r\n" not in text:
        assert select.select([ours], [], [], until - time.monotonic())[0], text
        text += os.read(ours, 4096)
    status = started.wait(DEADLINE_S)
    os.close(ours)
    assert status in (137, -9), text  # a shell's way to say that signal 9 ended the command, or the command itself


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it_and_all_that_it_started(number: signal.Signals) -> None:
    started = subprocess.Popen([*WITH_KVM, "sleep", "1000"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert started.stderr
    line = started.stderr.readline()
    children: list[int] = []
    if b"emulated" in line and b"running here" not in line:
        until = time.monotonic() + DEADLINE_S
        while not children and time.monotonic() < until:
            children = [pid for pid in direct_children(started.pid) if b"qemu-system" in _cmdline(pid)]
        assert children
    started.send_signal(number)
    assert started.wait(patience(10)) in (-number, 128 + number)
    started.stderr.close()
    until = time.monotonic() + patience(5)
    while any(_cmdline(pid) for pid in children):
        assert time.monotonic() < until, f"{children} still run"


def test_an_emulated_host_that_stands_still_is_ended() -> None:
    program = "import sys; from scripts.kvmhost import emulator as e, main; e.STANDSTILL_S = 60.0; sys.exit(main.main())"
    command = [sys.executable, "-c", program, "sh", "-c", "echo up; exec sleep 1000"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout
        assert started.stdout.readline() == "up\n"
        hosts = [pid for pid in direct_children(started.pid) if b"qemu-system" in _cmdline(pid)]
        if not hosts:
            started.kill()
            pytest.skip("this machine's own KVM runs Linux guests")
        os.kill(hosts[0], signal.SIGSTOP)
        _, errors = started.communicate(timeout=DEADLINE_S)
    assert started.returncode == 125
    assert "stands still" in errors
    assert not Path(f"/proc/{hosts[0]}").exists()


REACHES = """
import os, socket, sys
outer, own = map(int, sys.argv[1:])
with socket.create_server(("0.0.0.0", own)) as listener:
    with socket.create_connection((os.environ["LOOPBACK"], outer)) as one:
        one.sendall(b"from inside\\n")
    with listener.accept()[0] as other:
        sys.stdout.buffer.write(other.makefile("rb").readline())
"""


def test_this_machines_loopback_is_reached_from_within_and_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as free:
        outer, own = listener.getsockname()[1], free.getsockname()[1]
        free.close()
        listener.settimeout(DEADLINE_S)
        command = [*WITH_KVM, "--loopback", "--forward", str(own), "python", "-c", REACHES, str(outer), str(own)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as started:
            with listener.accept()[0] as inner:
                assert inner.makefile().readline() == "from inside\n"
            with socket.create_connection(("127.0.0.1", own), DEADLINE_S) as back:
                back.sendall(b"from outside\n")
                assert started.communicate(timeout=DEADLINE_S)[0] == "from outside\n"
        assert started.returncode == 0


def test_a_command_that_is_not_there() -> None:
    done = subprocess.run([*WITH_KVM, "no-such-command"], stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 127
    assert b"no-such-command" in done.stderr


def test_wrong_use_is_told_apart() -> None:
    assert subprocess.run(WITH_KVM, capture_output=True, check=False).returncode == 2
    assert subprocess.run([*WITH_KVM, "--arch", "vax", "true"], capture_output=True, check=False).returncode == 2
    assert subprocess.run([*WITH_KVM, "--forward", "0", "true"], capture_output=True, check=False).returncode == 2


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
