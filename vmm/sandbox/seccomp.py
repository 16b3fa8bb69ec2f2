"""The filters of system calls (seccomp(2)), assembled here as classic BPF: what is not allowed ends
the process.

The first is installed before there are other threads, which inherit it. Once they run, a second
one for all of them takes away what only starting them needed. Which calls are allowed stands in
`calls`, as measured. A library (libseccomp) would take as long, and be one more to trust.

An instruction is (operation, jump if true, jump if false, operand), jumps counted in instructions
(Linux networking/filter.rst); it reads struct seccomp_data.
"""

import errno
import functools
import os
import platform
import struct
from collections.abc import Iterable, Mapping, Sequence

from mayfly.vmm.kvm.kvm import ioctl_number
from mayfly.vmm.kvm.system import address, call
from mayfly.vmm.network.tap import TUNSETOFFLOAD
from mayfly.vmm.sandbox.calls import REFUSED, RUNNING, STARTING

_Instruction = tuple[int, int, int, int]
_FORMAT = struct.Struct("=HBBI")
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # Offsets in struct seccomp_data
_ALLOW, _KILL = 0x7FFF_0000, 0x8000_0000
_REFUSE, _ABSENT = 0x0005_0000 | errno.EACCES, 0x0005_0000 | errno.ENOSYS
_X32 = 0x4000_0000
_SET_MODE_FILTER, _GET_ACTION_AVAIL, _TSYNC = 1, 2, 1  # SECCOMP_*; the last is a flag
_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_COLUMN = ("x86_64", "aarch64").index(platform.machine())

_PROT_EXEC = 4
_AT_EMPTY_PATH = 0x1000
_THREAD = 0x100 | 0x1_0000  # CLONE_VM, CLONE_THREAD
_UFFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1  # UFFD_USER_MODE_ONLY
_FCNTLS = (1, 2, 3, 4, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC

_KVM = (
    "RUN CHECK_EXTENSION PRE_FAULT_MEMORY KVMCLOCK_CTRL GET_REGS GET_SREGS "  # while it runs, and for the error of a crash
    "GET_XSAVE GET_XSAVE2 GET_XCRS GET_DEBUGREGS GET_LAPIC GET_VCPU_EVENTS GET_MP_STATE GET_MSRS GET_IRQCHIP GET_CLOCK "  # for snapshots
    "GET_ONE_REG GET_REG_LIST GET_DEVICE_ATTR"  # for those of Arm
)
_FIONBIO, _PAGEMAP_SCAN, _UFFDIO_API, _UFFDIO_REGISTER = 0x5421, 0xC060_6610, 0xC018_AA3F, 0xC020_AA00
IOCTLS = [number for name in _KVM.split() if (number := ioctl_number(f"KVM_{name}")) is not None]
IOCTLS += [TUNSETOFFLOAD, _FIONBIO, _PAGEMAP_SCAN, _UFFDIO_API, _UFFDIO_REGISTER]


def available() -> None:
    """Raise OSError: this kernel has no such filters."""
    call(_NUMBERS["seccomp"], _GET_ACTION_AVAIL, 0, struct.pack("=I", _KILL))


def install(program: bytes, *, all_threads: bool = False) -> None:
    """Put `program` before this thread's system calls, for good. Raises OSError."""
    header = struct.pack("=H6xQ", len(program) // _FORMAT.size, address(program))  # struct sock_fprog
    if call(_NUMBERS["seccomp"], _SET_MODE_FILTER, _TSYNC if all_threads else 0, header):
        raise OSError(errno.ESRCH, "seccomp: a thread has other filters")


def first(*, connects: bool) -> bytes:
    """The filter of a process that is about to start its threads; `connects`: it has a socket that
    it will connect.
    """
    own = [*_only_if("tgkill", _one_of(0, [os.getpid()]))]
    return _pack(_PLATFORM) + _pack(own) + _rest(connects)


@functools.cache
def _rest(connects: bool) -> bytes:
    rules = {**_RULES, "connect": [_returns(_ALLOW if connects else _REFUSE)]}
    actions = {number: rules.get(name) or [_returns(_REFUSE if name in REFUSED else _ALLOW)] for name, number in _NUMBERS.items()}
    ranges: list[tuple[int, list[_Instruction]]] = []
    for number in range(max(actions) + 2):
        action = actions.get(number, [_returns(_KILL)])
        if not ranges or ranges[-1][1] != action:
            ranges.append((number, action))
    return _pack([*_only_if("ioctl", rules["ioctl"]), *_by_halves(ranges)])


def _by_halves(ranges: Sequence[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    """The action of the range that the number is in; each is from its own first number on. Found by
    halves, as the kernel runs a new filter for each number there is.
    """
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _by_halves(ranges[:middle]), _by_halves(ranges[middle:])
    return [(_AT_LEAST, len(below), 0, ranges[middle][0]), *below, *above]


@functools.cache
def second() -> bytes:
    """The filter of all threads, once they run: no more of them, and no more filters."""
    started = [_NUMBERS[name] for name in STARTING if name in _NUMBERS]
    return _pack([(_LOAD, 0, 0, _NUMBER), *_any_of(started, _KILL), _returns(_ALLOW)])


def _returns(action: int) -> _Instruction:
    return _RETURN, 0, 0, action


def _any_of(numbers: Sequence[int], action: int) -> list[_Instruction]:
    """`action` for calls of these numbers."""
    last = len(numbers) - 1
    return [*((_EQUAL, last - at, int(at == last), number) for at, number in enumerate(numbers)), _returns(action)]


def _only_if(name: str, rule: list[_Instruction]) -> list[_Instruction]:
    """`rule`, which returns in every case, for calls of that name."""
    return [(_EQUAL, 0, len(rule), _NUMBERS[name]), *rule] if name in _NUMBERS else []


def _one_of(argument: int, values: Sequence[int], otherwise: int = _KILL) -> list[_Instruction]:
    """Allow if the argument, of which the kernel takes the lower 32 bits, is one of `values`."""
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *_any_of(values, _ALLOW), _returns(otherwise)]


def _bits(argument: int, mask: int, wanted: int, otherwise: int = _KILL) -> list[_Instruction]:
    """Allow if those bits of the argument's lower half are as wanted."""
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_AND, 0, 0, mask), *_any_of([wanted], _ALLOW), _returns(otherwise)]


def _pack(program: Iterable[_Instruction]) -> bytes:
    return b"".join(_FORMAT.pack(*each) for each in program)


_NUMBERS: Mapping[str, int] = {
    name: number for name, numbers in {**RUNNING, **STARTING, **REFUSED}.items() if (number := numbers[_COLUMN]) is not None
}
_PLATFORM = [
    (_LOAD, 0, 0, _ARCH),
    (_EQUAL, 1, 0, _AUDIT_ARCH[platform.machine()]),  # not the calls of 32-bit programs
    _returns(_KILL),
    (_LOAD, 0, 0, _NUMBER),
    (_AT_LEAST, 0, 1, _X32),  # nor those of x32
    _returns(_KILL),
]
_RULES = {
    "ioctl": _one_of(1, IOCTLS, otherwise=_REFUSE),
    "mmap": _bits(2, _PROT_EXEC, 0),
    "mprotect": _bits(2, _PROT_EXEC, 0),
    "newfstatat": _bits(3, _AT_EMPTY_PATH, _AT_EMPTY_PATH, otherwise=_REFUSE),  # of a descriptor
    "fcntl": _one_of(1, _FCNTLS),
    "userfaultfd": _one_of(0, [_UFFD_FLAGS]),
    "clone": _bits(0, _THREAD, _THREAD),
    "clone3": [_returns(_ABSENT)],  # its flags are in memory; the C library takes clone then
}
"""The calls whose arguments matter."""
