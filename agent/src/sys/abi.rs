//! The C library's functions, constants and layouts that `sys` uses, as on 64-bit Linux with glibc. The same on x86_64 and aarch64
//! unless a line says otherwise.
//!
//! The crate `libc` has all of this. The agent uses no crates: Debian's rustc alone builds it, for both architectures and with no
//! network, and all the code that runs as root in a guest can be read here.

use std::ffi::c_void;
use std::os::raw::{c_char, c_int, c_long, c_short, c_uint, c_ulong};

pub const POLLIN: c_short = 0x1;
pub const POLLOUT: c_short = 0x4;
pub const SIGKILL: c_int = 9;
pub const SIGSEGV: c_int = 11;
pub const SIGXCPU: c_int = 24;
pub const SIGXFSZ: c_int = 25;
pub const RLIMIT_CPU: c_int = 0;
pub const RLIMIT_FSIZE: c_int = 1;
pub const RLIMIT_DATA: c_int = 2;
pub const RLIMIT_STACK: c_int = 3;
pub const RLIMIT_CORE: c_int = 4;
pub const RLIMIT_NPROC: c_int = 6;
pub const RLIMIT_NOFILE: c_int = 7;
pub const RLIMIT_SIGPENDING: c_int = 11;
pub const MS_NOSUID: c_ulong = 0x2;
pub const MS_NODEV: c_ulong = 0x4;
pub const MS_NOEXEC: c_ulong = 0x8;
pub const MS_BIND: c_ulong = 0x1000;
pub const O_NONBLOCK: c_int = 0o4000;
pub const O_NOCTTY: c_int = 0o400;
#[cfg(target_arch = "x86_64")]
pub const O_NOFOLLOW: c_int = 0o400_000;
#[cfg(target_arch = "aarch64")]
pub const O_NOFOLLOW: c_int = 0o100_000;
#[cfg(target_arch = "x86_64")]
pub const O_DIRECT: c_int = 0o40_000;
#[cfg(target_arch = "aarch64")]
pub const O_DIRECT: c_int = 0o200_000;
pub const O_ASYNC: c_int = 0o20_000;
pub const O_CLOEXEC: c_int = 0o2_000_000;
#[cfg(target_arch = "x86_64")]
pub const SYS_RT_SIGACTION: c_long = 13;
#[cfg(target_arch = "aarch64")]
pub const SYS_RT_SIGACTION: c_long = 134;
pub const SIGPIPE: c_int = 13;
pub const SIGCHLD: c_int = 17;
pub const SIGIO: c_int = 29;
/// glibc keeps the two signals below for its threads.
pub const SIGRTMIN: c_int = 34;
pub const SIG_SETMASK: c_int = 2;
pub const SIG_DFL: usize = 0;
pub const SIG_IGN: usize = 1;
pub const WNOHANG: c_int = 1;
pub const F_GETFL: c_int = 3;
pub const F_SETFL: c_int = 4;
pub const F_SETFD: c_int = 2;
pub const F_SETOWN: c_int = 8;
pub const F_SETSIG: c_int = 10;
pub const F_SETPIPE_SZ: c_int = 1031;
pub const SPLICE_F_NONBLOCK: c_uint = 0x2;
pub const FD_CLOEXEC: c_int = 1;
pub const MNT_DETACH: c_int = 2;
pub const CLONE_NEWIPC: c_int = 0x0800_0000;
pub const RB_AUTOBOOT: c_int = 0x0123_4567;
pub const CLOCK_REALTIME: c_int = 0;
pub const CLOCK_BOOTTIME: c_int = 7;
pub const PR_SET_PDEATHSIG: c_int = 1;
pub const PR_SET_DUMPABLE: c_int = 4;
pub const PR_SET_CHILD_SUBREAPER: c_int = 36;
pub const PR_SET_NO_NEW_PRIVS: c_int = 38;
pub const PR_SET_THP_DISABLE: c_int = 41;
pub const AF_INET: c_int = 2;
pub const AF_NETLINK: c_int = 16;
pub const SOCK_DGRAM: c_int = 2;
pub const SOCK_RAW: c_int = 3;
pub const NETLINK_ROUTE: c_int = 0;
pub const NETLINK_KOBJECT_UEVENT: c_int = 15;
pub const SIOCGIFFLAGS: c_ulong = 0x8913;
pub const SIOCSIFFLAGS: c_ulong = 0x8914;
pub const IFF_UP: c_short = 0x1;
/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` of linux/random.h.
pub const RNDADDENTROPY: c_ulong = 0x4008_5203;
pub const RNDRESEEDCRNG: c_ulong = 0x5207;
pub const O_RDWR: c_int = 0o2;
/// Of asm-generic/ioctls.h.
pub const TIOCSCTTY: c_ulong = 0x540E;
pub const TIOCSWINSZ: c_ulong = 0x5414;
pub const TIOCGPTPEER: c_ulong = 0x5441;
pub const TIOCSPTLCK: c_ulong = 0x4004_5431;
pub const ICANON: c_uint = 0o2;
pub const IUTF8: c_uint = 0o40_000;
/// An index of `Termios::characters`.
pub const VEOF: usize = 4;
pub const TCSANOW: c_int = 0;
pub const TCIOFLUSH: c_int = 2;
pub const B115200: c_uint = 0o10002;
pub const CRTSCTS: c_uint = 0o20_000_000_000;
pub const CLOCAL: c_uint = 0o4000;
pub const CREAD: c_uint = 0o200;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: c_int,
    pub events: c_short,
    pub revents: c_short,
}

#[repr(C)]
pub struct SigSet(pub [c_ulong; 16]);

/// `struct signalfd_siginfo`: signal, errno, code, pid, uid, descriptor, and more.
pub const SIGNAL_INFO: usize = 128;
pub const SIGNAL_AT: usize = 0;
pub const CODE_AT: usize = 8;
pub const DESCRIPTOR_AT: usize = 20;

/// The kernel's `struct sigaction`: handler, flags, restorer, mask.
#[repr(C)]
pub struct KernelSigAction(pub [u64; 4]);

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct TimePair {
    pub seconds: i64,
    /// Micro- or nanoseconds.
    pub fraction: i64,
}

#[repr(C)]
#[derive(Default)]
pub struct RUsage {
    pub user: TimePair,
    pub system: TimePair,
    pub max_rss_kib: c_long,
    pub unused: [c_long; 13],
}

#[repr(C)]
pub struct RLimit {
    pub soft: u64,
    pub hard: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct Termios {
    pub input: c_uint,
    pub output: c_uint,
    pub control: c_uint,
    pub local: c_uint,
    pub line: u8,
    pub characters: [u8; 32],
    pub input_speed: c_uint,
    pub output_speed: c_uint,
}

#[repr(C)]
pub struct WinSize {
    pub rows: u16,
    pub columns: u16,
    pub pixels: [u16; 2],
}

/// `struct ifreq` with the flags of its union.
#[repr(C)]
pub struct IfReq {
    pub name: [u8; 16],
    pub flags: c_short,
    pub unused: [u8; 22],
}

#[repr(C)]
pub struct NetlinkAddress {
    pub family: u16,
    pub padding: u16,
    pub port: u32,
    pub groups: u32,
}

/// `struct rand_pool_info` with room for the protocol's largest entropy.
#[repr(C)]
pub struct RandPoolInfo {
    pub entropy_bits: c_int,
    pub size: c_int,
    pub bytes: [u8; 512],
}

extern "C" {
    pub fn ppoll(fds: *mut PollFd, count: c_ulong, timeout: *const TimePair, mask: *const SigSet) -> c_int;
    pub fn signalfd(fd: c_int, mask: *const SigSet, flags: c_int) -> c_int;
    pub fn sigemptyset(set: *mut SigSet) -> c_int;
    pub fn sigaddset(set: *mut SigSet, signal: c_int) -> c_int;
    pub fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
    #[link_name = "signal"]
    pub fn set_handler(signal: c_int, handler: usize) -> usize;
    pub fn syscall(number: c_long, ...) -> c_long;
    pub fn wait4(pid: c_int, status: *mut c_int, options: c_int, usage: *mut RUsage) -> c_int;
    pub fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    #[link_name = "kill"]
    pub fn c_kill(pid: c_int, signal: c_int) -> c_int;
    pub fn setsid() -> c_int;
    #[link_name = "umask"]
    pub fn c_umask(mask: c_uint) -> c_uint;
    pub fn geteuid() -> c_uint;
    pub fn setgroups(count: usize, groups: *const c_uint) -> c_int;
    pub fn setresuid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int;
    pub fn setresgid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int;
    pub fn prlimit(pid: c_int, resource: c_int, new: *const RLimit, old: *mut RLimit) -> c_int;
    pub fn prctl(option: c_int, ...) -> c_int;
    #[link_name = "chown"]
    pub fn c_chown(path: *const c_char, uid: c_uint, gid: c_uint) -> c_int;
    #[link_name = "mount"]
    pub fn c_mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    pub fn unshare(flags: c_int) -> c_int;
    pub fn umount2(target: *const c_char, flags: c_int) -> c_int;
    #[link_name = "reboot"]
    pub fn c_reboot(command: c_int) -> c_int;
    #[link_name = "sethostname"]
    pub fn c_sethostname(name: *const c_char, length: usize) -> c_int;
    pub fn clock_gettime(clock: c_int, time: *mut TimePair) -> c_int;
    pub fn clock_settime(clock: c_int, time: *const TimePair) -> c_int;
    pub fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    pub fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    pub fn splice(from: c_int, offset: *mut i64, to: c_int, to_offset: *mut i64, size: usize, flags: c_uint) -> isize;
    pub fn dup2(from: c_int, to: c_int) -> c_int;
    pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    pub fn bind(fd: c_int, address: *const NetlinkAddress, length: c_uint) -> c_int;
    pub fn tcgetattr(fd: c_int, termios: *mut Termios) -> c_int;
    pub fn tcsetattr(fd: c_int, when: c_int, termios: *const Termios) -> c_int;
    pub fn tcflush(fd: c_int, queue: c_int) -> c_int;
    pub fn tcdrain(fd: c_int) -> c_int;
}
