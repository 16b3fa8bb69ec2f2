"""Machines with tiny guests on the real /dev/kvm: console, channel, reset, crashes, stopping."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from mayfly.errors import BootError, ConfigError, GuestError
from mayfly.protocol.report import End
from mayfly.vmm.devices.serial import Serial
from tests.kit.tiny import RESET, Running, start, start_second

pytestmark = pytest.mark.kvm

OUT2_RTS = "mov dx, 0x2fc\nmov al, 0x0a\nout dx, al\n"
ECHO = (
    OUT2_RTS
    + """
again:  mov dx, 0x2fd
        in al, dx
        test al, 1
        jz again
        mov dx, 0x2f8
        in al, dx
        mov bl, al
wait:   mov dx, 0x2fd
        in al, dx
        test al, 0x20
        jz wait
        mov dx, 0x2f8
        mov al, bl
        out dx, al
        jmp again
"""
)


def test_prints_on_the_boot_console_and_resets(started: list[Running], tmp_path: Path) -> None:
    running = start(started, tmp_path, "mov dx, 0x3f8\nmov al, 'H'\nout dx, al\nmov al, 'i'\nout dx, al\n" + RESET)
    assert running.run() is End.RESET
    assert running.console == b"Hi"
    assert running.machine.exits() == {"io 0x3f8": 2, "io 0x64": 1, "total": 3, "channel-data": 0, "kicks": 0}


def test_rsi_points_at_boot_params_with_the_boot_flag(started: list[Running], tmp_path: Path) -> None:
    running = start(started, tmp_path, "mov al, [rsi + 0x1fe]\nmov dx, 0x3f8\nout dx, al\nmov al, [rsi + 0x1ff]\nout dx, al\n" + RESET)
    assert running.run() is End.RESET
    assert running.console == b"\x55\xaa"


def test_a_crash_is_an_error_with_registers(started: list[Running], tmp_path: Path) -> None:
    running = start(started, tmp_path, "lidt [zero]\nud2\nzero: .quad 0, 0\n")
    assert running.run() is End.ERROR
    assert isinstance(running.machine.processors.error, GuestError)
    assert "rip=0x" in running.machine.processors.error.message


SPIN, HALT, PRINT, TOUCH = "1: jmp 1b\n", "1: hlt\njmp 1b\n", "mov dx, 0x3f8\n1: out dx, al\njmp 1b\n", "1: mov eax, [0x20000000]\njmp 1b\n"


@pytest.mark.parametrize("body", [SPIN, HALT, PRINT, TOUCH])
def test_stops_within_a_second_whatever_the_guest_does(started: list[Running], tmp_path: Path, body: str) -> None:
    running = start(started, tmp_path, body, cpus=2)
    timer = threading.Timer(0.2, running.machine.finish, [End.STOPPED])
    timer.start()
    assert running.run() is End.STOPPED
    timer.join()
    began = time.monotonic()
    for vcpu in running.machine.processors.threads:
        vcpu.join(1.0)
        assert not vcpu.is_alive()
    assert time.monotonic() - began < 1.0


def test_every_byte_comes_back_through_the_serial_channel(started: list[Running], tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    data = os.urandom(20_000)
    echoed = bytearray()

    def talk() -> None:
        writer = threading.Thread(target=ours.sendall, args=[data])
        writer.start()
        while len(echoed) < len(data):
            echoed.extend(ours.recv(4096))
        writer.join()
        ours.close()

    with theirs:
        running = start(started, tmp_path, ECHO, channel=theirs)
        talker = threading.Thread(target=talk)
        talker.start()
        assert running.run() is End.CHANNEL_CLOSED
        talker.join()
    assert echoed == data
    assert running.machine.exits()["channel-data"] == 2 * len(data)


def test_a_reader_that_waits_loses_nothing(started: list[Running], tmp_path: Path) -> None:
    """The guest heeds CTS; the socket's other end reads only after the guest has seen CTS go
    down.
    """
    count = 80_000
    source = f"""
        mov dx, 0x2fc
        mov al, 0x0b
        out dx, al
        mov ecx, {count}
        xor ebx, ebx
next:   mov dx, 0x2fe
        in al, dx
        test al, 0x10
        jnz send
        mov dx, 0x3f8
        mov al, 'C'
        out dx, al
hold:   mov dx, 0x2fe
        in al, dx
        test al, 0x10
        jz hold
send:   mov dx, 0x2f8
        mov al, bl
        out dx, al
        inc ebx
        dec ecx
        jnz next
    """
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    held = threading.Event()
    got = bytearray()

    def read() -> None:
        held.wait(60)
        while len(got) < count:
            got.extend(ours.recv(65536))
        ours.close()

    with theirs:
        running = start(started, tmp_path, source + "1: jmp 1b\n", channel=theirs)
        uart = running.machine.boot_console
        original = uart._on_output

        def console() -> None:
            original()
            held.set()

        uart._on_output = console
        reader = threading.Thread(target=read)
        reader.start()
        running.run()
        reader.join()
    assert bytes(got) == bytes(index & 0xFF for index in range(count))
    assert b"C" in running.console


def test_a_guest_that_ignores_cts_is_bounded(started: list[Running], tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    with ours, theirs:
        running = start(started, tmp_path, "mov dx, 0x2f8\nmov ecx, 150000\n1: out dx, al\ndec ecx\njnz 1b\n" + RESET, channel=theirs)
        assert running.run() is End.RESET
        uart = running.machine.parts["uart1"]
        assert isinstance(uart, Serial)
        assert uart.overruns > 0


def test_a_second_processor_starts(started: list[Running], tmp_path: Path) -> None:
    """Its code writes to the console, then the first one resets."""
    wait = f"wait: cmp byte ptr [0x8800], 0x42\njne wait\n{RESET}"
    says_a = "mov dx, 0x3f8\nmov al, 'A'\nout dx, al\nmov byte ptr [0x8800], 0x42\n1: hlt\njmp 1b\n"
    source = start_second(wait, says_a)
    running = start(started, tmp_path, source, cpus=2)
    assert running.run() is End.RESET
    assert running.console == b"A"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"#!/bin/sh\n" * 100, "not an ELF file"), (bytes(56) + b"ARM\x64" + bytes(100), "Image for arm64")],
)
def test_a_file_that_is_no_kernel_of_this_machine_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(content)
    with pytest.raises(BootError, match=message):
        Running(path)


def test_a_kernel_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Running(tmp_path / "none")
