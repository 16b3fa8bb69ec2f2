"""What a vmm process asks of its kernel, and Python lacks (prctl(2))."""

import os

from mayfly.errors import HostError
from mayfly.vmm.kvm._kvm import ffi, lib


def prctl(name: str, argument: int) -> None:
    """Set the option `name` ("PR_SET_DUMPABLE") of this process (prctl(2)). Raises HostError."""
    if lib.prctl(getattr(lib, name), argument, 0, 0, 0) < 0:
        raise HostError(f"prctl({name}) failed: {os.strerror(ffi.errno)}")
