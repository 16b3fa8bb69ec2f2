//! A program's state as a file, for any processor and any host.
//!
//! All numbers are little-endian. `bytes` and `text` are a length of 4 bytes and as many bytes; a `list` is a count of 4 bytes and
//! as many entries.
//!
//! ```text
//! magic "MAYFLYWC", version (4 bytes)
//! input           bytes that this process took from the host's standard input (8); ended: nothing follows those at the file's end (1)
//! module          bytes: the whole WebAssembly file, so that nothing else is needed
//! frames          list, the outermost first: function (4), offset of the instruction in the function's code (4; 0 is the beginning)
//! slots           list of 8 bytes: of each frame its locals and operands; of a frame that calls, without the arguments
//! globals         list of 8 bytes
//! memory          pages of 64 KiB (4); list of runs of blocks of 4 KiB that are not zero: first (4), count (4); then of
//!                 each run for each 64 KiB, the last less, bytes: packed as in lz.rs, or if there are as many as of memory, those
//! arguments, environment   lists of text
//! directory       text: what the program calls its directory
//! clock (8), asleep until (8; 0: awake), ticks (8)
//! files           list: kind (1; 0 none, 1 file, 2 directory, 3 link), modified (8), names (4), then bytes; of a directory instead
//!                 list of name (text) and place in this list (4)
//! descriptors     list: number (4), kind (1; 0 input, 1 and 2 output, 3 the directory, 4 directory, 5 file, 6 input that is not
//!                 waited for, 7 socket), then of 4 and 5 place (4); of a file also offset (8), flags (2), readable (1), writable (1)
//!                 of a socket IPv6 (1), stream (1), state (1; 0 unconnected, 1 listening, 2 connecting, 3 connected, 4 accepted),
//!                 what it is bound to, its other side, backlog (4), receives no more (1), sends no more (1), is not waited for (1),
//!                 list of options: number (1), value (8); end (1; 0 open, 1 ended, 2 broken, 3 and the program knows), bytes that
//!                 were not read, list of datagrams: sender, bytes. An address is its kind (1; 0 none, 4, 6), the IP, the port (2)
//! waiting         to the end of the file: standard input that the program has not read
//! ```
//!
//! Who had the program stopped knows what it was sent, and adds what is not among the bytes that were taken; so the fields for that
//! stand where they need not be looked for.
//!
//! A loader believes none of it: counts are held against the bytes that are left before anything is allocated, the module is
//! validated as any other, and frames must be such as calls of this module leave.

use crate::code::Program;
use crate::run::Machine;
use crate::wasi::Wasi;

mod coding;
mod load;
mod lz;
mod save;
mod sockets;

pub use load::load;
pub use save::{save, AtMost};

pub const MAGIC: &[u8; 8] = b"MAYFLYWC";
pub const VERSION: u32 = 5;
/// Smaller than a page of linear memory: a program that touched little of a page is stored smaller.
const BLOCK: usize = 4096;

/// A program that stands still.
pub struct Stopped {
    pub file: Vec<u8>,
    pub program: Program,
    pub machine: Machine,
    pub wasi: Wasi,
}
