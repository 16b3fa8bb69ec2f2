"""What Python's standard library lacks or does at more cost than a machine's process can bear, by
cffi: ctypes would take 256 KiB in each machine.
"""

import os

from mayfly.vmm.kvm._kvm import ffi, lib

_ARGUMENTS = 5


def call(name: str | int, *arguments: int | bytes | None) -> int:
    """Make the system call `name`, or of that number. Raises OSError."""
    number = getattr(lib, f"SYS_{name}") if isinstance(name, str) else name
    registers = [each if isinstance(each, int) else address(each) if each is not None else 0 for each in arguments]
    result: int = lib.system_call(number, *registers, *[0] * (_ARGUMENTS - len(registers)))
    if result < 0:
        raise OSError(ffi.errno, f"{name if isinstance(name, str) else f'system call {name}'}: {os.strerror(ffi.errno)}")
    return result


def address(data: bytes) -> int:
    """Where `data` is, for as long as the caller keeps it; a NUL is behind it."""
    return int(ffi.cast("intptr_t", ffi.from_buffer(data)))


def fork() -> int:
    """As os.fork, for a process with a single thread that has not imported `random`, whose numbers
    would be alike in all children: locks, threads and signals that os.fork makes anew in the child
    are there as they were, and making them so writes 145 pages. Raises OSError.
    """
    pid: int = lib.fork()
    if pid < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return pid
