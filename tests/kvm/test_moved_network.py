"""A machine with a network moves between two servers on one bridge: it keeps its MAC and address,
and a TCP connection of the host's own stack with it goes on.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import NotMovableError
from mayfly.guests.zygote import Zygote
from mayfly.host.snippet import Snippet
from mayfly.protocol import frames as p
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.moves.machines import HostMachines
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.vmm.config import Channel, NetworkBackend
from mayfly.vmm.devices.virtio.registers import Register
from mayfly.vmm.network.filter import BROADCAST
from tests.kit import tiny
from tests.kit.api_fakes import install_toys, small_config
from tests.kit.moving_kit import LINE_STATUS, UART
from tests.kit.net_kit import add_bridge, ip, namespace, packet_socket
from tests.kit.road import Road
from tests.kit.scale import patience
from tests.kit.toy_moves import TIMES
from tests.kvm.test_moved_run import EXIT, MODEM_CONTROL, play_tiny

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces"),
]

GATEWAY, GUEST, PORT = "10.87.0.1", "10.87.0.2", 7
RECEIVE, TRANSMIT = (0x30_0000, 0x30_1000, 0x30_2000), (0x31_0000, 0x31_1000, 0x31_2000)
BUFFERS, SIZE, COUNT = 0x60_0000, 4096, 8
NET = 1
"""Slot of the network device, behind the entropy device."""


def reflecting(folder: Path) -> str:
    """A guest that answers each TCP segment with data, SYN or FIN with itself: ends, ports and
    numbers in each other's places, what came acknowledged. That is an echo server without a state,
    for a client who waits for each echo. It ends its step when it has read `quit`.
    """
    parts: dict[str, list[p.Message]] = {"opening": [p.Stage(0, "run"), p.Credit(1000)], "ending": [EXIT, p.Done()]}
    for name, messages in parts.items():
        (folder / name).write_bytes(b"".join(p.encode_frame(message, 1) for message in messages))
    data = "".join(f'{name}: .incbin "{folder / name}"\n{name}_end:\n' for name in parts)
    table = "".join(f".quad {BUFFERS + number * SIZE}\n.long {SIZE}\n.word 2, 0\n" for number in range(COUNT))
    ring = ", ".join(str(number) for number in (0, COUNT, *range(COUNT)))
    return f"""
        cli
        mov esp, 0x400000
        mov dx, {MODEM_CONTROL}
        mov al, 2
        out dx, al
        {tiny.MAP_MMIO}
        lea rsi, [rip + table]
        mov edi, {RECEIVE[0]}
        mov ecx, {16 * COUNT}
        rep movsb
        lea rsi, [rip + ring]
        mov edi, {RECEIVE[1]}
        mov ecx, {4 + 2 * COUNT}
        rep movsb
        {tiny.start_virtio(NET, [(COUNT, *RECEIVE), (COUNT, *TRANSMIT)])}
        {tiny.write(Register.QUEUE_NOTIFY, 0, NET)}
        xor ebx, ebx
        xor r12d, r12d
        mov r13d, {COUNT}
        xor r14d, r14d
        lea rsi, [rip + opening]
        lea r8, [rip + opening_end]
        call say
poll:   mov dx, {LINE_STATUS}
        in al, dx
        test al, 1
        jz 1f
        mov dx, {UART}
        in al, dx
        shl ebx, 8
        mov bl, al
        cmp ebx, {int.from_bytes(b"quit", "big"):#x}
        jne poll
        lea rsi, [rip + ending]
        lea r8, [rip + ending_end]
        call say
        jmp .
1:      cmp word ptr [{RECEIVE[2] + 2:#x}], r12w
        je poll
        mov eax, r12d
        and eax, {COUNT - 1}
        mov edi, [rax * 8 + {RECEIVE[2] + 4:#x}]
        mov r9d, [rax * 8 + {RECEIVE[2] + 8:#x}]
        inc r12d
        mov esi, edi
        shl esi, 12
        add esi, {BUFFERS + 12}
        cmp word ptr [rsi + 12], 0x0008
        jne give
        cmp byte ptr [rsi + 14], 0x45
        jne give
        cmp byte ptr [rsi + 23], 6
        jne give
        movzx eax, byte ptr [rsi + 46]
        shr eax, 4
        shl eax, 2
        movzx ecx, word ptr [rsi + 16]
        xchg cl, ch
        sub ecx, 20
        sub ecx, eax
        mov r10d, ecx
        mov al, [rsi + 47]
        test al, 4
        jnz give
        test al, 2
        jz 2f
        mov r10d, 1
        mov byte ptr [rsi + 47], 0x12
        mov ecx, 0x11
        jmp answer
2:      test ecx, ecx
        jnz answer
        test al, 1
        jz give
        mov r10d, 1
        mov ecx, 1
answer: mov eax, [rsi]
        mov dx, [rsi + 4]
        mov r8d, [rsi + 6]
        mov r15w, [rsi + 10]
        mov [rsi], r8d
        mov [rsi + 4], r15w
        mov [rsi + 6], eax
        mov [rsi + 10], dx
        mov eax, [rsi + 26]
        mov edx, [rsi + 30]
        mov [rsi + 26], edx
        mov [rsi + 30], eax
        mov eax, [rsi + 34]
        rol eax, 16
        mov [rsi + 34], eax
        mov eax, [rsi + 38]
        mov edx, [rsi + 42]
        mov [rsi + 38], edx
        bswap eax
        add eax, r10d
        bswap eax
        mov [rsi + 42], eax
        movzx eax, word ptr [rsi + 50]
        xchg al, ah
        not eax
        and eax, 0xffff
        add eax, ecx
        mov edx, eax
        shr edx, 16
        and eax, 0xffff
        add eax, edx
        not eax
        xchg al, ah
        mov [rsi + 50], ax
        sub esi, 12
        mov qword ptr [{TRANSMIT[0]:#x}], rsi
        mov dword ptr [{TRANSMIT[0] + 8:#x}], r9d
        inc r14d
        mov word ptr [{TRANSMIT[1] + 2:#x}], r14w
        {tiny.write(Register.QUEUE_NOTIFY, 1, NET)}
3:      cmp word ptr [{TRANSMIT[2] + 2:#x}], r14w
        jne 3b
give:   mov eax, r13d
        and eax, {COUNT - 1}
        mov [rax * 2 + {RECEIVE[1] + 4:#x}], di
        inc r13d
        mov word ptr [{RECEIVE[1] + 2:#x}], r13w
        {tiny.write(Register.QUEUE_NOTIFY, 0, NET)}
        jmp poll
say:    mov dx, {LINE_STATUS}
        in al, dx
        test al, 0x20
        jz say
        mov dx, {UART}
        mov al, [rsi]
        out dx, al
        inc rsi
        cmp rsi, r8
        jne say
        ret
        .balign 8
table:  {table}
ring:   .word {ring}
{data}
    """


def make_bridge() -> None:
    """A bridge with the gateway's address, and two taps on it."""
    add_bridge("bridge")
    for name in ("tap0", "tap1"):
        ip("tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr")
    for name in ("bridge", "tap0", "tap1"):
        ip("link", "set", name, "addrgenmode", "none")
    for name in ("tap0", "tap1"):
        ip("link", "set", name, "master", "bridge", "up")
    ip("address", "add", f"{GATEWAY}/16", "dev", "bridge")
    ip("link", "set", "bridge", "up")


async def echoed(connection: socket.socket, data: bytes) -> None:
    """Send bytes, and have them back."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, data)
    back = b""
    while len(back) < len(data):
        piece = await loop.sock_recv(connection, len(data))
        assert piece, "the connection is at its end"
        back += piece
    assert back == data


async def begun(service: Service) -> Run:
    run = service.start(Snippet(language="py", source=b"quiet", interactive=True, network=True))
    while run.record.end.span < 0:
        await run.record.changed()
    network = service.place(run) and run.exchange and run.exchange.guest.wanted.machine.network
    assert network
    assert network.addresses == (f"{GUEST}/16",)
    ip("neighbour", "replace", GUEST, "lladdr", network.mac, "dev", "bridge", "nud", "permanent")  # the guest knows no ARP
    return run


async def quit(run: Run) -> None:
    with StdinWriter(run.stdin) as writer:
        await writer.write(b"quit")
    await run.done.wait()
    assert run.to_json()["status"] == "ok", run.to_json()["error"]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    install_toys(monkeypatch, tmp_path)
    kernel = tiny.build(tmp_path, reflecting(tmp_path))

    def call(scenario: Callable[[Service, Service], Any], **there_only: Any) -> None:
        common: dict[str, Any] = {
            "kernel": kernel,
            "channel": Channel.SERIAL,
            "interactive_wall_s": 600.0,
            "network_backend": NetworkBackend.TAP,
            "network_allow": (f"{GATEWAY}/32",),
        }
        config = small_config(tmp_path, **common, network_taps=("tap0",))
        other = small_config(tmp_path, **{**common, "network_taps": ("tap1",), "network_first": 100, **there_only})

        async def whole() -> None:
            async with Service(config, Zygote.start) as here, Service(other, Zygote.start) as there:
                play_tiny(here)
                play_tiny(there)
                await asyncio.wait_for(scenario(here, there), patience(90))

        with namespace():
            make_bridge()
            asyncio.run(whole())

    return call


def test_a_tcp_connection_goes_on_through_a_move(play: Callable[..., Any]) -> None:
    async def scenario(here: Service, there: Service) -> None:
        road = Road(Moves(there, HostMachines(there), TIMES), iter(()))
        moves = Moves(here, HostMachines(here), TIMES)
        run = await begun(here)
        with socket.socket() as connection, packet_socket("bridge") as sniffer:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (GUEST, PORT))
            for number in range(10):
                await echoed(connection, b"%d before" % number * 50)
            moving = asyncio.create_task(follow(moves.begin(run, road.connect, to="there")))
            number = 0
            while not moving.done():
                await echoed(connection, b"%d meanwhile" % number * 50)
                number += 1
            await moving
            assert number, "nothing was said while it moved"
            for number in range(10):
                await echoed(connection, b"%d after" % number * 50)
            network = there.get(run.id).exchange
            assert network
            moved = network.guest.wanted.machine.network
            assert moved
            assert (moved.tap, moved.addresses) == ("tap1", (f"{GUEST}/16",))
            mac = moved.mac_bytes
            frames = [frame for frame in received(sniffer) if frame[6:12] == mac]
            assert any(frame[:6] == BROADCAST and frame[12:14] == b"\x80\x35" for frame in frames), "no bridge was told"
        again = here.networks.lease()
        assert (again.tap, again.addresses) == ("tap0", (f"{GUEST}/16",)), "the source has given it back"
        await quit(run)
        await there.settled(there.get(run.id))
        assert there.networks.lease().tap == "tap1"
        await road.close()

    play(scenario)


def received(sniffer: socket.socket) -> list[bytes]:
    """All that a packet socket holds."""
    frames = []
    sniffer.setblocking(False)
    try:
        while True:
            frames.append(sniffer.recv(2000))
    except BlockingIOError:
        return frames


@pytest.mark.parametrize("what", ["taken", "other subnet", "no network"])
def test_an_address_that_is_not_to_be_had_is_named(play: Callable[..., Any], what: str) -> None:
    async def scenario(here: Service, there: Service) -> None:
        road = Road(Moves(there, HostMachines(there), TIMES), iter(()))
        run = await begun(here)
        if what == "taken":
            there.networks.lease_again("02:00:00:00:00:09", (f"{GUEST}/16",), (GATEWAY,))
        says = {"taken": f"has the address {GUEST}", "other subnet": f"no address {GUEST}", "no network": "no network for runs"}[what]
        with pytest.raises(NotMovableError, match=says):
            await follow(Moves(here, HostMachines(here), TIMES).begin(run, road.connect, to="there"))
        assert there.admission.used == 0
        with socket.socket() as connection:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (GUEST, PORT))
            await echoed(connection, b"it goes on here")
        await quit(run)
        await road.close()

    changes: dict[str, dict[str, Any]] = {
        "other subnet": {"network_subnets": ("10.88.0.0/16",)},
        "no network": {"network_backend": NetworkBackend.NONE},
    }
    play(scenario, **changes.get(what, {}))
