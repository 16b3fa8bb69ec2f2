"""Put the files of a boot into guest RAM."""

import io
import os

from mayfly.errors import BootError, ConfigError
from mayfly.units import PAGE
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.memory import GuestAddressError, GuestMemory


def open_file(path: str, what: str, hint: str = "") -> io.FileIO:
    """Open a file for reading. Raises ConfigError, which calls it `what`."""
    try:
        return io.FileIO(path)
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}", hint=hint) from error


def read_into(memory: GuestMemory, fd: int, offset: int, address: int, size: int) -> None:
    """Read `size` bytes of a kernel's file to RAM. Raises BootError: no RAM, or short file."""
    try:
        target = memory.slice(address, size)
    except GuestAddressError as error:
        raise BootError(
            f"the kernel does not fit: {size} bytes at {address:#x} are not RAM", hint="give the machine more memory"
        ) from error
    while target:
        count = os.preadv(fd, [target], offset)
        if count == 0:
            raise BootError(f"the kernel file ends {len(target)} bytes too early")
        target, offset = target[count:], offset + count


def map_initrd(mapping: Mapping, fd: int, *, ram: int, kernel_end: int, limit: int) -> tuple[int, int]:
    """Map the initramfs as high below `limit` as it fits; address and size. Raises BootError."""
    size = os.fstat(fd).st_size
    address = (limit - size) // PAGE * PAGE
    if size == 0 or address < kernel_end:
        raise BootError(
            f"the initramfs of {size} bytes does not fit behind the kernel, which ends at {kernel_end:#x}, and below {limit:#x}",
            hint="give the machine more memory" if size else "build the image again: it is empty",
        )
    mapping.overlay_file(address - ram, fd, size)
    return address, size
