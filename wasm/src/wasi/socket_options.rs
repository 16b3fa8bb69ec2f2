//! The options of sockets that programs can set (setsockopt(2)), by a number of our own, as a checkpoint has them.

use std::io;

use super::{Args, Errno, Outcome, Wasi};
use crate::memory::Memory;
use crate::net::Host;

/// A place in `OPTIONS`, or one of those behind it.
pub type Number = u8;

pub const REUSE_ADDR: Number = 0;
pub const REUSE_PORT: Number = 1;
pub const KEEP_ALIVE: Number = 2;
pub const BROADCAST: Number = 3;
pub const RECV_BUF_SIZE: Number = 4;
pub const SEND_BUF_SIZE: Number = 5;
pub const TCP_NO_DELAY: Number = 6;
pub const TCP_QUICK_ACK: Number = 7;
pub const TCP_KEEP_IDLE: Number = 8;
pub const TCP_KEEP_INTVL: Number = 9;
pub const TCP_FASTOPEN_CONNECT: Number = 10;
pub const IPV6_ONLY: Number = 11;
pub const IP_TTL: Number = 12;
pub const IP_MULTICAST_TTL: Number = 13;
pub const IP_MULTICAST_LOOP: Number = 14;
pub const IPV6_MULTICAST_LOOP: Number = 15;
/// Seconds, with `IS_ON` added if there is lingering.
pub const LINGER: Number = 16;
/// Microseconds; 0 is no limit. The runtime waits, not the host.
pub const RECV_TIMEOUT: Number = 17;
pub const SEND_TIMEOUT: Number = 18;
/// How many there are.
pub const COUNT: Number = 19;

const IS_ON: u64 = 1 << 32;
const SOL_SOCKET: i32 = 1;
const SO_LINGER: i32 = 13;
const IPPROTO_IP: i32 = 0;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_IPV6: i32 = 41;

/// The host's level and name of each option that is a number, and the bytes that it has in a program's memory.
#[rustfmt::skip]
const OPTIONS: [(i32, i32, usize); LINGER as usize] = [
    (SOL_SOCKET, 2, 1), (SOL_SOCKET, 15, 1), (SOL_SOCKET, 9, 1), (SOL_SOCKET, 6, 1), (SOL_SOCKET, 8, 4), (SOL_SOCKET, 7, 4),
    (IPPROTO_TCP, 1, 1), (IPPROTO_TCP, 12, 1), (IPPROTO_TCP, 4, 4), (IPPROTO_TCP, 5, 4), (IPPROTO_TCP, 30, 1),
    (IPPROTO_IPV6, 26, 1), (IPPROTO_IP, 2, 1), (IPPROTO_IP, 33, 1), (IPPROTO_IP, 34, 1), (IPPROTO_IPV6, 19, 1),
];

/// Whether the host knows nothing of an option.
pub fn is_ours(number: Number) -> bool {
    number >= RECV_TIMEOUT
}

pub fn apply(host: &Host, number: Number, value: u64) -> io::Result<()> {
    if let Some((level, name, _)) = OPTIONS.get(number as usize) {
        return host.set_option(*level, *name, &(value as u32).to_le_bytes());
    }
    if number == LINGER {
        let [on, seconds] = [u32::from(value & IS_ON != 0), value as u32].map(u32::to_le_bytes);
        return host.set_option(SOL_SOCKET, SO_LINGER, &[on, seconds].concat());
    }
    Ok(())
}

pub fn read(host: &Host, number: Number) -> io::Result<u64> {
    if let Some((level, name, _)) = OPTIONS.get(number as usize) {
        return Ok(u32::from_le_bytes(host.option(*level, *name)?).into());
    }
    // Two numbers of 4 bytes: whether it is on, and the seconds.
    let linger = u64::from_le_bytes(host.option(SOL_SOCKET, SO_LINGER)?);
    Ok(if linger as u32 != 0 { IS_ON | linger >> 32 } else { linger >> 32 })
}

impl Wasi {
    pub fn get_option<const NUMBER: Number>(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let value = self.socket(args.u32(0))?.option(NUMBER)?;
        let size = OPTIONS.get(NUMBER as usize).map_or(8, |option| option.2);
        Ok(memory.put(args.u32(1), &value.to_le_bytes()[..size])?)
    }

    pub fn set_option<const NUMBER: Number>(&mut self, args: Args, _: &mut Memory) -> Outcome {
        let value = if is_ours(NUMBER) { args.u64(1) } else { args.u32(1).into() };
        Ok(self.socket(args.u32(0))?.set_option(NUMBER, value)?)
    }

    pub fn get_multicast_loop(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let value = self.socket(args.u32(0))?.option(multicast_loop(args))?;
        Ok(memory.put(args.u32(2), &[value as u8])?)
    }

    pub fn set_multicast_loop(&mut self, args: Args, _: &mut Memory) -> Outcome {
        Ok(self.socket(args.u32(0))?.set_option(multicast_loop(args), args.u32(2).into())?)
    }

    pub fn get_linger(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let value = self.socket(args.u32(0))?.option(LINGER)?;
        memory.put(args.u32(1), &[u8::from(value & IS_ON != 0)])?;
        Ok(memory.put(args.u32(2), &(value as u32).to_le_bytes())?)
    }

    pub fn set_linger(&mut self, args: Args, _: &mut Memory) -> Outcome {
        let on = if args.u32(1) != 0 { IS_ON } else { 0 };
        Ok(self.socket(args.u32(0))?.set_option(LINGER, on | u64::from(args.u32(2)))?)
    }

    /// Joining a group is not there: few programs do, and a checkpoint would have to tell interfaces of another host.
    pub fn change_membership(&mut self, args: Args, _: &mut Memory) -> Outcome {
        self.socket(args.u32(0))?;
        Err(Errno::NotSup.into())
    }
}

fn multicast_loop(args: Args) -> Number {
    if args.u32(1) != 0 {
        IPV6_MULTICAST_LOOP
    } else {
        IP_MULTICAST_LOOP
    }
}
