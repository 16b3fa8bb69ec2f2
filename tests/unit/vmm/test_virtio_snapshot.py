"""Devices that are saved and restored at any moment: a driver that notices nothing, and a stream of
which nothing is lost or repeated.
"""

import contextlib
import json
import random
from ipaddress import ip_interface
from typing import Any

import msgspec
import pytest

from mayfly.errors import SnapshotError
from mayfly.vmm.devices.virtio.buffers import scatter
from mayfly.vmm.devices.virtio.console import RECEIVE, TRANSMIT, Console, Control
from mayfly.vmm.devices.virtio.entropy import Entropy
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.mmio import REGION_BYTES, MmioTransport
from mayfly.vmm.devices.virtio.net import Net
from mayfly.vmm.devices.virtio.registers import LIVE, DeviceStatus, Register
from mayfly.vmm.network.filter import PacketFilter
from mayfly.vmm.snapshot.state import Saved
from tests.kit import net_kit
from tests.kit.net_kit import PLAIN_HEADER
from tests.kit.scale import scaled
from tests.kit.virtio_driver import ALL, PLAIN, Buffer, Driver
from tests.unit.vmm.test_virtio_console import NAME, Channel, Guest
from tests.unit.vmm.test_virtio_net import FRAME
from tests.unit.vmm.test_virtio_net import Guest as NetGuest


def move(driver: Driver, device: Any) -> None:
    """Carry the driver's device over to a new one, as a snapshot does: what waited for the event
    loop is lost, memory stays.
    """
    state = json.loads(msgspec.json.encode(driver.transport.save()))
    driver.pending = []
    driver.device = device
    driver.registers = bytearray(REGION_BYTES)
    driver.transport = MmioTransport(device, driver.ram.memory, driver._interrupted, driver.pending.append, memoryview(driver.registers))
    driver.transport.restore(Saved("virtio0", json.dumps(state).encode()))


class Movable(Guest):
    def move(self) -> None:
        room = self.channel.room
        got = self.channel.got
        self.channel = Channel()
        self.channel.room, self.channel.got = room, got
        self.console = Console(NAME, self.channel.sink, self.channel.on_room)
        move(self, self.console)


@pytest.mark.parametrize("features", [ALL, PLAIN])
@pytest.mark.parametrize("seed", range(scaled(200)))
def test_a_stream_goes_on_across_snapshots(seed: int, features: int) -> None:
    chance = random.Random(seed)
    guest = Movable(features)
    guest.say(Control.DEVICE_READY, 1)
    guest.say(Control.PORT_READY, 1)
    guest.say(Control.PORT_OPEN, 1)
    said = heard = written = b""
    for _ in range(60):
        match chance.choice(["say", "take", "post", "write", "move", "run"]):
            case "say" if len(guest.queues[TRANSMIT].free) > 2:
                data = chance.randbytes(chance.randint(1, 3000))
                guest.queues[TRANSMIT].offer([Buffer(data)])
                said += data
                guest.channel.room = chance.choice([0, 100, 1 << 30])
                guest.kick(TRANSMIT)
            case "take":
                guest.channel.room = chance.choice([1, 1000, 1 << 30])
                guest.console.resume()
            case "post" if guest.queues[RECEIVE].free:
                guest.post(1, room=chance.randint(1, 2000))
            case "write":
                data = chance.randbytes(chance.randint(1, 3000))
                count = guest.console.receive(lambda views, data=data: scatter(data, views))  # type: ignore[misc]
                written += data[: count or 0]
            case "move":
                guest.move()
            case "run":
                guest.run()
        heard += b"".join(data for _, _, data in guest.queues[RECEIVE].used())
        guest.queues[TRANSMIT].used()
    guest.move()
    guest.run()
    guest.channel.room = 1 << 30
    guest.console.resume()
    heard += b"".join(data for _, _, data in guest.queues[RECEIVE].used())
    guest.queues[TRANSMIT].used()
    assert bytes(guest.channel.got) == said
    assert heard == written
    assert len(guest.queues[TRANSMIT].free) == 64
    assert not guest.transport.misuse


def test_packets_that_had_no_room_leave_after_the_snapshot_and_a_buffer_that_waited_is_filled() -> None:
    guest = NetGuest()
    guest.post(2000)
    assert guest.net.receive()
    guest.backend.room = 1
    packets = [PLAIN_HEADER + FRAME + bytes([number]) for number in range(3)]
    guest.give(*packets)
    assert guest.backend.sent == packets[:1]
    after = NetGuest()
    move(guest, after.net)
    guest.run()
    assert after.backend.sent == packets[1:]
    after.backend.waiting.append(PLAIN_HEADER + FRAME)
    after.net.receive()
    assert [len(data) for data in guest.take()] == [len(PLAIN_HEADER + FRAME)]
    assert not guest.transport.misuse


def test_a_net_device_goes_on_as_another_machines() -> None:
    """With the new MAC, filter and back end, which learns what the driver takes; what is sent from
    the old MAC goes nowhere.
    """
    driver = NetGuest()
    old, new = net_kit.GUEST_MAC, bytes.fromhex("020000000006")
    network = net_kit.MemoryBackend()
    own = PacketFilter(new, [ip_interface(f"{net_kit.GUEST}/16")], [net_kit.GATEWAY], [], [])
    device = Net(new, 9000, network, own.may_leave, on_room=lambda: None, on_full=lambda: None)
    move(driver, device)
    assert bytes(driver.transport.read(Register.CONFIG + at, 1) for at in range(6)) == new
    assert network.negotiated == device.negotiated != 0
    packet = net_kit.ipv4(net_kit.PUBLIC, net_kit.udp(b"who?"))
    frames = [PLAIN_HEADER + net_kit.ethernet(0x800, packet, source=mac) for mac in (old, new)]
    driver.give(*frames)
    assert network.sent == frames[1:]
    assert driver.transport.misuse == {Misuse.FILTERED: 1}


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_a_driver_in_the_middle_of_its_start_goes_on(steps: int) -> None:
    driver = Driver(Entropy(bytes, lambda: 0.0, lambda _: None))
    path = [DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER, DeviceStatus.FEATURES_OK, DeviceStatus.DRIVER_OK]
    for number, status in enumerate(path):
        if number == steps:
            move(driver, Entropy(bytes, lambda: 0.0, lambda _: None))
        if status is DeviceStatus.FEATURES_OK:
            driver.write(Register.DRIVER_FEATURES_SEL, 1)
            driver.write(Register.DRIVER_FEATURES, 1)
        driver.step(status)
    assert driver.read(Register.STATUS) == LIVE
    assert not driver.transport.misuse


def test_what_was_not_acknowledged_is_raised_again_and_what_was_kicked_is_seen() -> None:
    driver = Driver(Entropy(lambda count: b"r" * count, lambda: 0.0, lambda _: None))
    driver.start()
    driver.queues[0].offer([Buffer(room=16)])
    driver.write(Register.QUEUE_NOTIFY, 0)
    move(driver, Entropy(lambda count: b"s" * count, lambda: 0.0, lambda _: None))  # before the event loop saw the kick
    driver.run()
    assert driver.interrupts == 1
    move(driver, Entropy(bytes, lambda: 0.0, lambda _: None))  # before the driver acknowledged
    assert driver.interrupts == 2
    assert [data for _, _, data in driver.queues[0].used()] == [b"s" * 16]


def test_a_device_that_needs_a_reset_still_does() -> None:
    driver = Driver(Entropy(bytes, lambda: 0.0, lambda _: None))
    driver.start()
    driver.queues[0].offered = 500
    driver.queues[0].write_available(0)
    driver.kick(0, always=True)
    assert driver.read(Register.STATUS) & DeviceStatus.DEVICE_NEEDS_RESET
    move(driver, Entropy(bytes, lambda: 0.0, lambda _: None))
    assert driver.read(Register.STATUS) & DeviceStatus.DEVICE_NEEDS_RESET
    driver.write(Register.STATUS, 0)
    assert driver.read(Register.STATUS) == 0


def test_a_queue_outside_memory_is_refused() -> None:
    driver = Driver(Entropy(bytes, lambda: 0.0, lambda _: None))
    driver.start()
    state = json.loads(msgspec.json.encode(driver.transport.save()))
    state["queues"][0]["addresses"] = [0, 1 << 8, 0, 0, 0, 0]
    fresh = Driver(Entropy(bytes, lambda: 0.0, lambda _: None))
    with pytest.raises(SnapshotError, match=r"virtio0: queues\[0\] has addresses"):
        fresh.transport.restore(Saved("virtio0", json.dumps(state).encode()))


DAMAGED: dict[str, tuple[Any, ...]] = {
    "status": (-1, 1 << 8, 2, 16, 0x30, 1.0, True, "7", None, [], {}),
    "interrupt_status": (4, -1, None),
    "selected": ([0, 0], [0, 0, 1 << 32], [0, 0, "0"], {}),
    "driver_features": ([1 << 32, 1], [0, 0], [1 << 5, 1], [0, -1], [1], 0),
    "generation": (1 << 32, 0.5),
    "queues": ([], [{}] * 9, [7]),
    "device": ([], None),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_each_field_of_a_device_is_checked(name: str) -> None:
    driver = Driver(Console(NAME, lambda views: 0, lambda: None))
    driver.start()
    whole = json.loads(msgspec.json.encode(driver.transport.save()))
    for value in DAMAGED[name]:
        fresh = Driver(Console(NAME, lambda views: 0, lambda: None))
        with pytest.raises(SnapshotError, match=rf"virtio0.*{name}"):
            fresh.transport.restore(Saved("virtio0", json.dumps({**whole, name: value}).encode()))
    fresh = Driver(Console(NAME, lambda views: 0, lambda: None))
    with pytest.raises(SnapshotError, match=f"virtio0.*missing.*{name}"):
        fresh.transport.restore(Saved("virtio0", json.dumps({key: value for key, value in whole.items() if key != name}).encode()))


@pytest.mark.parametrize("seed", range(scaled(300)))
def test_no_state_does_anything_but_raise_a_snapshot_error(seed: int) -> None:
    """Values of all kinds in places of all kinds: they work, or are a typed error."""
    chance = random.Random(seed)
    driver = Driver(Console(NAME, lambda views: 0, lambda: None))
    driver.start()
    state = json.loads(msgspec.json.encode(driver.transport.save()))
    for _ in range(chance.randint(1, 3)):
        place: Any = state
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = chance.choice(keys)
            if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.2:
                break
            place = place[key]
        place[key] = chance.choice([-1, 0, 1, 3, 1 << 16, 1 << 40, 1 << 70, 0.5, True, None, "x", [], [1], {}])
    fresh = Driver(Console(NAME, lambda views: 0, lambda: None))
    with contextlib.suppress(SnapshotError):
        fresh.transport.restore(Saved("virtio0", json.dumps(state).encode()))
        for queue in range(4):
            fresh.transport.notify(queue)
    fresh.transport.close()
