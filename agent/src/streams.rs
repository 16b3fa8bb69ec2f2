//! A step's standard output and standard error: two pipes, read in the order in which they were written to.
//!
//! Two pipes alone do not tell which of them was written to first. So each write queues a real-time signal with the pipe's
//! descriptor (F_SETSIG, fcntl(2)), and the pipes keep writes apart (O_DIRECT, pipe(2)): for each signal one write is read.
//! The program sees ordinary pipes and never waits for us.
//!
//! A signal may announce nothing: Linux sends one more for each write that meets a full pipe, before that waits for room
//! (fs/pipe.c, pipe_write). Such a signal comes while the pipe is full, and a pipe stays full until we take something out. So
//! all that is in a pipe is taken out at once (splice(2) moves it into a pipe of our own), with all signals taken up before:
//! those that are left when it has been read are the ones that announced nothing. That holds for writes of several pages too.
//!
//! Not exact: after a write of whole pages nothing tells where it ends, so later writes of the same stream may come with it.

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
/// What a pipe holds at most: so many writes, or pages of larger ones. It is what a user may ask for without privileges.
const PIPE_PAGES: usize = 256;
/// Output waits so long for more of it: waking up and sending a frame for each line would cost more than the line.
/// A program needs longer to fill a pipe.
const GATHERING: Duration = Duration::from_micros(250);
/// A write that has met a full pipe announces itself well within this.
const ANNOUNCING: Duration = Duration::from_micros(50);

/// One of the two.
struct Stream {
    kind: StreamKind,
    /// Our end of the pipe that the program writes to.
    pipe: OwnedFd,
    /// The program's end of it, which tells whether there is room.
    program_end: OwnedFd,
    /// What was taken out of the pipe and is still to be read, and the end that it is put into.
    taken: File,
    into_taken: OwnedFd,
    /// Signals since it was taken out.
    signals: usize,
    /// Writes that were announced and are still to be read.
    unread: usize,
    /// As many of them, the first ones, were announced before it was taken out.
    unread_of_taken: usize,
    /// Bytes that may be passed on, and how many of them still.
    limit: u64,
    left: u64,
    cut: bool,
    /// All was taken out, and nobody can write to it any more.
    emptied: bool,
    /// And all of that was read.
    over: bool,
}

impl Stream {
    fn new(kind: StreamKind, pipe: OwnedFd, program_end: OwnedFd, limit: u64) -> io::Result<Stream> {
        sys::announce_writes(&pipe, PIPE_PAGES * PAGE)?;
        let (taken, into_taken) = sys::pipe()?;
        sys::set_nonblocking(&taken)?;
        sys::set_pipe_size(&into_taken, PIPE_PAGES * PAGE)?;
        Ok(Stream {
            kind,
            pipe,
            program_end,
            taken: File::from(taken),
            into_taken,
            signals: 0,
            unread: 0,
            unread_of_taken: 0,
            limit,
            left: limit,
            cut: false,
            emptied: false,
            over: false,
        })
    }

    /// Take out all that is in the pipe, at once. What was taken out before has to be read.
    fn empty(&mut self) {
        sys::move_all(&self.pipe, &self.into_taken);
        self.signals = 0;
        self.unread_of_taken = self.unread;
    }

    /// The next of what was taken out: a write, or a page of one; 0 when there is none.
    fn read(&mut self, into: &mut [u8]) -> usize {
        self.taken.read(into).unwrap_or(0)
    }

    /// Whether a write may be waiting for room that has not announced itself yet.
    fn may_announce_nothing(&self) -> bool {
        self.signals <= PIPE_PAGES && !sys::is_writable(&self.program_end)
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
    /// Bytes that were read, passed on or not.
    size: usize,
}

impl Output {
    fn add(&mut self, stream: StreamKind, data: &[u8]) {
        match self.pieces.last_mut() {
            Some((kind, piece)) if *kind == stream && piece.len() + data.len() <= PIECE => piece.extend(data),
            _ if !data.is_empty() => self.pieces.push((stream, data.to_vec())),
            _ => {}
        }
    }
}

/// Where the signals' descriptor is in a `PollSet`.
#[derive(Default)]
pub struct Slots(Option<Slot>);

pub struct Streams {
    streams: [Stream; 2],
    /// Gives a signal for each write.
    writes: File,
    /// The streams of writes that are still to be read, in their order.
    waiting: VecDeque<usize>,
    /// How many have been read.
    done: u64,
    buffer: Vec<u8>,
    /// When the first of the writes was seen that are still to be read.
    since: Option<Instant>,
    /// No writer is left.
    over: bool,
}

impl Streams {
    /// Of two packet pipes, our end and a copy of the program's, before anything can be written. `limit`: bytes of each that
    /// are passed on at most.
    pub fn new(stdout: (OwnedFd, OwnedFd), stderr: (OwnedFd, OwnedFd), limit: u64) -> io::Result<Streams> {
        let mut writes = sys::watch_writes()?;
        // Of an earlier step, whose pipes are closed.
        while !sys::next_writes(&mut writes).is_empty() {}
        let streams =
            [Stream::new(StreamKind::Stdout, stdout.0, stdout.1, limit)?, Stream::new(StreamKind::Stderr, stderr.0, stderr.1, limit)?];
        Ok(Streams { streams, writes, waiting: VecDeque::new(), done: 0, buffer: vec![0; PIECE], since: None, over: false })
    }

    /// Add what there is to wait for: writes.
    pub fn watch(&self, set: &mut PollSet) -> Slots {
        Slots(self.since.is_none().then(|| set.add(&self.writes, sys::POLLIN)))
    }

    /// Read what was written, about a piece of it, and give what is to be passed on. `over`: no writer is left.
    pub fn read(&mut self, slots: &Slots, set: &PollSet, over: bool, now: Instant) -> Vec<(StreamKind, Vec<u8>)> {
        self.over |= over;
        if set.ready(slots.0) {
            self.since.get_or_insert(now);
        }
        let mut output = Output::default();
        if self.patience(now) != Some(Duration::ZERO) {
            return output.pieces;
        }
        self.read_piece(&mut output);
        if self.waiting.is_empty() && self.over {
            self.finish(&mut output);
        }
        output.pieces
    }

    /// How many writes have been announced by now.
    pub fn announced(&mut self) -> u64 {
        self.note_writes();
        self.done + self.waiting.len() as u64
    }

    /// Whether so many of them have been read.
    pub fn have_read(&self, count: u64) -> bool {
        self.done >= count
    }

    /// Read what has been written by now, about a piece of it, and give what is to be passed on.
    pub fn read_now(&mut self) -> Vec<(StreamKind, Vec<u8>)> {
        let mut output = Output::default();
        self.read_piece(&mut output);
        output.pieces
    }

    /// Begin to count anew what is passed on, up to another limit.
    pub fn limit(&mut self, limit: u64) {
        self.streams.iter_mut().for_each(|stream| stream.limit = limit);
        self.renew();
    }

    /// Begin to count anew what is passed on.
    pub fn renew(&mut self) {
        for stream in &mut self.streams {
            stream.left = stream.limit;
            stream.cut = false;
        }
    }

    /// Read writes that were announced, about a piece of them.
    fn read_piece(&mut self, output: &mut Output) {
        while output.size < PIECE {
            if self.waiting.is_empty() {
                self.note_writes();
            }
            match self.waiting.front() {
                Some(&index) => self.read_write(index, output),
                None => {
                    self.since = None;
                    break;
                }
            }
        }
    }

    /// Read some of the write that was announced first, which is to stream `index`.
    fn read_write(&mut self, index: usize, output: &mut Output) {
        let count = self.take(index, output);
        let stream = &mut self.streams[index];
        if count == 0 && stream.unread_of_taken == 0 {
            // It came later than what was taken out.
            self.empty(index);
        } else if count == 0 || count % PAGE != 0 {
            self.waiting.pop_front();
            self.done += 1;
            stream.unread -= 1;
            stream.unread_of_taken = stream.unread_of_taken.saturating_sub(1);
        }
        // Otherwise it is a whole page, which may have the rest of its write behind it.
    }

    /// Take out all that is in a pipe, and take up all signals that came before.
    fn empty(&mut self, index: usize) {
        self.note_writes();
        while self.streams[index].may_announce_nothing() && sys::is_readable_within(&self.writes, ANNOUNCING) {
            self.note_writes();
        }
        self.streams[index].empty();
    }

    /// Read what no signal told of. No writer is left.
    fn finish(&mut self, output: &mut Output) {
        for index in 0..self.streams.len() {
            while output.size < PIECE && !self.streams[index].over {
                if self.take(index, output) == 0 {
                    let stream = &mut self.streams[index];
                    stream.over = stream.emptied;
                    // Once: a writer that is not one of the step's processes does not count.
                    stream.empty();
                    stream.emptied = true;
                }
            }
        }
    }

    /// How long there is nothing to do; None: until something is written.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        if !self.waiting.is_empty() || self.over && !self.are_over() {
            return Some(Duration::ZERO);
        }
        self.since.map(|since| GATHERING.saturating_sub(now.saturating_duration_since(since)))
    }

    /// Take up all signals.
    fn note_writes(&mut self) {
        loop {
            let writes = sys::next_writes(&mut self.writes);
            if writes.is_empty() {
                return;
            }
            for write in writes {
                match write {
                    Written::To(fd) => {
                        if let Some(index) = self.streams.iter().position(|stream| stream.pipe.as_raw_fd() == fd) {
                            self.note(index);
                        }
                    }
                    // One for each write that a pipe may hold, so that all of it is read.
                    Written::Lost => (0..2 * PIPE_PAGES).for_each(|count| self.note(count % 2)),
                }
            }
        }
    }

    fn note(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        stream.signals += 1;
        // More cannot be in the pipe: twice, as writes that were just taken out may announce themselves only now.
        if stream.signals <= 2 * PIPE_PAGES {
            stream.unread += 1;
            self.waiting.push_back(index);
        }
    }

    /// Read the next of what was taken out of a pipe; gives the count of its bytes.
    fn take(&mut self, index: usize, output: &mut Output) -> usize {
        let stream = &mut self.streams[index];
        let count = stream.read(&mut self.buffer);
        let kept = stream.keep(count);
        output.add(stream.kind, &self.buffer[..kept]);
        output.size += count;
        count
    }

    /// Whether both pipes were read to their ends.
    pub fn are_over(&self) -> bool {
        self.streams.iter().all(|stream| stream.over)
    }

    /// Whether stdout, stderr were cut at the limit.
    pub fn cut(&self) -> [bool; 2] {
        [self.streams[0].cut, self.streams[1].cut]
    }
}
