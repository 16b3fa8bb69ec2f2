//! The byte stream to the host: frames in, frames out, and how many bytes still wait to be sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::io::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::frame::{self, Frame, ToHost};
use crate::slip::{self, Piece, Splitter};
use crate::sys;

/// Programs' output is not read while so many bytes wait to be sent.
pub const HIGH_WATER: usize = 256 << 10;
/// The host's frames are not read while so many bytes wait: their answers have to go somewhere.
const ANSWERS_HIGH_WATER: usize = 2 * HIGH_WATER;
const READ_SIZE: usize = 64 << 10;

pub struct Channel {
    file: File,
    splitter: Splitter,
    out: VecDeque<u8>,
    /// Kept, so that only those of its pages are touched that bytes come into: each is a page fault, and in a clone one of the host too.
    buffer: Vec<u8>,
    /// Packets that were no frames.
    pub dropped: u64,
}

impl Channel {
    /// Take over an open stream.
    pub fn new(fd: OwnedFd) -> io::Result<Channel> {
        sys::set_nonblocking(&fd)?;
        let (splitter, buffer) = (Splitter::new(frame::MAX_PACKET), vec![0; READ_SIZE]);
        Ok(Channel { file: File::from(fd), splitter, out: VecDeque::new(), buffer, dropped: 0 })
    }

    /// Queue a message; `flush` sends it.
    pub fn send(&mut self, run: u32, message: &ToHost) {
        slip::encode(&frame::pack(run, message), &mut self.out);
    }

    /// Whether programs have to wait for the host.
    pub fn is_full(&self) -> bool {
        self.out.len() >= HIGH_WATER
    }

    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    pub fn takes_input(&self) -> bool {
        self.out.len() < ANSWERS_HIGH_WATER
    }

    /// Send what the stream takes without waiting.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.file.write(self.out.as_slices().0) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Send everything, for the last words before a restart; gives up after `patience`.
    pub fn drain(&mut self, patience: Duration) {
        let end = Instant::now() + patience;
        while self.flush().is_ok() && self.has_output() && Instant::now() < end {
            let mut set = sys::PollSet::default();
            set.add(self, sys::POLLOUT);
            if set.wait(Some(end.saturating_duration_since(Instant::now()))).is_err() {
                return;
            }
        }
        if !self.has_output() {
            sys::drain(self);
        }
    }

    /// Read once and give the frames that are whole now; None at the end of the stream.
    pub fn receive(&mut self) -> Option<Vec<Frame>> {
        let count = match self.file.read(&mut self.buffer) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(_) => return None,
        };
        let mut frames = Vec::new();
        for piece in self.splitter.feed(&self.buffer[..count]) {
            match piece {
                Piece::Packet(packet) => match frame::parse(&packet) {
                    Ok(frame) => frames.push(frame),
                    Err(_) => self.dropped += 1,
                },
                Piece::Damaged => self.dropped += 1,
            }
        }
        Some(frames)
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
