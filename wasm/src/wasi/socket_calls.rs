//! The calls on sockets: preview 1's four, and of the extension that WAMR has (lib-socket, wasi_socket_ext.h) those that open a socket,
//! bind, connect and name. Addresses in a program's memory are as there: the kind (4 bytes; 0 IPv4, 1 IPv6), then IPv4's 4 bytes or
//! IPv6's 8 numbers of 2 bytes, then the port (2 bytes).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::files::{gather, pieces};
use super::socket_options::*;
use super::sockets::{Received, Socket};
use super::{Args, Call, Descriptor, Errno, Outcome, Unusual, Wasi};
use crate::memory::Memory;
use crate::module::ValueType::{self, I32, I64};
use crate::sys;

const NONBLOCK: u32 = 4;
const PEEK: u32 = 1;
const WAIT_ALL: u32 = 2;
const TRUNCATED: u16 = 1;
const INET6: u32 = 1;
const DATAGRAM: u32 = 0;
const STREAM: u32 = 1;
/// An address in memory, with what fills it up.
pub const ADDRESS: usize = 24;

const TWO: &[ValueType] = &[I32, I32];
const THREE: &[ValueType] = &[I32, I32, I32];
const SIX: &[ValueType] = &[I32, I32, I32, I32, I32, I32];

#[rustfmt::skip]
pub const CALLS: [(&str, &[ValueType], Call); 52] = [
    ("sock_accept", THREE, Wasi::sock_accept),
    ("sock_recv", SIX, Wasi::sock_recv),
    ("sock_send", &[I32, I32, I32, I32, I32], Wasi::sock_send),
    ("sock_shutdown", TWO, Wasi::sock_shutdown),
    ("sock_addr_local", TWO, Wasi::sock_addr_local),
    ("sock_addr_remote", TWO, Wasi::sock_addr_remote),
    ("sock_addr_resolve", SIX, Wasi::sock_addr_resolve),
    ("sock_bind", TWO, Wasi::sock_bind),
    ("sock_close", &[I32], Wasi::fd_close),
    ("sock_connect", TWO, Wasi::sock_connect),
    ("sock_listen", TWO, Wasi::sock_listen),
    ("sock_open", &[I32, I32, I32, I32], Wasi::sock_open),
    ("sock_recv_from", SIX, Wasi::sock_recv_from),
    ("sock_send_to", SIX, Wasi::sock_send_to),
    ("sock_get_broadcast", TWO, Wasi::get_option::<BROADCAST>),
    ("sock_set_broadcast", TWO, Wasi::set_option::<BROADCAST>),
    ("sock_get_keep_alive", TWO, Wasi::get_option::<KEEP_ALIVE>),
    ("sock_set_keep_alive", TWO, Wasi::set_option::<KEEP_ALIVE>),
    ("sock_get_linger", THREE, Wasi::get_linger),
    ("sock_set_linger", THREE, Wasi::set_linger),
    ("sock_get_recv_buf_size", TWO, Wasi::get_option::<RECV_BUF_SIZE>),
    ("sock_set_recv_buf_size", TWO, Wasi::set_option::<RECV_BUF_SIZE>),
    ("sock_get_recv_timeout", TWO, Wasi::get_option::<RECV_TIMEOUT>),
    ("sock_set_recv_timeout", &[I32, I64], Wasi::set_option::<RECV_TIMEOUT>),
    ("sock_get_reuse_addr", TWO, Wasi::get_option::<REUSE_ADDR>),
    ("sock_set_reuse_addr", TWO, Wasi::set_option::<REUSE_ADDR>),
    ("sock_get_reuse_port", TWO, Wasi::get_option::<REUSE_PORT>),
    ("sock_set_reuse_port", TWO, Wasi::set_option::<REUSE_PORT>),
    ("sock_get_send_buf_size", TWO, Wasi::get_option::<SEND_BUF_SIZE>),
    ("sock_set_send_buf_size", TWO, Wasi::set_option::<SEND_BUF_SIZE>),
    ("sock_get_send_timeout", TWO, Wasi::get_option::<SEND_TIMEOUT>),
    ("sock_set_send_timeout", &[I32, I64], Wasi::set_option::<SEND_TIMEOUT>),
    ("sock_get_tcp_fastopen_connect", TWO, Wasi::get_option::<TCP_FASTOPEN_CONNECT>),
    ("sock_set_tcp_fastopen_connect", TWO, Wasi::set_option::<TCP_FASTOPEN_CONNECT>),
    ("sock_get_tcp_keep_idle", TWO, Wasi::get_option::<TCP_KEEP_IDLE>),
    ("sock_set_tcp_keep_idle", TWO, Wasi::set_option::<TCP_KEEP_IDLE>),
    ("sock_get_tcp_keep_intvl", TWO, Wasi::get_option::<TCP_KEEP_INTVL>),
    ("sock_set_tcp_keep_intvl", TWO, Wasi::set_option::<TCP_KEEP_INTVL>),
    ("sock_get_tcp_no_delay", TWO, Wasi::get_option::<TCP_NO_DELAY>),
    ("sock_set_tcp_no_delay", TWO, Wasi::set_option::<TCP_NO_DELAY>),
    ("sock_get_tcp_quick_ack", TWO, Wasi::get_option::<TCP_QUICK_ACK>),
    ("sock_set_tcp_quick_ack", TWO, Wasi::set_option::<TCP_QUICK_ACK>),
    ("sock_get_ip_multicast_loop", THREE, Wasi::get_multicast_loop),
    ("sock_set_ip_multicast_loop", THREE, Wasi::set_multicast_loop),
    ("sock_get_ip_multicast_ttl", TWO, Wasi::get_option::<IP_MULTICAST_TTL>),
    ("sock_set_ip_multicast_ttl", TWO, Wasi::set_option::<IP_MULTICAST_TTL>),
    ("sock_get_ip_ttl", TWO, Wasi::get_option::<IP_TTL>),
    ("sock_set_ip_ttl", TWO, Wasi::set_option::<IP_TTL>),
    ("sock_get_ipv6_only", TWO, Wasi::get_option::<IPV6_ONLY>),
    ("sock_set_ipv6_only", TWO, Wasi::set_option::<IPV6_ONLY>),
    ("sock_set_ip_add_membership", THREE, Wasi::change_membership),
    ("sock_set_ip_drop_membership", THREE, Wasi::change_membership),
];

impl Wasi {
    fn sock_open(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        memory.get(args.u32(3), 4)?;
        let stream = match args.u32(2) {
            STREAM => true,
            DATAGRAM => false,
            _ => return Err(Errno::Inval.into()),
        };
        let mut socket = match args.u32(1) {
            family @ 0..=INET6 => Socket::new(family == INET6, stream),
            _ => return Err(Errno::AfNoSupport.into()),
        };
        socket.host()?;
        let fd = self.add_descriptor(Descriptor::Socket(Box::new(socket)))?;
        Ok(memory.put(args.u32(3), &fd.to_le_bytes())?)
    }

    fn sock_bind(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let address = address(memory, args.u32(1))?;
        Ok(self.socket(args.u32(0))?.bind(address)?)
    }

    fn sock_listen(&mut self, args: Args, _: &mut Memory) -> Outcome {
        Ok(self.socket(args.u32(0))?.listen(args.u32(1))?)
    }

    fn sock_connect(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let address = address(memory, args.u32(1))?;
        self.when_ready(args.u32(0), sys::OUTPUT, |socket| match socket.connect(address) {
            Err(Errno::InProgress | Errno::Already) if !socket.nonblocking => Err(Errno::Again),
            connected => connected,
        })
    }

    fn sock_accept(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        memory.get(args.u32(2), 4)?;
        self.free_descriptor()?;
        let nonblocking = args.u32(1) & NONBLOCK != 0;
        let socket = self.when_ready(args.u32(0), sys::INPUT, |socket| socket.accept(nonblocking))?;
        let fd = self.add_descriptor(Descriptor::Socket(Box::new(socket)))?;
        Ok(memory.put(args.u32(2), &fd.to_le_bytes())?)
    }

    fn sock_shutdown(&mut self, args: Args, _: &mut Memory) -> Outcome {
        match args.u32(1) {
            how @ 1..=3 => Ok(self.socket(args.u32(0))?.shut_down(how)?),
            _ => Err(Errno::Inval.into()),
        }
    }

    fn sock_send(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        memory.get(args.u32(4), 4)?;
        let count = self.send_pieces(args, None, memory)?;
        Ok(memory.put(args.u32(4), &count.to_le_bytes())?)
    }

    fn sock_send_to(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        memory.get(args.u32(5), 4)?;
        let to = address(memory, args.u32(4))?;
        let count = self.send_pieces(args, Some(to), memory)?;
        Ok(memory.put(args.u32(5), &count.to_le_bytes())?)
    }

    fn send_pieces(&mut self, args: Args, to: Option<SocketAddr>, memory: &Memory) -> Result<u32, Unusual> {
        if args.u32(3) != 0 {
            return Err(Errno::NotSup.into());
        }
        let bytes = gather(memory, args.u32(1), args.u32(2))?;
        self.send(args.u32(0), &bytes, to.as_ref())
    }

    /// Send, and wait until there is room for it all. If the wait is interrupted, as much is sent as had room before it.
    pub fn send(&mut self, fd: u32, bytes: &[u8], to: Option<&SocketAddr>) -> Result<u32, Unusual> {
        let socket = self.socket(fd)?;
        let whole = !socket.stream || socket.nonblocking;
        let mut sent = 0;
        loop {
            match self.when_ready(fd, sys::OUTPUT, |socket| socket.send(&bytes[sent..], to)) {
                Ok(count) => sent += count,
                Err(_) if sent > 0 => break,
                Err(unusual) => return Err(unusual),
            }
            if whole || sent >= bytes.len() {
                break;
            }
        }
        self.asleep_until = None;
        Ok(sent as u32)
    }

    fn sock_recv(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        memory.get(args.u32(4), 4)?;
        memory.get(args.u32(5), 2)?;
        let flags = args.u32(3);
        if flags & !(PEEK | WAIT_ALL) != 0 {
            return Err(Errno::NotSup.into());
        }
        let received = self.receive(args, flags, memory)?;
        memory.put(args.u32(4), &(received.bytes.len() as u32).to_le_bytes())?;
        Ok(memory.put(args.u32(5), &(if received.cut { TRUNCATED } else { 0 }).to_le_bytes())?)
    }

    fn sock_recv_from(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        memory.get(args.u32(4), ADDRESS as u32)?;
        memory.get(args.u32(5), 4)?;
        let received = self.receive(args, 0, memory)?;
        if let Some(from) = &received.from {
            memory.put(args.u32(4), &address_bytes(from))?;
        }
        Ok(memory.put(args.u32(5), &(received.bytes.len() as u32).to_le_bytes())?)
    }

    /// Receive into the pieces that the second and third argument name, from the socket that the first one names.
    pub fn receive(&mut self, args: Args, flags: u32, memory: &mut Memory) -> Result<Received, Unusual> {
        let pieces = pieces(memory, args.u32(1), args.u32(2))?;
        let room = pieces.iter().map(|piece| piece.1 as usize).sum();
        let (fd, peek, all) = (args.u32(0), flags & PEEK != 0, flags & WAIT_ALL != 0);
        let received = match self.when_ready(fd, sys::INPUT, |socket| socket.receive(room, peek, all && !socket.nonblocking)) {
            // No more came in time than is there.
            Err(Unusual::Errno(Errno::Again)) if all => self.socket(fd)?.receive(room, peek, false)?,
            received => received?,
        };
        let mut rest = &received.bytes[..];
        for (start, size) in pieces {
            let now = rest.len().min(size as usize);
            memory.put(start, &rest[..now])?;
            rest = &rest[now..];
        }
        Ok(received)
    }

    fn sock_addr_local(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let address = self.socket(args.u32(0))?.local_address()?;
        Ok(memory.put(args.u32(1), &address_bytes(&address))?)
    }

    fn sock_addr_remote(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let address = self.socket(args.u32(0))?.peer_address()?;
        Ok(memory.put(args.u32(1), &address_bytes(&address))?)
    }
}

/// The address that is in a program's memory.
fn address(memory: &Memory, at: u32) -> Result<SocketAddr, Unusual> {
    let bytes = memory.get(at, ADDRESS as u32)?;
    let number = |place: usize| u16::from_le_bytes([bytes[place], bytes[place + 1]]);
    match memory.u32(at)? {
        0 => Ok(SocketAddr::new(Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]).into(), number(8))),
        1 => {
            let mut parts = [0; 8];
            for (place, part) in parts.iter_mut().enumerate() {
                *part = number(4 + 2 * place);
            }
            Ok(SocketAddr::new(Ipv6Addr::from(parts).into(), number(20)))
        }
        _ => Err(Errno::AfNoSupport.into()),
    }
}

pub fn address_bytes(address: &SocketAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    let port = match address.ip() {
        IpAddr::V4(ip) => {
            bytes[4..8].copy_from_slice(&ip.octets());
            8
        }
        IpAddr::V6(ip) => {
            bytes[0] = 1;
            for (place, part) in ip.segments().iter().enumerate() {
                bytes[4 + 2 * place..6 + 2 * place].copy_from_slice(&part.to_le_bytes());
            }
            20
        }
    };
    bytes[port..port + 2].copy_from_slice(&address.port().to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_wamr_lays_them_out() {
        let mut memory = Memory::new(1, 1).unwrap();
        let six = [1, 0, 0, 0, 0x01, 0x20, 0xb8, 0x0d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 80, 0, 0, 0];
        let four = [0, 0, 0, 0, 127, 0, 0, 1, 0x90, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (text, bytes) in [("[2001:db8::7]:80", six), ("127.0.0.1:8080", four)] {
            let wanted: SocketAddr = text.parse().unwrap();
            assert_eq!(address_bytes(&wanted), bytes);
            memory.put(8, &bytes).unwrap();
            assert_eq!(address(&memory, 8), Ok(wanted));
        }
        memory.put(8, &[2]).unwrap();
        assert_eq!(address(&memory, 8), Err(Errno::AfNoSupport.into()));
    }
}
