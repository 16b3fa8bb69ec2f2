//! Zeroing the machine's free memory, before a snapshot is made of it: what ended programs left there would be part of the snapshot, and
//! each of its pages a copy for every machine that goes on from it and uses it anew.

use std::fs;
use std::io::{self, Read};

use crate::sys;

const MEMORY: &str = "/proc/meminfo";
/// Left alone, for what the kernel needs itself.
const RESERVE: usize = 24 << 20;
const BLOCK: usize = 4 << 20;
/// From here as the compiler would leave out what writes zeros to memory that is new.
const ZEROS: &str = "/dev/zero";

/// Use all free memory once. The kernel zeroes each page that a program gets, and leaves it so when it gets it back.
pub fn zero_free_memory() -> io::Result<()> {
    let free = || free_memory(&fs::read_to_string(MEMORY)?).ok_or(io::Error::from(io::ErrorKind::InvalidData));
    // Small pages: they come from where memory is in pieces, whole blocks are left for the last, and so for what is not zeroed.
    sys::use_small_pages()?;
    let mut zeros = fs::File::open(ZEROS)?;
    // In one piece: the header that each allocation has would stay behind, and a host can give no huge page where one of its pages is not free.
    let mut memory = vec![0_u8; free()?];
    for block in memory.chunks_mut(BLOCK) {
        if free()? < RESERVE + BLOCK {
            break;
        }
        zeros.read_exact(block)?;
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
