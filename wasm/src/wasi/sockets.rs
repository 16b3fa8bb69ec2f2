//! A program's sockets. What the host has of one can be made again from what is kept here: of a program that goes on elsewhere, at the
//! socket's next use.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::socket_options::{self as options, Number};
use super::{Errno, Unusual, Wasi};
use crate::net::Host;
use crate::sys::{self, Waited};

/// As many bytes of one socket travel in a checkpoint, beyond what one call takes from the host.
pub const MOST_KEPT: usize = 4 << 20;
/// What a call takes from the host; more than any datagram has.
const AT_ONCE: usize = 64 << 10;
/// Connections that wait to be accepted at a socket that is opened for the program.
const BACKLOG: u32 = 128;
/// A program that stops waits so long for what it sent to arrive, and looks so often.
const ARRIVING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Unconnected,
    Listening,
    Connecting,
    Connected,
    /// A connection of a socket that listens.
    Accepted,
}

/// What a receiver is told when it has read all that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    /// The other side sends no more.
    Ended,
    /// The connection broke, which the program does not know yet.
    Broken,
    BrokenAndTold,
}

pub struct Socket {
    pub v6: bool,
    pub stream: bool,
    pub state: State,
    /// What it is bound to, if not only by connecting.
    pub local: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
    pub backlog: u32,
    /// The program receives no more, and sends no more.
    pub shut: [bool; 2],
    pub nonblocking: bool,
    pub options: BTreeMap<Number, u64>,
    /// What was received and not read: of a stream, and of a socket for datagrams.
    pub bytes: VecDeque<u8>,
    pub datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    pub end: End,
    host: Option<Host>,
}

/// What a program receives at once.
pub struct Received {
    pub bytes: Vec<u8>,
    pub from: Option<SocketAddr>,
    /// The datagram had more.
    pub cut: bool,
}

impl Socket {
    pub fn new(v6: bool, stream: bool) -> Socket {
        Socket {
            v6,
            stream,
            state: State::Unconnected,
            local: None,
            peer: None,
            backlog: 0,
            shut: [false; 2],
            nonblocking: false,
            options: BTreeMap::new(),
            bytes: VecDeque::new(),
            datagrams: VecDeque::new(),
            end: End::Open,
            host: None,
        }
    }

    /// One that listens before the program begins.
    pub fn listener(address: SocketAddr, nonblocking: bool) -> io::Result<Socket> {
        let listening =
            Socket { state: State::Listening, local: Some(address), backlog: BACKLOG, nonblocking, ..Socket::new(address.is_ipv6(), true) };
        let host = listening.open()?;
        // Of port 0 the host has made one.
        let local = Some(host.local()?);
        Ok(Socket { local, host: Some(host), ..listening })
    }

    /// WASI's `filetype`.
    pub fn file_type(&self) -> u8 {
        if self.stream {
            6
        } else {
            5
        }
    }

    /// Whether it is a stream that had another side once.
    pub fn is_connection(&self) -> bool {
        self.stream && matches!(self.state, State::Connected | State::Accepted)
    }

    /// Whether it is a connection that another process had.
    pub fn is_cut(&self) -> bool {
        self.is_connection() && self.host.is_none()
    }

    /// The host's socket, which is opened now if this process has none. A connection is made again only to send and to receive.
    pub fn host(&mut self) -> Result<&Host, Errno> {
        if self.is_cut() {
            return Err(Errno::NotConn);
        }
        if self.host.is_none() {
            self.host = Some(self.open()?);
        }
        Ok(self.host.as_ref().expect("it was opened"))
    }

    /// Connect again what the program had connected, if it can still send.
    fn mend(&mut self) -> Result<(), Errno> {
        if self.is_cut() {
            if self.state == State::Accepted || self.end == End::Ended || self.shut[1] {
                return Err(Errno::Pipe);
            }
            self.host = Some(self.open()?);
            self.end = End::Open;
        }
        Ok(())
    }

    fn open(&self) -> io::Result<Host> {
        let host = Host::open(self.v6, self.stream)?;
        for (number, value) in &self.options {
            // Another host may know less of them, or allow less.
            drop(options::apply(&host, *number, *value));
        }
        if let Some(local) = &self.local {
            if self.stream {
                host.reuse_address()?;
            }
            host.bind(local)?;
        }
        match (self.state, &self.peer) {
            (State::Listening, _) => host.listen(self.backlog)?,
            (State::Connecting | State::Connected, Some(peer)) => match host.connect(peer) {
                Err(error) if Errno::from(&error) != Errno::InProgress => return Err(error),
                _ => {}
            },
            _ => {}
        }
        Ok(host)
    }

    /// Open what others wait for, as far as this host allows; what fails is told at the next use.
    pub fn reopen(&mut self) {
        if self.local.is_some() && !self.is_connection() {
            let _ = self.host();
        }
    }

    pub fn bind(&mut self, address: SocketAddr) -> Result<(), Errno> {
        let host = self.host()?;
        host.bind(&address)?;
        self.local = Some(host.local()?);
        Ok(())
    }

    pub fn listen(&mut self, backlog: u32) -> Result<(), Errno> {
        let host = self.host()?;
        host.listen(backlog)?;
        (self.local, self.state, self.backlog) = (Some(host.local()?), State::Listening, backlog);
        Ok(())
    }

    /// Connect, or say how far that is: EINPROGRESS and EALREADY mean that it is under way.
    pub fn connect(&mut self, address: SocketAddr) -> Result<(), Errno> {
        if self.is_connection() {
            return Err(Errno::IsConn);
        }
        let connected = self.host()?.connect(&address).map_err(|error| Errno::from(&error));
        match connected {
            Ok(()) | Err(Errno::IsConn) if self.state != State::Listening => {
                (self.state, self.peer) = (State::Connected, Some(address));
                Ok(())
            }
            Err(Errno::InProgress) => {
                (self.state, self.peer) = (State::Connecting, Some(address));
                connected
            }
            Err(Errno::Already) => connected,
            _ => {
                if self.state == State::Connecting {
                    (self.state, self.peer) = (State::Unconnected, None);
                }
                connected
            }
        }
    }

    /// A connection, if one waits.
    pub fn accept(&mut self, nonblocking: bool) -> Result<Socket, Errno> {
        let host = self.host()?.accept()?;
        let (local, peer) = (Some(host.local()?), host.peer().ok());
        Ok(Socket { state: State::Accepted, local, peer, nonblocking, host: Some(host), ..Socket::new(self.v6, true) })
    }

    /// Send some bytes, or a datagram, if there is room.
    pub fn send(&mut self, bytes: &[u8], to: Option<&SocketAddr>) -> Result<usize, Errno> {
        if self.stream && self.shut[1] {
            return Err(Errno::Pipe);
        }
        if self.is_cut() && self.state == State::Accepted && self.end == End::Broken {
            self.end = End::BrokenAndTold;
            return Err(Errno::ConnReset);
        }
        self.mend()?;
        let sent = self.host()?.send(bytes, to)?;
        self.settle();
        Ok(sent)
    }

    /// Receive something if it is there: at most `room` bytes, as many if `all` are wanted, and leave them there if it `peek`s.
    pub fn receive(&mut self, room: usize, peek: bool, all: bool) -> Result<Received, Errno> {
        if self.stream {
            self.receive_bytes(room, peek, all)
        } else {
            self.receive_datagram(room, peek)
        }
    }

    fn receive_bytes(&mut self, room: usize, peek: bool, all: bool) -> Result<Received, Errno> {
        let wanted = if all { room.min(MOST_KEPT) } else { room.min(1) };
        while self.bytes.len() < wanted && self.fill(room)? {}
        if self.bytes.is_empty() && wanted > 0 && self.end == End::Broken {
            self.end = End::BrokenAndTold;
            return Err(Errno::ConnReset);
        }
        let count = room.min(self.bytes.len());
        let bytes = if peek { self.bytes.iter().take(count).copied().collect() } else { self.bytes.drain(..count).collect() };
        Ok(Received { bytes, from: self.peer, cut: false })
    }

    /// Take bytes from the host, some tens of thousands at most; false if none come any more.
    fn fill(&mut self, most: usize) -> Result<bool, Errno> {
        self.settle();
        if self.shut[0] || matches!(self.end, End::Ended | End::Broken) {
            return Ok(false);
        }
        match self.mend() {
            Err(Errno::Pipe) => return Ok(false),
            mended => mended?,
        }
        let mut buffer = [0; AT_ONCE];
        let room = most.min(AT_ONCE);
        match self.host()?.receive(&mut buffer[..room]) {
            Ok((0, _)) => {
                self.end = End::Ended;
                Ok(false)
            }
            Ok((count, _)) => {
                self.bytes.extend(&buffer[..count]);
                Ok(true)
            }
            Err(error) if self.is_connection() && Errno::from(&error) == Errno::ConnReset => {
                self.end = End::Broken;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn receive_datagram(&mut self, room: usize, peek: bool) -> Result<Received, Errno> {
        if self.datagrams.is_empty() {
            self.fill_datagram()?;
        }
        let (from, mut bytes) = match if peek { self.datagrams.front().cloned() } else { self.datagrams.pop_front() } {
            Some(datagram) => datagram,
            None => return Err(Errno::Again),
        };
        let cut = bytes.len() > room;
        bytes.truncate(room);
        Ok(Received { bytes, from: Some(from), cut })
    }

    fn fill_datagram(&mut self) -> Result<(), Errno> {
        let mut buffer = [0; AT_ONCE];
        let (count, from) = self.host()?.receive(&mut buffer)?;
        if let Some(from) = from {
            self.datagrams.push_back((from, buffer[..count].to_vec()));
        }
        Ok(())
    }

    /// No more is received (1), sent (2) or either (3).
    pub fn shut_down(&mut self, how: u32) -> Result<(), Errno> {
        if let Some(host) = &self.host {
            host.shutdown(how as i32 - 1)?;
        } else if !self.is_connection() {
            return Err(Errno::NotConn);
        }
        self.shut = [self.shut[0] || how & 1 != 0, self.shut[1] || how & 2 != 0];
        Ok(())
    }

    pub fn local_address(&mut self) -> Result<SocketAddr, Errno> {
        match (&self.host, self.local) {
            (Some(host), _) => Ok(host.local()?),
            (None, Some(local)) => Ok(local),
            (None, None) if self.v6 => Ok((Ipv6Addr::UNSPECIFIED, 0).into()),
            (None, None) => Ok((Ipv4Addr::UNSPECIFIED, 0).into()),
        }
    }

    pub fn peer_address(&mut self) -> Result<SocketAddr, Errno> {
        self.settle();
        self.peer.filter(|_| self.state != State::Connecting).ok_or(Errno::NotConn)
    }

    pub fn option(&mut self, number: Number) -> Result<u64, Errno> {
        if options::is_ours(number) || self.is_cut() {
            return Ok(self.options.get(&number).copied().unwrap_or(0));
        }
        Ok(options::read(self.host()?, number)?)
    }

    pub fn set_option(&mut self, number: Number, value: u64) -> Result<(), Errno> {
        if !self.is_cut() {
            options::apply(self.host()?, number, value)?;
        }
        self.options.insert(number, value);
        Ok(())
    }

    /// How long it is waited for at most.
    fn limit_ns(&self, events: i16) -> Option<u64> {
        let number = if events == sys::INPUT { options::RECV_TIMEOUT } else { options::SEND_TIMEOUT };
        self.options.get(&number).filter(|limit| **limit > 0).map(|limit| limit.saturating_mul(1000))
    }

    /// Whether receiving would not wait, whatever the host has.
    pub fn has_kept(&self) -> bool {
        !self.bytes.is_empty() || !self.datagrams.is_empty() || self.shut[0] || self.end != End::Open
    }

    /// Notice that a connection has come about that was not waited for.
    fn settle(&mut self) {
        let connected = |host: &Host| host.peer().is_ok();
        if self.state == State::Connecting && self.host.as_ref().map_or(false, connected) {
            self.state = State::Connected;
        }
    }

    /// Whether something that was sent has not come to the other side's host, and still may.
    fn is_sending(&self) -> bool {
        let goes_on = self.is_connection() && matches!(self.end, End::Open | End::Ended);
        let unconfirmed = self.host.as_ref().filter(|_| goes_on).map(Host::unconfirmed);
        matches!(unconfirmed, Some(Ok(1..)))
    }

    /// Take what waits at the host, so that it travels with the program.
    fn take_waiting(&mut self) {
        self.settle();
        if self.host.is_none() {
            return;
        }
        if self.is_connection() {
            while self.bytes.len() < MOST_KEPT {
                match self.fill(AT_ONCE) {
                    Ok(true) => {}
                    Ok(false) | Err(Errno::Again) => break,
                    // The host tells it once, and the program has not seen it.
                    Err(_) => {
                        self.end = End::Broken;
                        break;
                    }
                }
            }
        } else if !self.stream {
            let mut kept: usize = self.datagrams.iter().map(|(_, bytes)| bytes.len() + 1).sum();
            while kept < MOST_KEPT && self.fill_datagram().is_ok() {
                kept += self.datagrams.back().map_or(0, |(_, bytes)| bytes.len() + 1);
            }
        }
    }
}

impl Wasi {
    pub fn socket(&mut self, fd: u32) -> Result<&mut Socket, Errno> {
        match self.descriptors.get_mut(&fd) {
            Some(super::Descriptor::Socket(socket)) => Ok(socket),
            Some(_) => Err(Errno::NotSock),
            None => Err(Errno::BadF),
        }
    }

    pub fn sockets(&mut self) -> impl Iterator<Item = &mut Socket> {
        self.descriptors.values_mut().filter_map(|descriptor| match descriptor {
            super::Descriptor::Socket(socket) => Some(&mut **socket),
            _ => None,
        })
    }

    /// Take what waits at the host, and let arrive what the program sent, as far as that comes to be within two seconds.
    pub fn quiesce_sockets(&mut self) {
        let began = Instant::now();
        loop {
            self.sockets().for_each(Socket::take_waiting);
            if began.elapsed() > ARRIVING || !self.sockets().any(|socket| socket.is_sending()) {
                break;
            }
            thread::sleep(LOOK);
        }
    }

    /// Do something with a socket when it can be done; a socket that is not waited for says that it cannot.
    pub fn when_ready<T>(&mut self, fd: u32, events: i16, mut call: impl FnMut(&mut Socket) -> Result<T, Errno>) -> Result<T, Unusual> {
        loop {
            let socket = self.socket(fd)?;
            let result = call(socket);
            if !matches!(result, Err(Errno::Again)) || socket.nonblocking {
                self.asleep_until = None;
                return Ok(result?);
            }
            let limit = socket.limit_ns(events);
            let host = socket.host()?.fd();
            // A wait that was interrupted ends when it would have ended.
            let until = self.asleep_until.or_else(|| limit.map(|limit| self.clock().saturating_add(limit)));
            let left = until.map(|until| until.saturating_sub(self.clock()));
            self.asleep_until = until;
            match sys::wait(host, events, left) {
                Ok(Waited::Ready) => {}
                Ok(Waited::Stop) => return Err(Unusual::Interrupted),
                Ok(Waited::TimedOut) => {
                    self.asleep_until = None;
                    return Err(Errno::Again.into());
                }
                Err(_) => {
                    self.asleep_until = None;
                    return Err(Errno::Io.into());
                }
            }
        }
    }
}
