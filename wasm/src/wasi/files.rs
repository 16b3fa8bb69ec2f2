//! Calls on open descriptors.

use super::descriptors::{file_type, APPEND};
use super::tree::{Content, Node};
use super::{input, real_time, Args, Descriptor, Errno, Outcome, Unusual, Wasi};
use crate::memory::Memory;

const NONBLOCK: u16 = 4;
/// All rights that there are; seeking and telling are not those of a terminal, by which libraries know one.
const ALL_RIGHTS: u64 = (1 << 30) - 1;
const SEEK_AND_TELL: u64 = 1 << 2 | 1 << 5;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 6;
const DIRENT: usize = 24;
/// A call moves at most so much; programs go on where it ended.
const MOST_AT_ONCE: usize = 1 << 20;

impl Wasi {
    pub fn fd_read(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let pieces = pieces(memory, args.u32(1), args.u32(2))?;
        let count = match self.descriptors.get_mut(&args.u32(0)).ok_or(Errno::BadF)? {
            Descriptor::Input { nonblocking } => {
                let first = pieces.iter().find(|piece| piece.1 > 0);
                let (at, room) = first.copied().unwrap_or((0, 0));
                self.input.read(memory.get_mut(at, room)?, *nonblocking)?
            }
            Descriptor::File { node, offset, read: true, .. } => {
                let count = read_file(self.tree.file(*node)?, *offset, &pieces, memory)?;
                *offset += count as u64;
                count
            }
            Descriptor::Socket(_) => self.receive(args, 0, memory)?.bytes.len(),
            Descriptor::Directory { .. } | Descriptor::Preopened => return Err(Errno::IsDir.into()),
            _ => return Err(Errno::BadF.into()),
        };
        Ok(memory.put(args.u32(3), &(count as u32).to_le_bytes())?)
    }

    pub fn fd_pread(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let pieces = pieces(memory, args.u32(1), args.u32(2))?;
        let count = match self.descriptor(args.u32(0))? {
            Descriptor::File { node, read: true, .. } => read_file(self.tree.file(*node)?, args.u64(3), &pieces, memory)?,
            Descriptor::Input { .. } | Descriptor::Output(_) | Descriptor::Socket(_) => return Err(Errno::SPipe.into()),
            _ => return Err(Errno::BadF.into()),
        };
        Ok(memory.put(args.u32(4), &(count as u32).to_le_bytes())?)
    }

    pub fn fd_write(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let bytes = gather(memory, args.u32(1), args.u32(2))?;
        memory.get(args.u32(3), 4)?;
        let count = match self.descriptors.get_mut(&args.u32(0)).ok_or(Errno::BadF)? {
            Descriptor::Output(fd) => input::write((*fd).into(), &bytes)?,
            Descriptor::File { node, offset, flags, write: true, .. } => {
                if *flags & APPEND != 0 {
                    *offset = self.tree.file(*node)?.len() as u64;
                }
                self.tree.write(*node, *offset, &bytes, real_time())?;
                *offset += bytes.len() as u64;
                bytes.len()
            }
            Descriptor::Socket(_) => self.send(args.u32(0), &bytes, None)? as usize,
            _ => return Err(Errno::BadF.into()),
        };
        Ok(memory.put(args.u32(3), &(count as u32).to_le_bytes())?)
    }

    pub fn fd_pwrite(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let bytes = gather(memory, args.u32(1), args.u32(2))?;
        match self.descriptor(args.u32(0))? {
            Descriptor::File { node, write: true, .. } => {
                let node = *node;
                self.tree.write(node, args.u64(3), &bytes, real_time())?;
            }
            Descriptor::Input { .. } | Descriptor::Output(_) | Descriptor::Socket(_) => return Err(Errno::SPipe.into()),
            _ => return Err(Errno::BadF.into()),
        }
        Ok(memory.put(args.u32(4), &(bytes.len() as u32).to_le_bytes())?)
    }

    pub fn fd_seek(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let delta = args.u64(1) as i64;
        let position = match self.descriptors.get_mut(&args.u32(0)).ok_or(Errno::BadF)? {
            Descriptor::File { node, offset, .. } => {
                let from = match args.u32(2) {
                    0 => 0,
                    1 => *offset,
                    2 => self.tree.file(*node)?.len() as u64,
                    _ => return Err(Errno::Inval.into()),
                };
                let position = (from as i64).checked_add(delta).and_then(|position| u64::try_from(position).ok());
                *offset = position.ok_or(Errno::Inval)?;
                *offset
            }
            Descriptor::Input { .. } | Descriptor::Output(_) | Descriptor::Socket(_) => return Err(Errno::SPipe.into()),
            _ => return Err(Errno::BadF.into()),
        };
        Ok(memory.put(args.u32(3), &position.to_le_bytes())?)
    }

    pub fn fd_tell(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        match self.descriptor(args.u32(0))? {
            Descriptor::File { offset, .. } => Ok(memory.put(args.u32(1), &offset.to_le_bytes())?),
            Descriptor::Input { .. } | Descriptor::Output(_) | Descriptor::Socket(_) => Err(Errno::SPipe.into()),
            _ => Err(Errno::BadF.into()),
        }
    }

    pub fn fd_close(&mut self, args: Args, _: &mut Memory) -> Outcome {
        Ok(self.close_descriptor(args.u32(0))?)
    }

    /// Files are in memory: there is nothing to write back, to read ahead, or to take away.
    pub fn fd_sync(&mut self, args: Args, _: &mut Memory) -> Outcome {
        self.descriptor(args.u32(0))?;
        Ok(())
    }

    pub fn fd_renumber(&mut self, args: Args, _: &mut Memory) -> Outcome {
        let (from, to) = (args.u32(0), args.u32(1));
        self.descriptor(from)?;
        self.descriptor(to)?;
        if from != to {
            self.close_descriptor(to)?;
            let moved = self.descriptors.remove(&from).ok_or(Errno::BadF)?;
            self.descriptors.insert(to, moved);
        }
        Ok(())
    }

    pub fn fd_fdstat_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let descriptor = self.descriptor(args.u32(0))?;
        let (flags, rights) = match descriptor {
            Descriptor::Input { nonblocking } => (if *nonblocking { NONBLOCK } else { 0 }, ALL_RIGHTS & !SEEK_AND_TELL),
            Descriptor::Output(_) => (0, ALL_RIGHTS & !SEEK_AND_TELL),
            Descriptor::Socket(socket) => (if socket.nonblocking { NONBLOCK } else { 0 }, ALL_RIGHTS & !SEEK_AND_TELL),
            Descriptor::Preopened | Descriptor::Directory { .. } => (0, ALL_RIGHTS),
            Descriptor::File { flags, read, write, .. } => {
                let without = if *read { 0 } else { READ } | if *write { 0 } else { WRITE };
                (*flags, ALL_RIGHTS & !without)
            }
        };
        let mut stat = [0; 24];
        stat[0] = descriptor.file_type();
        stat[2..4].copy_from_slice(&flags.to_le_bytes());
        stat[8..16].copy_from_slice(&rights.to_le_bytes());
        stat[16..24].copy_from_slice(&ALL_RIGHTS.to_le_bytes());
        Ok(memory.put(args.u32(1), &stat)?)
    }

    pub fn fd_fdstat_set_flags(&mut self, args: Args, _: &mut Memory) -> Outcome {
        match self.descriptors.get_mut(&args.u32(0)).ok_or(Errno::BadF)? {
            Descriptor::File { flags, .. } => *flags = args.u32(1) as u16,
            // The host's end is shared with others: it stays as it is.
            Descriptor::Input { nonblocking } => *nonblocking = args.u32(1) as u16 & NONBLOCK != 0,
            Descriptor::Socket(socket) => socket.nonblocking = args.u32(1) as u16 & NONBLOCK != 0,
            _ => {}
        }
        Ok(())
    }

    pub fn fd_filestat_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let descriptor = self.descriptor(args.u32(0))?;
        let stat = match descriptor.node() {
            Some(node) => file_stat(node, self.tree.node(node)),
            None => {
                let mut stat = [0; 64];
                stat[16] = descriptor.file_type();
                stat
            }
        };
        Ok(memory.put(args.u32(1), &stat)?)
    }

    pub fn fd_filestat_set_size(&mut self, args: Args, _: &mut Memory) -> Outcome {
        let node = self.writable(args.u32(0))?;
        Ok(self.tree.resize(node, args.u64(1), real_time())?)
    }

    pub fn fd_allocate(&mut self, args: Args, _: &mut Memory) -> Outcome {
        let node = self.writable(args.u32(0))?;
        let end = args.u64(1).checked_add(args.u64(2)).ok_or(Errno::FBig)?;
        if end > self.tree.file(node)?.len() as u64 {
            self.tree.resize(node, end, real_time())?;
        }
        Ok(())
    }

    pub fn fd_filestat_set_times(&mut self, args: Args, _: &mut Memory) -> Outcome {
        let node = self.descriptor(args.u32(0))?.node().ok_or(Errno::Inval)?;
        self.set_times(node, args.u64(2), args.u32(3))
    }

    pub fn fd_prestat_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        match self.descriptor(args.u32(0))? {
            Descriptor::Preopened => {
                memory.put(args.u32(1), &0u32.to_le_bytes())?;
                Ok(memory.put(args.u32(1).wrapping_add(4), &(self.directory.len() as u32).to_le_bytes())?)
            }
            _ => Err(Errno::BadF.into()),
        }
    }

    pub fn fd_prestat_dir_name(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        match self.descriptor(args.u32(0))? {
            Descriptor::Preopened if self.directory.len() <= args.u32(2) as usize => Ok(memory.put(args.u32(1), &self.directory)?),
            Descriptor::Preopened => Err(Errno::NameTooLong.into()),
            _ => Err(Errno::BadF.into()),
        }
    }

    pub fn fd_readdir(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let node = self.directory_node(args.u32(0))?;
        let room = args.u32(2) as usize;
        let mut listing = Vec::new();
        let entries = self.tree.directory(node)?;
        // The cookie is the number of the next entry; `.` and `..` are the first two.
        let dots = [(&b"."[..], node), (&b".."[..], node)];
        let all = dots.into_iter().chain(entries.iter().map(|(name, node)| (name.as_slice(), *node)));
        for (place, (name, node)) in all.enumerate().skip(args.u64(3) as usize) {
            if listing.len() >= room {
                break;
            }
            let mut entry = [0; DIRENT];
            entry[..8].copy_from_slice(&(place as u64 + 1).to_le_bytes());
            entry[8..16].copy_from_slice(&(node as u64).to_le_bytes());
            entry[16..20].copy_from_slice(&(name.len() as u32).to_le_bytes());
            entry[20] = file_type(&self.tree.node(node).content);
            listing.extend(entry);
            listing.extend(name);
        }
        listing.truncate(room);
        memory.put(args.u32(1), &listing)?;
        Ok(memory.put(args.u32(4), &(listing.len() as u32).to_le_bytes())?)
    }

    fn writable(&self, fd: u32) -> Result<usize, Errno> {
        match self.descriptor(fd)? {
            Descriptor::File { node, write: true, .. } => Ok(*node),
            Descriptor::File { .. } => Err(Errno::Inval),
            _ => Err(Errno::BadF),
        }
    }

    /// Of a node's times only that of its last change is kept.
    pub fn set_times(&mut self, node: usize, modified: u64, which: u32) -> Outcome {
        match which >> 2 & 3 {
            0 => {}
            1 => self.tree.node_mut(node).modified = modified,
            2 => self.tree.node_mut(node).modified = real_time(),
            _ => return Err(Errno::Inval.into()),
        }
        Ok(())
    }
}

/// WASI's `filestat`.
pub fn file_stat(index: usize, node: &Node) -> [u8; 64] {
    let size = match &node.content {
        Content::File(bytes) | Content::Link(bytes) => bytes.len() as u64,
        Content::Directory(_) => 0,
    };
    let mut stat = [0; 64];
    stat[..8].copy_from_slice(&1u64.to_le_bytes());
    stat[8..16].copy_from_slice(&(index as u64).to_le_bytes());
    stat[16] = file_type(&node.content);
    stat[24..32].copy_from_slice(&u64::from(node.names).to_le_bytes());
    stat[32..40].copy_from_slice(&size.to_le_bytes());
    for time in [40, 48, 56] {
        stat[time..time + 8].copy_from_slice(&node.modified.to_le_bytes());
    }
    stat
}

/// The places and sizes of a vector of buffers, whose sum is bounded.
pub fn pieces(memory: &Memory, at: u32, count: u32) -> Result<Vec<(u32, u32)>, Unusual> {
    let mut pieces = Vec::new();
    let mut left = MOST_AT_ONCE;
    for place in 0..count {
        let at = place.checked_mul(8).and_then(|offset| at.checked_add(offset)).ok_or(Errno::Fault)?;
        let (start, size) = (memory.u32(at)?, memory.u32(at.checked_add(4).ok_or(Errno::Fault)?)?);
        memory.get(start, size)?;
        let size = left.min(size as usize);
        left -= size;
        if size > 0 {
            pieces.push((start, size as u32));
        } else if left == 0 {
            break;
        }
    }
    Ok(pieces)
}

pub fn gather(memory: &Memory, at: u32, count: u32) -> Result<Vec<u8>, Unusual> {
    let mut bytes = Vec::new();
    for (start, size) in pieces(memory, at, count)? {
        bytes.extend(memory.get(start, size)?);
    }
    Ok(bytes)
}

fn read_file(file: &[u8], offset: u64, pieces: &[(u32, u32)], memory: &mut Memory) -> Result<usize, Unusual> {
    let mut rest = file.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or(&[]);
    let mut count = 0;
    for (start, size) in pieces {
        let now = rest.len().min(*size as usize);
        memory.put(*start, &rest[..now])?;
        rest = &rest[now..];
        count += now;
    }
    Ok(count)
}
