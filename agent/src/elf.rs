//! How much memory a program asks for by its file alone: that of its segments, static arrays among them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PT_LOAD: u32 = 1;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// More than any program has; the count is what a file says.
const MAX_PROGRAM_HEADERS: u16 = 128;

/// Bytes of the largest segment of an ELF file of 64 bits (elf(5), Elf64_Phdr); None for any other file.
pub fn largest_segment(path: &Path) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let mut header = [0; HEADER];
    file.read_exact(&mut header).ok()?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (offset, size, count) = (u64_at(&header, 32)?, u16_at(&header, 54)?, u16_at(&header, 56)?);
    if usize::from(size) != PROGRAM_HEADER || count > MAX_PROGRAM_HEADERS {
        return None;
    }
    let segments = (0..count).map(|index| segment(&file, offset.checked_add(u64::from(index) * u64::from(size))?).ok()?);
    segments.flatten().max()
}

/// The size in memory of a segment that is loaded.
fn segment(file: &File, at: u64) -> io::Result<Option<u64>> {
    let mut header = [0; PROGRAM_HEADER];
    file.read_exact_at(&mut header, at)?;
    let loaded = header[..4] == PT_LOAD.to_le_bytes();
    Ok(u64_at(&header, 40).filter(|_| loaded))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?))
}
