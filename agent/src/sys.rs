//! The system calls that std does not offer. All unsafe code of the agent is here; every function is safe to call with any values.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::raw::{c_int, c_short, c_uint, c_ulong};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

mod abi;
use abi::*;
pub use abi::{
    MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, POLLIN, POLLOUT, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_DATA,
    RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_SIGPENDING, RLIMIT_STACK, SIGKILL, SIGSEGV, SIGXCPU, SIGXFSZ,
};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(result: c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just made this descriptor for us, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// What to wait for, and afterwards what came. Errors and hang-ups count as ready: the read or write that follows tells.
#[derive(Default)]
pub struct PollSet(Vec<PollFd>);

/// The place of a descriptor in a `PollSet`.
#[derive(Clone, Copy)]
pub struct Slot(usize);

impl PollSet {
    /// With no events, only errors and hang-ups are waited for.
    pub fn add(&mut self, fd: &impl AsRawFd, events: c_short) -> Slot {
        self.0.push(PollFd { fd: fd.as_raw_fd(), events, revents: 0 });
        Slot(self.0.len() - 1)
    }

    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|time| TimePair { seconds: time.as_secs() as i64, fraction: time.subsec_nanos().into() });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), |time| time as *const TimePair);
        // SAFETY: the pointer and the count are those of a vector of pollfd, and the timespec is on our stack; both live through
        // the call. No set of signals is given.
        match check(unsafe { ppoll(self.0.as_mut_ptr(), self.0.len() as c_ulong, timeout, std::ptr::null()) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other.map(drop),
        }
    }

    pub fn ready(&self, slot: Option<Slot>) -> bool {
        slot.map_or(false, |slot| self.0[slot.0].revents != 0)
    }

    /// Whether there is something to read, or the other end is gone.
    pub fn readable(&self, slot: Option<Slot>) -> bool {
        slot.map_or(false, |slot| self.0[slot.0].revents & !POLLOUT != 0)
    }
}

/// Block the signals that are read from descriptors, ignore SIGPIPE, and give a non-blocking descriptor that is readable when
/// a child has ended.
pub fn watch_children() -> io::Result<File> {
    // SAFETY: the set is a whole sigset_t on our stack; a handler of SIG_IGN runs no code.
    unsafe {
        check(sigprocmask(SIG_SETMASK, &signals(&[SIGCHLD, SIGIO, SIGRTMIN]), std::ptr::null_mut()))?;
        set_handler(SIGPIPE, SIG_IGN);
    }
    signal_descriptor(&[SIGCHLD])
}

/// A descriptor for `next_writes`. The signals have to be blocked.
pub fn watch_writes() -> io::Result<File> {
    signal_descriptor(&[SIGIO, SIGRTMIN])
}

fn signal_descriptor(numbers: &[c_int]) -> io::Result<File> {
    // SAFETY: a whole sigset_t on our stack.
    owned(unsafe { signalfd(-1, &signals(numbers), O_CLOEXEC | O_NONBLOCK) }).map(File::from)
}

fn signals(numbers: &[c_int]) -> SigSet {
    let mut set = SigSet([0; 16]);
    // SAFETY: the set is a whole sigset_t of glibc (1024 bits) on our stack.
    unsafe {
        sigemptyset(&mut set);
        for &number in numbers {
            sigaddset(&mut set, number);
        }
    }
    set
}

/// A write to a pipe that announces them.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    To(RawFd),
    /// The kernel's queue was full, and some writes are not told of.
    Lost,
}

/// Take up writes that were announced, in their order; empty when there are none.
pub fn next_writes(signals: &mut File) -> Vec<Written> {
    let mut data = [0; 32 * SIGNAL_INFO];
    let count = io::Read::read(signals, &mut data).unwrap_or(0);
    let field = |info: &[u8], at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let written = |info: &[u8]| match field(info, SIGNAL_AT) {
        // Codes above 0 are the kernel's: a process may send us the signal only where it runs as the same user.
        SIGRTMIN if field(info, CODE_AT) > 0 => Some(Written::To(field(info, DESCRIPTOR_AT))),
        SIGIO => Some(Written::Lost),
        _ => None,
    };
    data[..count].chunks_exact(SIGNAL_INFO).filter_map(written).collect()
}

/// Have each write to a pipe announced; this is its end for reading. The pipe holds `size` bytes from then on.
pub fn announce_writes(pipe: &impl AsRawFd, size: usize) -> io::Result<()> {
    set_pipe_size(pipe, size)?;
    let fd = pipe.as_raw_fd();
    // SAFETY: these commands take an integer and touch no memory.
    unsafe {
        check(fcntl(fd, F_SETOWN, std::process::id()))?;
        check(fcntl(fd, F_SETSIG, SIGRTMIN))?;
        let flags = check(fcntl(fd, F_GETFL))?;
        check(fcntl(fd, F_SETFL, flags | O_ASYNC)).map(drop)
    }
}

pub fn set_pipe_size(pipe: &impl AsRawFd, size: usize) -> io::Result<()> {
    // SAFETY: the command takes an integer and touches no memory.
    check(unsafe { fcntl(pipe.as_raw_fd(), F_SETPIPE_SZ, size as c_int) }).map(drop)
}

/// Move all that is in a pipe into one that is empty and as large, at once and without waiting. Writes stay apart.
pub fn move_all(from: &impl AsRawFd, to: &impl AsRawFd) {
    // SAFETY: null pointers stand for no offsets, which pipes do not have. That there was nothing to move is its only failure.
    unsafe { splice(from.as_raw_fd(), std::ptr::null_mut(), to.as_raw_fd(), std::ptr::null_mut(), 1 << 30, SPLICE_F_NONBLOCK) };
}

/// Whether a descriptor takes a write now.
pub fn is_writable(fd: &impl AsRawFd) -> bool {
    is_ready_within(fd, POLLOUT, Duration::ZERO)
}

/// Whether a descriptor has something to read, now or within a time.
pub fn is_readable_within(fd: &impl AsRawFd, time: Duration) -> bool {
    is_ready_within(fd, POLLIN, time)
}

fn is_ready_within(fd: &impl AsRawFd, events: c_short, time: Duration) -> bool {
    let mut set = PollSet::default();
    let slot = set.add(fd, events);
    set.wait(Some(time)).is_ok() && set.ready(Some(slot))
}

/// A child that has ended.
pub struct Reaped {
    pub pid: i32,
    pub exit_code: i32,
    /// 0 if it was none.
    pub signal: i32,
    pub cpu: Duration,
    pub max_rss: u64,
}

pub enum Wait {
    Reaped(Reaped),
    StillRunning,
    NoChildren,
}

/// Reap one child that has ended, if any.
pub fn wait_any() -> Wait {
    let mut status = 0;
    let mut usage = RUsage::default();
    // SAFETY: both pointers are to whole objects on our stack.
    let pid = unsafe { wait4(-1, &mut status, WNOHANG, &mut usage) };
    match pid {
        0 => Wait::StillRunning,
        pid if pid < 0 => Wait::NoChildren,
        pid => Wait::Reaped(Reaped {
            pid,
            exit_code: status >> 8 & 0xff,
            signal: status & 0x7f,
            cpu: duration(usage.user, 1000) + duration(usage.system, 1000),
            max_rss: usage.max_rss_kib as u64 * 1024,
        }),
    }
}

fn duration(time: TimePair, nanos_in_fraction: i64) -> Duration {
    Duration::new(time.seconds as u64, (time.fraction * nanos_in_fraction) as u32)
}

/// A pipe: (read end, write end), both closed on exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    pipe_with(0)
}

/// A pipe of which each read gives no more than one write (pipe(2), O_DIRECT).
pub fn packet_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    pipe_with(O_DIRECT)
}

fn pipe_with(flags: c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: there is room for the two descriptors that the kernel writes.
    check(unsafe { pipe2(fds.as_mut_ptr(), O_CLOEXEC | flags) })?;
    Ok((owned(fds[0])?, owned(fds[1])?))
}

pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: these commands take an integer and touch no memory.
    unsafe {
        let flags = check(fcntl(fd.as_raw_fd(), F_GETFL))?;
        check(fcntl(fd.as_raw_fd(), F_SETFL, flags | O_NONBLOCK)).map(drop)
    }
}

/// Take over a descriptor that this process inherited.
pub fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the command takes an integer and touches no memory; it fails if there is no such descriptor.
    check(unsafe { fcntl(fd, F_SETFD, FD_CLOEXEC) })?;
    owned(fd)
}

/// Start a program; `prepare` runs in the child just before the exec. Fails with the errno of what failed there, or of the exec.
pub fn spawn(command: &mut Command, mut prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> io::Result<Child> {
    let in_child = move || {
        reset_signals()?;
        prepare()
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed in a process of several threads. The agent has one
    // thread, so no lock is held by another, and the closure may allocate and open files.
    unsafe { command.pre_exec(in_child) }.spawn()
}

fn reset_signals() -> io::Result<()> {
    let default = KernelSigAction([SIG_DFL as u64; 4]);
    // SAFETY: as in `watch_children`. The action is at least as large as the kernel's, and SIG_DFL runs no code of ours. This goes
    // around glibc, which refuses the two signals that it keeps for its threads; SIGKILL and SIGSTOP are refused, which is fine.
    unsafe {
        for signal in 1..=64 {
            syscall(SYS_RT_SIGACTION, signal, &default, std::ptr::null_mut::<KernelSigAction>(), std::mem::size_of::<u64>());
        }
        check(sigprocmask(SIG_SETMASK, &signals(&[]), std::ptr::null_mut())).map(drop)
    }
}

pub fn new_session() -> io::Result<()> {
    // SAFETY: no arguments.
    check(unsafe { setsid() }).map(drop)
}

pub fn umask(mask: u32) {
    // SAFETY: an integer; cannot fail.
    unsafe { c_umask(mask) };
}

pub fn is_root() -> bool {
    // SAFETY: no arguments; cannot fail.
    unsafe { geteuid() == 0 }
}

/// Become an unprivileged user for good: no groups, and with the user ids all capabilities are gone.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: a count of 0 makes the kernel look at no list.
    unsafe {
        check(setgroups(0, std::ptr::null()))?;
        check(setresgid(gid, gid, gid))?;
        check(setresuid(uid, uid, uid)).map(drop)
    }
}

/// Nothing that is executed from now on can gain privileges.
pub fn no_new_privileges() -> io::Result<()> {
    prctl_flag(PR_SET_NO_NEW_PRIVS, 1)
}

/// Die with the parent.
pub fn die_with_parent() -> io::Result<()> {
    prctl_flag(PR_SET_PDEATHSIG, SIGKILL as c_ulong)
}

/// Other processes of the same user may neither trace us nor read our memory.
pub fn forbid_tracing() -> io::Result<()> {
    prctl_flag(PR_SET_DUMPABLE, 0)
}

/// Orphans among our descendants become our children, as they do for a PID 1.
pub fn adopt_orphans() -> io::Result<()> {
    prctl_flag(PR_SET_CHILD_SUBREAPER, 1)
}

/// No huge pages for this process.
pub fn use_small_pages() -> io::Result<()> {
    prctl_flag(PR_SET_THP_DISABLE, 1)
}

fn prctl_flag(option: c_int, value: c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take integers.
    check(unsafe { prctl(option, value, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) }).map(drop)
}

/// Set a resource limit of a process, hard and soft; 0 is this one.
pub fn limit(pid: i32, resource: c_int, soft: u64, hard: u64) -> io::Result<()> {
    // SAFETY: the pointer is to a whole rlimit on our stack; the old limit is not asked for.
    check(unsafe { prlimit(pid, resource, &RLimit { soft, hard }, std::ptr::null_mut()) }).map(drop)
}

/// Send a signal to a process, to a process group (-pid); one that is gone is no error.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: two integers.
    unsafe { c_kill(pid, signal) };
}

pub fn chown(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a C string that lives through the call.
    check(unsafe { c_chown(path.as_ptr(), uid, gid) }).map(drop)
}

pub fn mount(source: &Path, target: &Path, kind: &str, flags: c_ulong, options: &str) -> io::Result<()> {
    let (source, target) = (c_path(source)?, c_path(target)?);
    let (kind, options) = (c_path(Path::new(kind))?, c_path(Path::new(options))?);
    // SAFETY: four C strings that live through the call.
    check(unsafe { c_mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) }).map(drop)
}

/// Take a mount away at once, whoever still uses it.
pub fn unmount(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: a C string that lives through the call.
    check(unsafe { umount2(target.as_ptr(), MNT_DETACH) }).map(drop)
}

/// Begin an IPC namespace, for this process and those that it starts from now on.
pub fn renew_ipc() -> io::Result<()> {
    // SAFETY: an integer.
    check(unsafe { unshare(CLONE_NEWIPC) }).map(drop)
}

/// Restart the machine. Comes back only if that is refused.
pub fn reboot() -> io::Error {
    // SAFETY: an integer.
    unsafe { c_reboot(RB_AUTOBOOT) };
    io::Error::last_os_error()
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are the string's.
    check(unsafe { c_sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Time since the kernel started, sleep included.
pub fn boot_time() -> Duration {
    let mut time = TimePair::default();
    // SAFETY: the pointer is to a whole timespec on our stack; the clock exists since Linux 2.6.39.
    unsafe { clock_gettime(CLOCK_BOOTTIME, &mut time) };
    duration(time, 1)
}

pub fn set_wall_clock(since_1970: Duration) -> io::Result<()> {
    let time = TimePair { seconds: since_1970.as_secs() as i64, fraction: since_1970.subsec_nanos().into() };
    // SAFETY: the pointer is to a whole timespec on our stack.
    check(unsafe { clock_settime(CLOCK_REALTIME, &time) }).map(drop)
}

/// Mix entropy into the kernel's pool, credit it, and have the random generator take it up at once. `random` is /dev/urandom.
pub fn add_entropy(random: &File, entropy: &[u8]) -> io::Result<()> {
    let mut pool = RandPoolInfo { entropy_bits: 0, size: 0, bytes: [0; 512] };
    let count = entropy.len().min(pool.bytes.len());
    pool.bytes[..count].copy_from_slice(&entropy[..count]);
    pool.size = count as c_int;
    pool.entropy_bits = pool.size * 8;
    // SAFETY: a rand_pool_info whose size field counts bytes that are there; the second request takes no argument.
    unsafe {
        check(ioctl(random.as_raw_fd(), RNDADDENTROPY, &pool as *const RandPoolInfo))?;
        check(ioctl(random.as_raw_fd(), RNDRESEEDCRNG)).map(drop)
    }
}

/// Bring the loopback interface up.
pub fn raise_loopback() -> io::Result<()> {
    let mut request = IfReq { name: [0; 16], flags: 0, unused: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: integers, and then a whole ifreq on our stack.
    unsafe {
        let fd = owned(socket(AF_INET, SOCK_DGRAM | O_CLOEXEC, 0))?;
        check(ioctl(fd.as_raw_fd(), SIOCGIFFLAGS, &mut request as *mut IfReq))?;
        request.flags |= IFF_UP;
        check(ioctl(fd.as_raw_fd(), SIOCSIFFLAGS, &mut request as *mut IfReq)).map(drop)
    }
}

/// A descriptor on which the kernel tells of every device that comes or changes.
pub fn watch_devices() -> io::Result<File> {
    netlink(NETLINK_KOBJECT_UEVENT, O_NONBLOCK, 1)
}

/// A descriptor for requests about interfaces, addresses and routes.
pub fn route_netlink() -> io::Result<File> {
    netlink(NETLINK_ROUTE, 0, 0)
}

fn netlink(protocol: c_int, flags: c_int, groups: u32) -> io::Result<File> {
    let address = NetlinkAddress { family: AF_NETLINK as u16, padding: 0, port: 0, groups };
    // SAFETY: integers, and a whole sockaddr_nl on our stack with its size.
    unsafe {
        let fd = owned(socket(AF_NETLINK, SOCK_RAW | O_CLOEXEC | flags, protocol))?;
        check(bind(fd.as_raw_fd(), &address, std::mem::size_of::<NetlinkAddress>() as c_uint))?;
        Ok(File::from(fd))
    }
}

/// Make a serial port carry bytes as they are, with RTS/CTS, so that none is lost when a side is slow.
pub fn make_raw(tty: &File) -> io::Result<()> {
    let mut termios = Termios { control: 0o60 | CREAD | CLOCAL | CRTSCTS | B115200, ..Termios::default() };
    (termios.input_speed, termios.output_speed) = (B115200, B115200);
    termios.characters[6] = 1; // VMIN: a read gives what is there
                               // SAFETY: a whole termios of glibc on our stack. What came before is thrown away.
    unsafe {
        check(tcsetattr(tty.as_raw_fd(), TCSANOW, &termios))?;
        check(tcflush(tty.as_raw_fd(), TCIOFLUSH)).map(drop)
    }
}

/// A pseudo-terminal of this size: our end, which does not block, and the one for programs.
pub fn open_terminal(columns: u16, rows: u16) -> io::Result<(File, OwnedFd)> {
    let ours = OpenOptions::new().read(true).write(true).custom_flags(O_NOCTTY | O_NONBLOCK).open("/dev/ptmx")?;
    let locked: c_int = 0;
    let mut termios = Termios::default();
    // SAFETY: an integer on our stack, two integers, and a whole termios of glibc on our stack.
    let theirs = unsafe {
        check(ioctl(ours.as_raw_fd(), TIOCSPTLCK, &locked as *const c_int))?;
        let theirs = owned(ioctl(ours.as_raw_fd(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC))?;
        check(tcgetattr(theirs.as_raw_fd(), &mut termios))?;
        // So that the line editor deletes whole characters.
        termios.input |= IUTF8;
        check(tcsetattr(theirs.as_raw_fd(), TCSANOW, &termios))?;
        theirs
    };
    set_size(&ours, columns, rows)?;
    Ok((ours, theirs))
}

/// Give a terminal another size; its foreground processes get SIGWINCH.
pub fn set_size(terminal: &impl AsRawFd, columns: u16, rows: u16) -> io::Result<()> {
    // SAFETY: the pointer is to a whole winsize on our stack.
    check(unsafe { ioctl(terminal.as_raw_fd(), TIOCSWINSZ, &WinSize { rows, columns, pixels: [0; 2] } as *const WinSize) }).map(drop)
}

/// The character that stands for the end of input on a terminal, and whether it gives its input by lines.
pub fn end_of_input(terminal: &impl AsRawFd) -> (u8, bool) {
    let mut termios = Termios::default();
    // SAFETY: the pointer is to a whole termios of glibc on our stack.
    unsafe { tcgetattr(terminal.as_raw_fd(), &mut termios) };
    (termios.characters[VEOF], termios.local & ICANON != 0)
}

/// Make standard input the controlling terminal of the session that this process leads.
pub fn take_terminal() -> io::Result<()> {
    // SAFETY: integers.
    check(unsafe { ioctl(0, TIOCSCTTY, 0 as c_int) }).map(drop)
}

/// Wait until a serial port has sent what was written; nothing on anything else.
pub fn drain(fd: &impl AsRawFd) {
    // SAFETY: an integer; on what is no terminal it fails with ENOTTY.
    unsafe { tcdrain(fd.as_raw_fd()) };
}

/// Make `to` (one of the standard descriptors, or any in a child that is about to exec) the same as `from`, and keep it open on exec.
pub fn duplicate_onto(from: &impl AsRawFd, to: RawFd) -> io::Result<()> {
    let from = from.as_raw_fd();
    // SAFETY: integers. The standard descriptors are owned by nobody in this program, and a child that execs closes none.
    check(unsafe {
        if from == to {
            fcntl(to, F_SETFD, 0)
        } else {
            dup2(from, to)
        }
    })
    .map(drop)
}
