"""A slow split virtqueue written from the specification's text (virtio 1.2, 2.7), to compare the
real one with.

No views, no mirrors, no batches: every number is read from memory where the text says so, one byte
string at a time, and what happens "for each entry" is done for each entry. It expects a driver that
keeps the rules."""

import struct


class ModelQueue:
    """The device's side. `ram` starts at guest address `base`."""

    def __init__(self, ram: bytearray, base: int, size: int, descriptors: int, available: int, used: int, *, event_idx: bool) -> None:
        self.ram, self.base, self.size, self.event_idx = ram, base, size, event_idx
        self.descriptors, self.available, self.used = descriptors, available, used
        self.last_avail = 0
        self.waiting: list[tuple[int, int]] = []

    def read(self, address: int, count: int) -> bytes:
        return bytes(self.ram[address - self.base : address - self.base + count])

    def write(self, address: int, data: bytes) -> None:
        for offset, byte in enumerate(data):
            self.ram[address - self.base + offset] = byte

    def le16(self, address: int) -> int:
        low, high = self.read(address, 2)
        return low + 256 * high

    def take(self) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]] | None:
        """2.7.6: the head at last_avail, unless the driver's idx is there; 2.7.5: then along NEXT,
        into a table where INDIRECT says so.
        """
        if self.le16(self.available + 2) == self.last_avail % 65536:
            return None
        head = self.le16(self.available + 4 + 2 * (self.last_avail % self.size))
        self.last_avail += 1
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        table, index = self.descriptors, head
        while True:
            address, length, flags, following = struct.unpack("<QIHH", self.read(table + 16 * index, 16))
            if flags & 4:
                table, index = address, 0
                continue
            (writable if flags & 2 else readable).append((address, length))
            if not flags & 1:
                return head, readable, writable
            index = following

    def give(self, head: int, length: int) -> None:
        self.waiting.append((head, length))

    def expose(self) -> bool:
        """2.7.8: element, then idx, one by one. 2.7.7.2: interrupt if an element's place was
        used_event, or the flags do not forbid it.
        """
        interrupt = False
        for head, length in self.waiting:
            index = self.le16(self.used + 2)
            self.write(self.used + 4 + 8 * (index % self.size), struct.pack("<II", head, length))
            self.write(self.used + 2, struct.pack("<H", (index + 1) % 65536))
            if self.event_idx:
                interrupt |= self.le16(self.available + 4 + 2 * self.size) == index
            else:
                interrupt |= self.le16(self.available) != 1
        self.waiting.clear()
        return interrupt

    def want_kicks(self) -> None:
        """2.7.10: avail_event is the index of the next entry that the device wants to hear of;
        without it the flags say so.
        """
        if self.event_idx:
            self.write(self.used + 4 + 8 * self.size, struct.pack("<H", self.last_avail % 65536))
        else:
            self.write(self.used, b"\0\0")

    def want_no_kicks(self) -> None:
        if not self.event_idx:
            self.write(self.used, b"\1\0")
