//! The files of a program, in memory: they are part of its state, and nothing of the host can be reached through them.

use std::collections::BTreeMap;
use std::mem::size_of;

use super::Errno;

/// All files together. What a directory takes is counted by its entries.
pub const MOST_BYTES: u64 = 1 << 30;
pub const MOST_NODES: usize = 1 << 20;
const MOST_LINKS: usize = 40;
const LONGEST_NAME: usize = 255;

/// The directory that the program sees.
pub const ROOT: usize = 0;

#[derive(Debug, PartialEq)]
pub enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, usize>),
    Link(Vec<u8>),
}

#[derive(Debug, PartialEq)]
pub struct Node {
    pub content: Content,
    /// Nanoseconds since 1970.
    pub modified: u64,
    /// Names and open descriptors that lead here; a node without either is gone.
    pub names: u32,
    pub opened: u32,
    /// Whether the host's files, from which the tree was filled, differ.
    pub changed: bool,
}

#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Option<Node>>,
    /// Places in `nodes` that are free.
    free: Vec<usize>,
    bytes: u64,
}

/// What a path leads to: the directory and the name there, and the node if there is one.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    pub directory: usize,
    pub name: Vec<u8>,
    pub node: Option<usize>,
}

impl Tree {
    pub fn new(now: u64) -> Tree {
        let root = Node { content: Content::Directory(BTreeMap::new()), modified: now, names: 1, opened: 0, changed: false };
        Tree { nodes: vec![Some(root)], free: vec![], bytes: 0 }
    }

    pub fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().expect("who holds an index keeps its node")
    }

    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        self.nodes[index].as_mut().expect("who holds an index keeps its node")
    }

    pub fn directory(&self, index: usize) -> Result<&BTreeMap<Vec<u8>, usize>, Errno> {
        match &self.node(index).content {
            Content::Directory(entries) => Ok(entries),
            _ => Err(Errno::NotDir),
        }
    }

    pub fn file(&self, index: usize) -> Result<&Vec<u8>, Errno> {
        match &self.node(index).content {
            Content::File(bytes) => Ok(bytes),
            Content::Directory(_) => Err(Errno::IsDir),
            Content::Link(_) => Err(Errno::Inval),
        }
    }

    /// Find a path from a directory on, which it cannot leave. With `follow`, a link at its end is followed too.
    pub fn find(&self, from: usize, path: &[u8], follow: bool) -> Result<Place, Errno> {
        let mut way = vec![from];
        let mut parts = split(path)?;
        let mut links = 0;
        self.directory(from)?;
        while let Some(part) = parts.pop() {
            let here = way[way.len() - 1];
            let last = parts.is_empty();
            match part.as_slice() {
                b"." => {
                    self.directory(here)?;
                    continue;
                }
                b".." => {
                    way.pop();
                    if way.is_empty() {
                        return Err(Errno::NotCapable);
                    }
                    continue;
                }
                _ => {}
            }
            let node = self.directory(here)?.get(&part).copied();
            match node.map(|node| &self.node(node).content) {
                Some(Content::Link(target)) if follow || !last => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::Loop);
                    }
                    parts.extend(split(target)?);
                }
                _ if last => return Ok(Place { directory: here, name: part, node }),
                Some(_) => way.extend(node),
                None => return Err(Errno::NoEnt),
            }
        }
        // The path ends in a directory that is on the way: `.`, `a/..`.
        let here = way[way.len() - 1];
        Ok(Place { directory: here, name: b".".to_vec(), node: Some(here) })
    }

    pub fn existing(&self, from: usize, path: &[u8], follow: bool) -> Result<usize, Errno> {
        self.find(from, path, follow)?.node.ok_or(Errno::NoEnt)
    }

    /// Put something new at a place that is free.
    pub fn create(&mut self, place: &Place, content: Content, now: u64) -> Result<usize, Errno> {
        if place.node.is_some() {
            return Err(Errno::Exist);
        }
        self.account(0, size(&content))?;
        let node = Node { content, modified: now, names: 0, opened: 0, changed: true };
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.nodes.len() >= MOST_NODES => return Err(Errno::NoSpc),
            None => {
                self.nodes.push(None);
                self.nodes.len() - 1
            }
        };
        self.nodes[index] = Some(node);
        if let Err(error) = self.link(place.directory, &place.name, index, now) {
            self.release(index);
            return Err(error);
        }
        Ok(index)
    }

    /// Give a node one more name.
    pub fn link(&mut self, directory: usize, name: &[u8], node: usize, now: u64) -> Result<(), Errno> {
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Errno::Exist);
        }
        if name.len() > LONGEST_NAME {
            return Err(Errno::NameTooLong);
        }
        let here = self.node_mut(directory);
        if here.names == 0 {
            return Err(Errno::NoEnt); // removed while it was open
        }
        here.modified = now;
        match &mut here.content {
            Content::Directory(entries) if !entries.contains_key(name) => drop(entries.insert(name.to_vec(), node)),
            Content::Directory(_) => return Err(Errno::Exist),
            _ => return Err(Errno::NotDir),
        }
        self.node_mut(node).names += 1;
        Ok(())
    }

    pub fn unlink(&mut self, place: &Place, now: u64) -> Result<(), Errno> {
        let node = place.node.ok_or(Errno::NoEnt)?;
        if place.name == b"." {
            return Err(Errno::Inval);
        }
        let here = self.node_mut(place.directory);
        here.modified = now;
        if let Content::Directory(entries) = &mut here.content {
            entries.remove(&place.name);
        }
        self.node_mut(node).names -= 1;
        self.release(node);
        Ok(())
    }

    /// Move what one place holds to another, in the stead of what is there.
    pub fn rename(&mut self, from: &Place, to: &Place, now: u64) -> Result<(), Errno> {
        let node = from.node.ok_or(Errno::NoEnt)?;
        if to.node == Some(node) {
            return Ok(());
        }
        if from.name == b"." || to.name == b"." {
            return Err(Errno::Busy);
        }
        let is_directory = self.directory(node).is_ok();
        if is_directory && self.below(node, to.directory) {
            return Err(Errno::Inval);
        }
        if let Some(there) = to.node {
            match (is_directory, self.directory(there)) {
                (true, Ok(entries)) if !entries.is_empty() => return Err(Errno::NotEmpty),
                (true, Err(_)) => return Err(Errno::NotDir),
                (false, Ok(_)) => return Err(Errno::IsDir),
                _ => self.unlink(to, now)?,
            }
        }
        self.link(to.directory, &to.name, node, now)?;
        self.unlink(from, now)?;
        self.node_mut(node).changed = true;
        Ok(())
    }

    /// Whether a directory is another one or is somewhere in it.
    fn below(&self, top: usize, wanted: usize) -> bool {
        let mut left = vec![top];
        while let Some(index) = left.pop() {
            if index == wanted {
                return true;
            }
            left.extend(self.directory(index).iter().flat_map(|entries| entries.values().copied()));
        }
        false
    }

    pub fn write(&mut self, index: usize, offset: u64, bytes: &[u8], now: u64) -> Result<(), Errno> {
        let before = self.file(index)?.len() as u64;
        let end = offset.checked_add(bytes.len() as u64).ok_or(Errno::FBig)?;
        if end > before {
            self.resize(index, end, now)?;
        }
        let node = self.node_mut(index);
        (node.modified, node.changed) = (now, true);
        if let Content::File(file) = &mut node.content {
            file[offset as usize..end as usize].copy_from_slice(bytes);
        }
        Ok(())
    }

    pub fn resize(&mut self, index: usize, size: u64, now: u64) -> Result<(), Errno> {
        let before = self.file(index)?.len() as u64;
        self.account(before, size)?;
        let node = self.node_mut(index);
        (node.modified, node.changed) = (now, true);
        if let Content::File(file) = &mut node.content {
            let more = (size as usize).saturating_sub(file.len());
            // Doubling, so that appending small pieces does not copy the file each time.
            if more > 0 && file.try_reserve(more).is_err() {
                self.bytes -= size - before;
                return Err(Errno::NoSpc);
            }
            file.resize(size as usize, 0);
        }
        Ok(())
    }

    pub fn open(&mut self, index: usize) {
        self.node_mut(index).opened += 1;
    }

    pub fn close(&mut self, index: usize) {
        self.node_mut(index).opened -= 1;
        self.release(index);
    }

    fn release(&mut self, index: usize) {
        let node = self.node(index);
        if node.names == 0 && node.opened == 0 {
            self.bytes -= size(&node.content);
            self.nodes[index] = None;
            self.free.push(index);
        }
    }

    fn account(&mut self, less: u64, more: u64) -> Result<(), Errno> {
        let bytes = (self.bytes - less).checked_add(more).filter(|bytes| *bytes <= MOST_BYTES).ok_or(Errno::NoSpc)?;
        self.bytes = bytes;
        Ok(())
    }

    /// All places of nodes, with `None` where one is gone, for a checkpoint.
    pub fn nodes(&self) -> &[Option<Node>] {
        &self.nodes
    }

    /// A tree of nodes that a checkpoint told, or what is wrong with them.
    pub fn of_nodes(nodes: Vec<Option<Node>>) -> Result<Tree, &'static str> {
        let mut names = vec![0u32; nodes.len()];
        let mut seen = vec![false; nodes.len()];
        match nodes.first() {
            Some(Some(Node { content: Content::Directory(_), .. })) => names[ROOT] += 1,
            _ => return Err("the root is not a directory"),
        }
        for node in nodes.iter().flatten() {
            if let Content::Directory(entries) = &node.content {
                for (name, index) in entries {
                    if name.is_empty()
                        || name.len() > LONGEST_NAME
                        || name == b"."
                        || name == b".."
                        || name.contains(&b'/')
                        || name.contains(&0)
                    {
                        return Err("a file's name");
                    }
                    let directory = match nodes.get(*index) {
                        Some(Some(node)) => matches!(node.content, Content::Directory(_)),
                        _ => return Err("an entry of a directory that leads nowhere"),
                    };
                    names[*index] += 1;
                    if directory && names[*index] > 1 {
                        return Err("a directory with two names");
                    }
                }
            }
        }
        // A ring of directories is not reached from the root, or has two names.
        let mut left = vec![ROOT];
        while let Some(index) = left.pop() {
            seen[index] = true;
            if let Some(Node { content: Content::Directory(entries), .. }) = &nodes[index] {
                left.extend(entries.values().filter(|index| matches!(nodes[**index], Some(Node { content: Content::Directory(_), .. }))));
            }
        }
        let mut bytes = 0u64;
        for (index, node) in nodes.iter().enumerate() {
            let node = match node {
                Some(node) => node,
                None => continue,
            };
            if let Content::Directory(entries) = &node.content {
                let removed = entries.is_empty() && names[index] == 0;
                if !seen[index] && !removed {
                    return Err("a directory that is in none");
                }
            }
            if node.names != names[index] {
                return Err("a file's count of names");
            }
            if node.names == 0 && node.opened == 0 {
                return Err("a file without a name that is not open");
            }
            bytes += size(&node.content);
        }
        if bytes > MOST_BYTES {
            return Err("files of more than 1 GiB");
        }
        let free = (0..nodes.len()).filter(|index| nodes[*index].is_none()).collect();
        Ok(Tree { nodes, free, bytes })
    }
}

fn size(content: &Content) -> u64 {
    match content {
        Content::File(bytes) | Content::Link(bytes) => bytes.len() as u64,
        Content::Directory(_) => size_of::<Node>() as u64,
    }
}

/// The parts of a path, the last one first.
fn split(path: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    if path.first() == Some(&b'/') {
        return Err(Errno::NotCapable);
    }
    if path.is_empty() {
        return Err(Errno::NoEnt);
    }
    if path.contains(&0) {
        return Err(Errno::Inval);
    }
    let mut parts: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect();
    if path.ends_with(b"/") {
        parts.push(b".".to_vec());
    }
    parts.reverse();
    Ok(parts)
}
