//! Waiting: for a time, for standard input, and for sockets.

use super::sockets::Socket;
use super::{real_time, Args, Descriptor, Errno, Outcome, Unusual, Wasi};
use crate::memory::Memory;
use crate::sys::{self, Waited};

const SUBSCRIPTION: u32 = 48;
const EVENT: u32 = 32;
/// Far more than a program has descriptors and clocks.
const MOST_SUBSCRIPTIONS: u32 = 16_384;
const ABSOLUTE: u8 = 1;

#[derive(Clone, Copy)]
enum Kind {
    Clock { until: u64 },
    Read(u32),
    Write(u32),
}

struct Subscription {
    user_data: u64,
    tag: u8,
    kind: Kind,
}

impl Wasi {
    pub fn poll_oneoff(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let (events, count) = (args.u32(1), args.u32(2));
        if count == 0 || count > MOST_SUBSCRIPTIONS {
            return Err(Errno::Inval.into());
        }
        // Before the wait: who is interrupted by the end of the memory would wait again.
        memory.get(events, count * EVENT)?;
        memory.get(args.u32(3), 4)?;
        let first = self.asleep_until;
        let now = self.clock();
        let subscriptions: Vec<Subscription> =
            (0..count).map(|place| subscription(memory, args.u32(0), place, now)).collect::<Result<_, Unusual>>()?;
        let shortest = subscriptions.iter().filter_map(|subscription| match subscription.kind {
            Kind::Clock { until } => Some(until),
            _ => None,
        });
        // A sleep that was interrupted ends when it would have ended.
        let until = first.or_else(|| shortest.min());
        self.wait(&subscriptions, until)?;
        self.asleep_until = None;
        let now = self.clock();
        let slept = first.is_some() && until.map_or(false, |until| until <= now);
        let mut ready = 0;
        for subscription in &subscriptions {
            let found = match subscription.kind {
                Kind::Clock { until } if until <= now || slept => Ok(Some((0, false))),
                Kind::Clock { .. } => continue,
                Kind::Read(fd) => self.readable(fd),
                Kind::Write(fd) => self.has_room(fd),
            };
            let (errno, bytes, hung_up) = match found {
                Ok(Some((bytes, hung_up))) => (0, bytes, hung_up),
                Ok(None) => continue,
                Err(errno) => (errno as u16, 0, false),
            };
            let mut event = [0; EVENT as usize];
            event[..8].copy_from_slice(&subscription.user_data.to_le_bytes());
            event[8..10].copy_from_slice(&errno.to_le_bytes());
            event[10] = subscription.tag;
            event[16..24].copy_from_slice(&bytes.to_le_bytes());
            event[24] = hung_up.into();
            memory.put(events + ready * EVENT, &event)?;
            ready += 1;
        }
        Ok(memory.put(args.u32(3), &ready.to_le_bytes())?)
    }

    /// Wait until one of the subscriptions has something to tell.
    fn wait(&mut self, subscriptions: &[Subscription], until: Option<u64>) -> Outcome {
        let mut wanted = Vec::new();
        for subscription in subscriptions {
            let (fd, events) = match subscription.kind {
                Kind::Clock { .. } => continue,
                Kind::Read(fd) => (fd, sys::INPUT),
                Kind::Write(fd) => (fd, sys::OUTPUT),
            };
            match self.descriptors.get_mut(&fd) {
                Some(Descriptor::Input { .. }) if events == sys::INPUT && !self.input.is_ready() => wanted.push((0, events)),
                Some(Descriptor::Socket(socket)) if !socket.is_cut() && (events == sys::OUTPUT || !socket.has_kept()) => {
                    match socket.host() {
                        Ok(host) => wanted.push((host.fd(), events)),
                        Err(_) => return Ok(()),
                    }
                }
                _ => return Ok(()),
            }
        }
        let left = until.map(|until| until.saturating_sub(self.clock()));
        match sys::wait_any(&wanted, left) {
            Ok(Waited::Stop) => {
                self.asleep_until = until;
                Err(Unusual::Interrupted)
            }
            Ok(_) => Ok(()),
            Err(_) => Err(Errno::Io.into()),
        }
    }

    /// How many bytes can be read without waiting, if reading would not wait, and whether the other side has hung up.
    fn readable(&mut self, fd: u32) -> Result<Option<(u64, bool)>, Errno> {
        let bytes = match self.descriptors.get_mut(&fd).ok_or(Errno::BadF)? {
            Descriptor::Input { .. } if self.input.is_ready() => Some(self.input.pending.len() as u64),
            Descriptor::Input { .. } => sys::has_input(0).map_err(|_| Errno::Io)?.then_some(1),
            Descriptor::File { node, offset, .. } => Some((self.tree.file(*node)?.len() as u64).saturating_sub(*offset)),
            Descriptor::Socket(socket) if socket.has_kept() => Some(socket.bytes.len() as u64),
            Descriptor::Socket(socket) => return ready(socket, sys::INPUT),
            _ => return Err(Errno::BadF),
        };
        Ok(bytes.map(|bytes| (bytes, false)))
    }

    fn has_room(&mut self, fd: u32) -> Result<Option<(u64, bool)>, Errno> {
        match self.descriptors.get_mut(&fd).ok_or(Errno::BadF)? {
            Descriptor::Socket(socket) => ready(socket, sys::OUTPUT),
            _ => Ok(Some((sys::PIPE_ROOM as u64, false))),
        }
    }
}

/// What the host says of a socket. Of one that it cannot open, the next call says why.
fn ready(socket: &mut Socket, events: i16) -> Result<Option<(u64, bool)>, Errno> {
    let ready = match socket.host() {
        Ok(host) => sys::ready(host.fd(), events)?,
        Err(_) => events,
    };
    Ok((ready != 0).then_some((1, ready & sys::HUNG_UP != 0)))
}

fn subscription(memory: &Memory, from: u32, place: u32, now: u64) -> Result<Subscription, Unusual> {
    let at = place.checked_mul(SUBSCRIPTION).and_then(|offset| from.checked_add(offset)).ok_or(Errno::Fault)?;
    let bytes = memory.get(at, SUBSCRIPTION)?;
    let user_data = memory.u64(at)?;
    let tag = bytes[8];
    let kind = match tag {
        0 => {
            let (clock, timeout, absolute) = (memory.u32(at + 16)?, memory.u64(at + 24)?, bytes[40] & ABSOLUTE != 0);
            let until = match (clock, absolute) {
                (0, true) => now.saturating_add(timeout.saturating_sub(real_time())),
                (1, true) => timeout,
                (0 | 1, false) => now.saturating_add(timeout),
                _ => return Err(Errno::NotSup.into()),
            };
            Kind::Clock { until }
        }
        1 => Kind::Read(memory.u32(at + 16)?),
        2 => Kind::Write(memory.u32(at + 16)?),
        _ => return Err(Errno::Inval.into()),
    };
    Ok(Subscription { user_data, tag, kind })
}
