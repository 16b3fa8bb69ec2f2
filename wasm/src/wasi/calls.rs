//! The functions by their names, and those that need no file.

use std::fs::File;
use std::io::Read;

use super::{real_time, socket_calls, Args, Errno, Outcome, Unusual, Wasi};
use crate::memory::Memory;
use crate::module::ValueType::{self, I32, I64};

pub type Call = fn(&mut Wasi, Args, &mut Memory) -> Outcome;

#[rustfmt::skip]
const CALLS: [(&str, &[ValueType], Call); 42] = [
    ("args_get", &[I32, I32], Wasi::args_get),
    ("args_sizes_get", &[I32, I32], Wasi::args_sizes_get),
    ("environ_get", &[I32, I32], Wasi::environ_get),
    ("environ_sizes_get", &[I32, I32], Wasi::environ_sizes_get),
    ("clock_res_get", &[I32, I32], Wasi::clock_res_get),
    ("clock_time_get", &[I32, I64, I32], Wasi::clock_time_get),
    ("fd_advise", &[I32, I64, I64, I32], Wasi::fd_sync),
    ("fd_allocate", &[I32, I64, I64], Wasi::fd_allocate),
    ("fd_close", &[I32], Wasi::fd_close),
    ("fd_datasync", &[I32], Wasi::fd_sync),
    ("fd_fdstat_get", &[I32, I32], Wasi::fd_fdstat_get),
    ("fd_fdstat_set_flags", &[I32, I32], Wasi::fd_fdstat_set_flags),
    ("fd_fdstat_set_rights", &[I32, I64, I64], Wasi::fd_sync),
    ("fd_filestat_get", &[I32, I32], Wasi::fd_filestat_get),
    ("fd_filestat_set_size", &[I32, I64], Wasi::fd_filestat_set_size),
    ("fd_filestat_set_times", &[I32, I64, I64, I32], Wasi::fd_filestat_set_times),
    ("fd_pread", &[I32, I32, I32, I64, I32], Wasi::fd_pread),
    ("fd_prestat_get", &[I32, I32], Wasi::fd_prestat_get),
    ("fd_prestat_dir_name", &[I32, I32, I32], Wasi::fd_prestat_dir_name),
    ("fd_pwrite", &[I32, I32, I32, I64, I32], Wasi::fd_pwrite),
    ("fd_read", &[I32, I32, I32, I32], Wasi::fd_read),
    ("fd_readdir", &[I32, I32, I32, I64, I32], Wasi::fd_readdir),
    ("fd_renumber", &[I32, I32], Wasi::fd_renumber),
    ("fd_seek", &[I32, I64, I32, I32], Wasi::fd_seek),
    ("fd_sync", &[I32], Wasi::fd_sync),
    ("fd_tell", &[I32, I32], Wasi::fd_tell),
    ("fd_write", &[I32, I32, I32, I32], Wasi::fd_write),
    ("path_create_directory", &[I32, I32, I32], Wasi::path_create_directory),
    ("path_filestat_get", &[I32, I32, I32, I32, I32], Wasi::path_filestat_get),
    ("path_filestat_set_times", &[I32, I32, I32, I32, I64, I64, I32], Wasi::path_filestat_set_times),
    ("path_link", &[I32, I32, I32, I32, I32, I32, I32], Wasi::path_link),
    ("path_open", &[I32, I32, I32, I32, I32, I64, I64, I32, I32], Wasi::path_open),
    ("path_readlink", &[I32, I32, I32, I32, I32, I32], Wasi::path_readlink),
    ("path_remove_directory", &[I32, I32, I32], Wasi::path_remove_directory),
    ("path_rename", &[I32, I32, I32, I32, I32, I32], Wasi::path_rename),
    ("path_symlink", &[I32, I32, I32, I32, I32], Wasi::path_symlink),
    ("path_unlink_file", &[I32, I32, I32], Wasi::path_unlink_file),
    ("poll_oneoff", &[I32, I32, I32, I32], Wasi::poll_oneoff),
    ("proc_exit", &[I32], Wasi::proc_exit),
    ("proc_raise", &[I32], Wasi::proc_raise),
    ("random_get", &[I32, I32], Wasi::random_get),
    ("sched_yield", &[], Wasi::sched_yield),
];

pub fn find(name: &str) -> Option<(&'static [ValueType], Call)> {
    CALLS.iter().chain(&socket_calls::CALLS).find(|call| call.0 == name).map(|call| (call.1, call.2))
}

impl Wasi {
    fn args_sizes_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        put_sizes(&self.args, args, memory)
    }

    fn args_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        put_texts(&self.args, args, memory)
    }

    fn environ_sizes_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        put_sizes(&self.env, args, memory)
    }

    fn environ_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        put_texts(&self.env, args, memory)
    }

    fn clock_res_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        if args.u32(0) > 3 {
            return Err(Errno::Inval.into());
        }
        Ok(memory.put(args.u32(1), &1u64.to_le_bytes())?)
    }

    fn clock_time_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let time = match args.u32(0) {
            0 => real_time(),
            1..=3 => self.clock(),
            _ => return Err(Errno::Inval.into()),
        };
        Ok(memory.put(args.u32(2), &time.to_le_bytes())?)
    }

    fn proc_exit(&mut self, args: Args, _: &mut Memory) -> Outcome {
        Err(Unusual::Exit(args.u32(0)))
    }

    fn proc_raise(&mut self, _: Args, _: &mut Memory) -> Outcome {
        Err(Errno::NotSup.into())
    }

    fn random_get(&mut self, args: Args, memory: &mut Memory) -> Outcome {
        let to = memory.get_mut(args.u32(0), args.u32(1))?;
        File::open("/dev/urandom").and_then(|mut source| source.read_exact(to)).map_err(|_| Errno::Io.into())
    }

    fn sched_yield(&mut self, _: Args, _: &mut Memory) -> Outcome {
        Ok(())
    }
}

fn put_sizes(texts: &[Vec<u8>], args: Args, memory: &mut Memory) -> Outcome {
    let bytes: usize = texts.iter().map(|text| text.len() + 1).sum();
    memory.put(args.u32(0), &(texts.len() as u32).to_le_bytes())?;
    Ok(memory.put(args.u32(1), &(bytes as u32).to_le_bytes())?)
}

/// Pointers at the first argument's place, and what they lead to, each ended by a zero, at the second one's.
fn put_texts(texts: &[Vec<u8>], args: Args, memory: &mut Memory) -> Outcome {
    let (mut pointer, mut at) = (args.u32(0), args.u32(1));
    for text in texts {
        memory.put(pointer, &at.to_le_bytes())?;
        memory.put(at, text)?;
        at = at.checked_add(text.len() as u32).ok_or(Errno::Fault)?;
        memory.put(at, &[0])?;
        at = at.checked_add(1).ok_or(Errno::Fault)?;
        pointer = pointer.checked_add(4).ok_or(Errno::Fault)?;
    }
    Ok(())
}
