//! The descriptors of a program.

use std::collections::BTreeMap;

use super::sockets::Socket;
use super::tree::{Content, ROOT};
use super::{Errno, Wasi};

/// As many as a process may have open.
const MOST: u32 = 4096;
/// The program's directory, which is open from the start.
const PREOPENED: u32 = 3;

pub const APPEND: u16 = 1;

pub enum Descriptor {
    /// Standard input; whether a read ends at once where there is nothing.
    Input {
        nonblocking: bool,
    },
    /// Standard output (1) or error (2).
    Output(u8),
    /// The program's directory.
    Preopened,
    Directory {
        node: usize,
    },
    File {
        node: usize,
        offset: u64,
        /// As WASI's `fdflags`; of these only `append` says something here.
        flags: u16,
        read: bool,
        write: bool,
    },
    Socket(Box<Socket>),
}

pub fn standard() -> BTreeMap<u32, Descriptor> {
    let all = [Descriptor::Input { nonblocking: false }, Descriptor::Output(1), Descriptor::Output(2), Descriptor::Preopened];
    (0..=PREOPENED).zip(all).collect()
}

impl Descriptor {
    pub fn node(&self) -> Option<usize> {
        match self {
            Descriptor::Input { .. } | Descriptor::Output(_) | Descriptor::Socket(_) => None,
            Descriptor::Preopened => Some(ROOT),
            Descriptor::Directory { node } | Descriptor::File { node, .. } => Some(*node),
        }
    }

    /// WASI's `filetype`.
    pub fn file_type(&self) -> u8 {
        match self {
            Descriptor::Input { .. } | Descriptor::Output(_) => 2,
            Descriptor::Preopened | Descriptor::Directory { .. } => 3,
            Descriptor::File { .. } => 4,
            Descriptor::Socket(socket) => socket.file_type(),
        }
    }
}

/// WASI's `filetype` of a node.
pub fn file_type(content: &Content) -> u8 {
    match content {
        Content::Directory(_) => 3,
        Content::File(_) => 4,
        Content::Link(_) => 7,
    }
}

impl Wasi {
    pub fn descriptor(&self, fd: u32) -> Result<&Descriptor, Errno> {
        self.descriptors.get(&fd).ok_or(Errno::BadF)
    }

    /// The node of a directory that is open.
    pub fn directory_node(&self, fd: u32) -> Result<usize, Errno> {
        let node = self.descriptor(fd)?.node().ok_or(Errno::NotDir)?;
        self.tree.directory(node).map(|_| node)
    }

    /// The number that the next one gets.
    pub fn free_descriptor(&self) -> Result<u32, Errno> {
        (0..MOST).find(|fd| !self.descriptors.contains_key(fd)).ok_or(Errno::MFile)
    }

    pub fn add_descriptor(&mut self, descriptor: Descriptor) -> Result<u32, Errno> {
        let fd = self.free_descriptor()?;
        if let Some(node) = descriptor.node() {
            self.tree.open(node);
        }
        self.descriptors.insert(fd, descriptor);
        Ok(fd)
    }

    pub fn close_descriptor(&mut self, fd: u32) -> Result<(), Errno> {
        match self.descriptors.remove(&fd).ok_or(Errno::BadF)? {
            Descriptor::Directory { node } | Descriptor::File { node, .. } => self.tree.close(node),
            _ => {}
        }
        Ok(())
    }
}
