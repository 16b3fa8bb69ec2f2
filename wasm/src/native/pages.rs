//! Memory that the processor executes.

use std::io;
use std::os::raw::{c_int, c_void};

const PROT_READ: c_int = 1;
const PROT_WRITE: c_int = 2;
const PROT_EXEC: c_int = 4;
const MAP_PRIVATE: c_int = 2;
const MAP_ANONYMOUS: c_int = 0x20;

extern "C" {
    fn mmap(at: *mut c_void, size: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn mprotect(at: *mut c_void, size: usize, protection: c_int) -> c_int;
    fn munmap(at: *mut c_void, size: usize) -> c_int;
}

/// Some code, which cannot be written to any more.
pub struct Pages {
    start: *mut u8,
    size: usize,
}

impl Pages {
    /// A copy of some code, or nothing if the system refuses that.
    pub fn new(code: &[u8]) -> Option<Pages> {
        let size = code.len();
        // SAFETY: new memory, at a place of the system's choice.
        let at = unsafe { mmap(std::ptr::null_mut(), size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) };
        if at as isize == -1 {
            return None;
        }
        let pages = Pages { start: at.cast(), size };
        // SAFETY: the memory has that size and nobody else knows it.
        let done = unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), pages.start, size);
            make_visible(pages.start, size);
            mprotect(at, size, PROT_READ | PROT_EXEC)
        };
        (done == 0).then_some(pages)
    }

    pub fn start(&self) -> *const u8 {
        self.start
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and its code is not running: who runs it has borrowed it.
        if unsafe { munmap(self.start.cast(), self.size) } != 0 {
            debug_assert!(false, "munmap: {}", io::Error::last_os_error());
        }
    }
}

/// Have the processor fetch what was written.
#[cfg(target_arch = "x86_64")]
unsafe fn make_visible(_: *const u8, _: usize) {}

/// Have the processor fetch what was written (Arm ARM, B2.4.4).
#[cfg(target_arch = "aarch64")]
unsafe fn make_visible(start: *const u8, size: usize) {
    use std::arch::asm;
    let sizes: u64;
    asm!("mrs {}, ctr_el0", out(reg) sizes);
    let (data, code) = (4usize << (sizes >> 16 & 15), 4usize << (sizes & 15));
    let end = start as usize + size;
    for at in (start as usize & !(data - 1)..end).step_by(data) {
        asm!("dc cvau, {}", in(reg) at);
    }
    asm!("dsb ish");
    for at in (start as usize & !(code - 1)..end).step_by(code) {
        asm!("ic ivau, {}", in(reg) at);
    }
    asm!("dsb ish", "isb");
}
