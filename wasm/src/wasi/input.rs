//! Standard input and the standard outputs.

use std::io;

use super::{Errno, Pending, Unusual};
use crate::sys::{self, Waited};

/// As much as a checkpoint takes along of what waits in standard input.
pub const MOST_PENDING: usize = 64 << 20;

/// Standard input: what waits here comes before what the host has.
#[derive(Default)]
pub struct Input {
    pub pending: Pending,
    /// The host has no more.
    pub ended: bool,
    /// Bytes that this process took from the host.
    pub taken: u64,
}

impl Input {
    pub fn is_ready(&self) -> bool {
        self.ended || !self.pending.is_empty()
    }

    /// Read some bytes; none at the end. Where there is nothing yet, `nonblocking` says so and does not wait.
    pub fn read(&mut self, to: &mut [u8], nonblocking: bool) -> Result<usize, Unusual> {
        if to.is_empty() {
            return Ok(0);
        }
        if !self.pending.is_empty() {
            let count = to.len().min(self.pending.len());
            for (to, from) in to.iter_mut().zip(self.pending.drain(..count)) {
                *to = from;
            }
            return Ok(count);
        }
        if self.ended {
            return Ok(0);
        }
        if nonblocking && !sys::has_input(0).map_err(|_| Errno::Io)? {
            return Err(Errno::Again.into());
        }
        match sys::wait(0, sys::INPUT, None) {
            Ok(Waited::Stop) => return Err(Unusual::Interrupted),
            Ok(_) => {}
            Err(_) => return Err(Errno::Io.into()),
        }
        let count = sys::read_some(0, to).map_err(|_| Errno::Io)?;
        self.ended = count == 0;
        self.taken += count as u64;
        Ok(count)
    }

    /// Take what waits in the host's standard input, so that it travels with the program.
    pub fn take_waiting(&mut self) -> io::Result<()> {
        let mut buffer = [0; 65536];
        while !self.ended && self.pending.len() < MOST_PENDING && sys::has_input(0)? {
            let count = sys::read_some(0, &mut buffer)?;
            self.ended = count == 0;
            self.taken += count as u64;
            self.pending.extend(&buffer[..count]);
        }
        Ok(())
    }
}

/// Write to standard output or error. A wait for room can be interrupted; then as much is written as had room before it.
pub fn write(fd: i32, bytes: &[u8]) -> Result<usize, Unusual> {
    let mut written = 0;
    while written < bytes.len() {
        match sys::wait(fd, sys::OUTPUT, None) {
            Ok(Waited::Stop) if written == 0 => return Err(Unusual::Interrupted),
            Ok(Waited::Stop) => break,
            Ok(_) => {}
            Err(_) => return Err(Errno::Io.into()),
        }
        let end = bytes.len().min(written + sys::PIPE_ROOM);
        match sys::write_some(fd, &bytes[written..end]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Errno::Pipe.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return Err(Errno::Io.into()),
        }
    }
    Ok(written)
}
