//! A running program: all that it is, as data.

use crate::code::Program;
use crate::memory::{zeroed, Memory};
use crate::module::Module;

mod execute;

/// Slots of all frames together at the start, and at most (64 MiB).
const FIRST_SLOTS: usize = 32 << 10;
pub const MOST_SLOTS: usize = 8 << 20;
pub const MOST_FRAMES: usize = 1_000_000;

/// A function that is under way. `pc` is where it goes on, or the call that it is in; `base` is its first slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    pub function: u32,
    pub pc: u32,
    pub base: u32,
}

pub struct Machine {
    pub memory: Memory,
    pub globals: Vec<u64>,
    pub slots: Vec<u64>,
    /// The outermost first. Never empty while the program runs.
    pub frames: Vec<Frame>,
    /// Ticks that the host gave and that were not used when the program ended.
    pub ticks_left: u32,
    pub compile: Compile,
}

/// Which functions run as the processor's own code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compile {
    Never,
    /// Those in which the program is found now and then.
    Hot,
    Always,
}

/// Why a program stands still.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It ended, with this status.
    Exit(u32),
    /// It did what no program may.
    Trap(String),
    /// It can go on from here.
    Stopped,
}

/// What a call of the host gives.
pub enum Answer {
    Value(u32),
    Exit(u32),
    /// It was interrupted before it did anything; it is to be called again.
    Interrupted,
}

/// What a program runs on.
pub trait Host {
    /// Call an imported function, by its index among the imports. Values of 32 bits ignore the upper half of their arguments.
    fn call(&mut self, import: usize, args: &[u64], memory: &mut Memory) -> Answer;

    /// How many ticks, one at least, may pass until this is asked again, or `None` if the program is to stop now.
    /// A tick is a round of a loop or a call.
    fn ticks(&mut self) -> Option<u32>;
}

impl Machine {
    /// A program at its beginning, or nothing if the system has no memory for it.
    pub fn new(module: &Module, program: &Program, file: &[u8], start: u32) -> Option<Machine> {
        let (pages, most_pages) = module.memory.unwrap_or((0, 0));
        let mut memory = Memory::new(pages, most_pages)?;
        for segment in &module.data {
            memory.put(segment.at, &file[segment.bytes.clone()]).expect("the module's reader checked it");
        }
        let globals = module.globals.iter().map(|global| global.value).collect();
        let frames = vec![Frame { function: start, pc: 0, base: 0 }];
        Some(Machine {
            compile: Compile::Hot,
            memory,
            globals,
            slots: slots(program.functions[start as usize].frame as usize)?,
            frames,
            ticks_left: 0,
        })
    }

    /// The slots that the frames take.
    pub fn used_slots(&self, program: &Program) -> usize {
        let top = self.frames.last().expect("the program runs");
        let function = &program.functions[top.function as usize];
        let operands = function.site_at(top.pc, false).map_or(0, |site| site.operands);
        (top.base + function.locals + operands) as usize
    }
    /// Have room for so many slots; false if there is none.
    fn reach(&mut self, wanted: usize) -> bool {
        if wanted <= self.slots.len() {
            return true;
        }
        let size = wanted.max(2 * self.slots.len()).min(MOST_SLOTS);
        if wanted > MOST_SLOTS || self.slots.try_reserve_exact(size - self.slots.len()).is_err() {
            return false;
        }
        self.slots.resize(size, 0);
        true
    }
}

/// Zeroed slots, `least` of them or more.
pub fn slots(least: usize) -> Option<Vec<u64>> {
    zeroed(least.max(FIRST_SLOTS))
}
