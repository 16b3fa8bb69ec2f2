//! Reading a module's bytes (WebAssembly 1.0, 5.2): every read is checked against the end.

use crate::refusal::{malformed, Result};

#[derive(Clone)]
pub struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    pub fn new(all: &'a [u8]) -> Bytes<'a> {
        Bytes { all, at: 0 }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.all.len()
    }

    pub fn left(&self) -> usize {
        self.all.len() - self.at
    }

    pub fn byte(&mut self) -> Result<u8> {
        match self.all.get(self.at) {
            Some(byte) => {
                self.at += 1;
                Ok(*byte)
            }
            None => malformed("unexpected end"),
        }
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.left() {
            return malformed(format!("{count} bytes announced, {} left", self.left()));
        }
        self.at += count;
        Ok(&self.all[self.at - count..self.at])
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// LEB128, at most five bytes, no bit beyond the thirty-second.
    pub fn u32(&mut self) -> Result<u32> {
        let mut value = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return match u32::try_from(value) {
                    Ok(value) => Ok(value),
                    Err(_) => malformed("integer too large"),
                };
            }
        }
        malformed("integer representation too long")
    }

    pub fn i32(&mut self) -> Result<i32> {
        self.signed(32).map(|value| value as i32)
    }

    pub fn i64(&mut self) -> Result<i64> {
        self.signed(64)
    }

    /// A block's type is a signed integer of 33 bits (5.4.1).
    pub fn i33(&mut self) -> Result<i64> {
        self.signed(33)
    }

    fn signed(&mut self, bits: u32) -> Result<i64> {
        let mut value = 0i64;
        let mut shift = 0;
        loop {
            let byte = self.byte()?;
            let left = bits - shift;
            if left < 7 {
                // What the last byte has beyond the value must repeat its sign.
                let beyond = (byte as i8) << 1 >> left;
                if byte & 0x80 != 0 {
                    return malformed("integer representation too long");
                }
                if beyond != 0 && beyond != -1 {
                    return malformed("integer too large");
                }
            }
            value |= i64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                if shift < 64 && byte & 0x40 != 0 {
                    value |= -1 << shift;
                }
                return Ok(value);
            }
            if shift >= bits {
                return malformed("integer representation too long");
            }
        }
    }

    /// How many entries of a vector follow. Each takes a byte at least, so a count beyond the end is refused before anything is allocated.
    pub fn count(&mut self) -> Result<usize> {
        let count = self.u32()? as usize;
        if count > self.left() {
            return malformed(format!("{count} entries announced, {} bytes left", self.left()));
        }
        Ok(count)
    }

    pub fn name(&mut self) -> Result<String> {
        let count = self.count()?;
        match String::from_utf8(self.take(count)?.to_vec()) {
            Ok(name) => Ok(name),
            Err(_) => malformed("a name is not UTF-8"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsigned_integers_end_within_five_bytes_and_32_bits() {
        let read = |bytes: &[u8]| Bytes::new(bytes).u32();
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(u32::MAX));
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x00]), Ok(0)); // a linker's padding
        assert!(read(&[0xff, 0xff, 0xff, 0xff, 0x1f]).is_err());
        assert!(read(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]).is_err());
        assert!(read(&[0x80]).is_err());
    }

    #[test]
    fn signed_integers_are_extended_and_checked() {
        let read = |bytes: &[u8]| Bytes::new(bytes).i32();
        assert_eq!(read(&[0x7f]), Ok(-1));
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x78]), Ok(i32::MIN));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x07]), Ok(i32::MAX));
        assert!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(read(&[0x80, 0x80, 0x80, 0x80, 0x68]).is_err());
        let long = |bytes: &[u8]| Bytes::new(bytes).i64();
        assert_eq!(long(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f]), Ok(i64::MIN));
        assert!(long(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]).is_err());
    }

    #[test]
    fn a_count_beyond_the_end_is_refused() {
        assert!(Bytes::new(&[0x05, 1, 2]).count().is_err());
    }
}
