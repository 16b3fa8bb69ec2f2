"""System calls that Python lacks, by the C library."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call the C library's function `name`; "syscall" takes a number first. Raises OSError."""
    # As `long`: the variadic syscall(2) reads whole registers.
    result: int = getattr(_libc, name)(*(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def address(data: bytes) -> int:
    """Where `data` is, for as long as the caller keeps it."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
