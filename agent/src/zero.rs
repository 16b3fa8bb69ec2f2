//! Zeroing the machine's free memory, before a snapshot is made of it: what ended programs left there would be part of the snapshot, and
//! each of its pages a copy for every machine that goes on from it and uses it anew.

use std::fs;
use std::io::{self, Read};

const MEMORY: &str = "/proc/meminfo";
/// Left alone, for what the kernel needs itself.
const RESERVE: usize = 24 << 20;
const BLOCK: usize = 4 << 20;
/// From here as the compiler would leave out what writes zeros to memory that is new.
const ZEROS: &str = "/dev/zero";

/// Use all free memory once. The kernel zeroes each page that a program gets, and leaves it so when it gets it back.
pub fn zero_free_memory() -> io::Result<()> {
    let mut zeros = fs::File::open(ZEROS)?;
    let mut blocks = Vec::new();
    while free_memory(&fs::read_to_string(MEMORY)?).ok_or(io::ErrorKind::InvalidData)? >= RESERVE + BLOCK {
        let mut block = vec![0_u8; BLOCK];
        zeros.read_exact(&mut block)?;
        blocks.push(block);
    }
    Ok(())
}

/// Bytes that nobody uses, by a text as of /proc/meminfo.
fn free_memory(text: &str) -> Option<usize> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
    let kibibytes: usize = value.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_in_bytes() {
        assert_eq!(free_memory("MemTotal:  100 kB\nMemFree:      12 kB\n"), Some(12 << 10));
        assert_eq!(free_memory("MemTotal:  100 kB\n"), None);
        assert_eq!(free_memory("MemFree: many\n"), None);
    }
}
