"""Invariant: whatever a guest writes, no exception, no access outside its RAM, no kick over 100 ms
of CPU, no growth over 1 MiB.

A structure-aware fuzzer of the virtio devices. It mostly does what a driver does, with something
wrong here and there, so that it comes far into the devices; a wild register access or ring write
comes in between. Everything follows from the seed.

    python -m tests.kit.virtio_fuzzer --device console --seconds 600 [--seed N]
"""

import argparse
import contextlib
import ctypes
import random
import struct
import time
from collections.abc import Callable
from ipaddress import ip_interface

from mayfly.vmm.devices.virtio.console import Console, Control
from mayfly.vmm.devices.virtio.device import VirtioDevice
from mayfly.vmm.devices.virtio.entropy import Entropy
from mayfly.vmm.devices.virtio.mmio import REGION_BYTES
from mayfly.vmm.devices.virtio.net import Net
from mayfly.vmm.devices.virtio.packet import HEADER, MAX_PACKET
from mayfly.vmm.devices.virtio.registers import LIVE, Register
from mayfly.vmm.kvm.chains import Batch
from mayfly.vmm.memory import GuestMemory
from mayfly.vmm.network.filter import PacketFilter
from tests.kit.net_kit import (
    BROADCAST,
    GATEWAY,
    GATEWAY6,
    GUEST,
    GUEST6,
    GUEST_MAC,
    HOST_MAC,
    PLAIN_HEADER,
    PUBLIC,
    PUBLIC6,
    MemoryBackend,
    SocketBackend,
    Wired,
    arp,
    discovery,
    ethernet,
    ipv4,
    ipv6,
    tcp,
    udp,
)
from tests.kit.virtio_driver import ALL, PLAIN, Buffer, Driver, Ram, give

RAM_BYTES = 1 << 19
CHAIN_BYTES = 80_000  # More than one has
KICK_LIMIT_S = 0.1
NASTY_NUMBERS = (0, 1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
NASTY_ADDRESSES = (0, 1, 0x1000, 0xFFFF_FFFF, 1 << 32, 1 << 63, (1 << 64) - 1, (1 << 64) - 16, (1 << 64) - 4096)


class WatchedMemory(GuestMemory):
    """Guest RAM that checks on its own that each slice handed out lies inside."""

    limits: tuple[int, int] = (0, 0)

    def slice(self, address: int, length: int) -> memoryview:
        view = super().slice(address, length)
        low, high = self.limits
        assert low <= address <= address + length <= high, f"[{address:#x}, +{length:#x}) was handed out"
        assert len(view) == length
        return view


class Fuzzer:
    """One device with a guest that follows `seed`. Subclasses know the device, and what the host
    does with it in the meantime.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.chains = 0
        self.slowest = 0.0
        ram = Ram(RAM_BYTES, memory_type=WatchedMemory)
        assert isinstance(ram.memory, WatchedMemory)
        ram.memory.limits = (ram.base, ram.base + RAM_BYTES)
        self.driver = Driver(self.make_device(), ram)
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (60, self.offer),
            (6, self.garble_descriptor),
            (3, self.garble_ring),
            (3, self.set_event),
            (4, self.access_register),
            (1, self.misconfigure),
            (25, self.act_as_host),
        ]
        self.start()

    def make_device(self) -> VirtioDevice:
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds."""

    def act_as_host(self) -> None:
        raise NotImplementedError

    def payload(self, index: int) -> list[Buffer]:
        """What a driver might offer on queue `index`."""
        raise NotImplementedError

    def start(self) -> None:
        """A reset and a proper start, so that the fuzzing comes further than the first refusal."""
        self.driver.ram.rewind(0)
        sizes = [self.rng.choice((greatest, greatest // 2, 1)) for greatest in self.driver.device.queue_sizes]
        self.driver.start(self.rng.choice((ALL, ALL, PLAIN)), sizes)
        self.arena = self.driver.ram.mark()
        self.greet()
        self.run_loop()

    def greet(self) -> None:
        """What a driver says first, if it says anything."""

    def step(self) -> None:
        [action] = self.rng.choices([action for _, action in self.actions], [weight for weight, _ in self.actions])
        action()
        self.run_loop()
        if self.driver.read(Register.STATUS) != LIVE and self.rng.random() < 0.3:
            self.start()

    def timed(self, call: Callable[[], object]) -> None:
        began = time.thread_time()
        call()
        self.slowest = max(self.slowest, time.thread_time() - began)

    def run_loop(self) -> None:
        """The event loop's part, for some rounds: a guest cannot keep it busy for longer than a
        round at a time.
        """
        for _ in range(8):
            if not self.driver.pending:
                return
            index = self.driver.pending.pop(0)
            self.timed(lambda: self.driver.transport.notify(index))  # noqa: B023 (called at once)
        self.driver.pending.clear()

    def number(self) -> int:
        return self.rng.choice(NASTY_NUMBERS) if self.rng.random() < 0.5 else self.rng.randint(0, 0xFFFF_FFFF)

    def address(self) -> int:
        ram = self.driver.ram
        edge = ram.base + RAM_BYTES - self.rng.choice((0, 1, 8, 16, 4096))
        return self.rng.choice((edge, ram.base + self.rng.randrange(RAM_BYTES), self.rng.choice(NASTY_ADDRESSES)))

    def pick_queue(self) -> int:
        return self.rng.randrange(len(self.driver.queues))

    def offer(self) -> None:
        """A chain as a driver makes it. Where the ring is full the host has its turn instead, but
        for a driver that miscounts.
        """
        index = self.pick_queue()
        queue = self.driver.queues[index]
        outstanding = (queue.offered - queue.ram.get16(queue.used_ring + 2)) & 0xFFFF
        if outstanding >= queue.size and self.rng.random() < 0.99:
            self.timed(lambda: self.driver.write(Register.QUEUE_NOTIFY, index))
            self.act_as_host()
            return
        if len(queue.free) < 4 or self.driver.ram.mark() > len(self.driver.ram.bytes) - CHAIN_BYTES:
            self.take_back()
        if len(queue.free) < min(4, queue.size):
            queue.free = list(range(queue.size))  # the guest has lost count: it uses what is still out
        if self.driver.ram.mark() > len(self.driver.ram.bytes) - CHAIN_BYTES:
            self.driver.ram.rewind(self.arena)
        buffers = self.payload(index)[: len(queue.free)]
        queue.offer(buffers, indirect=self.rng.random() < 0.3)
        self.chains += self.driver.read(Register.STATUS) == LIVE
        if self.rng.random() < 0.05:
            self.garble_descriptor()
        if self.rng.random() < 0.7:
            self.timed(lambda: self.driver.write(Register.QUEUE_NOTIFY, index))

    def take_back(self) -> None:
        for queue in self.driver.queues:
            queue.chains.clear()
            queue.free = list(range(queue.size))
            queue.seen = queue.ram.get16(queue.used_ring + 2)

    def garble_descriptor(self) -> None:
        """One field of one descriptor, in the table or in an indirect one."""
        queue = self.driver.queues[self.pick_queue()]
        in_table = self.rng.random() < 0.8
        table = queue.descriptors if in_table else self.driver.ram.base + self.rng.randrange(RAM_BYTES // 16) * 16
        at = table + 16 * self.rng.randrange(queue.size)
        if at + 16 > self.driver.ram.base + RAM_BYTES:
            return
        address, length, flags, following = struct.unpack("<QIHH", self.driver.ram.get(at, 16))
        field = self.rng.randrange(4)
        address = self.address() if field == 0 else address
        length = self.number() & 0xFFFF_FFFF if field == 1 else length
        flags = self.rng.randrange(8) if field == 2 else flags
        following = self.number() & 0xFFFF if field == 3 else following
        self.driver.ram.put(at, struct.pack("<QIHH", address, length, flags, following))

    def garble_ring(self) -> None:
        """A head, or the available index: mostly by little, which is no nonsense yet."""
        queue = self.driver.queues[self.pick_queue()]
        if self.rng.random() < 0.6:
            entry = self.rng.randrange(queue.size)
            head = self.rng.randrange(queue.size) if self.rng.random() < 0.9 else self.number()
            self.driver.ram.put16(queue.available + 4 + 2 * entry, head)
        else:
            by = self.rng.choice((1, 1, 2, -1, queue.size, queue.size + 1, 0x8000))
            queue.offered = (queue.offered + by) & 0xFFFF
            self.driver.ram.put16(queue.available + 2, queue.offered)

    def set_event(self) -> None:
        queue = self.driver.queues[self.pick_queue()]
        self.driver.ram.put16(queue.available + self.rng.choice((0, 4 + 2 * queue.size)), self.number())

    def access_register(self) -> None:
        """Any register, any size; a queue's size and the features are among those that need their
        own status, so sometimes that first.
        """
        if self.rng.random() < 0.1:
            self.driver.write(Register.STATUS, 0)
            for status in (1, 3, 11)[: self.rng.randint(0, 3)]:
                self.driver.write(Register.STATUS, status)
        register = int(self.rng.choice(list(Register)))
        offset = register if self.rng.random() < 0.8 else self.rng.randrange(REGION_BYTES)
        size = self.rng.choice((4, 4, 4, 1, 2, 8))
        if self.rng.random() < 0.4:
            self.timed(lambda: self.driver.transport.read(offset, size))
        else:
            value = self.number() & (1 << 8 * size) - 1
            self.timed(lambda: self.driver.transport.write(offset, size, value))

    def misconfigure(self) -> None:
        """A start with queues in odd places: over each other, at the end of RAM, nowhere."""
        driver = self.driver
        driver.negotiate(ALL | driver.device.features)
        for index, queue in enumerate(driver.queues):
            saved = queue.descriptors, queue.available, queue.used_ring
            if self.rng.random() < 0.5:
                queue.descriptors, queue.available, queue.used_ring = (self.address() & ~15 for _ in range(3))
            driver.set_up_queue(index, queue)
            queue.descriptors, queue.available, queue.used_ring = saved
        driver.write(Register.STATUS, 15)
        for index in range(len(driver.queues)):
            driver.write(Register.QUEUE_NOTIFY, index)
        self.run_loop()
        self.start()


class ConsoleFuzzer(Fuzzer):
    """The host takes as much as it likes, resumes, and sends."""

    def make_device(self) -> VirtioDevice:
        self.console = Console("mayfly.channel", self.sink, lambda: None)
        return self.console

    def greet(self) -> None:
        if self.rng.random() < 0.7:
            self.driver.queues[3].offer([Buffer(struct.pack("<IHH", 0, Control.PORT_OPEN, 1))])
            self.driver.write(Register.QUEUE_NOTIFY, 3)

    def sink(self, views: list[memoryview]) -> int:
        limit = self.rng.choice((0, 1, 100, 1 << 16, 1 << 16))
        taken = 0
        for view in views:
            taken += len(bytes(view[: limit - taken]))
        return taken

    def act_as_host(self) -> None:
        choice = self.rng.random()
        if choice < 0.4:
            self.timed(self.console.resume)
        elif choice < 0.95:
            data = bytes(self.rng.choice((1, 100, 4096, 100_000)))
            self.timed(lambda: give(self.console, data))

    def payload(self, index: int) -> list[Buffer]:
        rng = self.rng
        if index == 3:
            event = rng.choice((*Control, rng.randint(0, 0xFFFF)))
            port = rng.choice((0, 0, 0, 1, 0xFFFF_FFFF))
            message = struct.pack("<IHH", port, event, rng.choice((1, 1, 0, 0xFFFF)))
            return [Buffer(message if rng.random() < 0.9 else message[: rng.randint(1, 7)])]
        if index == 1:
            return [Buffer(bytes(rng.randint(1, 500))) for _ in range(rng.randint(1, 4))]
        return [Buffer(room=rng.choice((1, 8, 64, 4096))) for _ in range(rng.randint(1, 3))]


class EntropyFuzzer(Fuzzer):
    """The host's clock goes on by leaps; timers fire when they are due, and when they are not."""

    def make_device(self) -> VirtioDevice:
        self.now = 0.0
        self.timers: list[float] = []
        self.entropy = Entropy(self.rng.randbytes, lambda: self.now, self.timers.append)
        return self.entropy

    def act_as_host(self) -> None:
        self.now += self.rng.choice((0.0, 0.001, 1.0, 10.0))
        assert len(self.timers) <= 1
        if self.timers and self.rng.random() < 0.7:
            self.timers.pop()
            self.timed(self.entropy.resume)

    def payload(self, index: int) -> list[Buffer]:
        rooms = [Buffer(room=self.rng.choice((1, 64, 4096, 8192))) for _ in range(self.rng.randint(1, 3))]
        return [Buffer(b"read me"), *rooms] if self.rng.random() < 0.2 else rooms


class WatchedBackend(MemoryBackend):
    """Checks on its own that each piece of a packet lies in guest RAM, or is a copy."""

    limits: tuple[int, int] = (0, 0)
    own: Batch | None = None  # the device's, for a packet that waits

    def send(self, packets: Batch, packet: int) -> None:
        self.watch(packets, packet, copied=1)
        super().send(packets, packet)

    def receive(self, buffers: Batch) -> int:
        for chain in range(buffers.done, buffers.count) if buffers is not self.own else ():
            self.watch(buffers, chain, copied=0)
        return super().receive(buffers)

    def watch(self, batch: Batch, chain: int, copied: int) -> None:
        low, high = self.limits
        for address, length in batch.places(chain)[copied:]:
            assert low <= address <= address + length <= high, f"[{address:#x}, +{length:#x}) is outside guest RAM"


class NetFuzzer(Fuzzer):
    """The guest sends what it may and what it may not, the host has packets of any size, and room
    or not: what leaves is the guest's.
    """

    def make_device(self) -> VirtioDevice:
        self.backend = WatchedBackend()
        addresses = [ip_interface(f"{GUEST}/16"), ip_interface(f"{GUEST6}/64")]
        self.filter = PacketFilter(GUEST_MAC, addresses, [GATEWAY, GATEWAY6], [], [])
        self.net = Net(GUEST_MAC, 1500, self.backend, self.filter.may_leave, on_room=lambda: None, on_full=lambda: None)
        return self.net

    def greet(self) -> None:
        at = ctypes.addressof(ctypes.c_char.from_buffer(self.driver.ram.bytes))
        self.backend.limits, self.backend.own = (at, at + RAM_BYTES), self.net._packet

    def act_as_host(self) -> None:
        for packet in self.backend.sent:
            assert packet[HEADER.size + 6 : HEADER.size + 12] == GUEST_MAC
            assert self.filter.may_leave(as_the_kernel_completes(packet, self.rng))
        self.backend.sent.clear()
        self.backend.room = self.rng.choice((0, 1, 100, 1000))
        for _ in range(self.rng.choice((0, 1, 5))):
            size = self.rng.choice((0, 1, 60, 1500, 65000))
            destination = self.rng.choice((GUEST_MAC, BROADCAST, HOST_MAC))
            self.backend.waiting.append(PLAIN_HEADER + ethernet(0x800, bytes(size), source=HOST_MAC, destination=destination))
        while len(self.backend.waiting) > 8:
            self.backend.waiting.popleft()
        self.timed(self.rng.choice((self.net.resume, self.net.receive)))

    def payload(self, index: int) -> list[Buffer]:
        rng = self.rng
        if index == 0:
            if rng.random() < 0.1:  # slivers: as many pieces as a chain may have
                return [Buffer(room=1) for _ in range(rng.randint(1, 60))]
            if rng.random() < 0.1:  # enough for any packet
                return [Buffer(room=MAX_PACKET)]
            return [Buffer(room=rng.choice((1, 12, 100, 1526, 1526, 4096))) for _ in range(rng.randint(1, 3))]
        frame = bytearray(rng.choice(FRAMES))
        start, offset = rng.choice(CHECKSUM_FIELDS) if rng.random() < 0.7 else (self.number() & 0xFFFF, rng.choice((0, 2, 6, 16)))
        flags, kind = rng.choice((0, 0, 1, 1, 0xFF)), rng.choice((0, 0, 0, 1, 1, 3, 4, 0x81))
        segment = rng.choice((1400, 48, self.number() & 0xFFFF))
        header = HEADER.pack(flags, kind, rng.choice((0, 34, self.number() & 0xFFFF)), segment, start, offset, rng.choice((0, 0xFFFF)))
        for _ in range(rng.choice((0, 0, 1, 3))):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        packet = header + bytes(frame) + bytes(rng.choice((0, 0, 100, 3000)))
        cut = rng.choice((len(packet), len(packet), 12, rng.randint(1, len(packet))))
        return [Buffer(part) for part in (packet[:cut], packet[cut:]) if part]


class PlainNetFuzzer(NetFuzzer):
    """The same where packets as allowed ones before take no way through Python."""

    wired: Wired | None = None

    def make_device(self) -> VirtioDevice:
        super().make_device()
        self.socket = SocketBackend()
        self.net = Net(GUEST_MAC, 1500, self.socket, self.filter.may_leave, on_room=lambda: None, on_full=lambda: None)
        return self.net

    def start(self) -> None:
        if self.wired is None:
            self.wired = Wired(self.driver, self.net, self.socket)
        super().start()

    def run_loop(self) -> None:
        assert self.wired is not None
        for _ in range(8):
            self.timed(self.wired.turn)
        self.driver.pending.clear()

    def act_as_host(self) -> None:
        self.backend.sent += self.socket.sent
        self.socket.sent.clear()
        super().act_as_host()
        while self.backend.waiting:
            with contextlib.suppress(BlockingIOError):
                self.socket.waiting.append(self.backend.waiting.popleft())

    def close(self) -> None:
        if self.wired is not None:
            self.wired.close()
        self.socket.close()


def as_the_kernel_completes(packet: bytes, rng: random.Random) -> bytes:
    """The frame of a packet that left, with any checksum where its header wants one."""
    flags, _, _, _, start, offset, _ = HEADER.unpack_from(packet)
    frame = bytearray(packet[HEADER.size :])
    if flags:
        assert start + offset + 2 <= len(frame)
        frame[start + offset : start + offset + 2] = rng.randbytes(2)
    return bytes(frame)


CHECKSUM_FIELDS = ((34, 6), (34, 16), (54, 6), (54, 16), (54, 2))
FRAMES = (
    ethernet(0x800, ipv4(PUBLIC, tcp(b"x" * 100), protocol=6)),
    ethernet(0x86DD, ipv6(PUBLIC6, tcp(b"x" * 100), following=6)),
    ethernet(0x800, ipv4(PUBLIC, udp(b"x"))),
    ethernet(0x800, ipv4(PUBLIC, bytes(20), protocol=6)),
    ethernet(0x800, ipv4(GATEWAY, udp(b"x"))),
    ethernet(0x86DD, ipv6(PUBLIC6, udp(b"x"))),
    ethernet(0x86DD, ipv6(PUBLIC6, bytes(16), following=44)),
    arp(GATEWAY),
    discovery(135, GATEWAY6, option=b"\x01\x01" + GUEST_MAC),
)

FUZZERS: dict[str, type[Fuzzer]] = {"console": ConsoleFuzzer, "entropy": EntropyFuzzer, "net": NetFuzzer, "plain-net": PlainNetFuzzer}


def main() -> None:
    """Fuzz one device after another seed until the time is over; a failure names its seed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", choices=sorted(FUZZERS), required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    end, seed, chains = time.monotonic() + arguments.seconds, arguments.seed, 0
    while time.monotonic() < end:
        print(f"seed {seed}", flush=True)
        with contextlib.closing(FUZZERS[arguments.device](seed)) as fuzzer:
            while fuzzer.chains < 5000:
                fuzzer.step()
        if fuzzer.slowest > KICK_LIMIT_S:
            raise SystemExit(f"seed {seed}: a kick took {fuzzer.slowest:.3f} s")
        chains += fuzzer.chains
        seed += 1
    print(f"{chains} chains")


if __name__ == "__main__":
    main()
