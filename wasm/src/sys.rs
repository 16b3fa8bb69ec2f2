//! The system calls that std does not offer, and the wish to stop. Every function is safe to call with any values.

use std::io;
use std::os::raw::{c_int, c_short, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

pub const INPUT: c_short = 1;
pub const OUTPUT: c_short = 4;
pub const HUNG_UP: c_short = 16;
const SIGUSR1: c_int = 10;
const SIGXFSZ: c_int = 25;
const SIG_IGN: usize = 1;
const O_CLOEXEC: c_int = 0o2_000_000;

/// As many bytes go into a pipe whole, once `poll` says that it has room (pipe(7), PIPE_BUF).
pub const PIPE_ROOM: usize = 4096;

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

extern "C" {
    fn poll(fds: *mut PollFd, count: c_ulong, timeout_ms: c_int) -> c_int;
    fn read(fd: c_int, to: *mut c_void, count: usize) -> isize;
    fn write(fd: c_int, from: *const c_void, count: usize) -> isize;
    fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
}

static WANTED: AtomicBool = AtomicBool::new(false);
/// Both ends of a pipe that becomes readable when the program is to stop: a wait that begins just then still ends.
static WAKE: [AtomicI32; 2] = [AtomicI32::new(-1), AtomicI32::new(-1)];

extern "C" fn want_stop(_: c_int) {
    WANTED.store(true, Ordering::SeqCst);
    // SAFETY: write(2) may be called by a handler of a signal; the byte is a constant.
    unsafe { write(WAKE[1].load(Ordering::SeqCst), [1u8].as_ptr().cast(), 1) };
}

/// From now on SIGUSR1 asks the program to stop. A checkpoint for which there is no room does not end it.
pub fn stop_on_signal() -> io::Result<()> {
    let mut fds = [-1; 2];
    // SAFETY: there is room for two descriptors.
    if unsafe { pipe2(fds.as_mut_ptr(), O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    WAKE[0].store(fds[0], Ordering::SeqCst);
    WAKE[1].store(fds[1], Ordering::SeqCst);
    let handler: extern "C" fn(c_int) = want_stop;
    // SAFETY: the handler does only what handlers may.
    if unsafe { signal(SIGXFSZ, SIG_IGN) == usize::MAX || signal(SIGUSR1, handler as usize) == usize::MAX } {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub fn stop_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// The program goes on although it was asked to stop; it may be asked again.
pub fn do_not_stop() -> io::Result<()> {
    let end = WAKE[0].load(Ordering::SeqCst);
    while has_input(end)? {
        read_some(end, &mut [0; 64])?;
    }
    WANTED.store(false, Ordering::SeqCst);
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    Ready,
    TimedOut,
    /// The program is to stop.
    Stop,
}

/// Wait until a descriptor is ready, a number of nanoseconds has passed, or the program is to stop. Without a descriptor, `fd` is -1.
pub fn wait(fd: i32, events: c_short, timeout_ns: Option<u64>) -> io::Result<Waited> {
    wait_any(&[(fd, events)], timeout_ns)
}

/// The same for several descriptors, until one of them is ready.
pub fn wait_any(wanted: &[(i32, c_short)], timeout_ns: Option<u64>) -> io::Result<Waited> {
    let began = std::time::Instant::now();
    loop {
        if stop_wanted() {
            return Ok(Waited::Stop);
        }
        let left = timeout_ns.map(|timeout| timeout.saturating_sub(began.elapsed().as_nanos() as u64));
        let left_ms = left.map_or(-1, |left| ((left + 999_999) / 1_000_000).min(i32::MAX as u64) as c_int);
        let wake = (WAKE[0].load(Ordering::SeqCst), INPUT);
        let mut fds: Vec<PollFd> =
            wanted.iter().chain([&wake]).map(|(fd, events)| PollFd { fd: *fd, events: *events, revents: 0 }).collect();
        // SAFETY: the vector lives through the call. Negative descriptors are passed over.
        let ready = unsafe { poll(fds.as_mut_ptr(), fds.len() as c_ulong, left_ms) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if fds[..wanted.len()].iter().any(|fd| fd.revents != 0) {
            return Ok(Waited::Ready);
        }
        if left.map_or(false, |left| left <= u64::from(left_ms as u32) * 1_000_000) && ready == 0 {
            return Ok(Waited::TimedOut);
        }
    }
}

/// Whether a read would not wait.
pub fn has_input(fd: i32) -> io::Result<bool> {
    ready(fd, INPUT).map(|ready| ready != 0)
}

/// Which of the events have come, and whether the other side has hung up (`HUNG_UP`).
pub fn ready(fd: i32, events: c_short) -> io::Result<c_short> {
    let mut fds = [PollFd { fd, events, revents: 0 }];
    // SAFETY: the array lives through the call.
    again(|| unsafe { poll(fds.as_mut_ptr(), 1, 0) } as isize).map(|_| fds[0].revents)
}

/// Without std's buffer, so that what is not asked for stays in the pipe.
pub fn read_some(fd: i32, to: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the count are the slice's.
    again(|| unsafe { read(fd, to.as_mut_ptr().cast(), to.len()) })
}

pub fn write_some(fd: i32, from: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the count are the slice's.
    again(|| unsafe { write(fd, from.as_ptr().cast(), from.len()) })
}

/// What a system call gives, made again for as long as a signal comes between.
fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(given) = usize::try_from(call()) {
            return Ok(given);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
