//! A step that is a function: what the host and its shim say to each other, over descriptor 3 of its program.
//!
//! A function goes through: loading -> loaded -> asked, while a request is on its way -> answering, while a response is -> loaded.
//! Whatever else the shim does breaks the contract.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::io::RawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::frame::{self, Cursor, Request, ResponseKind, ToHost};
use crate::streams::Streams;
use crate::sys::{self, PollSet, Slot};

/// The program's end of the socket.
pub const DESCRIPTOR: RawFd = 3;
/// What a request or a response has at most.
const MAX_BODY: u32 = 6 << 20;
const MAX_CONTENT_TYPE: usize = 255;
/// A response is passed on in pieces of this size: a frame has room for it besides the other fields.
const PIECE: usize = frame::MAX_PAYLOAD - 512;
const READ_SIZE: usize = 64 << 10;
/// A program that ends closes its socket first. One that has closed it ends within this, on a slow machine too, or broke the contract.
const ENDING: Duration = Duration::from_secs(2);
/// Kinds of messages to the shim.
const REQUEST: u8 = 1;
const RESUMED: u8 = 2;

pub struct Function {
    socket: UnixStream,
    /// On its way to the shim.
    to_shim: VecDeque<u8>,
    /// Of the shim, and not passed on yet.
    from_shim: Vec<u8>,
    state: State,
    /// What the shim has said waits for room in the channel.
    held_up: bool,
    /// The machine goes on from a snapshot, and the shim is not told yet.
    resumed: bool,
    /// The shim has closed its end.
    closed: Option<Instant>,
    /// How it broke the contract.
    breach: Option<String>,
}

enum State {
    Loading,
    Loaded,
    /// With the bytes of the request that the host has still to send.
    Asked(Asked, usize),
    /// With the bytes that are still to be passed on, and how many of the step's writes are read before the last of them.
    Answering(Message, usize, Option<u64>),
}

struct Asked {
    id: u32,
    content_type: String,
    size: u32,
}

/// A message of the shim, without its bytes.
struct Message {
    kind: Kind,
    id: u32,
    took_us: u64,
    content_type: String,
    size: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Loaded,
    Response(ResponseKind),
}

impl Function {
    /// `socket` is our end.
    pub fn new(socket: UnixStream) -> io::Result<Function> {
        socket.set_nonblocking(true)?;
        let (to_shim, from_shim, state) = (VecDeque::new(), Vec::new(), State::Loading);
        Ok(Function { socket, to_shim, from_shim, state, held_up: false, resumed: false, closed: None, breach: None })
    }

    /// Whether it waits for requests.
    pub fn is_loaded(&self) -> bool {
        matches!(self.state, State::Loaded) && self.from_shim.is_empty() && !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.closed.is_some() || self.breach.is_some()
    }

    /// How it broke the contract, if it did.
    pub fn breach(&self) -> Option<&str> {
        self.breach.as_deref()
    }

    /// When to look at it again at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.closed.filter(|_| self.breach.is_none()).map(|closed| closed + ENDING)
    }

    /// Whether there is something to pass on as soon as the channel has room.
    pub fn is_held_up(&self) -> bool {
        self.held_up && self.breach.is_none()
    }

    /// Add what it waits for, while the channel has room.
    pub fn watch(&self, set: &mut PollSet) -> Option<Slot> {
        let out = if self.to_shim.is_empty() { 0 } else { sys::POLLOUT };
        (!self.is_over()).then(|| set.add(&self.socket, sys::POLLIN | out))
    }

    /// Take a REQUEST of the host, or a piece of one. Fails with why it is refused.
    pub fn request(&mut self, request: Request, streams: &mut Streams) -> Result<(), &'static str> {
        let Request { id, content_type, size, data } = request;
        let missing = match &self.state {
            // The host may not have seen yet that it ends.
            _ if self.is_over() => return Ok(()),
            State::Loaded if size > MAX_BODY || content_type.len() > MAX_CONTENT_TYPE => return Err("REQUEST that is too large"),
            State::Loaded => size as usize,
            State::Asked(asked, missing) if *missing > 0 && (asked.id, &asked.content_type, asked.size) == (id, &content_type, size) => {
                *missing
            }
            State::Loading => return Err("REQUEST before LOADED"),
            _ => return Err("REQUEST while another one is under way"),
        };
        if data.len() > missing || data.is_empty() != (size == 0) {
            return Err("REQUEST with more or fewer bytes than it announces");
        }
        if let State::Loaded = self.state {
            streams.renew();
            if std::mem::take(&mut self.resumed) {
                self.tell(RESUMED, 0, "", 0);
            }
            self.tell(REQUEST, id, &content_type, size);
        }
        self.to_shim.extend(&data);
        self.state = State::Asked(Asked { id, content_type, size }, missing - data.len());
        self.write();
        Ok(())
    }

    /// Tell the shim with the next request that the machine goes on from a snapshot. The host may say so several times, and has
    /// more of the machine's memory there by then.
    pub fn resumed(&mut self) {
        self.resumed = true;
    }

    fn tell(&mut self, kind: u8, id: u32, content_type: &str, size: u32) {
        self.to_shim.push_back(kind);
        self.to_shim.extend(id.to_le_bytes());
        self.to_shim.extend((content_type.len() as u16).to_le_bytes());
        self.to_shim.extend(content_type.as_bytes());
        self.to_shim.extend(size.to_le_bytes());
    }

    /// Write and read what can be, and pass on what the shim has said, as far as the channel has room. True if it has just broken
    /// the contract.
    pub fn serve(&mut self, ready: (Option<Slot>, &PollSet), now: Instant, run: u32, channel: &mut Channel, streams: &mut Streams) -> bool {
        if self.breach.is_some() {
            return false;
        }
        let served = self.exchange(ready, now).and_then(|()| {
            while !channel.is_full() && self.pass_on(run, channel, streams)? {}
            Ok(())
        });
        self.held_up = channel.is_full();
        self.breach = served.err().map(|text| format!("the function {text}"));
        self.breach.is_some()
    }

    fn exchange(&mut self, (slot, set): (Option<Slot>, &PollSet), now: Instant) -> Result<(), String> {
        if set.ready(slot) {
            self.write();
        }
        if set.readable(slot) {
            self.read(now);
        }
        match self.deadline() {
            Some(deadline) if now >= deadline => Err(format!("closed its descriptor {DESCRIPTOR}")),
            _ => Ok(()),
        }
    }

    fn write(&mut self) {
        while !self.to_shim.is_empty() {
            match self.socket.write(self.to_shim.as_slices().0) {
                Ok(count) => drop(self.to_shim.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The socket is full. Or it is closed, which whoever reads from it finds too.
                Err(_) => return,
            }
        }
    }

    fn read(&mut self, now: Instant) {
        let mut buffer = [0; READ_SIZE];
        match self.socket.read(&mut buffer) {
            Ok(count) if count > 0 => self.from_shim.extend(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            _ => self.closed = Some(now),
        }
    }

    /// Pass on the next frame that is whole; false when there is none, or no room.
    fn pass_on(&mut self, run: u32, channel: &mut Channel, streams: &mut Streams) -> Result<bool, String> {
        if !self.hear()? {
            return Ok(false);
        }
        let (message, missing, writes) = match &mut self.state {
            State::Answering(message, missing, writes) => (message, missing, writes),
            _ => return Ok(false),
        };
        let count = PIECE.min(*missing);
        if self.from_shim.len() < count {
            return Ok(false);
        }
        if count == *missing {
            if self.from_shim.len() > count {
                return Err("said more than it was asked for".into());
            }
            // It wrote them before it said this.
            let writes = *writes.get_or_insert_with(|| streams.announced());
            if !pass_on_output(writes, run, channel, streams) {
                return Ok(false);
            }
        }
        match message.kind {
            Kind::Loaded => channel.send(run, &ToHost::Loaded),
            Kind::Response(kind) => {
                let Message { id, took_us, content_type, size, .. } = message;
                let data = &self.from_shim[..count];
                channel.send(run, &ToHost::Response { id: *id, kind, took_us: *took_us, content_type, size: *size, data });
            }
        }
        self.from_shim.drain(..count);
        *missing -= count;
        if *missing == 0 {
            self.state = State::Loaded;
        }
        Ok(true)
    }

    /// Hear the front of a message, if it is time for one; whether there is a message to pass on.
    fn hear(&mut self) -> Result<bool, String> {
        if self.from_shim.is_empty() {
            return Ok(matches!(self.state, State::Answering(..)));
        }
        match &self.state {
            State::Answering(..) => return Ok(true),
            State::Loaded => return Err("said something that it was not asked for".into()),
            State::Asked(_, missing) if *missing > 0 || !self.to_shim.is_empty() => {
                return Err("answered before it had the whole request".into());
            }
            _ => {}
        }
        let message = match Message::take(&mut self.from_shim)? {
            Some(message) => message,
            None => return Ok(false),
        };
        match &self.state {
            State::Asked(asked, _) if message.kind == Kind::Loaded => {
                return Err(format!("said that it is loaded to request {}", asked.id))
            }
            State::Asked(asked, _) if message.id != asked.id => {
                return Err(format!("answered request {}, asked was {}", message.id, asked.id))
            }
            State::Loading if !message.is_loaded() => return Err("said something else first than that it is loaded".into()),
            _ => {}
        }
        let missing = message.size as usize;
        self.state = State::Answering(message, missing, None);
        Ok(true)
    }
}

/// Pass on the first `writes` of the step's, and maybe more. False if the channel has no room for all of it.
fn pass_on_output(writes: u64, run: u32, channel: &mut Channel, streams: &mut Streams) -> bool {
    while !streams.have_read(writes) && !channel.is_full() {
        for (kind, data) in streams.read_now() {
            channel.send(run, &ToHost::Output(kind, &data));
        }
    }
    streams.have_read(writes)
}

impl Message {
    /// Bytes before the content type.
    const FRONT: usize = 15;

    /// Take the first message off `data`, but for its bytes; None while that is not whole.
    fn take(data: &mut Vec<u8>) -> Result<Option<Message>, String> {
        if data.len() < Message::FRONT {
            return Ok(None);
        }
        let count = usize::from(u16::from_le_bytes([data[Message::FRONT - 2], data[Message::FRONT - 1]]));
        if count > MAX_CONTENT_TYPE {
            return Err(format!("sent a content type of {count} bytes, at most {MAX_CONTENT_TYPE} are allowed"));
        }
        let whole = Message::FRONT + count + std::mem::size_of::<u32>();
        if data.len() < whole {
            return Ok(None);
        }
        let message = Message::parse(&data[..whole])?;
        data.drain(..whole);
        Ok(Some(message))
    }

    fn parse(data: &[u8]) -> Result<Message, String> {
        let kind = match data[0] {
            0 => Kind::Loaded,
            1 => Kind::Response(ResponseKind::Answer),
            2 => Kind::Response(ResponseKind::Exception),
            other => return Err(format!("sent a message of kind {other}")),
        };
        let mut cursor = Cursor { data: &data[1..] };
        let mut rest = || Some((cursor.u32()?, cursor.u64()?, cursor.text()?, cursor.u32()?));
        let (id, took_us, content_type, size) = rest().ok_or("sent a content type that is not text")?;
        if !content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            // It may become a line of HTTP.
            return Err("sent a content type that is not printable ASCII".into());
        }
        if size > MAX_BODY {
            return Err(format!("sent {size} bytes, at most {MAX_BODY} are allowed"));
        }
        Ok(Message { kind, id, took_us, content_type, size })
    }

    /// Whether it says that the function is loaded, and nothing else.
    fn is_loaded(&self) -> bool {
        self.kind == Kind::Loaded && (self.id, self.took_us, self.content_type.as_str(), self.size) == (0, 0, "", 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kind: u8, id: u32, content_type: &[u8], size: u32) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend(id.to_le_bytes());
        out.extend(7u64.to_le_bytes());
        out.extend((content_type.len() as u16).to_le_bytes());
        out.extend(content_type);
        out.extend(size.to_le_bytes());
        out
    }

    #[test]
    fn a_message_is_taken_once_it_is_whole() {
        let whole = bytes(2, 5, b"text/plain", 3);
        let mut data = Vec::new();
        for &byte in &whole {
            assert!(Message::take(&mut data).unwrap().is_none());
            data.push(byte);
        }
        data.extend(b"abc");
        let message = Message::take(&mut data).unwrap().unwrap();
        assert!(message.kind == Kind::Response(ResponseKind::Exception));
        assert_eq!((message.id, message.took_us, message.content_type.as_str(), message.size), (5, 7, "text/plain", 3));
        assert_eq!(data, b"abc");
    }

    #[test]
    fn a_shim_hears_once_that_it_goes_on_however_often_the_host_says_so() {
        let (ours, mut shims) = UnixStream::pair().unwrap();
        let mut streams = Streams::new(sys::pipe().unwrap(), sys::pipe().unwrap(), 1).unwrap();
        let mut function = Function::new(ours).unwrap();
        let asked = |id| Request { id, content_type: String::new(), size: 1, data: vec![b'x'] };
        function.state = State::Loaded;
        function.resumed();
        function.resumed();
        function.request(asked(7), &mut streams).unwrap();
        let mut heard = [0; 2 * 11 + 1];
        shims.read_exact(&mut heard).unwrap();
        assert_eq!(heard[..12], [RESUMED, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, REQUEST]);
        function.state = State::Loaded;
        function.request(asked(8), &mut streams).unwrap();
        shims.read_exact(&mut heard[..12]).unwrap();
        assert_eq!(heard[..2], [REQUEST, 8]);
    }

    #[test]
    fn what_no_message_is() {
        for (mut data, why) in [
            (bytes(3, 0, b"", 0), "kind 3"),
            (bytes(1, 0, b"\xff", 0), "not text"),
            (bytes(1, 0, "\u{df}".as_bytes(), 0), "printable"),
            (bytes(1, 0, b"a/b\r\nX: y", 0), "printable"),
            (bytes(1, 0, b"\x7f", 0), "printable"),
            (bytes(1, 0, &[b'x'; 256], 0), "256 bytes"),
            (bytes(1, 0, b"", MAX_BODY + 1), "6291457 bytes"),
        ] {
            assert!(Message::take(&mut data).err().unwrap().contains(why), "{why}");
        }
    }
}
