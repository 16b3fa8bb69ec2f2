"""The two prctl calls that a vmm process needs and Python lacks (prctl(2))."""

import os

from mayfly.errors import HostError
from mayfly.vmm.kvm._kvm import ffi, lib


def end_with_parent(signal: int) -> None:
    """Have the kernel send `signal` to this process when its parent ends. A change of user id
    clears it: call again afterwards.
    """
    _prctl("PR_SET_PDEATHSIG", signal)


def no_new_privileges() -> None:
    """No exec of this process or its children ever gains privileges."""
    _prctl("PR_SET_NO_NEW_PRIVS", 1)


def _prctl(name: str, argument: int) -> None:
    if lib.sys_prctl(getattr(lib, name), argument) < 0:
        raise HostError(f"prctl({name}) failed: {os.strerror(ffi.errno)}")
