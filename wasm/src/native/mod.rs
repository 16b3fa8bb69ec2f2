//! The processor's own code for functions that are hot.
//!
//! Each instruction of three-address code becomes a few of the processor's; the slots that a function uses most are in registers
//! while its code runs. What has no such form, and what ends or calls something, is left to the interpreter: the code returns the place
//! (`pc`) of the instruction that is next, with every slot where it belongs. So a program stands only where it stands in the interpreter,
//! ticks are counted alike, and a checkpoint knows nothing of this.

use crate::code::{Function, Instruction, Op, Program};
use crate::run::Frame;

mod lower;
mod pages;
mod places;
mod shapes;

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod target;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod target;

use pages::Pages;

/// What the code works on; it finds the fields by their offsets.
#[repr(C)]
pub struct Context {
    pub slots: *mut u64,
    pub memory: *mut u8,
    pub memory_size: u64,
    pub globals: *mut u64,
    pub ticks: u64,
    /// All slots, the first and behind the last.
    pub first_slot: *mut u64,
    pub end_of_slots: *mut u64,
    /// Frames: the first, behind the last, and behind the last that there is room for.
    pub first_frame: *mut Frame,
    pub frames: *mut Frame,
    pub end_of_frames: *mut Frame,
    pub codes: *const Entries,
}

const SLOTS: u32 = 0;
const MEMORY: u32 = 8;
const MEMORY_SIZE: u32 = 16;
const GLOBALS: u32 = 24;
const TICKS: u32 = 32;
const FIRST_SLOT: u32 = 40;
const END_OF_SLOTS: u32 = 48;
const FIRST_FRAME: u32 = 56;
const FRAMES: u32 = 64;
const END_OF_FRAMES: u32 = 72;
const CODES: u32 = 80;

/// Of a frame (run::Frame).
const FUNCTION: i32 = 0;
const PC: i32 = 4;
const BASE: i32 = 8;
const FRAME_SIZE: i32 = 12;

/// Where a function's code can be entered, for other code: all null if it has none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entries {
    start: *const u8,
    by_pc: *const u32,
    /// The function's beginning.
    enter: *const u8,
    _unused: u64,
}

const START: i32 = 0;
const BY_PC: i32 = 8;
const ENTER: i32 = 16;
const ENTRIES_SHIFT: u8 = 5;

impl Entries {
    pub const NONE: Entries = Entries { start: std::ptr::null(), by_pc: std::ptr::null(), enter: std::ptr::null(), _unused: 0 };
}

/// A call of another function: where it is, the slot of the first argument, and what the callee is.
struct CallOf {
    pc: u32,
    d: u16,
    function: u32,
    frame: u32,
    params: u32,
    locals: u32,
}

/// A function's code.
pub struct Native {
    pages: Pages,
    /// By `pc`: where the code can be entered, or 0.
    entries: Vec<u32>,
}

impl Native {
    /// What other code has to know.
    pub fn entries(&self) -> Entries {
        let start = self.pages.start();
        let enter = if self.has_entry(0) { start.wrapping_add(self.entries[0] as usize) } else { std::ptr::null() };
        Entries { start, by_pc: self.entries.as_ptr(), enter, _unused: 0 }
    }

    /// Compile a function, or nothing if it is too long, or the system has no memory that can be executed.
    pub fn compile(program: &Program, function: u32) -> Option<Native> {
        let (code, entries) = lower::lower(program, &program.functions[function as usize])?;
        Some(Native { pages: Pages::new(&code)?, entries })
    }

    pub fn has_entry(&self, pc: usize) -> bool {
        self.entries[pc] != 0
    }

    /// Run from an entry to an instruction that is not for this code; its place, in the function of the last frame, which may be
    /// another one by then.
    ///
    /// # Safety
    ///
    /// There is an entry at `pc`; the context's slots and frames are the program's, its own slots are those of the last frame, which
    /// is of this function, its memory has as many bytes as it says, its globals are all that the module has, and its codes are those
    /// of all functions.
    pub unsafe fn run(&self, context: &mut Context, pc: usize) -> usize {
        let start = self.pages.start();
        let call: extern "C" fn(*mut Context, *const u8) -> u64 = std::mem::transmute(start);
        call(context, start.add(self.entries[pc] as usize)) as usize
    }
}

/// A comparison of integers, or of floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Eq,
    Ne,
    LtS,
    LtU,
    GtS,
    GtU,
    LeS,
    LeU,
    GeS,
    GeU,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    Add,
    Sub,
    Mul,
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Division {
    Signed,
    Unsigned,
    SignedRemainder,
    UnsignedRemainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    Left,
    RightS,
    RightU,
    RotateLeft,
    RotateRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    Add,
    Sub,
    Mul,
    Div,
}

/// What becomes an integer, and which: of which precision, how wide, and with a sign or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    pub double: bool,
    pub wide: bool,
    pub signed: bool,
}

/// What is loaded: how many bytes, and whether and to which width its sign is extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    Zero,
    Sign32,
    Sign64,
}

/// A place in linear memory: a register's value, and as many bytes on.
#[derive(Clone, Copy, Debug)]
struct At {
    register: u8,
    offset: u32,
}

/// A jump whose target is not known yet.
#[derive(Clone, Copy, Debug)]
struct Patch(usize);

/// What a processor can do. Integer registers and those of floats have numbers of their own; operands and results may be the same
/// ones. Values of 32 bits have zeros above them when an operation made them; operands may have anything there.
trait Assembler {
    /// For what has no register of its own, and of no instruction's operands but as it says.
    const SCRATCH: [u8; 3];
    const FLOAT_SCRATCH: [u8; 2];
    const INTEGERS: &'static [u8];
    const FLOATS: &'static [u8];

    fn position(&self) -> usize;
    /// Nothing if a jump is too long for the processor.
    fn finish(self) -> Option<Vec<u8>>;
    /// The function's beginning: take the context, and jump to the entry.
    fn begin(&mut self);
    /// Return what is in the first scratch register.
    fn end(&mut self);
    fn patch(&mut self, jump: Patch, to: usize);

    fn load_slot(&mut self, to: u8, slot: u16);
    fn store_slot(&mut self, from: u8, slot: u16);
    fn load_float_slot(&mut self, to: u8, slot: u16);
    fn store_float_slot(&mut self, from: u8, slot: u16);
    fn load_global(&mut self, to: u8, global: u32);
    fn store_global(&mut self, from: u8, global: u32);

    fn constant(&mut self, to: u8, value: u64);
    /// All 64 bits.
    fn copy(&mut self, to: u8, from: u8);
    fn copy_float(&mut self, to: u8, from: u8);
    fn move_to_float(&mut self, to: u8, from: u8);
    fn move_from_float(&mut self, to: u8, from: u8);
    fn zero_extend(&mut self, to: u8, from: u8);
    fn sign_extend(&mut self, to: u8, from: u8, bits: u8, wide: bool);

    /// Neither operand is the third scratch register.
    fn alu(&mut self, alu: Alu, wide: bool, to: u8, a: u8, b: u8);
    fn alu_constant(&mut self, alu: Alu, wide: bool, to: u8, a: u8, constant: u64);
    /// Jump where this is not for the processor: for a divisor of 0, and for one of -1 where there are signs.
    fn divide(&mut self, division: Division, wide: bool, to: u8, a: u8, b: u8) -> Vec<Patch>;
    /// Count zeros, from the highest bit or from the lowest one.
    fn count_zeros(&mut self, from_highest: bool, wide: bool, to: u8, a: u8);
    /// As with `alu`.
    fn shift(&mut self, shift: Shift, wide: bool, to: u8, a: u8, b: u8);
    fn shift_constant(&mut self, shift: Shift, wide: bool, to: u8, a: u8, count: u8);
    /// Set `to` to 1 or 0.
    fn compare(&mut self, condition: Condition, wide: bool, to: u8, a: u8, b: u8);
    fn compare_constant(&mut self, condition: Condition, wide: bool, to: u8, a: u8, constant: u64);
    /// Set `to` to one of two values, `a` if the 32 bits of `by` are not 0.
    fn select(&mut self, to: u8, by: u8, a: u8, b: u8);
    fn jump(&mut self) -> Patch;
    fn jump_if(&mut self, condition: Condition, wide: bool, a: u8, b: u8) -> Patch;
    fn jump_if_constant(&mut self, condition: Condition, wide: bool, a: u8, constant: u64) -> Patch;
    /// Call a function, or jump out before anything was changed. All slots are where they belong.
    fn call(&mut self, call: &CallOf) -> Vec<Patch>;
    /// Jump by the table that follows this, to the place whose number is in the first scratch register, or to the `last`. Where the
    /// table begins; its places are set later.
    fn jump_table(&mut self, last: u32) -> usize;
    fn set_place(&mut self, table: usize, place: usize, to: usize);
    /// Jump if there is no caller.
    fn jump_if_outermost(&mut self) -> Patch;
    /// Go back to the caller's code; jump with the place where it goes on in the first scratch register if it has none.
    fn go_back(&mut self) -> Vec<Patch>;
    /// Count a tick, or jump if there is none left.
    fn tick(&mut self) -> Patch;

    /// Find `size` bytes of linear memory, at the 32 bits of `base` + `offset`; `clean` says that there are only zeros above those bits.
    /// Before, jump unless there are `end` bytes behind `base`, if that is not known. All scratch registers are used up.
    fn point(&mut self, base: u8, clean: bool, offset: u32, size: u8, end: Option<u64>) -> (At, Option<Patch>);
    fn load(&mut self, to: u8, at: At, size: u8, extend: Extend);
    fn store(&mut self, from: u8, at: At, size: u8);
    /// 4 or 8 bytes.
    fn load_float(&mut self, to: u8, at: At, size: u8);
    fn store_float(&mut self, from: u8, at: At, size: u8);

    /// Neither operand is the second scratch register of floats, unless it is `b`.
    fn float(&mut self, float: Float, double: bool, to: u8, a: u8, b: u8);
    fn square_root(&mut self, double: bool, to: u8, a: u8);
    /// Jump if a float is NaN.
    fn jump_if_nan(&mut self, double: bool, a: u8) -> Patch;
    /// Set `to` to 1 or 0.
    fn compare_floats(&mut self, condition: Condition, double: bool, to: u8, a: u8, b: u8);
    /// From a signed integer.
    fn convert(&mut self, double: bool, wide: bool, to: u8, from: u8);
    /// From the other precision.
    fn change_precision(&mut self, double: bool, to: u8, a: u8);
    /// Make the first scratch register the integer of a float, or jump: if it has none, and in some more cases.
    fn truncate(&mut self, truncation: Truncation, a: u8) -> Vec<Patch>;
}
