//! Calls on paths.

use std::collections::BTreeMap;

use super::files::file_stat;
use super::tree::{Content, Place};
use super::{real_time, Args, Descriptor, Errno, Outcome, Unusual, Wasi};
use crate::memory::Memory;

const LONGEST_PATH: u32 = 65_536;
const FOLLOW: u32 = 1;
const CREATE: u32 = 1;
const DIRECTORY: u32 = 2;
const EXCLUSIVE: u32 = 4;
const TRUNCATE: u32 = 8;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 6;

impl Wasi {
    pub fn path_open(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let (how, rights, flags) = (args.u32(4), args.u64(5), args.u32(7) as u16);
        memory.get(args.u32(8), 4)?;
        let follow = args.u32(1) & FOLLOW != 0 && how & EXCLUSIVE == 0;
        let place = self.place(args.u32(0), memory, args.u32(2), args.u32(3), follow)?;
        let write = rights & WRITE != 0;
        let node = match place.node {
            Some(_) if how & (CREATE | EXCLUSIVE) == CREATE | EXCLUSIVE => return Err(Errno::Exist.into()),
            Some(node) => node,
            None if how & CREATE == 0 => return Err(Errno::NoEnt.into()),
            None if how & DIRECTORY != 0 => return Err(Errno::Inval.into()),
            None => self.tree.create(&place, Content::File(Vec::new()), real_time())?,
        };
        let descriptor = match &self.tree.node(node).content {
            Content::Link(_) => return Err(Errno::Loop.into()),
            Content::Directory(_) if how & (CREATE | TRUNCATE) != 0 => return Err(Errno::IsDir.into()),
            Content::Directory(_) => Descriptor::Directory { node },
            Content::File(_) if how & DIRECTORY != 0 => return Err(Errno::NotDir.into()),
            Content::File(_) => Descriptor::File { node, offset: 0, flags, read: rights & READ != 0, write },
        };
        if how & TRUNCATE != 0 {
            self.tree.resize(node, 0, real_time())?;
        }
        let fd = self.add_descriptor(descriptor)?;
        Ok(memory.put(args.u32(8), &fd.to_le_bytes())?)
    }

    pub fn path_filestat_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let node = self.existing(args, memory)?;
        Ok(memory.put(args.u32(4), &file_stat(node, self.tree.node(node)))?)
    }

    pub fn path_filestat_set_times(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let node = self.existing(args, memory)?;
        self.set_times(node, args.u64(5), args.u32(6))
    }

    pub fn path_create_directory(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let directory = self.directory_node(args.u32(0))?;
        let mut path = path(memory, args.u32(1), args.u32(2))?;
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let place = self.tree.find(directory, &path, false)?;
        self.tree.create(&place, Content::Directory(BTreeMap::new()), real_time())?;
        Ok(())
    }

    pub fn path_remove_directory(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let place = self.place(args.u32(0), memory, args.u32(1), args.u32(2), false)?;
        if !self.tree.directory(place.node.ok_or(Errno::NoEnt)?)?.is_empty() {
            return Err(Errno::NotEmpty.into());
        }
        Ok(self.tree.unlink(&place, real_time())?)
    }

    pub fn path_unlink_file(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let place = self.place(args.u32(0), memory, args.u32(1), args.u32(2), false)?;
        if self.tree.directory(place.node.ok_or(Errno::NoEnt)?).is_ok() {
            return Err(Errno::IsDir.into());
        }
        Ok(self.tree.unlink(&place, real_time())?)
    }

    pub fn path_rename(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let from = self.place(args.u32(0), memory, args.u32(1), args.u32(2), false)?;
        let to = self.place(args.u32(3), memory, args.u32(4), args.u32(5), false)?;
        Ok(self.tree.rename(&from, &to, real_time())?)
    }

    pub fn path_link(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let node = self.existing(args, memory)?;
        if self.tree.directory(node).is_ok() {
            return Err(Errno::NotCapable.into());
        }
        let to = self.place(args.u32(4), memory, args.u32(5), args.u32(6), false)?;
        Ok(self.tree.link(to.directory, &to.name, node, real_time())?)
    }

    pub fn path_symlink(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let target = path(memory, args.u32(0), args.u32(1))?;
        if target.first() == Some(&b'/') {
            return Err(Errno::NotCapable.into());
        }
        let place = self.place(args.u32(2), memory, args.u32(3), args.u32(4), false)?;
        self.tree.create(&place, Content::Link(target), real_time())?;
        Ok(())
    }

    pub fn path_readlink(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let place = self.place(args.u32(0), memory, args.u32(1), args.u32(2), false)?;
        let node = place.node.ok_or(Errno::NoEnt)?;
        let target = match &self.tree.node(node).content {
            Content::Link(target) => &target[..target.len().min(args.u32(4) as usize)],
            _ => return Err(Errno::Inval.into()),
        };
        memory.put(args.u32(3), target)?;
        Ok(memory.put(args.u32(5), &(target.len() as u32).to_le_bytes())?)
    }

    fn place(&self, fd: u32, memory: &Memory, at: u32, size: u32, follow: bool) -> Result<Place, Unusual> {
        let directory = self.directory_node(fd)?;
        Ok(self.tree.find(directory, &path(memory, at, size)?, follow)?)
    }

    /// The node of calls that begin with a descriptor, whether to follow, and a path.
    fn existing(&self, args: Args, memory: &Memory) -> Result<usize, Unusual> {
        let directory = self.directory_node(args.u32(0))?;
        let path = path(memory, args.u32(2), args.u32(3))?;
        Ok(self.tree.existing(directory, &path, args.u32(1) & FOLLOW != 0)?)
    }
}

fn path(memory: &Memory, at: u32, size: u32) -> Result<Vec<u8>, Unusual> {
    if size > LONGEST_PATH {
        return Err(Errno::NameTooLong.into());
    }
    Ok(memory.get(at, size)?.to_vec())
}
