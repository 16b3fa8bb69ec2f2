"""Landlock (landlock(7)): no path is opened or changed any more; descriptors that are open stay.

Newer kernels bound more. The first, of Linux 5.13, knows file systems alone; 6.7 adds TCP, 6.12
signals to processes outside, and their abstract Unix sockets.
"""

import functools
import os
import struct

from mayfly.vmm.kvm.system import call

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # The same on all architectures
_CREATE_RULESET_VERSION = 1
_PATHS = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many rights of paths (LANDLOCK_ACCESS_FS_*) there are from an ABI on."""
_NETWORK, NETWORK_ABI = (1 << 0) | (1 << 1), 4  # LANDLOCK_ACCESS_NET_BIND_TCP, _CONNECT_TCP
_SCOPES, SCOPES_ABI = (1 << 0) | (1 << 1), 6  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, _SIGNAL


@functools.cache
def abi() -> int:
    """This kernel's version of Landlock. Raises OSError: it has none."""
    return call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)


def restrict(*, paths: bool = True, network: bool = True) -> None:
    """Forbid this process all that this kernel's Landlock can, or without `paths` or `network` not
    that. For a process with no_new_privs and a single thread: others would not be bound. Raises
    OSError.
    """
    version = abi()
    rights = max(bits for since, bits in _PATHS.items() if since <= version)
    handled = [
        (1 << rights) - 1 if paths else 0,
        _NETWORK if network and version >= NETWORK_ABI else 0,
        _SCOPES if version >= SCOPES_ABI else 0,
    ]
    attributes = struct.pack("=3Q", *handled)[: 8 * (1 + (version >= NETWORK_ABI) + (version >= SCOPES_ABI))]
    if not any(handled):
        return
    ruleset = call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
