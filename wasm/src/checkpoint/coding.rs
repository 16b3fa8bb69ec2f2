//! The numbers, bytes and lists that a checkpoint is made of.

use std::io::{self, Read, Write};

use crate::refusal::{invalid, malformed, Refusal, Result};

/// What is read: nothing beyond its size, and nothing allocated that is not there.
pub struct Source<R: Read> {
    from: R,
    /// Bytes.
    pub left: u64,
}

impl<R: Read> Source<R> {
    pub fn new(from: R, size: u64) -> Source<R> {
        Source { from, left: size }
    }

    pub fn fill(&mut self, to: &mut [u8]) -> Result<()> {
        if to.len() as u64 > self.left {
            return malformed(format!("{} bytes wanted, {} left", to.len(), self.left));
        }
        self.left -= to.len() as u64;
        self.from.read_exact(to).map_err(|error| Refusal::Malformed(format!("cannot be read: {error}")))
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn flag(&mut self) -> Result<bool> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [value] => malformed(format!("flag {value}")),
        }
    }

    /// A count of entries that take at least so many bytes each.
    pub fn count(&mut self, least: u64) -> Result<usize> {
        let count = self.u32()?;
        if u64::from(count) * least > self.left {
            return malformed(format!("{count} entries announced, {} bytes left", self.left));
        }
        Ok(count as usize)
    }

    pub fn bytes(&mut self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.count(1)?];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub fn texts(&mut self) -> Result<Vec<Vec<u8>>> {
        (0..self.count(4)?).map(|_| self.bytes()).collect()
    }

    pub fn numbers(&mut self, to: &mut [u64], what: &str) -> Result<()> {
        let count = self.count(8)?;
        if count != to.len() {
            return invalid(format!("{count} {what}, {} wanted", to.len()));
        }
        for number in to {
            *number = self.u64()?;
        }
        Ok(())
    }
}

/// Where to write.
pub struct Sink<'a, W: Write>(pub &'a mut W);

impl<W: Write> Sink<'_, W> {
    pub fn u8(&mut self, value: u8) -> io::Result<()> {
        self.0.write_all(&[value])
    }

    pub fn u32(&mut self, value: u32) -> io::Result<()> {
        self.0.write_all(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> io::Result<()> {
        self.0.write_all(&value.to_le_bytes())
    }

    pub fn count(&mut self, count: usize) -> io::Result<()> {
        self.u32(u32::try_from(count).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?)
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.count(bytes.len())?;
        self.0.write_all(bytes)
    }

    pub fn numbers(&mut self, numbers: &[u64]) -> io::Result<()> {
        self.count(numbers.len())?;
        numbers.iter().try_for_each(|number| self.u64(*number))
    }
}
