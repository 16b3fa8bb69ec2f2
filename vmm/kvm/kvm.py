"""KVM's descriptors (Linux Documentation/virt/kvm/api.rst), each owned by one object."""

import errno
import os
from enum import IntEnum
from typing import Any, Self

from mayfly.errors import HostError, KvmError, KvmUnavailableError
from mayfly.vmm.kvm._kvm import ffi, lib
from mayfly.vmm.kvm.mapping import mmap

DEVICE = "/dev/kvm"


class ExitReason(IntEnum):
    """Why KVM_RUN came back (KVM_EXIT_* in <linux/kvm.h>)."""

    IO = 2
    HLT = 5
    MMIO = 6
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24


EVENT_SHUTDOWN, EVENT_RESET = 1, 2  # What SYSTEM_EVENT asks for (KVM_SYSTEM_EVENT_* in <linux/kvm.h>)


def ioctl_number(name: str) -> int | None:
    """The number of the ioctl `name` ("KVM_RUN"); none where this architecture has no such."""
    return getattr(lib, name, None)


class _Descriptor:
    """Owns one file descriptor, closed once. All its ioctls raise KvmError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Close the descriptor; harmless the second time."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def ioctl(self, name: str, argument: Any = 0) -> int:
        """Call the ioctl `name` ("KVM_CREATE_VM") with a number or cffi's pointer; its result."""
        result = lib.ioctl(self._fd, getattr(lib, name), ffi.cast("void *", argument))
        if result < 0:
            raise KvmError(name, ffi.errno)
        return int(result)

    def exchange(self, name: str, kind: str, fields: Any = None) -> Any:
        """Call the ioctl `name` with a new `kind` ("struct kvm_regs"); what it is afterwards."""
        struct = ffi.new(f"{kind} *", fields)
        self.ioctl(name, struct)
        return struct

    def exchange_bytes(self, name: str, kind: str, value: bytes, **fields: int) -> bytes:
        """As `exchange`, where the field `addr` points to `value`; its new value."""
        cell = bytearray(value)  # an array that cffi makes of bytes would have one more, as a text in C
        self.exchange(name, kind, {**fields, "addr": int(ffi.cast("uintptr_t", ffi.from_buffer(cell)))})
        return bytes(cell)


class Kvm(_Descriptor):
    """/dev/kvm itself. Raises KvmUnavailableError: missing, not allowed, or of another version."""

    def __init__(self) -> None:
        try:
            super().__init__(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            hint = {
                errno.ENOENT: "load the module (modprobe kvm_intel or kvm_amd) and switch virtualisation on in the firmware",
                errno.EACCES: 'join the kvm group (sudo usermod -aG kvm "$USER"), then log in again',
                errno.EPERM: "the container or sandbox forbids /dev/kvm: pass the device into it",
            }.get(error.errno or 0, "run `mayfly doctor`")
            raise KvmUnavailableError(f"opening {DEVICE}", error.errno or 0, hint=hint) from error
        version = self.ioctl("KVM_GET_API_VERSION")
        if version != lib.KVM_API_VERSION:
            self.close()
            raise KvmUnavailableError(f"KVM_GET_API_VERSION (it says {version})", errno.ENOTSUP, hint="use a Linux kernel of this century")

    def check_extension(self, name: str) -> int:
        """KVM_CHECK_EXTENSION of the capability `name` ("KVM_CAP_IRQFD"); 0 where missing."""
        return self.ioctl("KVM_CHECK_EXTENSION", getattr(lib, name))

    def create_vm(self) -> "Vm":
        """Make an empty virtual machine, bound to this process's address space (api.rst 4.2)."""
        return Vm(self, self.ioctl("KVM_CREATE_VM"))


class Vm(_Descriptor):
    """One virtual machine of `kvm`."""

    def __init__(self, kvm: Kvm, fd: int) -> None:
        super().__init__(fd)
        self.kvm = kvm
        self._devices: list[Device] = []

    def set_memory(self, slot: int, guest_address: int, host_address: int, size: int, *, read_only: bool = False) -> None:
        """Show the guest `size` bytes of this process (api.rst 4.35); `read_only`: writes exit."""
        region = {"slot": slot, "guest_phys_addr": guest_address, "memory_size": size, "userspace_addr": host_address}
        flags = lib.KVM_MEM_READONLY if read_only else 0
        self.exchange("KVM_SET_USER_MEMORY_REGION", "struct kvm_userspace_memory_region", {**region, "flags": flags})

    def create_vcpu(self, index: int) -> "Vcpu":
        """Make vCPU `index`, which is also its APIC id, or says its MPIDR (api.rst 4.7)."""
        return Vcpu(self.ioctl("KVM_CREATE_VCPU", index), index=index, run_size=self.kvm.ioctl("KVM_GET_VCPU_MMAP_SIZE"))

    def irqfd(self, eventfd: int, gsi: int) -> None:
        """Let a write to `eventfd` raise `gsi` as an edge (api.rst 4.75)."""
        self.exchange("KVM_IRQFD", "struct kvm_irqfd", {"fd": eventfd, "gsi": gsi})

    def ioeventfd(self, eventfd: int, address: int, size: int, match: int) -> None:
        """Turn writes of `match` to the MMIO `address` into signals, not exits (api.rst 4.59)."""
        fields = {"fd": eventfd, "addr": address, "len": size, "datamatch": match, "flags": lib.KVM_IOEVENTFD_FLAG_DATAMATCH}
        self.exchange("KVM_IOEVENTFD", "struct kvm_ioeventfd", fields)

    def create_device(self, kind: int) -> "Device":
        """Make a device of the type `kind` (api.rst 4.79), to be closed with this machine."""
        self._devices.append(Device(self.exchange("KVM_CREATE_DEVICE", "struct kvm_create_device", {"type": kind}).fd))
        return self._devices[-1]

    def close(self) -> None:
        """Close it, and its devices."""
        for device in self._devices:
            device.close()
        super().close()


class Device(_Descriptor):
    """A device that KVM itself emulates."""

    def set_int(self, group: int, attribute: int, size: int = 0, value: int = 0) -> None:
        """Set an attribute whose value has `size` bytes; some have no value (api.rst 4.80)."""
        self.exchange_bytes("KVM_SET_DEVICE_ATTR", "struct kvm_device_attr", value.to_bytes(size, "little"), group=group, attr=attribute)

    def get_int(self, group: int, attribute: int, size: int) -> int:
        """The value, of `size` bytes, of an attribute (api.rst 4.80)."""
        cell = self.exchange_bytes("KVM_GET_DEVICE_ATTR", "struct kvm_device_attr", bytes(size), group=group, attr=attribute)
        return int.from_bytes(cell, "little")


class Vcpu(_Descriptor):
    """One vCPU and its shared kvm_run page. Used by its own thread, but for `request_exit`."""

    def __init__(self, fd: int, *, index: int, run_size: int) -> None:
        super().__init__(fd)
        self.index, self._run_size = index, run_size
        try:
            pointer = mmap(ffi.NULL, run_size, lib.MAP_SHARED, fd)
        except HostError:
            os.close(fd)
            raise
        self.page: Any = ffi.cast("struct kvm_run *", pointer)
        self.bytes = memoryview(ffi.buffer(pointer, run_size))

    def run(self) -> int:
        """KVM_RUN; the exit's reason: INTR after a signal or `request_exit`. Raises KvmError."""
        if lib.ioctl(self._fd, lib.KVM_RUN, ffi.NULL) < 0:
            if ffi.errno in (errno.EINTR, errno.EAGAIN):
                return ExitReason.INTR
            raise KvmError("KVM_RUN", ffi.errno)
        return int(self.page.exit_reason)

    def pre_fault(self, address: int, size: int) -> None:
        """Map [address, address + size) ahead, for speed only (api.rst 4.143)."""
        range_: Any = ffi.new("struct kvm_pre_fault_memory *", {"gpa": address, "size": size})
        while range_.size and lib.ioctl(self._fd, lib.KVM_PRE_FAULT_MEMORY, range_) < 0:
            if ffi.errno not in (errno.EINTR, errno.EAGAIN):
                return

    def request_exit(self) -> None:
        """Make the next KVM_RUN return at once; one under way needs a signal too (api.rst 5)."""
        if self._fd >= 0:
            self.page.immediate_exit = 1

    def withdraw_exit(self) -> None:
        """Take `request_exit` back."""
        self.page.immediate_exit = 0

    def close(self) -> None:
        """Unmap kvm_run and close. The vCPU's thread must have ended."""
        if self._fd >= 0:
            self.bytes.release()
            lib.munmap(self.page, self._run_size)
        super().close()
