"""Tap and passt, real ones in a network namespace, behind a device with the mock driver; and back
ends that are not there.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError, NetworkError
from mayfly.vmm.config import NetworkBackend, NetworkConfig
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.net import RECEIVE, TRANSMIT
from mayfly.vmm.devices.virtio.packet import HEADER, MAX_PACKET, NetFeature
from mayfly.vmm.devices.virtio.registers import Interrupt
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm.chains import Batch
from mayfly.vmm.network.link import Link
from mayfly.vmm.network.passt import Passt
from mayfly.vmm.network.tap import OFFLOADS, Tap, offload_flags
from tests.kit import net_kit
from tests.kit.net_kit import GATEWAY, GUEST, GUEST_MAC, PLAIN_HEADER, PUBLIC, arp, ethernet, ip, ipv4, make_tap, udp, wait_until_up
from tests.kit.scale import patience
from tests.kit.virtio_driver import Buffer, Driver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces")

TAP = "mayfly0"
UPLINK, UPLINK_ADDRESS = "uplink", "198.51.100.1"
DEADLINE_S = patience(10)
BUFFERS = 32


def tap_network(**values: Any) -> NetworkConfig:
    given = {"backend": NetworkBackend.TAP, "tap": TAP, "mac": "02:00:00:00:00:05", "addresses": (f"{GUEST}/16",), "gateways": (GATEWAY,)}
    return NetworkConfig(**{**given, "allow": (GATEWAY,), **values})


def passt_network(**values: Any) -> NetworkConfig:
    return tap_network(backend=NetworkBackend.PASST, tap="", allow=(UPLINK_ADDRESS,), **values)


@pytest.fixture
def namespace() -> Iterator[None]:
    with net_kit.namespace():
        yield


@pytest.fixture
def uplink(namespace: None) -> None:
    """What passt takes for the way to the Internet."""
    make_tap(UPLINK, f"{UPLINK_ADDRESS}/24")
    ip("route", "add", "default", "via", "198.51.100.2", "dev", UPLINK)


class Guest(Driver):
    """A guest that knows ARP and no more, its device, the back end and an event loop around
    them.
    """

    def __init__(self, network: NetworkConfig) -> None:
        self.loop = EventLoop()
        self.link = Link(network, self.loop)
        self.backend = self.link.backend
        if network.tap:
            wait_until_up(network.tap)
        super().__init__(self.link.net)
        self.start()
        self.post(BUFFERS)
        self.loop.call_later(DEADLINE_S, self._too_late)

    def _too_late(self) -> None:
        raise AssertionError("what the test waits for did not come")

    def post(self, count: int) -> None:
        for _ in range(count):
            self.queues[RECEIVE].offer([Buffer(room=2000)])
        self.kick(RECEIVE)

    def give(self, frame: bytes) -> None:
        self.queues[TRANSMIT].offer([Buffer(PLAIN_HEADER + frame)])
        self.kick(TRANSMIT)

    def _interrupted(self) -> None:
        """Any interrupt ends the loop's turn."""
        super()._interrupted()
        self.loop.stop()

    def wait_for(self, kind: int) -> bytes:
        """The next frame of that Ethernet type."""
        while True:
            for _, _, data in self.queues[RECEIVE].used():
                if int.from_bytes(data[HEADER.size + 12 : HEADER.size + 14], "big") == kind:
                    return data[HEADER.size :]
            self.turn()

    def turn(self) -> None:
        self.loop._running = True
        self.loop.run()

    def close(self) -> None:
        self.transport.close()
        self.backend.close()
        self.loop.__exit__(None, None, None)


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    made: list[Guest] = []
    yield made
    for guest in made:
        guest.close()


def exchange(guest: Guest, address: str) -> None:
    """UDP to a socket of the host's, and back."""
    guest.give(arp(GATEWAY))
    gateway_mac = guest.wait_for(0x806)[6:12]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        server.settimeout(DEADLINE_S)
        packet = ipv4(address, udp(b"question", destination=server.getsockname()[1]))
        guest.give(ethernet(0x800, packet, destination=gateway_mac))
        data, sender = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", sender)
        frame = guest.wait_for(0x800)
    assert frame[:6] == GUEST_MAC
    assert frame.endswith(b"answer")


@pytest.mark.usefixtures("namespace")
def test_tap_carries_frames_both_ways(guests: list[Guest]) -> None:
    make_tap(TAP, f"{GATEWAY}/16")
    guests.append(Guest(tap_network()))
    exchange(guests[0], GATEWAY)


@pytest.mark.usefixtures("namespace")
def test_a_tap_gives_no_frame_that_is_for_somebody_else(guests: list[Guest]) -> None:
    """Unicast, and groups: not one byte of it is written to the guest's buffers."""
    make_tap(TAP, f"{GATEWAY}/16")
    guests.append(Guest(tap_network()))
    queue = guests[0].queues[RECEIVE]
    theirs = ("020000000006", "01005e000001", "0180c2000000", "333300000002", "3333ff000006")
    ours = (GUEST_MAC.hex(), "ffffffffffff", "333300000001", "3333ff000005")
    with net_kit.packet_socket(TAP) as sender:
        for mac in (*theirs, *ours):
            sender.send(ethernet(0x800, ipv4(GUEST, b"payload " * 100), destination=bytes.fromhex(mac)))
    received: list[bytes] = []
    while len(received) < len(ours):
        guests[0].turn()
        received += [data for _, _, data in queue.used()]
    assert [data[HEADER.size :][:6].hex() for data in received] == list(ours)
    assert not any(b"payload" in queue.ram.get(address, size) for _, places in queue.chains.values() for address, size, _ in places)


@pytest.mark.usefixtures("namespace")
def test_what_was_queued_for_another_driver_is_dropped() -> None:
    make_tap(TAP, f"{GATEWAY}/16")
    with contextlib.closing(Tap(TAP, [GUEST_MAC])) as tap, net_kit.packet_socket(TAP) as sender:
        wait_until_up(TAP)
        for _ in range(3):
            sender.send(ethernet(0x800, ipv4(GUEST), destination=GUEST_MAC))
        tap.set_offloads(0)
        buffer = bytearray(MAX_PACKET)
        assert tap.receive(Batch(buffer)) == 0
        sender.send(ethernet(0x800, ipv4(GUEST), destination=GUEST_MAC))
        assert tap.receive(Batch(buffer)) == HEADER.size + 34
        assert buffer[HEADER.size :].startswith(GUEST_MAC)


@pytest.mark.usefixtures("namespace")
def test_a_frame_that_waited_for_a_buffer_comes_without_another_behind_it(guests: list[Guest]) -> None:
    make_tap(TAP, f"{GATEWAY}/16")
    ip("neighbour", "add", GUEST, "lladdr", GUEST_MAC.hex(":"), "dev", TAP)
    guests.append(Guest(tap_network()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(BUFFERS + 1):
            sender.sendto(bytes([number]), (GUEST, 7))
    received: list[bytes] = []
    while len(received) < BUFFERS:
        guests[0].turn()
        received += [data for _, _, data in guests[0].queues[RECEIVE].used()]
    guests[0].loop.call_later(0.0, lambda: guests[0].post(1))
    guests[0].turn()
    received += [data for _, _, data in guests[0].queues[RECEIVE].used()]
    assert [data[-1] for data in received] == list(range(BUFFERS + 1))


@pytest.mark.usefixtures("uplink")
def test_passt_carries_frames_both_ways(guests: list[Guest]) -> None:
    guests.append(Guest(passt_network()))
    exchange(guests[0], UPLINK_ADDRESS)


@pytest.mark.usefixtures("uplink")
def test_what_is_beyond_a_machines_budget_does_not_leave_it(guests: list[Guest]) -> None:
    guests.append(Guest(passt_network(budget=1000)))
    guests[0].give(arp(GATEWAY))
    gateway_mac = guests[0].wait_for(0x806)[6:12]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((UPLINK_ADDRESS, 0))
        server.settimeout(DEADLINE_S)
        for data in (bytes(1000), b"small"):
            packet = ipv4(UPLINK_ADDRESS, udp(data, destination=server.getsockname()[1]))
            guests[0].give(ethernet(0x800, packet, destination=gateway_mac))
        assert server.recv(2000) == b"small"


@pytest.mark.usefixtures("namespace")
def test_addresses_that_are_denied_are_not_reached(guests: list[Guest]) -> None:
    """A public address among them, which no rule of the filter's own denies."""
    make_tap(TAP, f"{GATEWAY}/16")
    ip("address", "add", "95.216.1.1/32", "dev", "lo")
    guests.append(Guest(tap_network(allow=(), deny=("95.216.1.1", GATEWAY))))
    sniffer = net_kit.packet_socket(TAP)
    with sniffer:
        for address in ("95.216.1.1", GATEWAY, "169.254.169.254", "93.184.215.14"):
            guests[0].give(ethernet(0x800, ipv4(address, udp(b"x"))))
        assert sniffer.recv(2000)[30:34] == net_kit.packed("93.184.215.14")
    assert guests[0].transport.misuse == {Misuse.FILTERED: 3}


@pytest.mark.usefixtures("namespace")
def test_a_tap_that_is_taken_away_takes_the_link_down(guests: list[Guest]) -> None:
    make_tap(TAP, f"{GATEWAY}/16")
    guests.append(Guest(tap_network()))
    guests[0].acknowledge()
    ip("link", "delete", TAP)
    while guests[0].link.net.link_up:
        guests[0].turn()
    assert guests[0].acknowledge() & Interrupt.CONFIG_CHANGE
    guests[0].give(arp(GATEWAY))
    assert len(guests[0].queues[TRANSMIT].used()) == 1


SYN, RST, PUSH, ACK = 2, 4, 8, 16
FIRST, SECOND = 40_000, 40_001
"""The guest's ports."""


def segment(source: int, target: int, number: int, confirmed: int, flags: int, data: bytes = b"") -> bytes:
    """A packet of TCP to the uplink's address (RFC 9293, 3.1)."""
    head = struct.pack("!HHIIBBHHH", source, target, number, confirmed, 5 << 4, flags, 65_000, 0, 0)
    ends = net_kit.packed(GUEST) + net_kit.packed(UPLINK_ADDRESS) + struct.pack("!HH", 6, len(head + data))
    total = net_kit.checksum(ends + head + data + bytes(len(data) % 2))
    return ipv4(UPLINK_ADDRESS, head[:16] + struct.pack("!HH", total, 0) + data, protocol=6)


def receive_segment(guest: Guest) -> tuple[int, int, int]:
    """The guest's port, the number and the flags of the next packet of TCP for it."""
    while (packet := guest.wait_for(0x800)[14:])[9] != 6:
        pass
    port, number, _, _, flags = struct.unpack_from("!HIIBB", packet, 20 + 2)
    return port, number, flags


@pytest.mark.usefixtures("uplink")
def test_connections_do_not_outlast_their_passt(guests: list[Guest]) -> None:
    """As when a machine moves: their other side is told at once, and another passt, which knows
    nothing of them, resets them or, as in Debian 12, gives no answer. New ones are made.
    """
    here, there = Guest(passt_network()), Guest(passt_network())
    guests += [here, there]
    macs = []
    for guest in guests:
        guest.give(arp(GATEWAY))
        macs.append(guest.wait_for(0x806)[6:12])
    with socket.create_server((UPLINK_ADDRESS, 0)) as server:
        server.settimeout(DEADLINE_S)
        port = server.getsockname()[1]
        here.give(ethernet(0x800, segment(FIRST, port, 1000, 0, SYN), destination=macs[0]))
        _, number, flags = receive_segment(here)
        assert flags == SYN | ACK
        for flags, data in ((ACK, b""), (PUSH | ACK, b"question")):
            here.give(ethernet(0x800, segment(FIRST, port, 1001, number + 1, flags, data), destination=macs[0]))
        connection, _ = server.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            assert connection.recv(100) == b"question"
            here.close()
            guests.remove(here)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""
        there.give(ethernet(0x800, segment(FIRST, port, 1009, number + 1, PUSH | ACK, b"more"), destination=macs[1]))
        there.give(ethernet(0x800, segment(SECOND, port, 1000, 0, SYN), destination=macs[1]))
        while (answer := receive_segment(there))[0] == FIRST:
            assert answer[2] & RST
        assert answer[2] == SYN | ACK


@pytest.mark.usefixtures("uplink")
def test_a_passt_that_dies_takes_the_link_down(guests: list[Guest]) -> None:
    guests.append(Guest(passt_network()))
    assert isinstance(guests[0].backend, Passt)
    os.kill(guests[0].backend._pid, signal.SIGKILL)
    while guests[0].link.net.link_up:
        guests[0].turn()
    guests[0].give(arp(GATEWAY))
    assert len(guests[0].queues[TRANSMIT].used()) == 1


@pytest.mark.usefixtures("uplink")
def test_passt_ends_when_its_machine_does(guests: list[Guest]) -> None:
    """As after a kill -9 of the vmm process: all that happens is that our descriptors are
    closed.
    """
    backend = Passt(passt_network(), EventLoop())
    backend._socket.close()
    ended = os.waitid(os.P_PID, backend._pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None and ended.si_status == 0
    backend.close()
    backend._loop.__exit__(None, None, None)


@pytest.mark.usefixtures("namespace")
def test_a_tap_that_cannot_be_used_is_a_typed_error() -> None:
    with pytest.raises(NetworkError, match="no tap interface 'nope'"):
        Tap("nope", [GUEST_MAC])
    with pytest.raises(NetworkError, match="cannot be used"):
        Tap("lo", [GUEST_MAC])
    make_tap(TAP, f"{GATEWAY}/16")
    tap = Tap(TAP, [GUEST_MAC])
    try:
        with pytest.raises(NetworkError, match="busy") as caught:
            Tap(TAP, [GUEST_MAC])
        assert "each needs one of its own" in caught.value.hint
    finally:
        tap.close()


@pytest.mark.usefixtures("namespace")
def test_a_tap_of_another_user_is_refused_to_who_is_not_root() -> None:
    make_tap(TAP, f"{GATEWAY}/16", "user", "65534")
    code = f"from mayfly.vmm.network.tap import Tap; Tap({TAP!r}, [bytes(6)])"
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "NetworkError: the tap interface 'mayfly0' cannot be used: Operation not permitted" in done.stderr


@pytest.mark.usefixtures("uplink")
def test_a_passt_that_does_not_come_up_is_a_typed_error_with_its_reason() -> None:
    with EventLoop() as loop, pytest.raises(NetworkError, match=r"passt did not come up: .*127\.0\.0\.9"):
        Passt(passt_network(addresses=("127.0.0.9/8",)), loop)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("Failed to sandbox process, exiting", "namespaces and pivot_root"),
        ("Couldn't create user namespace: Operation not permitted", "allow user namespaces"),
        ("No external routable interface for IPv4", "default route"),
        ("something else", "passt --foreground"),
    ],
)
def test_the_hint_follows_passts_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, hint: str) -> None:
    program = tmp_path / "passt"
    program.write_text(f'#!/bin/sh\necho "{words}" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with EventLoop() as loop, pytest.raises(NetworkError, match="passt did not come up") as caught:
        Passt(passt_network(), loop)
    assert hint in caught.value.hint


def test_a_passt_that_may_not_be_started_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "passt").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    with EventLoop() as loop, pytest.raises(NetworkError, match="passt cannot be started: Permission denied") as caught:
        Passt(passt_network(), loop)
    assert "first on PATH" in caught.value.hint


def test_a_passt_that_is_not_installed_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with EventLoop() as loop, pytest.raises(NetworkError, match="passt cannot be started") as caught:
        Passt(passt_network(), loop)
    assert "apt-get install passt" in caught.value.hint


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("negotiated", range(8))
def test_any_mix_of_offloads_is_taken(negotiated: int) -> None:
    """Also one that a driver must not negotiate: segments without checksums."""
    features = [feature for bit, feature in enumerate(OFFLOADS) if negotiated >> bit & 1]
    flags = offload_flags(sum(features))
    assert flags == (negotiated if negotiated & 1 else 0)
    make_tap(TAP, f"{GATEWAY}/16")
    tap = Tap(TAP, [GUEST_MAC])
    try:
        tap.set_offloads(sum(features))
    finally:
        tap.close()


@pytest.mark.parametrize(("network", "kind"), [(tap_network(), Tap), (passt_network(), Passt)])
def test_a_device_that_is_connected_to_nothing_negotiates_the_same_and_loses_all(
    guests: list[Guest], network: NetworkConfig, kind: type[Tap | Passt]
) -> None:
    guests.append(Guest(network.disconnected()))
    assert guests[0].backend.offloads == kind.offloads
    guests[0].give(ethernet(0x800, ipv4(PUBLIC, udp(b"lost"))))
    assert guests[0].transport.misuse == {Misuse.FILTERED: 1}


def test_each_offload_has_its_flag() -> None:
    assert OFFLOADS == {NetFeature.GUEST_CSUM: 1, NetFeature.GUEST_TSO4: 2, NetFeature.GUEST_TSO6: 4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tap": ""}, "tap is ''"),
        ({"tap": "a/b"}, "tap is 'a/b'"),
        ({"mac": "01:00:00:00:00:00"}, "mac is"),
        ({"mtu": 100}, "mtu is 100"),
        ({"addresses": ()}, "and an address"),
        ({"addresses": ("10.0.0.1/8", "10.0.0.2/8")}, "at most one"),
        ({"addresses": ("10.0.0.300",)}, "10.0.0.300"),
        ({"gateways": ("fe80::1",)}, "at most one"),
        ({"allow": ("10.0.0.1/8",)}, "host bits"),
        ({"backend": NetworkBackend.PASST, "tap": "", "addresses": ("fd00::1/64",), "gateways": ("fd00::2",)}, "passt needs"),
    ],
)
def test_a_network_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tap_network(**values)
