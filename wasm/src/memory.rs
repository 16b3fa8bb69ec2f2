//! Linear memory.

use std::alloc::{alloc_zeroed, Layout};
use std::fs;

use crate::module::PAGE;

/// An access that is not wholly inside the memory.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfBounds;

pub struct Memory {
    bytes: Vec<u8>,
    most_pages: u32,
}

impl Memory {
    /// Zeroed pages, or nothing if the system has no such amount.
    pub fn new(pages: u32, most_pages: u32) -> Option<Memory> {
        Some(Memory { bytes: zeroed(pages as usize * PAGE)?, most_pages })
    }

    pub fn pages(&self) -> u32 {
        (self.bytes.len() / PAGE) as u32
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The pages there were, or nothing and no change.
    pub fn grow(&mut self, pages: u32) -> Option<u32> {
        let before = self.pages();
        let after = before.checked_add(pages).filter(|after| *after <= self.most_pages)?;
        let size = after as usize * PAGE;
        self.bytes.try_reserve_exact(size - self.bytes.len()).ok()?;
        self.bytes.resize(size, 0);
        Some(before)
    }

    pub fn get(&self, at: u32, count: u32) -> Result<&[u8], OutOfBounds> {
        self.bytes.get(at as usize..at as usize + count as usize).ok_or(OutOfBounds)
    }

    pub fn get_mut(&mut self, at: u32, count: u32) -> Result<&mut [u8], OutOfBounds> {
        self.bytes.get_mut(at as usize..at as usize + count as usize).ok_or(OutOfBounds)
    }

    pub fn put(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let end = at as usize + bytes.len();
        self.bytes.get_mut(at as usize..end).ok_or(OutOfBounds)?.copy_from_slice(bytes);
        Ok(())
    }

    pub fn u32(&self, at: u32) -> Result<u32, OutOfBounds> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.get(at, 4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    pub fn u64(&self, at: u32) -> Result<u64, OutOfBounds> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.get(at, 8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    pub fn copy(&mut self, to: u32, from: u32, count: u32) -> Result<(), OutOfBounds> {
        self.get(from, count)?;
        self.get(to, count)?;
        self.bytes.copy_within(from as usize..from as usize + count as usize, to as usize);
        Ok(())
    }
}

/// Bytes that the system can give without ending processes for them (proc_meminfo(5), MemAvailable); without end if it does not say.
pub fn available() -> u64 {
    let told = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

/// Zeroed memory that the system gives page by page as it is touched; `vec![0; size]` would end the process where there is too little.
pub fn zeroed<T: Zero>(count: usize) -> Option<Vec<T>> {
    let layout = Layout::array::<T>(count).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout has a size. What comes back is checked, is zeroed, which is a value of T, and was allocated as a vector
    // of `count` elements allocates.
    unsafe {
        let start = alloc_zeroed(layout);
        (!start.is_null()).then(|| Vec::from_raw_parts(start.cast::<T>(), count, count))
    }
}

/// # Safety
///
/// Zeroed bytes must be a value of the type, and it must have a size.
pub unsafe trait Zero {}

// SAFETY: zero.
unsafe impl Zero for u8 {}
// SAFETY: zero.
unsafe impl Zero for u64 {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_access_crosses_the_end() {
        let mut memory = Memory::new(1, 2).unwrap();
        assert!(memory.put(65532, &[1, 2, 3, 4]).is_ok());
        assert_eq!(memory.put(65533, &[1, 2, 3, 4]), Err(OutOfBounds));
        assert_eq!(memory.u64(u32::MAX), Err(OutOfBounds));
        assert_eq!(memory.copy(0, 65000, 537), Err(OutOfBounds));
        assert_eq!(memory.copy(65000, 0, 537), Err(OutOfBounds));
    }

    #[test]
    fn growing_keeps_the_bytes_and_ends_at_the_limit() {
        let mut memory = Memory::new(1, 2).unwrap();
        memory.put(0, &[7]).unwrap();
        assert_eq!(memory.grow(1), Some(1));
        assert_eq!(memory.grow(1), None);
        assert_eq!(memory.grow(u32::MAX), None);
        assert_eq!((memory.pages(), memory.bytes()[0], memory.bytes()[PAGE]), (2, 7, 0));
    }
}
