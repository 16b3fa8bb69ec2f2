"""What a vmm process gives up of its user: root's id, capabilities, being traced, core dumps."""

import contextlib
import os
import pwd
import resource
import signal
import struct
from typing import NamedTuple

from mayfly.errors import ConfigError
from mayfly.vmm.kvm.prctl import prctl
from mayfly.vmm.kvm.system import call

_CAPABILITY_VERSION = 0x2008_0522  # _LINUX_CAPABILITY_VERSION_3 (capset(2))


class Identity(NamedTuple):
    """Whom a process of root becomes: an id of its own, or where it is not mapped `uid`."""

    own_uid: int
    uid: int
    gid: int


def identity(user: str | None, uids: tuple[int, int]) -> Identity | None:
    """The identity of this process as a machine of `user`, with an id from the range `uids`, both
    ends included; none if it stays what it is. Raises ConfigError: there is no such user, or no
    such id.
    """
    if user is None or os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise ConfigError(
            f"the service user {user!r} does not exist", hint="name another with `user:` in config.yaml, or add it"
        ) from error
    first, last = uids
    if first + os.getpid() > last:
        raise ConfigError(
            f"uid_range has {last - first + 1} ids, and none for the process {os.getpid()}",
            hint="give it as many ids as this host may have processes (kernel.pid_max)",
        )
    return Identity(first + os.getpid(), entry.pw_uid, entry.pw_gid)


def drop_privileges(identity: Identity | None) -> None:
    """Give up what this process could do to the host and to other machines, for good.

    It becomes a user that no other machine has, so that machines cannot signal each other or change
    each other's limits; where such ids are not mapped (a user namespace), that of the service. It
    has no capability, nobody of the same user may trace it, and no core dump may hold a guest's
    memory.
    """
    if identity is not None:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        with contextlib.suppress(OSError):
            os.setresuid(identity.own_uid, identity.own_uid, identity.own_uid)
        if os.geteuid() == 0:
            os.setresuid(identity.uid, identity.uid, identity.uid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    call("capset", struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24))
    prctl("PR_SET_NO_NEW_PRIVS", 1)
    prctl("PR_SET_DUMPABLE", 0)
    prctl("PR_SET_PDEATHSIG", signal.SIGKILL)  # again, as a change of user id clears it
