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

/// Bytes that a program may have at once, by a text as of /proc/meminfo: of what is free the kernel keeps a part of each zone for itself.
fn free_memory(text: &str) -> Option<usize> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
    };
    Some(field("MemFree:")?.min(field("MemAvailable:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_the_less_of_two_in_bytes() {
        assert_eq!(free_memory("MemTotal:  100 kB\nMemFree:      12 kB\nMemAvailable:  8 kB\n"), Some(8 << 10));
        assert_eq!(free_memory("MemFree: 12 kB\nMemAvailable: 80 kB\n"), Some(12 << 10));
        assert_eq!(free_memory("MemFree: 12 kB\n"), None);
        assert_eq!(free_memory("MemFree: many\nMemAvailable: 80 kB\n"), None);
    }
}
