"""System calls, with their numbers on x86-64 and aarch64: written by scripts/system_calls.py.

Behind each: the scenarios that it was seen in, or why it is here without that.
"""

RUNNING = {
    "brk": (12, 214),  # commands, snapshots, move
    "clock_gettime": (228, 113),  # where the vDSO cannot tell the time
    "close": (3, 57),  # all
    "connect": (42, 203),  # tcp
    "epoll_create1": (291, 20),  # commands, move
    "epoll_ctl": (233, 21),  # channel, commands, snapshots, move, tap, tcp, passt
    "epoll_pwait": (281, 22),  # epoll_wait of other architectures and C libraries
    "epoll_wait": (232, None),  # all
    "exit": (60, 93),  # all
    "exit_group": (231, 94),  # all
    "fadvise64": (221, 223),  # snapshots
    "fcntl": (72, 25),  # move
    "fstat": (5, 80),  # newfstatat of newer C libraries
    "ftruncate": (77, 46),  # snapshots
    "futex": (202, 98),  # all
    "getpid": (39, 172),  # all
    "getrandom": (318, 278),  # entropy
    "getrusage": (98, 165),  # all
    "getsockname": (51, 204),  # tcp
    "getsockopt": (55, 209),  # tcp
    "gettid": (186, 178),  # all
    "gettimeofday": (96, 169),  # where the vDSO cannot tell the time
    "ioctl": (16, 29),  # all
    "lseek": (8, 62),  # Python's files
    "madvise": (28, 233),  # all
    "mmap": (9, 222),  # all
    "mprotect": (10, 226),  # all
    "mremap": (25, 216),  # realloc of large blocks
    "munmap": (11, 215),  # all
    "newfstatat": (262, 79),  # move
    "pread64": (17, 67),  # all
    "preadv": (295, 69),  # a diff's pages, with other C libraries
    "preadv2": (327, 286),  # snapshots
    "pwrite64": (18, 68),  # snapshots
    "read": (0, 63),  # tap, tcp
    "readv": (19, 65),  # tap, tcp
    "recvfrom": (45, 207),  # channel, passt
    "recvmsg": (47, 212),  # virtio, commands, snapshots, move
    "restart_syscall": (219, 128),  # the kernel: calls that a stop signal interrupted
    "rt_sigaction": (13, 134),  # all
    "rt_sigprocmask": (14, 135),  # all
    "rt_sigreturn": (15, 139),  # all
    "sched_getaffinity": (204, 123),  # the C library: how many heaps its threads share
    "sched_yield": (24, 124),  # locks of the C library
    "sendmsg": (46, 211),  # virtio
    "sendto": (44, 206),  # channel, commands, snapshots, move, passt
    "setsockopt": (54, 208),  # tcp
    "shutdown": (48, 210),  # the channel's end
    "tgkill": (234, 131),  # all
    "userfaultfd": (323, 282),  # move
    "write": (1, 64),  # all
    "writev": (20, 66),  # move, tap, tcp
}
"""Calls of a machine that runs."""

STARTING = {
    "clone": (56, 220),  # threads, where clone3 is refused
    "clone3": (435, 435),  # all
    "rseq": (334, 293),  # all
    "seccomp": (317, 277),  # all
    "set_robust_list": (273, 99),  # all
}
"""Calls besides, until all threads run."""

REFUSED = {
    "access": (21, None),  # Python's tracebacks
    "faccessat": (269, 48),  # access of other architectures
    "getcwd": (79, 17),  # Python's tracebacks
    "open": (2, None),  # the C library: /sys and /proc, to count processors
    "openat": (257, 56),  # Python's tracebacks: the source's lines
    "prctl": (157, 167),  # Python 3.14: a thread's name
    "readlink": (89, None),  # Python's tracebacks
    "readlinkat": (267, 78),  # readlink of other architectures
    "stat": (4, None),  # Python's tracebacks
    "statx": (332, 291),  # stat of newer C libraries
}
"""Calls refused with EACCES, as they are no sign of an attack."""
