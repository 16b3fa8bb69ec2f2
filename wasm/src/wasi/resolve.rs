//! Names of hosts (WAMR's `sock_addr_resolve`).

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::io::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use super::socket_calls::{address_bytes, ADDRESS};
use super::{Args, Errno, Outcome, Unusual, Wasi};
use crate::memory::Memory;
use crate::sys::{self, Waited};

/// As long as a name may be, with the zero at its end (RFC 1035, 2.3.4).
const LONGEST: u32 = 256;
/// An address and its kind of socket.
const ENTRY: usize = ADDRESS + 4;
const INET: u32 = 0;
const INET6: u32 = 1;
const ANY: u32 = u32::MAX;
const SERVICES: [(&str, u16); 4] = [("domain", 53), ("http", 80), ("https", 443), ("ntp", 123)];

impl Wasi {
    /// Of a name without addresses it says that there are none, which WAMR's library tells as EAI_NONAME.
    pub fn sock_addr_resolve(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let (host, service) = (text(memory, args.u32(0))?, text(memory, args.u32(1))?);
        let (to, room) = (args.u32(3), args.u32(4) as usize);
        memory.get(to, u32::try_from(room * ENTRY).map_err(|_| Errno::Inval)?)?;
        memory.get(args.u32(5), 4)?;
        let hints = memory.get(args.u32(2), 12)?;
        let (kind, family) = if hints[8] != 0 { (memory.u32(args.u32(2))?, memory.u32(args.u32(2) + 4)?) } else { (ANY, ANY) };
        let port = match (service.parse(), SERVICES.iter().find(|known| known.0 == service)) {
            (Ok(port), _) => port,
            (_, Some((_, port))) => *port,
            _ if service.is_empty() => 0,
            _ => return Err(Errno::Inval.into()),
        };
        let mut found = 0;
        for address in look_up(host, port)? {
            if (family == INET && !address.is_ipv4()) || (family == INET6 && !address.is_ipv6()) {
                continue;
            }
            for of_kind in [1, 0u32] {
                if kind != ANY && kind != of_kind {
                    continue;
                }
                if found < room {
                    let entry = [&address_bytes(&address)[..], &of_kind.to_le_bytes()].concat();
                    memory.put(to + (found * ENTRY) as u32, &entry)?;
                }
                found += 1;
            }
        }
        Ok(memory.put(args.u32(5), &(found as u32).to_le_bytes())?)
    }
}

/// Ask in a thread of its own: the host's library waits for servers of names as long as it likes, and a program can be stopped meanwhile.
fn look_up(host: String, port: u16) -> Result<Vec<SocketAddr>, Unusual> {
    let (mut tell, told) = UnixStream::pair().map_err(|error| Errno::from(&error))?;
    let (give, given) = mpsc::channel();
    let ask = move || {
        let addresses = (host.as_str(), port).to_socket_addrs().map_or(Vec::new(), Iterator::collect);
        // Nobody wants it any more if the program was stopped.
        drop(give.send(addresses));
        drop(tell.write(&[1]));
    };
    thread::Builder::new().spawn(ask).map_err(|error| Errno::from(&error))?;
    match sys::wait(told.as_raw_fd(), sys::INPUT, None) {
        Ok(Waited::Stop) => Err(Unusual::Interrupted),
        Ok(_) => Ok(given.recv().unwrap_or_default()),
        Err(error) => Err(Errno::from(&error).into()),
    }
}

fn text(memory: &Memory, at: u32) -> Result<String, Unusual> {
    let bytes = memory.bytes().get(at as usize..).ok_or(Errno::Fault)?;
    let end = bytes.iter().take(LONGEST as usize).position(|byte| *byte == 0).ok_or(Errno::NameTooLong)?;
    String::from_utf8(bytes[..end].to_vec()).map_err(|_| Errno::Inval.into())
}
