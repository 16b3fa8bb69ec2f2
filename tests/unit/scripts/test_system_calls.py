"""The table of system calls is that of the kernel's headers; in a trace vmm processes count."""

import shutil

import pytest

from mayfly.vmm.sandbox.calls import REFUSED, RUNNING, STARTING
from scripts.system_calls import calls, numbers

TRACE = """
10 openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 3
11 landlock_restrict_self(3, 0) = 0
11 seccomp(SECCOMP_SET_MODE_FILTER, 0, {len=1, filter=0x7f}) = 0
12 rseq(0x7f, 0x20, 0, 0x53053053) = 0
11 clone3({flags=CLONE_VM|CLONE_THREAD, child_tid=0x7f} <unfinished ...>
12 ioctl(17, KVM_RUN, 0 <unfinished ...>
11 <... clone3 resumed> => {parent_tid=[12]}, 88) = 12
10 clone(child_stack=NULL, flags=SIGCHLD) = 13
13 execve("/bin/true", ["true"], 0x7f) = 0
12 <... ioctl resumed>) = -1 EINTR
11 +++ exited with 0 +++
""".splitlines()


def test_only_what_a_process_with_filters_and_its_threads_call_counts() -> None:
    """Also of a thread whose first line comes before the call that made it has returned."""
    assert set(calls(TRACE)) == {"rseq", "clone3", "ioctl"}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no compiler to read headers with")
@pytest.mark.parametrize(("column", "arch"), [(0, "x86_64"), (1, "aarch64")])
def test_numbers_are_the_kernels(column: int, arch: str) -> None:
    known = numbers(arch)
    for name, found in {**RUNNING, **STARTING, **REFUSED}.items():
        assert found[column] == known.get(name), name
