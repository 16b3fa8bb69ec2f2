//! The channel over TCP: the agent listens, and takes the first connection that shows the token. Everybody else is sent away.
//!
//! No program of a run is alive before the channel is open, and afterwards nobody listens any more: the port is below 1024, where
//! unprivileged users cannot.

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::io::OwnedFd;
use std::time::{Duration, Instant};

use crate::sys::{self, PollSet};

/// How long a connection may take to show the token.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many connections may be about to do so; one more takes the place of the oldest.
const VISITORS: usize = 64;

pub struct Door {
    listener: TcpListener,
    token: Vec<u8>,
    visitors: Vec<Visitor>,
}

struct Visitor {
    stream: TcpStream,
    shown: Vec<u8>,
    until: Instant,
}

impl Door {
    /// Listen on all addresses, those included that the machine is given later.
    pub fn open(port: u16, token: &str) -> io::Result<Door> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        Ok(Door { listener, token: token.as_bytes().to_vec(), visitors: Vec::new() })
    }

    /// Wait until a connection has shown the token; everything else is closed then.
    pub fn wait(mut self) -> io::Result<OwnedFd> {
        loop {
            let mut set = PollSet::default();
            let knock = set.add(&self.listener, sys::POLLIN);
            for visitor in &self.visitors {
                set.add(&visitor.stream, sys::POLLIN);
            }
            let first = self.visitors.iter().map(|visitor| visitor.until).min();
            set.wait(first.map(|until| until.saturating_duration_since(Instant::now())))?;
            if let Some(stream) = self.welcome()? {
                return Ok(stream.into());
            }
            if set.ready(Some(knock)) {
                self.let_in();
            }
        }
    }

    /// Hear all visitors; the stream of one that has shown the token. Those who cannot any more are sent away.
    fn welcome(&mut self) -> io::Result<Option<TcpStream>> {
        let (now, token) = (Instant::now(), &self.token);
        self.visitors.retain_mut(|visitor| visitor.hear(token.len()) && now < visitor.until);
        if let Some(index) = self.visitors.iter().position(|visitor| same(&visitor.shown, token)) {
            let stream = self.visitors.swap_remove(index).stream;
            stream.set_nodelay(true)?;
            return Ok(Some(stream));
        }
        self.visitors.retain(|visitor| visitor.shown.len() < token.len());
        Ok(None)
    }

    fn let_in(&mut self) {
        // Whoever has gone again is no concern of ours.
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.visitors.len() == VISITORS {
                self.visitors.remove(0);
            }
            self.visitors.push(Visitor { stream, shown: Vec::new(), until: Instant::now() + PATIENCE });
        }
    }
}

impl Visitor {
    /// Read as much of a token as is there, and nothing behind it; false when no more will come.
    fn hear(&mut self, size: usize) -> bool {
        let mut rest = vec![0; size - self.shown.len()];
        match self.stream.read(&mut rest) {
            Ok(0) => rest.is_empty(),
            Ok(count) => {
                self.shown.extend(&rest[..count]);
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
}

/// Compare in a time that depends on the lengths only.
fn same(shown: &[u8], token: &[u8]) -> bool {
    !token.is_empty() && shown.len() == token.len() && shown.iter().zip(token).fold(0, |found, (a, b)| found | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::SocketAddr;

    const TOKEN: &str = "0123456789abcdef";

    fn door() -> (Door, SocketAddr) {
        let door = Door::open(0, TOKEN).unwrap();
        let address = (Ipv4Addr::LOCALHOST, door.listener.local_addr().unwrap().port()).into();
        (door, address)
    }

    fn taken(door: Door) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut stream = TcpStream::from(door.wait().unwrap());
            stream.set_nonblocking(false).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    }

    #[test]
    fn takes_who_shows_the_token_and_reads_nothing_behind_it() {
        let (door, address) = door();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("{TOKEN}frames").as_bytes()).unwrap();
        drop(stream);
        assert_eq!(taken(door).join().unwrap(), "frames");
    }

    #[test]
    fn a_token_may_come_in_pieces() {
        let (door, address) = door();
        let taken = taken(door);
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in TOKEN.bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        drop(stream);
        assert_eq!(taken.join().unwrap(), "");
    }

    #[test]
    fn the_silent_and_the_wrong_ones_keep_nobody_out() {
        let (door, address) = door();
        let silent: Vec<TcpStream> = (0..VISITORS + 3).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut wrong = TcpStream::connect(address).unwrap();
        wrong.write_all(&[b'0'; TOKEN.len()]).unwrap();
        let taken = taken(door);
        // Closed without an answer.
        assert_eq!(wrong.read(&mut [0; 8]).unwrap_or(0), 0);
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("{TOKEN}x").as_bytes()).unwrap();
        drop(stream);
        assert_eq!(taken.join().unwrap(), "x");
        assert!(TcpStream::connect(address).is_err());
        drop(silent);
    }

    #[test]
    fn tokens_are_the_same_only_whole() {
        assert!(same(b"abc", b"abc"));
        for shown in [&b""[..], b"ab", b"abd", b"abcd"] {
            assert!(!same(shown, b"abc"));
        }
        assert!(!same(b"", b""));
    }
}
