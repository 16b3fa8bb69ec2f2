//! Sockets in a checkpoint.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use super::coding::{Sink, Source};
use crate::refusal::{invalid, malformed, Result};
use crate::wasi::socket_options::COUNT;
use crate::wasi::sockets::{End, Socket, State, MOST_KEPT};

const STATES: [State; 5] = [State::Unconnected, State::Listening, State::Connecting, State::Connected, State::Accepted];
const ENDS: [End; 4] = [End::Open, End::Ended, End::Broken, End::BrokenAndTold];
/// What a call takes from the host can come on top of what travels.
const MOST_BYTES: usize = 2 * MOST_KEPT;

pub fn save(socket: &Socket, to: &mut Sink<impl Write>) -> io::Result<()> {
    to.u8(socket.v6.into())?;
    to.u8(socket.stream.into())?;
    to.u8(STATES.iter().position(|state| *state == socket.state).expect("all states are there") as u8)?;
    save_address(socket.local, to)?;
    save_address(socket.peer, to)?;
    to.u32(socket.backlog)?;
    for flag in [socket.shut[0], socket.shut[1], socket.nonblocking] {
        to.u8(flag.into())?;
    }
    to.count(socket.options.len())?;
    for (number, value) in &socket.options {
        to.u8(*number)?;
        to.u64(*value)?;
    }
    to.u8(ENDS.iter().position(|end| *end == socket.end).expect("all ends are there") as u8)?;
    to.bytes(&socket.bytes.iter().copied().collect::<Vec<_>>())?;
    to.count(socket.datagrams.len())?;
    for (from, bytes) in &socket.datagrams {
        save_address(Some(*from), to)?;
        to.bytes(bytes)?;
    }
    Ok(())
}

fn save_address(address: Option<SocketAddr>, to: &mut Sink<impl Write>) -> io::Result<()> {
    let address = match address {
        Some(address) => address,
        None => return to.u8(0),
    };
    match address.ip() {
        IpAddr::V4(ip) => {
            to.u8(4)?;
            to.0.write_all(&ip.octets())?;
        }
        IpAddr::V6(ip) => {
            to.u8(6)?;
            to.0.write_all(&ip.octets())?;
        }
    }
    to.0.write_all(&address.port().to_le_bytes())
}

/// The socket of a descriptor. A connection is broken then, unless its other side had sent all.
pub fn load<R: Read>(from: &mut Source<R>) -> Result<Socket> {
    let mut socket = Socket::new(from.flag()?, from.flag()?);
    socket.state = one_of(from, &STATES, "a socket's state")?;
    (socket.local, socket.peer, socket.backlog) = (load_address(from)?, load_address(from)?, from.u32()?);
    socket.shut = [from.flag()?, from.flag()?];
    socket.nonblocking = from.flag()?;
    for _ in 0..from.count(9)? {
        let number = from.array::<1>()?[0];
        if number >= COUNT || socket.options.insert(number, from.u64()?).is_some() {
            return invalid(format!("a socket's option {number}, unknown or twice"));
        }
    }
    socket.end = one_of(from, &ENDS, "a socket's end")?;
    socket.bytes = from.bytes()?.into();
    for _ in 0..from.count(11)? {
        match load_address(from)? {
            Some(sender) => socket.datagrams.push_back((sender, from.bytes()?)),
            None => return malformed("a datagram of nobody"),
        }
    }
    if let Some(wrong) = wrong(&socket) {
        return invalid(format!("a socket that {wrong}"));
    }
    if socket.is_connection() && socket.end == End::Open {
        socket.end = End::Broken;
    }
    Ok(socket)
}

fn one_of<R: Read, T: Copy>(from: &mut Source<R>, known: &[T], what: &str) -> Result<T> {
    let place = from.array::<1>()?[0];
    known.get(place as usize).copied().map_or_else(|| malformed(format!("{what} {place}")), Ok)
}

fn load_address<R: Read>(from: &mut Source<R>) -> Result<Option<SocketAddr>> {
    let ip = match from.array()? {
        [0] => return Ok(None),
        [4] => IpAddr::from(from.array::<4>()?),
        [6] => IpAddr::from(from.array::<16>()?),
        [kind] => return malformed(format!("an address of kind {kind}")),
    };
    Ok(Some(SocketAddr::new(ip, u16::from_le_bytes(from.array()?))))
}

/// What no program's socket is.
fn wrong(socket: &Socket) -> Option<&'static str> {
    let mut addresses = socket.local.iter().chain(&socket.peer).chain(socket.datagrams.iter().map(|(from, _)| from));
    let has_peer = socket.peer.is_some();
    let kept: usize = socket.datagrams.iter().map(|(_, bytes)| bytes.len() + 1).sum();
    if addresses.any(|address| address.is_ipv6() != socket.v6) {
        return Some("has an address of another family");
    }
    match socket.state {
        State::Unconnected | State::Listening if has_peer => return Some("has another side, and is not connected"),
        State::Connecting | State::Connected if !has_peer => return Some("is connected to nobody"),
        State::Listening | State::Connecting | State::Accepted if !socket.stream => return Some("connects, and is for datagrams"),
        State::Listening | State::Accepted if socket.local.is_none() => return Some("listens nowhere"),
        _ => {}
    }
    if !socket.is_connection() && (socket.end != End::Open || !socket.bytes.is_empty()) {
        return Some("has received without a connection");
    }
    if socket.stream && !socket.datagrams.is_empty() {
        return Some("has datagrams, and is for a stream");
    }
    (socket.bytes.len().max(kept) > MOST_BYTES).then_some("has received more than any keeps")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasi::socket_options::{LINGER, REUSE_ADDR};

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn with(mut socket: Socket, change: impl FnOnce(&mut Socket)) -> Socket {
        change(&mut socket);
        socket
    }

    fn saved(socket: &Socket) -> Vec<u8> {
        let mut bytes = Vec::new();
        save(socket, &mut Sink(&mut bytes)).unwrap();
        bytes
    }

    fn loaded(bytes: &[u8]) -> Result<Socket> {
        load(&mut Source::new(bytes, bytes.len() as u64))
    }

    fn connection(state: State, end: End) -> Socket {
        with(Socket::new(true, true), |socket| {
            (socket.state, socket.end, socket.shut) = (state, end, [true, false]);
            (socket.local, socket.peer) = (address("[::1]:80"), address("[2001:db8::7]:8080"));
            socket.options = [(REUSE_ADDR, 1), (LINGER, 1 << 32 | 5)].into_iter().collect();
            socket.bytes = b"kept".to_vec().into();
        })
    }

    #[test]
    fn sockets_come_back_and_connections_are_broken() {
        for (before, after) in [(End::Open, End::Broken), (End::Ended, End::Ended), (End::BrokenAndTold, End::BrokenAndTold)] {
            let socket = connection(State::Accepted, before);
            let back = loaded(&saved(&socket)).ok().unwrap();
            assert_eq!((back.state, back.end, back.local, back.peer), (State::Accepted, after, socket.local, socket.peer));
            assert_eq!((back.shut, back.options, back.bytes), (socket.shut, socket.options, socket.bytes));
        }
        let socket = with(Socket::new(false, false), |socket| {
            (socket.local, socket.nonblocking) = (address("0.0.0.0:53"), true);
            socket.datagrams.push_back((address("127.0.0.1:9").unwrap(), b"one".to_vec()));
        });
        let back = loaded(&saved(&socket)).ok().unwrap();
        assert_eq!((back.v6, back.stream, back.end, back.nonblocking, back.local), (false, false, End::Open, true, socket.local));
        assert_eq!(back.datagrams, socket.datagrams);
    }

    #[test]
    fn what_no_socket_is_has_its_name() {
        let stream = |change: fn(&mut Socket)| with(Socket::new(false, true), change);
        let large = |socket: &mut Socket| socket.bytes = vec![0; MOST_BYTES + 1].into();
        let many = |socket: &mut Socket| socket.datagrams = vec![(address("127.0.0.1:9").unwrap(), vec![0; MOST_BYTES / 2]); 2].into();
        let peer: fn(&mut Socket) = |socket| (socket.state, socket.peer) = (State::Connecting, address("1.2.3.4:1"));
        let wrong = [
            (stream(|socket| socket.local = address("[::]:1")), "another family"),
            (stream(|socket| socket.peer = address("1.2.3.4:1")), "is not connected"),
            (stream(|socket| socket.state = State::Connected), "connected to nobody"),
            (with(Socket::new(false, false), peer), "for datagrams"),
            (stream(|socket| socket.state = State::Listening), "listens nowhere"),
            (stream(|socket| socket.end = End::Ended), "without a connection"),
            (stream(|socket| socket.bytes.push_back(1)), "without a connection"),
            (stream(|socket| socket.datagrams.push_back((address("127.0.0.1:9").unwrap(), vec![]))), "has datagrams"),
            (with(connection(State::Connected, End::Open), large), "more than any keeps"),
            (with(Socket::new(false, false), many), "more than any keeps"),
            (stream(|socket| socket.options = [(COUNT, 1)].into_iter().collect()), "option 19"),
        ];
        for (socket, name) in wrong {
            let refusal = loaded(&saved(&socket)).err().unwrap().to_string();
            assert!(refusal.contains(name), "{refusal}");
        }
        let bytes = saved(&connection(State::Connected, End::Open));
        for end in 0..bytes.len() {
            assert!(loaded(&bytes[..end]).is_err());
        }
        for (place, name) in [(0, "flag"), (2, "a socket's state"), (3, "an address of kind")] {
            let mut bytes = bytes.clone();
            bytes[place] = 9;
            let refusal = loaded(&bytes).err().unwrap().to_string();
            assert!(refusal.contains(name), "{refusal}");
        }
    }
}
