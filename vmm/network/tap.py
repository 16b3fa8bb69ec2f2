"""A tap interface as a back end (Linux networking/tuntap.rst, include/uapi/linux/if_tun.h)."""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from mayfly.errors import NetworkError
from mayfly.vmm.devices.virtio.net import Backend
from mayfly.vmm.devices.virtio.packet import HEADER, NetFeature
from mayfly.vmm.kvm.chains import Batch

DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x4004_54CA
TUNSETOFFLOAD = 0x4004_54D0
_TUNSETTXFILTER = 0x4004_54D1
_TUNSETVNETHDRSZ = 0x4004_54D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFREQ = struct.Struct("16sH22x")
_INT = struct.Struct("i")
_FILTER = struct.Struct("HH")  # flags, count; as many MACs follow (struct tun_filter)
_QUEUED = 10_000  # More packets than an interface queues

OFFLOADS = {NetFeature.GUEST_CSUM: 0x01, NetFeature.GUEST_TSO4: 0x02, NetFeature.GUEST_TSO6: 0x04}
"""The flag (TUN_F_CSUM, _TSO4, _TSO6) that each driver's feature allows."""
_TAKES = NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6
"""In the other direction the interface takes whatever a packet's header says."""

_HINTS = {
    errno.EPERM: "make it for the user who runs Mayfly: mayfly network setup",
    errno.EACCES: "make it for the user who runs Mayfly: mayfly network setup",
    errno.EBUSY: "another machine uses it; each needs one of its own",
    errno.EINVAL: "it is no plain tap interface; make one with mayfly network setup",
}


def offload_flags(negotiated: int) -> int:
    """The TUN_F_* flags for a driver's features; segments need checksums."""
    return sum(flag for feature, flag in OFFLOADS.items() if negotiated & feature) if negotiated & NetFeature.GUEST_CSUM else 0


class Tap(Backend):
    """A tap interface that was made before. Packets pass as they are, header included.

    `destinations` are 8 MACs at most (the kernel compares only hashes of more). Frames for others,
    which a bridge may send to all its ports, never reach the guest's memory. Raises NetworkError:
    there is no interface `name`, or it may not be used.
    """

    offloads = _TAKES | sum(OFFLOADS)

    def __init__(self, name: str, destinations: Sequence[bytes]) -> None:
        try:
            socket.if_nametoindex(name)  # the kernel would make an interface that is not there, if this is root
        except OSError as error:
            raise NetworkError(f"there is no tap interface {name!r}", hint="mayfly network setup makes them") from error
        try:
            self.plain_fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NetworkError(f"{DEVICE} cannot be opened: {error.strerror}", hint="modprobe tun; it wants mode 0666") from error
        try:
            fcntl.ioctl(self.plain_fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
            fcntl.ioctl(self.plain_fd, _TUNSETTXFILTER, _FILTER.pack(0, len(destinations)) + b"".join(destinations))
            fcntl.ioctl(self.plain_fd, _TUNSETVNETHDRSZ, _INT.pack(HEADER.size))
            fcntl.ioctl(self.plain_fd, TUNSETOFFLOAD, 0)
        except OSError as error:
            self.close()
            raise NetworkError(
                f"the tap interface {name!r} cannot be used: {error.strerror}", hint=_HINTS.get(error.errno or 0, "")
            ) from error

    def fileno(self) -> int:
        """Readable when there are packets for the guest."""
        return self.plain_fd

    def set_offloads(self, negotiated: int) -> None:
        """Have the interface give what the driver takes; `receive` notices one that is gone.
        What was queued was for another driver, or came before the filter: it is dropped.
        """
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.plain_fd, TUNSETOFFLOAD, offload_flags(negotiated))
            for _ in range(_QUEUED):
                os.read(self.plain_fd, HEADER.size)

    def send(self, packets: Batch, packet: int) -> None:
        """To the host's network. What it refuses (bad header, interface down) is lost."""
        packets.write(packet, self.plain_fd)

    def announce(self, frame: bytes) -> None:
        """Send a frame of our own."""
        with contextlib.suppress(OSError):
            os.write(self.plain_fd, bytes(HEADER.size) + frame)

    def receive(self, buffers: Batch) -> int:
        """See `Backend.receive`."""
        try:
            return buffers.read(self.plain_fd)
        except OSError as error:
            raise EOFError(f"the tap interface is gone: {error.strerror}") from error

    def close(self) -> None:
        """Give the interface back."""
        os.close(self.plain_fd)
        self.plain_fd = -1
