"""What a vmm process gives up: descriptors that are not its own, its user, its reach to others."""

import contextlib
import itertools
import os
import pwd
import resource
import signal
from collections.abc import Iterable

from mayfly.errors import ConfigError
from mayfly.vmm.kvm.prctl import prctl, scope_signals

FIRST_UID = 0x7000_0000
"""User ids of root's machines: this plus the process id (a free range: systemd.io/UIDS-GIDS)."""
_LAST_DESCRIPTOR = 1 << 30
STANDARD_STREAMS = range(3)


def keep_only(descriptors: Iterable[int]) -> None:
    """Close all other descriptors, and put /dev/null in place of the standard streams."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in STANDARD_STREAMS:
        os.dup2(null, stream)
    kept = sorted({*STANDARD_STREAMS, *descriptors})
    for before, after in itertools.pairwise([*kept, _LAST_DESCRIPTOR]):
        os.closerange(before + 1, after)


def drop_privileges(user: str | None) -> None:
    """Give up what this process could do to the host and to other machines, for good.

    As root: become a user that no other machine has, in the group of `user`, so that machines
    cannot signal each other or change each other's limits. Where such ids are not mapped (a user
    namespace): become `user`. Where the kernel can scope signals, none leaves this process. Nobody
    of the same user may trace it, and no core dump may hold a guest's memory. Raises ConfigError:
    there is no such user.
    """
    if user is not None and os.geteuid() == 0:
        try:
            entry = pwd.getpwnam(user)
        except KeyError as error:
            raise ConfigError(
                f"the service user {user!r} does not exist", hint="name another with `user:` in config.yaml, or add it"
            ) from error
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        own = FIRST_UID + os.getpid()
        with contextlib.suppress(OSError):
            os.setresuid(own, own, own)
        if os.geteuid() == 0:
            os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
        prctl("PR_SET_PDEATHSIG", signal.SIGKILL)  # again, as a change of user id clears it
    prctl("PR_SET_NO_NEW_PRIVS", 1)
    prctl("PR_SET_DUMPABLE", 0)
    scope_signals()  # while there are no other threads
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
