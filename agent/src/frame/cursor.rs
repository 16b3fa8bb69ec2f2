//! How fields are read from a payload.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::Env;

/// Takes a payload apart from its front; None where it is too short or not what it should be.
pub struct Cursor<'a> {
    pub data: &'a [u8],
}

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        if self.data.len() < count {
            return None;
        }
        let (taken, rest) = self.data.split_at(count);
        self.data = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data).to_vec()
    }

    /// A path, an argument or part of an environment: any bytes but NUL.
    pub fn raw(&mut self) -> Option<OsString> {
        let count = self.u16()?;
        let bytes = self.take(count.into())?;
        (!bytes.contains(&0)).then(|| OsString::from_vec(bytes.to_vec()))
    }

    pub fn text(&mut self) -> Option<String> {
        let count = self.u16()?;
        String::from_utf8(self.take(count.into())?.to_vec()).ok()
    }

    /// Every item takes at least two bytes, so a false count ends at the end of the payload.
    pub fn list<T>(&mut self, item: fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u16()?;
        (0..count).map(|_| item(self)).collect()
    }

    pub fn env(&mut self) -> Option<Env> {
        self.list(|cursor| Some((cursor.raw()?, cursor.raw()?)))
    }

    /// A byte of N flags, bit 0 first; the bits above them must be 0.
    pub fn flags<const N: usize>(&mut self) -> Option<[bool; N]> {
        let byte = self.u8()?;
        let mut flags = [false; N];
        flags.iter_mut().enumerate().for_each(|(bit, flag)| *flag = byte >> bit & 1 == 1);
        (u32::from(byte) >> N == 0).then_some(flags)
    }
}
