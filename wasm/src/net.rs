//! The host's sockets: the system calls that std does not offer apart from one another. Every function is safe to call with any values.
//! No socket is waited for here (`sys::wait` does that), and none outlives an `exec`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::raw::{c_int, c_ulong, c_void};
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: c_int = 1;
const SOCK_DGRAM: c_int = 2;
const SOCK_NONBLOCK: c_int = 0o4000;
const SOCK_CLOEXEC: c_int = 0o2_000_000;
const MSG_NOSIGNAL: c_int = 0x4000;
const SOL_SOCKET: c_int = 1;
const SO_REUSEADDR: c_int = 2;
const SIOCOUTQ: c_ulong = 0x5411;

/// A `sockaddr_in` (16 bytes: family, port, address) or `sockaddr_in6` (28: family, port, flow, address, scope).
type Raw = [u8; 28];

extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const Raw, size: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn connect(fd: c_int, address: *const Raw, size: u32) -> c_int;
    fn accept4(fd: c_int, address: *mut Raw, size: *mut u32, flags: c_int) -> c_int;
    fn getsockname(fd: c_int, address: *mut Raw, size: *mut u32) -> c_int;
    fn getpeername(fd: c_int, address: *mut Raw, size: *mut u32) -> c_int;
    fn sendto(fd: c_int, from: *const c_void, count: usize, flags: c_int, address: *const Raw, size: u32) -> isize;
    fn recvfrom(fd: c_int, to: *mut c_void, count: usize, flags: c_int, address: *mut Raw, size: *mut u32) -> isize;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, size: *mut u32) -> c_int;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, size: u32) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, count: *mut c_int) -> c_int;
}

pub struct Host(OwnedFd);

impl Host {
    pub fn open(v6: bool, stream: bool) -> io::Result<Host> {
        let domain = if v6 { AF_INET6 } else { AF_INET };
        let kind = if stream { SOCK_STREAM } else { SOCK_DGRAM };
        // SAFETY: the arguments are numbers.
        owned(unsafe { socket(domain.into(), kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) })
    }

    pub fn fd(&self) -> c_int {
        self.0.as_raw_fd()
    }

    pub fn bind(&self, address: &SocketAddr) -> io::Result<()> {
        let (raw, size) = encode(address);
        // SAFETY: the address lives through the call, and has the size.
        done(unsafe { bind(self.fd(), &raw, size) })
    }

    pub fn listen(&self, backlog: u32) -> io::Result<()> {
        // SAFETY: the arguments are numbers.
        done(unsafe { listen(self.fd(), backlog.min(i32::MAX as u32) as c_int) })
    }

    /// It may be under way when this comes back (EINPROGRESS).
    pub fn connect(&self, address: &SocketAddr) -> io::Result<()> {
        let (raw, size) = encode(address);
        // SAFETY: the address lives through the call, and has the size.
        done(unsafe { connect(self.fd(), &raw, size) })
    }

    pub fn accept(&self) -> io::Result<Host> {
        // SAFETY: no address is wanted.
        owned(unsafe { accept4(self.fd(), std::ptr::null_mut(), std::ptr::null_mut(), SOCK_NONBLOCK | SOCK_CLOEXEC) })
    }

    pub fn local(&self) -> io::Result<SocketAddr> {
        // SAFETY: `told` gives room for an address, and the size of that.
        told(|raw, size| unsafe { getsockname(self.fd(), raw, size) })
    }

    pub fn peer(&self) -> io::Result<SocketAddr> {
        // SAFETY: `told` gives room for an address, and the size of that.
        told(|raw, size| unsafe { getpeername(self.fd(), raw, size) })
    }

    pub fn send(&self, from: &[u8], to: Option<&SocketAddr>) -> io::Result<usize> {
        let address = to.map(encode);
        let (raw, size) = address.as_ref().map_or((std::ptr::null(), 0), |(raw, size)| (raw as *const Raw, *size));
        // SAFETY: pointer and count are the slice's; the address lives through the call, and has the size.
        some(unsafe { sendto(self.fd(), from.as_ptr().cast(), from.len(), MSG_NOSIGNAL, raw, size) })
    }

    /// Of a datagram that has more bytes than there is room for, the rest is lost.
    pub fn receive(&self, to: &mut [u8]) -> io::Result<(usize, Option<SocketAddr>)> {
        let (mut raw, mut size) = ([0; 28], 28);
        // SAFETY: pointer and count are the slice's; there is room for an address, and the size says so.
        let count = some(unsafe { recvfrom(self.fd(), to.as_mut_ptr().cast(), to.len(), 0, &mut raw, &mut size) })?;
        Ok((count, decode(&raw, size)))
    }

    /// `how` is 0 (no more is received), 1 (no more is sent) or 2 (both).
    pub fn shutdown(&self, how: c_int) -> io::Result<()> {
        // SAFETY: the arguments are numbers.
        done(unsafe { shutdown(self.fd(), how) })
    }

    pub fn option<const N: usize>(&self, level: c_int, name: c_int) -> io::Result<[u8; N]> {
        let (mut value, mut size) = ([0; N], N as u32);
        // SAFETY: there is room for as many bytes as the size says.
        done(unsafe { getsockopt(self.fd(), level, name, value.as_mut_ptr().cast(), &mut size) }).map(|()| value)
    }

    pub fn set_option(&self, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and size are the slice's.
        done(unsafe { setsockopt(self.fd(), level, name, value.as_ptr().cast(), value.len() as u32) })
    }

    /// Bytes of a connection that were sent and that the other side's host has not confirmed (tcp(7), SIOCOUTQ).
    pub fn unconfirmed(&self) -> io::Result<usize> {
        let mut count = 0;
        // SAFETY: there is room for a number.
        done(unsafe { ioctl(self.fd(), SIOCOUTQ, &mut count) }).map(|()| count as usize)
    }

    /// An address that connections of before still hold can be bound nevertheless.
    pub fn reuse_address(&self) -> io::Result<()> {
        self.set_option(SOL_SOCKET, SO_REUSEADDR, &1i32.to_ne_bytes())
    }
}

fn done(given: c_int) -> io::Result<()> {
    some(given as isize).map(drop)
}

fn some(given: isize) -> io::Result<usize> {
    usize::try_from(given).map_err(|_| io::Error::last_os_error())
}

fn owned(fd: c_int) -> io::Result<Host> {
    done(fd)?;
    // SAFETY: the system gave this descriptor just now, to nobody else.
    Ok(Host(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn told(call: impl FnOnce(*mut Raw, *mut u32) -> c_int) -> io::Result<SocketAddr> {
    let (mut raw, mut size) = ([0; 28], 28);
    done(call(&mut raw, &mut size))?;
    decode(&raw, size).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn encode(address: &SocketAddr) -> (Raw, u32) {
    let mut raw = [0; 28];
    raw[2..4].copy_from_slice(&address.port().to_be_bytes());
    let (family, size) = match address.ip() {
        IpAddr::V4(ip) => {
            raw[4..8].copy_from_slice(&ip.octets());
            (AF_INET, 16)
        }
        IpAddr::V6(ip) => {
            raw[8..24].copy_from_slice(&ip.octets());
            (AF_INET6, 28)
        }
    };
    raw[..2].copy_from_slice(&family.to_ne_bytes());
    (raw, size)
}

fn decode(raw: &Raw, size: u32) -> Option<SocketAddr> {
    let ip = match u16::from_ne_bytes([raw[0], raw[1]]) {
        AF_INET if size >= 16 => IpAddr::V4(Ipv4Addr::new(raw[4], raw[5], raw[6], raw[7])),
        AF_INET6 if size >= 28 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&raw[8..24]);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([raw[2], raw[3]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back() {
        for text in ["127.0.0.1:80", "[::1]:65535", "[2001:db8::7]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let (raw, size) = encode(&address);
            assert_eq!(decode(&raw, size), Some(address));
            assert_eq!(decode(&raw, size - 1), None);
        }
    }
}
