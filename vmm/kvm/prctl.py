"""What a vmm process asks of its kernel, and Python lacks (prctl(2), landlock(7))."""

import os

from mayfly.errors import HostError
from mayfly.vmm.kvm._kvm import ffi, lib


def end_with_parent(signal: int) -> None:
    """Send this process `signal` when its parent ends. A change of user id clears that."""
    _prctl("PR_SET_PDEATHSIG", signal)


def no_new_privileges() -> None:
    """No exec of this process or its children ever gains privileges."""
    _prctl("PR_SET_NO_NEW_PRIVS", 1)


def hide_memory() -> None:
    """No process of the same user may trace this one, or open its memory or descriptors."""
    _prctl("PR_SET_DUMPABLE", 0)


def scope_signals() -> bool:
    """Allow signals only to itself and children (Landlock ABI 6, Linux 6.12); false if it cannot.

    Call it before there are other threads.
    """
    return bool(lib.sys_scope_signals() == 0)


def _prctl(name: str, argument: int) -> None:
    if lib.sys_prctl(getattr(lib, name), argument) < 0:
        raise HostError(f"prctl({name}) failed: {os.strerror(ffi.errno)}")
