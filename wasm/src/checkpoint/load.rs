//! Reading a checkpoint, which may come from anybody.

use std::collections::BTreeMap;
use std::io::Read;

use super::coding::Source;
use super::lz::{unpack, PIECE};
use super::{sockets, Stopped, BLOCK, MAGIC, VERSION};
use crate::code::{Op, Program, Stand};
use crate::compile::compile;
use crate::memory::{available, Memory};
use crate::module::{Module, PAGE};
use crate::refusal::{invalid, malformed, no_memory, unsupported, Refusal, Result};
use crate::run::{slots, Compile, Frame, Machine, MOST_FRAMES, MOST_SLOTS};
use crate::wasi::tree::{Content, Node, Tree, MOST_NODES};
use crate::wasi::{Descriptor, Input, Wasi, MOST_PENDING};

/// Read a checkpoint of `size` bytes.
pub fn load(from: impl Read, size: u64) -> Result<Stopped> {
    load_within(available(), from, size)
}

/// The same, if the memory that it unpacks is no more than there is.
fn load_within(room: u64, from: impl Read, size: u64) -> Result<Stopped> {
    let mut from = Source::new(from, size);
    if size < MAGIC.len() as u64 || from.array()? != *MAGIC {
        return malformed("not a checkpoint");
    }
    match from.u32()? {
        VERSION => {}
        version => return unsupported(format!("a checkpoint of version {version} (this program knows {VERSION})")),
    }
    from.u64()?; // of use to who had it stopped
    let input_ended = from.flag()?;
    let file = from.bytes()?;
    let module = Module::read(&file)?;
    module.command()?;
    let program = compile(&module, &file)?;
    let stack = stack(&mut from, &program)?;
    let machine = machine(room, &mut from, &module, stack)?;
    let mut wasi = wasi(&mut from)?;
    wasi.link(&module)?;
    if from.left > MOST_PENDING as u64 {
        return invalid(format!("{} bytes of standard input, at most {MOST_PENDING}", from.left));
    }
    let mut waiting = vec![0; from.left as usize];
    from.fill(&mut waiting)?;
    wasi.input = Input { pending: waiting.into(), ended: input_ended, taken: 0 };
    Ok(Stopped { file, program, machine, wasi })
}

/// The frames of a stopped program, how many slots hold something, and how many its functions may use once each is at work again.
struct Stack {
    frames: Vec<Frame>,
    used: usize,
    reach: usize,
}

/// Frames such as calls leave: each but the last stands in a call of the next, and the last where a program can be stopped.
fn stack<R: Read>(from: &mut Source<R>, program: &Program) -> Result<Stack> {
    let count = from.count(8)?;
    if count == 0 || count > MOST_FRAMES {
        return invalid(format!("{count} frames, 1 to {MOST_FRAMES} wanted"));
    }
    let mut frames: Vec<Frame> = Vec::with_capacity(count);
    let (mut base, mut reach) = (0, 0);
    for place in 0..count {
        let wrong = |what: &str| Err(Refusal::Invalid(format!("frame {place}: {what}")));
        let (index, offset) = (from.u32()?, from.u32()?);
        let function = match program.functions.get(index as usize) {
            Some(function) => function,
            None => return wrong("unknown function"),
        };
        let site = match function.site(offset) {
            Some(site) => site,
            None => return wrong("a place where its function cannot stand"),
        };
        if let Some(caller) = frames.last() {
            let call = &program.functions[caller.function as usize].code[caller.pc as usize];
            let called = match call.op {
                Op::Call => call.imm == u64::from(index),
                _ => call.imm == u64::from(function.kind),
            };
            if !called {
                return wrong("a function that its caller does not call");
            }
        } else if function.params > 0 {
            return wrong("the outermost function takes values");
        }
        if (site.stand == Stand::Call) != (place + 1 < count) {
            return wrong("only the last one may stand outside a call");
        }
        reach = reach.max(base + function.frame as usize);
        if reach > MOST_SLOTS {
            return wrong("beyond the end of the stack");
        }
        frames.push(Frame { function: index, pc: site.pc, base: base as u32 });
        base += (function.locals + site.operands) as usize;
    }
    Ok(Stack { frames, used: base, reach })
}

fn machine<R: Read>(room: u64, from: &mut Source<R>, module: &Module, stack: Stack) -> Result<Machine> {
    let mut slots = slots(stack.reach).ok_or_else(no_memory)?;
    from.numbers(&mut slots[..stack.used], "slots")?;
    let mut globals = vec![0; module.globals.len()];
    from.numbers(&mut globals, "globals")?;
    let (least, most) = module.memory.unwrap_or((0, 0));
    let pages = from.u32()?;
    if pages < least || pages > most {
        return invalid(format!("{pages} pages of memory, the module says {least} to {most}"));
    }
    let count = from.count(8)?;
    let runs: Vec<(u32, u32)> = (0..count).map(|_| Ok((from.u32()?, from.u32()?))).collect::<Result<_>>()?;
    let blocks = pages as usize * (PAGE / BLOCK);
    let mut end = 0;
    let mut total = 0;
    for (first, count) in &runs {
        let (first, count) = (*first as usize, *count as usize);
        if first < end || count == 0 || first + count > blocks {
            return invalid(format!("memory blocks {first} to {} are out of order, or beyond {blocks}", first + count));
        }
        end = first + count;
        total += count;
    }
    if (total * BLOCK / PIECE * 4) as u64 > from.left {
        // not even the lengths
        return malformed(format!("{total} blocks of memory announced, {} bytes left", from.left));
    }
    if (total * BLOCK) as u64 > room {
        return Err(no_memory());
    }
    let mut memory = Memory::new(pages, most).ok_or_else(no_memory)?;
    let mut packed = vec![0; PIECE];
    for (first, count) in runs {
        for piece in memory.bytes_mut()[first as usize * BLOCK..(first + count) as usize * BLOCK].chunks_mut(PIECE) {
            let size = from.count(1)?;
            match packed.get_mut(..size) {
                _ if size == piece.len() => from.fill(piece)?,
                Some(packed) if size < piece.len() => {
                    from.fill(packed)?;
                    unpack(packed, piece)
                        .ok_or_else(|| Refusal::Malformed(format!("memory that is not packed, at block {first} or later")))?;
                }
                _ => return malformed(format!("{size} bytes for {} of memory", piece.len())),
            }
        }
    }
    Ok(Machine { memory, globals, slots, frames: stack.frames, ticks_left: 0, compile: Compile::Hot })
}

fn wasi<R: Read>(from: &mut Source<R>) -> Result<Wasi> {
    let (args, env, directory) = (from.texts()?, from.texts()?, from.bytes()?);
    let mut wasi = Wasi::new(args, env, directory);
    wasi.clock_before = from.u64()?;
    wasi.asleep_until = Some(from.u64()?).filter(|until| *until > 0);
    wasi.ticks = from.u64()?;
    if wasi.clock_before > u64::MAX / 2 || wasi.ticks > u64::MAX / 2 {
        return invalid("a clock beyond its range");
    }
    let mut nodes = nodes(from)?;
    wasi.descriptors = descriptors(from, &mut nodes)?;
    wasi.tree = Tree::of_nodes(nodes).map_err(|what| Refusal::Invalid(format!("files: {what}")))?;
    Ok(wasi)
}

fn nodes<R: Read>(from: &mut Source<R>) -> Result<Vec<Option<Node>>> {
    let count = from.count(1)?;
    if count > MOST_NODES {
        return invalid(format!("{count} files, at most {MOST_NODES}"));
    }
    let mut nodes = Vec::new();
    for _ in 0..count {
        let kind = from.array::<1>()?[0];
        if kind == 0 {
            nodes.push(None);
            continue;
        }
        let (modified, names) = (from.u64()?, from.u32()?);
        let content = match kind {
            1 => Content::File(from.bytes()?),
            2 => {
                let mut entries = BTreeMap::new();
                for _ in 0..from.count(8)? {
                    let (name, place) = (from.bytes()?, from.u32()?);
                    if entries.insert(name, place as usize).is_some() {
                        return invalid("two files of one name");
                    }
                }
                Content::Directory(entries)
            }
            3 => Content::Link(from.bytes()?),
            _ => return malformed(format!("a file of kind {kind}")),
        };
        // On another host nothing of it is there yet.
        nodes.push(Some(Node { content, modified, names, opened: 0, changed: true }));
    }
    Ok(nodes)
}

fn descriptors<R: Read>(from: &mut Source<R>, nodes: &mut [Option<Node>]) -> Result<BTreeMap<u32, Descriptor>> {
    let mut descriptors = BTreeMap::new();
    for _ in 0..from.count(5)? {
        let (fd, kind) = (from.u32()?, from.array::<1>()?[0]);
        let descriptor = match kind {
            0 | 6 => Descriptor::Input { nonblocking: kind == 6 },
            1 | 2 => Descriptor::Output(kind),
            3 => Descriptor::Preopened,
            4 => Descriptor::Directory { node: from.u32()? as usize },
            5 => Descriptor::File {
                node: from.u32()? as usize,
                offset: from.u64()?,
                flags: u16::from_le_bytes(from.array()?),
                read: from.flag()?,
                write: from.flag()?,
            },
            7 => Descriptor::Socket(Box::new(sockets::load(from)?)),
            _ => return malformed(format!("a descriptor of kind {kind}")),
        };
        let fits = match &descriptor {
            Descriptor::Directory { node } | Descriptor::File { node, .. } => match nodes.get_mut(*node) {
                Some(Some(there)) => {
                    there.opened += 1;
                    matches!(there.content, Content::Directory(_)) == (kind == 4) && !matches!(there.content, Content::Link(_))
                }
                _ => false,
            },
            _ => true,
        };
        if !fits {
            return invalid(format!("descriptor {fd} is of a file that is not there or of another kind"));
        }
        if descriptors.insert(fd, descriptor).is_some() {
            return invalid(format!("descriptor {fd} twice"));
        }
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that does nothing, with a memory of one page at least and two at most.
    const MODULE: &[u8] = b"\0asm\x01\0\0\0\
        \x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x04\x01\x01\x01\x02\
        \x07\x13\x02\x06_start\0\0\x06memory\x02\0\x0a\x04\x01\x02\0\x0b";

    #[test]
    fn memory_for_which_there_is_no_room_is_refused_before_it_is_unpacked() {
        let mut state = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 9], &(MODULE.len() as u32).to_le_bytes(), MODULE].concat();
        // One frame at its function's beginning, no slots, no globals; two pages, of which the second is in the file.
        state.extend([1, 0, 0, 0, 0, 2, 1, 16, 16].into_iter().flat_map(u32::to_le_bytes));
        state.extend([0; 64]);
        let loaded = |room| load_within(room, &state[..], state.len() as u64).err().unwrap().to_string();
        assert_eq!(loaded(PAGE as u64 - 1), no_memory().to_string());
        assert_eq!(loaded(PAGE as u64), "malformed: memory that is not packed, at block 16 or later");
    }
}
