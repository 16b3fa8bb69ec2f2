//! A step's terminal: a pseudo-terminal of which the program has the one end as its standard input, output and error, and as
//! its controlling terminal; we have the other.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::io::{AsRawFd, OwnedFd};

use crate::frame::StreamKind;
use crate::sys::{self, PollSet, Slot};

/// Output is passed on in pieces of at most this size.
const PIECE: usize = 32 << 10;

pub struct Terminal {
    ours: File,
    /// Kept open: with the last program's end ours would be hung up, and that again and again.
    theirs: OwnedFd,
    /// Bytes that may still be passed on.
    left: u64,
    cut: bool,
    /// All that was written to it has been read, and nobody is left who could write.
    over: bool,
    /// Whether the last line that was typed has no end yet.
    within_line: bool,
    end_is_typed: bool,
    buffer: Vec<u8>,
}

impl Terminal {
    /// `limit`: bytes that are passed on at most.
    pub fn new((columns, rows): (u16, u16), limit: u64) -> io::Result<Terminal> {
        let (ours, theirs) = sys::open_terminal(columns, rows)?;
        let buffer = vec![0; PIECE];
        Ok(Terminal { ours, theirs, left: limit, cut: false, over: false, within_line: false, end_is_typed: false, buffer })
    }

    /// A descriptor of the program's end.
    pub fn theirs(&self) -> io::Result<OwnedFd> {
        self.theirs.try_clone()
    }

    /// Where what is typed is written to.
    pub fn keyboard(&self) -> io::Result<File> {
        self.ours.try_clone()
    }

    /// Take note of bytes that were typed.
    pub fn typed(&mut self, bytes: &[u8]) {
        if let Some(&last) = bytes.last() {
            self.within_line = !matches!(last, b'\n' | b'\r');
        }
    }

    /// What is to be typed so that the program finds its input at its end, if that has not been asked for before.
    ///
    /// As a terminal reads lines, that is the character VEOF at the beginning of one; the first within a line only gives the
    /// program what the line has so far.
    pub fn type_end(&mut self) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.end_is_typed, true) {
            return None;
        }
        let (end, by_lines) = sys::end_of_input(&self.ours);
        Some(vec![end; if by_lines && self.within_line { 2 } else { 1 }])
    }

    /// Give it another size, of which its programs are told by SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) {
        // Cannot fail: the descriptor is a terminal's.
        let _ = sys::set_size(&self.ours, columns, rows);
    }

    pub fn watch(&self, set: &mut PollSet) -> Option<Slot> {
        (!self.over).then(|| set.add(&self.ours, sys::POLLIN))
    }

    /// Read what was written, about a piece of it, and give what is to be passed on. `all_ended`: nobody is left to write.
    pub fn read(&mut self, slot: Option<Slot>, set: &PollSet, all_ended: bool) -> Vec<(StreamKind, Vec<u8>)> {
        if self.over || !(all_ended || set.ready(slot)) {
            return Vec::new();
        }
        match self.ours.read(&mut self.buffer) {
            Ok(count) if count > 0 => {
                let kept = self.left.min(count as u64) as usize;
                self.left -= kept as u64;
                self.cut |= kept < count;
                return if kept > 0 { vec![(StreamKind::Stdout, self.buffer[..kept].to_vec())] } else { Vec::new() };
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.over = all_ended,
            // EIO when even our copy of their end was hung up.
            _ => self.over = true,
        }
        Vec::new()
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    pub fn was_cut(&self) -> bool {
        self.cut
    }
}

impl AsRawFd for Terminal {
    fn as_raw_fd(&self) -> std::os::unix::io::RawFd {
        self.theirs.as_raw_fd()
    }
}
