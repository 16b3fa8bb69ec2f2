//! A step's standard output and standard error: two pipes, read in the order in which they were written to.
//!
//! Two pipes alone do not tell which of them was written to first. So each write queues a real-time signal with the pipe's
//! descriptor (F_SETSIG, fcntl(2)), and the pipes keep writes apart (O_DIRECT, pipe(2)): for each signal one write is read.
//! The program sees ordinary pipes and never waits for us. The order is exact but for writes of whole pages, which may take
//! a later write of the same stream with them, and after an overflow of the queue of signals.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::frame::StreamKind;
use crate::sys::{self, PollSet, Slot, Written};

/// Output is passed on in pieces of about this size, and never in larger ones than a frame has room for.
const PIECE: usize = 32 << 10;
/// A pipe cuts a larger write into pages. (They are larger on some machines, and then a multiple of this.)
const PAGE: usize = 4096;
/// What a pipe holds at most: so many writes, or pages of larger ones. Twice what a user may ask for without privileges: a
/// write that waits for a full pipe may come out of order.
const PIPE_PAGES: usize = 512;
/// Output waits so long for more of it: waking up and sending a frame for each line would cost more than the line.
/// A program needs longer to fill a pipe.
const GATHERING: Duration = Duration::from_micros(250);

/// Our end of one of the pipes.
struct Stream {
    pipe: Option<File>,
    kind: StreamKind,
    /// Writes that were announced and are still to be read.
    unread: usize,
    /// Bytes that may still be passed on.
    left: u64,
    cut: bool,
    /// Nobody can write to it any more.
    ended: bool,
}

/// What one read brought.
enum Got {
    Bytes(usize),
    Nothing,
    End,
}

impl Stream {
    fn read(&mut self, into: &mut [u8]) -> Got {
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            None => return Got::End,
        };
        match pipe.read(into) {
            Ok(count) if count > 0 => Got::Bytes(count),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Got::Nothing,
            _ => {
                self.pipe = None;
                Got::End
            }
        }
    }

    /// How many of `count` bytes are passed on.
    fn keep(&mut self, count: usize) -> usize {
        let kept = self.left.min(count as u64) as usize;
        self.left -= kept as u64;
        self.cut |= kept < count;
        kept
    }
}

/// What is to be passed on, in order.
#[derive(Default)]
struct Output {
    pieces: Vec<(StreamKind, Vec<u8>)>,
    size: usize,
}

impl Output {
    fn add(&mut self, stream: StreamKind, data: &[u8]) {
        self.size += data.len();
        match self.pieces.last_mut() {
            Some((kind, piece)) if *kind == stream && piece.len() + data.len() <= PIECE => piece.extend(data),
            _ if !data.is_empty() => self.pieces.push((stream, data.to_vec())),
            _ => {}
        }
    }
}

/// Where the descriptors are in a `PollSet`.
#[derive(Default)]
pub struct Slots {
    writes: Option<Slot>,
    streams: [Option<Slot>; 2],
}

pub struct Streams {
    streams: [Stream; 2],
    /// Gives a signal for each write.
    writes: File,
    /// The streams of writes that are still to be read, in their order.
    waiting: VecDeque<usize>,
    buffer: Vec<u8>,
    /// When the first of the writes was seen that are still to be read.
    since: Option<Instant>,
}

impl Streams {
    /// Of two ends for reading, before anything can be written. `limit`: bytes of each that are passed on at most.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd, limit: u64) -> io::Result<Streams> {
        let mut writes = sys::watch_writes()?;
        // Of an earlier step, whose pipes are closed.
        while !sys::next_writes(&mut writes).is_empty() {}
        for pipe in [&stdout, &stderr] {
            sys::announce_writes(pipe, PIPE_PAGES * PAGE)?;
        }
        let stream = |pipe, kind| Stream { pipe: Some(File::from(pipe)), kind, unread: 0, left: limit, cut: false, ended: false };
        let streams = [stream(stdout, StreamKind::Stdout), stream(stderr, StreamKind::Stderr)];
        Ok(Streams { streams, writes, waiting: VecDeque::new(), buffer: vec![0; PIECE], since: None })
    }

    /// Add what there is to wait for: writes, and each pipe's end.
    pub fn watch(&self, set: &mut PollSet) -> Slots {
        if self.since.is_some() {
            return Slots::default();
        }
        let mut watch = |stream: &Stream| stream.pipe.as_ref().map(|pipe| set.add(pipe, 0));
        let streams = [watch(&self.streams[0]), watch(&self.streams[1])];
        Slots { writes: Some(set.add(&self.writes, sys::POLLIN)), streams }
    }

    /// Read what was written, about a piece of it, and give what is to be passed on. `over`: no writer is left.
    pub fn read(&mut self, slots: &Slots, set: &PollSet, over: bool, now: Instant) -> Vec<(StreamKind, Vec<u8>)> {
        for (stream, &slot) in self.streams.iter_mut().zip(&slots.streams) {
            stream.ended |= over || set.ready(slot);
        }
        if set.ready(slots.writes) {
            self.since.get_or_insert(now);
        }
        let mut output = Output::default();
        if self.patience(now) != Some(Duration::ZERO) {
            return output.pieces;
        }
        while output.size < PIECE {
            let index = match self.next_write() {
                Some(index) => index,
                None => break,
            };
            // A whole page may have the rest of its write behind it.
            if !matches!(self.take(index, &mut output), Got::Bytes(count) if count % PAGE == 0) {
                self.waiting.pop_front();
                self.streams[index].unread -= 1;
            }
        }
        if self.waiting.is_empty() {
            self.since = None;
            self.finish(&mut output);
        }
        output.pieces
    }

    /// Read what no signal told of, up to its end, of each pipe that nobody writes to any more.
    fn finish(&mut self, output: &mut Output) {
        for index in 0..self.streams.len() {
            while output.size < PIECE && self.streams[index].ended && self.streams[index].pipe.is_some() {
                // A writer that is not one of the step's processes does not count.
                if matches!(self.take(index, output), Got::Nothing) {
                    self.streams[index].pipe = None;
                }
            }
        }
    }

    /// How long there is nothing to do; None: until something is written.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        if !self.waiting.is_empty() || self.streams.iter().any(|stream| stream.ended && stream.pipe.is_some()) {
            return Some(Duration::ZERO);
        }
        self.since.map(|since| GATHERING.saturating_sub(now.saturating_duration_since(since)))
    }

    /// The stream of the next write that is to be read.
    fn next_write(&mut self) -> Option<usize> {
        // The count of a pipe's unread writes has to be right when it may be full.
        let may_be_full = |streams: &[Stream; 2]| streams.iter().any(|stream| stream.unread > PIPE_PAGES / 2);
        while (self.waiting.is_empty() || may_be_full(&self.streams)) && self.note_writes() {}
        self.waiting.front().copied()
    }

    /// Take up signals; false when there are none.
    fn note_writes(&mut self) -> bool {
        let writes = sys::next_writes(&mut self.writes);
        for write in &writes {
            match *write {
                Written::To(fd) => {
                    let is_it = |stream: &Stream| stream.pipe.as_ref().map(AsRawFd::as_raw_fd) == Some(fd);
                    if let Some(index) = self.streams.iter().position(is_it) {
                        self.note(index);
                    }
                }
                // One for each write that a pipe may hold, so that all of it is read.
                Written::Lost => (0..2 * PIPE_PAGES).for_each(|count| self.note(count % 2)),
            }
        }
        !writes.is_empty()
    }

    fn note(&mut self, index: usize) {
        // A write to a full pipe is announced when it begins to wait, and once more when it is done.
        if self.streams[index].unread < PIPE_PAGES {
            self.streams[index].unread += 1;
            self.waiting.push_back(index);
        }
    }

    fn take(&mut self, index: usize, output: &mut Output) -> Got {
        let stream = &mut self.streams[index];
        let got = stream.read(&mut self.buffer);
        if let Got::Bytes(count) = got {
            let kept = stream.keep(count);
            output.add(stream.kind, &self.buffer[..kept]);
        }
        got
    }

    /// Whether both pipes were read to their ends.
    pub fn are_over(&self) -> bool {
        self.streams.iter().all(|stream| stream.pipe.is_none())
    }

    /// Whether stdout, stderr were cut at the limit.
    pub fn cut(&self) -> [bool; 2] {
        [self.streams[0].cut, self.streams[1].cut]
    }
}
