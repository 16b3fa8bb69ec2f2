//! Writing a checkpoint.

use std::io::{self, Write};

use super::coding::Sink;
use super::lz::{pack, PIECE};
use super::{sockets, Stopped, BLOCK, MAGIC, VERSION};
use crate::wasi::tree::Content;
use crate::wasi::{Descriptor, Wasi};

/// Write the state of a program whose innermost function stands at a loop, at its beginning or at a call of the host.
pub fn save(stopped: &Stopped, to: &mut impl Write) -> io::Result<()> {
    let mut to = Sink(to);
    let Stopped { file, program, machine, wasi } = stopped;
    to.0.write_all(MAGIC)?;
    to.u32(VERSION)?;
    to.u64(wasi.input.taken)?;
    to.u8(wasi.input.ended.into())?;
    to.bytes(file)?;
    to.count(machine.frames.len())?;
    for (place, frame) in machine.frames.iter().enumerate() {
        let in_call = place + 1 < machine.frames.len();
        let site = program.functions[frame.function as usize].site_at(frame.pc, in_call).expect("a program stands only at sites");
        to.u32(frame.function)?;
        to.u32(site.offset)?;
    }
    let used = machine.used_slots(program);
    to.numbers(&machine.slots[..used])?;
    to.numbers(&machine.globals)?;
    let memory = machine.memory.bytes();
    to.u32(machine.memory.pages())?;
    let runs = runs(memory);
    to.count(runs.len())?;
    for (first, count) in &runs {
        to.u32(*first)?;
        to.u32(*count)?;
    }
    let mut packed = Vec::with_capacity(2 * PIECE);
    for (first, count) in runs {
        for piece in memory[first as usize * BLOCK..(first + count) as usize * BLOCK].chunks(PIECE) {
            packed.clear();
            pack(piece, &mut packed);
            to.bytes(if packed.len() < piece.len() { &packed } else { piece })?;
        }
    }
    wasi_state(wasi, &mut to)
}

/// Takes so many bytes, and fails at the next.
pub struct AtMost<W: Write> {
    pub most: u64,
    pub left: u64,
    pub to: W,
}

impl<W: Write> Write for AtMost<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => self.left = left,
            None => {
                let text = format!("its checkpoint would be larger, at most {} bytes are wanted", self.most);
                return Err(io::Error::new(io::ErrorKind::Other, text));
            }
        }
        self.to.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn wasi_state(wasi: &Wasi, to: &mut Sink<impl Write>) -> io::Result<()> {
    for texts in [&wasi.args, &wasi.env] {
        to.count(texts.len())?;
        for text in texts {
            to.bytes(text)?;
        }
    }
    to.bytes(&wasi.directory)?;
    to.u64(wasi.clock())?;
    to.u64(wasi.asleep_until.unwrap_or(0))?;
    to.u64(wasi.ticks)?;
    to.count(wasi.tree.nodes().len())?;
    for node in wasi.tree.nodes() {
        let node = match node {
            Some(node) => node,
            None => {
                to.u8(0)?;
                continue;
            }
        };
        to.u8(match node.content {
            Content::File(_) => 1,
            Content::Directory(_) => 2,
            Content::Link(_) => 3,
        })?;
        to.u64(node.modified)?;
        to.u32(node.names)?;
        match &node.content {
            Content::File(bytes) | Content::Link(bytes) => to.bytes(bytes)?,
            Content::Directory(entries) => {
                to.count(entries.len())?;
                for (name, place) in entries {
                    to.bytes(name)?;
                    to.count(*place)?;
                }
            }
        }
    }
    to.count(wasi.descriptors.len())?;
    for (fd, descriptor) in &wasi.descriptors {
        to.u32(*fd)?;
        match descriptor {
            Descriptor::Input { nonblocking: false } => to.u8(0)?,
            Descriptor::Input { nonblocking: true } => to.u8(6)?,
            Descriptor::Output(which) => to.u8(*which)?,
            Descriptor::Preopened => to.u8(3)?,
            Descriptor::Directory { node } => {
                to.u8(4)?;
                to.count(*node)?;
            }
            Descriptor::File { node, offset, flags, read, write } => {
                to.u8(5)?;
                to.count(*node)?;
                to.u64(*offset)?;
                to.0.write_all(&flags.to_le_bytes())?;
                to.u8((*read).into())?;
                to.u8((*write).into())?;
            }
            Descriptor::Socket(socket) => {
                to.u8(7)?;
                sockets::save(socket, to)?;
            }
        }
    }
    let (first, second) = wasi.input.pending.as_slices();
    to.0.write_all(first)?;
    to.0.write_all(second)
}

/// Runs of blocks that are not all zeros: the first and how many.
fn runs(memory: &[u8]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (place, block) in memory.chunks_exact(BLOCK).enumerate() {
        // Sixteen bytes at a time: this is most of what saving costs.
        let zero = block.chunks_exact(16).all(|part| part == [0; 16]);
        match runs.last_mut() {
            _ if zero => {}
            Some((first, count)) if (*first + *count) as usize == place => *count += 1,
            _ => runs.push((place as u32, 1)),
        }
    }
    runs
}
