//! The loop that executes three-address code.
//!
//! The compiler emits only slots below a function's `frame`, jumps within its code, which ends with a return, and indices that the
//! validator checked; a call makes sure that the callee's whole frame fits; a checkpoint's loader takes only frames that such calls
//! leave. On that rest all accesses through pointers here. Linear memory and the table of functions are the program's own to index,
//! so each access to them is checked.

use super::{Answer, Compile, End, Frame, Host, Machine, MOST_FRAMES};
use crate::code::{Instruction, Op, Program};
use crate::float::{bits32, bits64, max32, max64, min32, min64, nearest32, nearest64, to_i32, to_i64, to_u32, to_u64};
use crate::native::{Context, Entries, Native};

impl Machine {
    /// Execute until the program ends or the host wants it to stop.
    // The arms for 64 bits read as those for 32 do.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    pub fn run(&mut self, program: &Program, host: &mut impl Host) -> End {
        let mut frame = *self.frames.last().expect("the program runs");
        let mut code: *const Instruction = program.functions[frame.function as usize].code.as_ptr();
        let mut pc = frame.pc as usize;
        let mut slots: *mut u64;
        let mut memory: *mut u8;
        let mut memory_size: u64;
        let mut ticks: u32 = 0;
        // The processor's own code of functions, and of the present one.
        let mut natives: Vec<Option<Native>> = program.functions.iter().map(|_| None).collect();
        let mut codes = vec![Entries::NONE; program.functions.len()];
        let mut native: *const Native = std::ptr::null();
        // Take the pointers again, after others have had the slots and the memory.
        macro_rules! point {
            () => {{
                // SAFETY: a frame's base is within the slots.
                slots = unsafe { self.slots.as_mut_ptr().add(frame.base as usize) };
                memory = self.memory.bytes_mut().as_mut_ptr();
                memory_size = self.memory.bytes().len() as u64;
            }};
        }
        point!();

        // SAFETY (both): a slot that is named is within the frame, and the frame is within the slots.
        macro_rules! get {
            ($slot:expr) => {
                unsafe { *slots.add(usize::from($slot)) }
            };
        }
        macro_rules! set {
            ($slot:expr, $value:expr) => {{
                let value: u64 = $value;
                unsafe { *slots.add(usize::from($slot)) = value }
            }};
        }
        macro_rules! trap {
            ($($text:tt)*) => {{
                self.stand(frame, pc - 1);
                self.ticks_left = ticks;
                return End::Trap(format!("{} in function {}", format_args!($($text)*), frame.function))
            }};
        }
        // The operands and the result, as numbers of some type.
        macro_rules! f32 {
            ($slot:expr) => {
                f32::from_bits(get!($slot) as u32)
            };
        }
        macro_rules! f64 {
            ($slot:expr) => {
                f64::from_bits(get!($slot))
            };
        }
        macro_rules! binary {
            ($i:ident, $kind:ty, $value:expr) => {{
                let value: fn($kind, $kind) -> $kind = $value;
                set!($i.d, value(get!($i.a) as $kind, get!($i.b) as $kind).into())
            }};
        }
        macro_rules! with_imm {
            ($i:ident, $kind:ty, $value:expr) => {{
                let value: fn($kind, $kind) -> $kind = $value;
                set!($i.d, value(get!($i.a) as $kind, $i.imm as $kind).into())
            }};
        }
        macro_rules! compare {
            ($i:ident, $kind:ty, $op:tt) => {
                set!($i.d, (get!($i.a) as $kind $op get!($i.b) as $kind).into())
            };
        }
        macro_rules! compare_imm {
            ($i:ident, $kind:ty, $op:tt) => {
                set!($i.d, (get!($i.a) as $kind $op $i.imm as $kind).into())
            };
        }
        // A jump back leads to a loop's instruction, which has nothing to do as long as there are ticks.
        macro_rules! jump {
            ($i:ident) => {{
                let target = $i.imm as u32 as usize;
                if target < pc && ticks > 0 {
                    ticks -= 1;
                    pc = target + 1;
                } else {
                    pc = target;
                }
            }};
        }
        macro_rules! jump_if {
            ($i:ident, $kind:ty, $op:tt) => {
                if get!($i.a) as $kind $op get!($i.b) as $kind { jump!($i) }
            };
        }
        macro_rules! jump_if_imm {
            ($i:ident, $kind:ty, $op:tt) => {
                if get!($i.a) as $kind $op (($i.imm as i64) >> 32) as $kind { jump!($i) }
            };
        }
        macro_rules! float32 {
            ($i:ident, $value:expr) => {{
                let value: fn(f32, f32) -> f32 = $value;
                set!($i.d, bits32(value(f32!($i.a), f32!($i.b))))
            }};
        }
        macro_rules! float64 {
            ($i:ident, $value:expr) => {{
                let value: fn(f64, f64) -> f64 = $value;
                set!($i.d, bits64(value(f64!($i.a), f64!($i.b))))
            }};
        }
        macro_rules! compare32 {
            ($i:ident, $op:tt) => {
                set!($i.d, (f32!($i.a) $op f32!($i.b)).into())
            };
        }
        macro_rules! compare64 {
            ($i:ident, $op:tt) => {
                set!($i.d, (f64!($i.a) $op f64!($i.b)).into())
            };
        }
        macro_rules! truncate {
            ($i:ident, $to:ident, $value:expr) => {
                match $to($value) {
                    Some(value) => set!($i.d, value),
                    None => trap!("invalid conversion to integer"),
                }
            };
        }
        macro_rules! divide {
            ($i:ident, $kind:ty, $unsigned:ty, $divide:ident) => {{
                let (a, b) = (get!($i.a) as $kind, get!($i.b) as $kind);
                match (b, a.$divide(b)) {
                    (0, _) => trap!("integer divide by zero"),
                    (_, None) => trap!("integer overflow"),
                    (_, Some(value)) => set!($i.d, (value as $unsigned).into()),
                }
            }};
        }
        // A pointer to as many bytes of linear memory as the type has.
        macro_rules! address {
            ($i:ident, $kind:ty) => {
                address!(get!($i.a) as u32, $i.imm, $kind)
            };
            ($base:expr, $offset:expr, $kind:ty) => {{
                let at = u64::from($base) + $offset;
                if at + std::mem::size_of::<$kind>() as u64 > memory_size {
                    let told = at; // a copy, so that `at` itself need not be in memory
                    trap!("out of bounds memory access at {told:#x}")
                }
                // SAFETY: just checked.
                unsafe { memory.add(at as usize).cast::<$kind>() }
            }};
        }
        // SAFETY (all): the address is within linear memory; its alignment is not relied on.
        // (Linear memory is little-endian, as are all processors that we build for.)
        macro_rules! load {
            ($i:ident, $kind:ty, $as:ty) => {{
                let at = address!($i, $kind);
                let value = unsafe { at.read_unaligned() };
                set!($i.d, (value as $as).into())
            }};
        }
        macro_rules! load_sum {
            ($i:ident, $kind:ty) => {{
                let at = address!((get!($i.a) as u32).wrapping_add(get!($i.b) as u32), $i.imm, $kind);
                let value = unsafe { at.read_unaligned() };
                set!($i.d, value.into())
            }};
        }
        macro_rules! loaded {
            ($i:ident, $offset:expr, $kind:ty, $float:ty) => {{
                let at = address!(get!($i.a) as u32, $offset, $kind);
                <$float>::from_bits(unsafe { at.read_unaligned() })
            }};
        }
        macro_rules! store {
            ($i:ident, $kind:ty) => {{
                let at = address!($i, $kind);
                let value = get!($i.b) as $kind;
                unsafe { at.write_unaligned(value) }
            }};
        }
        macro_rules! choose {
            () => {
                native = natives[frame.function as usize].as_ref().map_or(std::ptr::null(), |native| native)
            };
        }
        // The present function is a hot one.
        macro_rules! compile {
            () => {{
                let place = &mut natives[frame.function as usize];
                if place.is_none() {
                    *place = Native::compile(program, frame.function);
                    codes[frame.function as usize] = place.as_ref().map_or(Entries::NONE, Native::entries);
                }
            }};
        }
        // The place to stop is the instruction itself: it is executed again.
        macro_rules! tick {
            ($pc:expr) => {
                if ticks == 0 {
                    match host.ticks() {
                        Some(given) => {
                            ticks = given - 1;
                            if self.compile != Compile::Never {
                                compile!();
                                choose!();
                            }
                        }
                        None => {
                            self.stand(frame, $pc);
                            return End::Stopped;
                        }
                    }
                } else {
                    ticks -= 1;
                }
            };
        }
        macro_rules! enter {
            ($i:ident, $function:expr) => {{
                let callee = &program.functions[$function as usize];
                self.stand(frame, pc - 1);
                let base = frame.base as usize + usize::from($i.d);
                if self.frames.len() >= MOST_FRAMES || !self.reach(base + callee.frame as usize) {
                    trap!("call stack exhausted")
                }
                frame = Frame { function: $function, pc: 0, base: base as u32 };
                self.frames.push(frame);
                self.slots[base + callee.params as usize..base + callee.locals as usize].fill(0);
                // SAFETY: the callee's frame is within the slots.
                slots = unsafe { self.slots.as_mut_ptr().add(base) };
                code = callee.code.as_ptr();
                pc = 0;
                // What hot code calls is hot.
                if self.compile == Compile::Always || !native.is_null() {
                    compile!();
                }
                choose!();
                tick!(0)
            }};
        }

        if self.compile == Compile::Always {
            compile!();
            choose!();
        }
        loop {
            // SAFETY: it is null or one of `natives`, which stay where they are.
            if let Some(native) = unsafe { native.as_ref() } {
                if native.has_entry(pc) {
                    let room = self.frames.capacity().min(MOST_FRAMES);
                    let (first_slot, first_frame) = (self.slots.as_mut_ptr(), self.frames.as_mut_ptr());
                    let mut context = Context {
                        slots,
                        memory,
                        memory_size,
                        globals: self.globals.as_mut_ptr(),
                        ticks: ticks.into(),
                        first_slot,
                        end_of_slots: first_slot.wrapping_add(self.slots.len()),
                        first_frame,
                        frames: first_frame.wrapping_add(self.frames.len()),
                        end_of_frames: first_frame.wrapping_add(room),
                        codes: codes.as_ptr(),
                    };
                    // SAFETY: there is an entry, and the context has all that is the program's. Frames that the code has added are
                    // whole, and within the vector's capacity.
                    unsafe {
                        pc = native.run(&mut context, pc);
                        self.frames.set_len(context.frames.offset_from(first_frame) as usize);
                    }
                    ticks = context.ticks as u32;
                    frame = *self.frames.last().expect("code leaves the outermost frame to this loop");
                    code = program.functions[frame.function as usize].code.as_ptr();
                    // SAFETY: a frame's base is within the slots.
                    slots = unsafe { self.slots.as_mut_ptr().add(frame.base as usize) };
                    choose!();
                }
            }
            // SAFETY: code has no way past its end.
            let i = unsafe { &*code.add(pc) };
            pc += 1;
            match i.op {
                Op::Unreachable => trap!("unreachable executed"),
                Op::Copy => set!(i.d, get!(i.a)),
                Op::Const => set!(i.d, i.imm),
                Op::Jump => jump!(i),
                Op::JumpTable => {
                    let index = u64::from(get!(i.a) as u32).min(i.imm >> 32);
                    pc = program.functions[frame.function as usize].targets[i.imm as u32 as usize + index as usize] as usize;
                }
                Op::Return => {
                    for place in 0..i.b {
                        set!(place, get!(i.a + place));
                    }
                    self.frames.pop();
                    frame = match self.frames.last() {
                        Some(caller) => *caller,
                        None => {
                            self.ticks_left = ticks;
                            return End::Exit(0);
                        }
                    };
                    // SAFETY: the caller's frame is within the slots.
                    slots = unsafe { self.slots.as_mut_ptr().add(frame.base as usize) };
                    code = program.functions[frame.function as usize].code.as_ptr();
                    pc = frame.pc as usize + 1;
                    choose!();
                }
                Op::Call => enter!(i, i.imm as u32),
                Op::CallIndirect => {
                    let index = get!(i.a) as u32;
                    let function = match program.table.get(index as usize) {
                        Some(Some(function)) => *function,
                        Some(None) => trap!("uninitialized element {index}"),
                        None => trap!("undefined element {index}"),
                    };
                    if u64::from(program.functions[function as usize].kind) != i.imm {
                        trap!("indirect call type mismatch")
                    }
                    enter!(i, function)
                }
                Op::Host => {
                    let from = frame.base as usize + usize::from(i.d);
                    let answer = host.call(i.imm as usize, &self.slots[from..], &mut self.memory);
                    point!();
                    match answer {
                        Answer::Value(value) => set!(i.d, value.into()),
                        Answer::Exit(status) => {
                            self.ticks_left = ticks;
                            return End::Exit(status);
                        }
                        Answer::Interrupted => {
                            self.stand(frame, pc - 1);
                            self.ticks_left = ticks;
                            return End::Stopped;
                        }
                    }
                }
                Op::Loop => tick!(pc - 1),
                Op::Select => {
                    // The third operand is named by the constant.
                    let first = get!(i.imm as u16) as u32 != 0;
                    set!(i.d, if first { get!(i.a) } else { get!(i.b) })
                }
                Op::GlobalGet => set!(i.d, self.globals[i.imm as usize]),
                Op::GlobalSet => self.globals[i.imm as usize] = get!(i.a),
                Op::MemorySize => set!(i.d, self.memory.pages().into()),
                Op::MemoryGrow => {
                    set!(i.d, self.memory.grow(get!(i.a) as u32).unwrap_or(u32::MAX).into());
                    point!();
                }
                Op::MemoryCopy => {
                    if self.memory.copy(get!(i.a) as u32, get!(i.b) as u32, get!(i.d) as u32).is_err() {
                        trap!("out of bounds memory access by memory.copy")
                    }
                    point!();
                }
                Op::MemoryFill => {
                    match self.memory.get_mut(get!(i.a) as u32, get!(i.d) as u32) {
                        Ok(bytes) => bytes.fill(get!(i.b) as u8),
                        Err(_) => trap!("out of bounds memory access by memory.fill"),
                    }
                    point!();
                }
                Op::Load8U => load!(i, u8, u64),
                Op::Load16U => load!(i, u16, u64),
                Op::Load32U => load!(i, u32, u64),
                Op::Load64 => load!(i, u64, u64),
                Op::Load8S32 => load!(i, i8, u32),
                Op::Load16S32 => load!(i, i16, u32),
                Op::Load8S64 => load!(i, i8, u64),
                Op::Load16S64 => load!(i, i16, u64),
                Op::Load32S64 => load!(i, i32, u64),
                Op::Store8 => store!(i, u8),
                Op::Store16 => store!(i, u16),
                Op::Store32 => store!(i, u32),
                Op::Store64 => store!(i, u64),
                Op::I32Eqz => set!(i.d, (get!(i.a) as u32 == 0).into()),
                Op::I32Eq => compare!(i, u32, ==),
                Op::I32Ne => compare!(i, u32, !=),
                Op::I32LtS => compare!(i, i32, <),
                Op::I32LtU => compare!(i, u32, <),
                Op::I32GtS => compare!(i, i32, >),
                Op::I32GtU => compare!(i, u32, >),
                Op::I32LeS => compare!(i, i32, <=),
                Op::I32LeU => compare!(i, u32, <=),
                Op::I32GeS => compare!(i, i32, >=),
                Op::I32GeU => compare!(i, u32, >=),
                Op::I64Eqz => set!(i.d, (get!(i.a) as u64 == 0).into()),
                Op::I64Eq => compare!(i, u64, ==),
                Op::I64Ne => compare!(i, u64, !=),
                Op::I64LtS => compare!(i, i64, <),
                Op::I64LtU => compare!(i, u64, <),
                Op::I64GtS => compare!(i, i64, >),
                Op::I64GtU => compare!(i, u64, >),
                Op::I64LeS => compare!(i, i64, <=),
                Op::I64LeU => compare!(i, u64, <=),
                Op::I64GeS => compare!(i, i64, >=),
                Op::I64GeU => compare!(i, u64, >=),
                Op::F32Eq => compare32!(i, ==),
                Op::F32Ne => compare32!(i, !=),
                Op::F32Lt => compare32!(i, <),
                Op::F32Gt => compare32!(i, >),
                Op::F32Le => compare32!(i, <=),
                Op::F32Ge => compare32!(i, >=),
                Op::F64Eq => compare64!(i, ==),
                Op::F64Ne => compare64!(i, !=),
                Op::F64Lt => compare64!(i, <),
                Op::F64Gt => compare64!(i, >),
                Op::F64Le => compare64!(i, <=),
                Op::F64Ge => compare64!(i, >=),
                Op::I32Clz => set!(i.d, (get!(i.a) as u32).leading_zeros().into()),
                Op::I32Ctz => set!(i.d, (get!(i.a) as u32).trailing_zeros().into()),
                Op::I32Popcnt => set!(i.d, (get!(i.a) as u32).count_ones().into()),
                Op::I32Add => binary!(i, u32, u32::wrapping_add),
                Op::I32Sub => binary!(i, u32, u32::wrapping_sub),
                Op::I32Mul => binary!(i, u32, u32::wrapping_mul),
                Op::I32DivS => divide!(i, i32, u32, checked_div),
                Op::I32DivU => divide!(i, u32, u32, checked_div),
                // The remainder of the least integer by -1 is 0, not an overflow.
                Op::I32RemS => match get!(i.b) as i32 {
                    0 => trap!("integer divide by zero"),
                    b => set!(i.d, ((get!(i.a) as i32).wrapping_rem(b) as u32).into()),
                },
                Op::I32RemU => divide!(i, u32, u32, checked_rem),
                Op::I32And => binary!(i, u32, |a, b| a & b),
                Op::I32Or => binary!(i, u32, |a, b| a | b),
                Op::I32Xor => binary!(i, u32, |a, b| a ^ b),
                Op::I32Shl => binary!(i, u32, |a, b| a.wrapping_shl(b)),
                Op::I32ShrS => binary!(i, u32, |a, b| (a as i32).wrapping_shr(b) as u32),
                Op::I32ShrU => binary!(i, u32, |a, b| a.wrapping_shr(b)),
                Op::I32Rotl => binary!(i, u32, |a, b| a.rotate_left(b & 31)),
                Op::I32Rotr => binary!(i, u32, |a, b| a.rotate_right(b & 31)),
                Op::I64Clz => set!(i.d, (get!(i.a) as u64).leading_zeros().into()),
                Op::I64Ctz => set!(i.d, (get!(i.a) as u64).trailing_zeros().into()),
                Op::I64Popcnt => set!(i.d, (get!(i.a) as u64).count_ones().into()),
                Op::I64Add => binary!(i, u64, u64::wrapping_add),
                Op::I64Sub => binary!(i, u64, u64::wrapping_sub),
                Op::I64Mul => binary!(i, u64, u64::wrapping_mul),
                Op::I64DivS => divide!(i, i64, u64, checked_div),
                Op::I64DivU => divide!(i, u64, u64, checked_div),
                // The remainder of the least integer by -1 is 0, not an overflow.
                Op::I64RemS => match get!(i.b) as i64 {
                    0 => trap!("integer divide by zero"),
                    b => set!(i.d, ((get!(i.a) as i64).wrapping_rem(b) as u64).into()),
                },
                Op::I64RemU => divide!(i, u64, u64, checked_rem),
                Op::I64And => binary!(i, u64, |a, b| a & b),
                Op::I64Or => binary!(i, u64, |a, b| a | b),
                Op::I64Xor => binary!(i, u64, |a, b| a ^ b),
                Op::I64Shl => binary!(i, u64, |a, b| a.wrapping_shl(b as u32)),
                Op::I64ShrS => binary!(i, u64, |a, b| (a as i64).wrapping_shr(b as u32) as u64),
                Op::I64ShrU => binary!(i, u64, |a, b| a.wrapping_shr(b as u32)),
                Op::I64Rotl => binary!(i, u64, |a, b| a.rotate_left(b as u32 & 63)),
                Op::I64Rotr => binary!(i, u64, |a, b| a.rotate_right(b as u32 & 63)),
                Op::F32Abs => set!(i.d, get!(i.a) & 0x7fff_ffff),
                Op::F32Neg => set!(i.d, get!(i.a) ^ 0x8000_0000),
                Op::F32Ceil => set!(i.d, bits32(f32!(i.a).ceil())),
                Op::F32Floor => set!(i.d, bits32(f32!(i.a).floor())),
                Op::F32Trunc => set!(i.d, bits32(f32!(i.a).trunc())),
                Op::F32Nearest => set!(i.d, bits32(nearest32(f32!(i.a)))),
                Op::F32Sqrt => set!(i.d, bits32(f32!(i.a).sqrt())),
                Op::F32Add => float32!(i, |a, b| a + b),
                Op::F32Sub => float32!(i, |a, b| a - b),
                Op::F32Mul => float32!(i, |a, b| a * b),
                Op::F32Div => float32!(i, |a, b| a / b),
                Op::F32Min => float32!(i, min32),
                Op::F32Max => float32!(i, max32),
                Op::F32Copysign => set!(i.d, get!(i.a) & 0x7fff_ffff | get!(i.b) & 0x8000_0000),
                Op::F64Abs => set!(i.d, get!(i.a) & !(1 << 63)),
                Op::F64Neg => set!(i.d, get!(i.a) ^ (1 << 63)),
                Op::F64Ceil => set!(i.d, bits64(f64!(i.a).ceil())),
                Op::F64Floor => set!(i.d, bits64(f64!(i.a).floor())),
                Op::F64Trunc => set!(i.d, bits64(f64!(i.a).trunc())),
                Op::F64Nearest => set!(i.d, bits64(nearest64(f64!(i.a)))),
                Op::F64Sqrt => set!(i.d, bits64(f64!(i.a).sqrt())),
                Op::F64Add => float64!(i, |a, b| a + b),
                Op::F64Sub => float64!(i, |a, b| a - b),
                Op::F64Mul => float64!(i, |a, b| a * b),
                Op::F64Div => float64!(i, |a, b| a / b),
                Op::F64Min => float64!(i, min64),
                Op::F64Max => float64!(i, max64),
                Op::F64Copysign => set!(i.d, get!(i.a) & !(1 << 63) | get!(i.b) & (1 << 63)),
                Op::I32WrapI64 => set!(i.d, (get!(i.a) as u32).into()),
                Op::I32TruncF32S => truncate!(i, to_i32, f32!(i.a).into()),
                Op::I32TruncF32U => truncate!(i, to_u32, f32!(i.a).into()),
                Op::I32TruncF64S => truncate!(i, to_i32, f64!(i.a)),
                Op::I32TruncF64U => truncate!(i, to_u32, f64!(i.a)),
                Op::I64ExtendI32S => set!(i.d, get!(i.a) as i32 as u64),
                Op::I64ExtendI32U => set!(i.d, (get!(i.a) as u32).into()),
                Op::I64TruncF32S => truncate!(i, to_i64, f32!(i.a).into()),
                Op::I64TruncF32U => truncate!(i, to_u64, f32!(i.a).into()),
                Op::I64TruncF64S => truncate!(i, to_i64, f64!(i.a)),
                Op::I64TruncF64U => truncate!(i, to_u64, f64!(i.a)),
                Op::F32ConvertI32S => set!(i.d, (get!(i.a) as i32 as f32).to_bits().into()),
                Op::F32ConvertI32U => set!(i.d, (get!(i.a) as u32 as f32).to_bits().into()),
                Op::F32ConvertI64S => set!(i.d, (get!(i.a) as i64 as f32).to_bits().into()),
                Op::F32ConvertI64U => set!(i.d, (get!(i.a) as u64 as f32).to_bits().into()),
                Op::F32DemoteF64 => set!(i.d, bits32(f64!(i.a) as f32)),
                Op::F64ConvertI32S => set!(i.d, (get!(i.a) as i32 as f64).to_bits().into()),
                Op::F64ConvertI32U => set!(i.d, (get!(i.a) as u32 as f64).to_bits().into()),
                Op::F64ConvertI64S => set!(i.d, (get!(i.a) as i64 as f64).to_bits().into()),
                Op::F64ConvertI64U => set!(i.d, (get!(i.a) as u64 as f64).to_bits().into()),
                Op::F64PromoteF32 => set!(i.d, bits64(f32!(i.a).into())),
                Op::I32Extend8S => set!(i.d, (get!(i.a) as i8 as u32).into()),
                Op::I32Extend16S => set!(i.d, (get!(i.a) as i16 as u32).into()),
                Op::I64Extend8S => set!(i.d, (get!(i.a) as i8 as u64).into()),
                Op::I64Extend16S => set!(i.d, (get!(i.a) as i16 as u64).into()),
                Op::I64Extend32S => set!(i.d, (get!(i.a) as i32 as u64).into()),
                Op::I32TruncSatF32S => set!(i.d, (f32!(i.a) as i32 as u32).into()),
                Op::I32TruncSatF32U => set!(i.d, (f32!(i.a) as u32).into()),
                Op::I32TruncSatF64S => set!(i.d, (f64!(i.a) as i32 as u32).into()),
                Op::I32TruncSatF64U => set!(i.d, (f64!(i.a) as u32).into()),
                Op::I64TruncSatF32S => set!(i.d, (f32!(i.a) as i64 as u64).into()),
                Op::I64TruncSatF32U => set!(i.d, (f32!(i.a) as u64).into()),
                Op::I64TruncSatF64S => set!(i.d, (f64!(i.a) as i64 as u64).into()),
                Op::I64TruncSatF64U => set!(i.d, (f64!(i.a) as u64).into()),
                Op::I32EqImm => compare_imm!(i, u32, ==),
                Op::I32NeImm => compare_imm!(i, u32, !=),
                Op::I32LtSImm => compare_imm!(i, i32, <),
                Op::I32LtUImm => compare_imm!(i, u32, <),
                Op::I32GtSImm => compare_imm!(i, i32, >),
                Op::I32GtUImm => compare_imm!(i, u32, >),
                Op::I32LeSImm => compare_imm!(i, i32, <=),
                Op::I32LeUImm => compare_imm!(i, u32, <=),
                Op::I32GeSImm => compare_imm!(i, i32, >=),
                Op::I32GeUImm => compare_imm!(i, u32, >=),
                Op::I64EqImm => compare_imm!(i, u64, ==),
                Op::I64NeImm => compare_imm!(i, u64, !=),
                Op::I64LtSImm => compare_imm!(i, i64, <),
                Op::I64LtUImm => compare_imm!(i, u64, <),
                Op::I64GtSImm => compare_imm!(i, i64, >),
                Op::I64GtUImm => compare_imm!(i, u64, >),
                Op::I64LeSImm => compare_imm!(i, i64, <=),
                Op::I64LeUImm => compare_imm!(i, u64, <=),
                Op::I64GeSImm => compare_imm!(i, i64, >=),
                Op::I64GeUImm => compare_imm!(i, u64, >=),
                Op::I32AddImm => with_imm!(i, u32, u32::wrapping_add),
                Op::I32MulImm => with_imm!(i, u32, u32::wrapping_mul),
                Op::I32AndImm => with_imm!(i, u32, |a, b| a & b),
                Op::I32OrImm => with_imm!(i, u32, |a, b| a | b),
                Op::I32XorImm => with_imm!(i, u32, |a, b| a ^ b),
                Op::I32ShlImm => with_imm!(i, u32, |a, b| a.wrapping_shl(b)),
                Op::I32ShrSImm => with_imm!(i, u32, |a, b| (a as i32).wrapping_shr(b) as u32),
                Op::I32ShrUImm => with_imm!(i, u32, |a, b| a.wrapping_shr(b)),
                Op::I32RotlImm => with_imm!(i, u32, |a, b| a.rotate_left(b & 31)),
                Op::I64AddImm => with_imm!(i, u64, u64::wrapping_add),
                Op::I64MulImm => with_imm!(i, u64, u64::wrapping_mul),
                Op::I64AndImm => with_imm!(i, u64, |a, b| a & b),
                Op::I64OrImm => with_imm!(i, u64, |a, b| a | b),
                Op::I64XorImm => with_imm!(i, u64, |a, b| a ^ b),
                Op::I64ShlImm => with_imm!(i, u64, |a, b| a.wrapping_shl(b as u32)),
                Op::I64ShrSImm => with_imm!(i, u64, |a, b| (a as i64).wrapping_shr(b as u32) as u64),
                Op::I64ShrUImm => with_imm!(i, u64, |a, b| a.wrapping_shr(b as u32)),
                Op::I64RotlImm => with_imm!(i, u64, |a, b| a.rotate_left(b as u32 & 63)),
                Op::JumpI32Eq => jump_if!(i, u32, ==),
                Op::JumpI32Ne => jump_if!(i, u32, !=),
                Op::JumpI32LtS => jump_if!(i, i32, <),
                Op::JumpI32LtU => jump_if!(i, u32, <),
                Op::JumpI32GtS => jump_if!(i, i32, >),
                Op::JumpI32GtU => jump_if!(i, u32, >),
                Op::JumpI32LeS => jump_if!(i, i32, <=),
                Op::JumpI32LeU => jump_if!(i, u32, <=),
                Op::JumpI32GeS => jump_if!(i, i32, >=),
                Op::JumpI32GeU => jump_if!(i, u32, >=),
                Op::JumpI64Eq => jump_if!(i, u64, ==),
                Op::JumpI64Ne => jump_if!(i, u64, !=),
                Op::JumpI64LtS => jump_if!(i, i64, <),
                Op::JumpI64LtU => jump_if!(i, u64, <),
                Op::JumpI64GtS => jump_if!(i, i64, >),
                Op::JumpI64GtU => jump_if!(i, u64, >),
                Op::JumpI64LeS => jump_if!(i, i64, <=),
                Op::JumpI64LeU => jump_if!(i, u64, <=),
                Op::JumpI64GeS => jump_if!(i, i64, >=),
                Op::JumpI64GeU => jump_if!(i, u64, >=),
                Op::JumpI32EqImm => jump_if_imm!(i, u32, ==),
                Op::JumpI32NeImm => jump_if_imm!(i, u32, !=),
                Op::JumpI32LtSImm => jump_if_imm!(i, i32, <),
                Op::JumpI32LtUImm => jump_if_imm!(i, u32, <),
                Op::JumpI32GtSImm => jump_if_imm!(i, i32, >),
                Op::JumpI32GtUImm => jump_if_imm!(i, u32, >),
                Op::JumpI32LeSImm => jump_if_imm!(i, i32, <=),
                Op::JumpI32LeUImm => jump_if_imm!(i, u32, <=),
                Op::JumpI32GeSImm => jump_if_imm!(i, i32, >=),
                Op::JumpI32GeUImm => jump_if_imm!(i, u32, >=),
                Op::JumpI64EqImm => jump_if_imm!(i, u64, ==),
                Op::JumpI64NeImm => jump_if_imm!(i, u64, !=),
                Op::JumpI64LtSImm => jump_if_imm!(i, i64, <),
                Op::JumpI64LtUImm => jump_if_imm!(i, u64, <),
                Op::JumpI64GtSImm => jump_if_imm!(i, i64, >),
                Op::JumpI64GtUImm => jump_if_imm!(i, u64, >),
                Op::JumpI64LeSImm => jump_if_imm!(i, i64, <=),
                Op::JumpI64LeUImm => jump_if_imm!(i, u64, <=),
                Op::JumpI64GeSImm => jump_if_imm!(i, i64, >=),
                Op::JumpI64GeUImm => jump_if_imm!(i, u64, >=),
                Op::JumpI32AddNe => {
                    let sum = (get!(i.a) as u32).wrapping_add((i.imm >> 32) as u32);
                    set!(i.d, sum.into());
                    if sum != get!(i.b) as u32 {
                        jump!(i)
                    }
                }
                Op::JumpI32AddNeImm => {
                    let sum = (get!(i.a) as u32).wrapping_add((i.imm >> 32) as u32);
                    set!(i.d, sum.into());
                    if sum != u32::from(i.b) {
                        jump!(i)
                    }
                }
                Op::I32AddShl => set!(i.d, (get!(i.a) as u32).wrapping_add((get!(i.b) as u32).wrapping_shl(i.imm as u32)).into()),
                Op::Load8USum => load_sum!(i, u8),
                Op::Load32USum => load_sum!(i, u32),
                Op::Load64Sum => load_sum!(i, u64),
                Op::F64AddLoad => set!(i.d, bits64(f64!(i.b) + loaded!(i, i.imm, u64, f64))),
                Op::F64SubLoad => set!(i.d, bits64(f64!(i.b) - loaded!(i, i.imm, u64, f64))),
                Op::F64MulLoad => set!(i.d, bits64(f64!(i.b) * loaded!(i, i.imm, u64, f64))),
                Op::F32MulLoad => set!(i.d, bits32(f32!(i.b) * loaded!(i, i.imm, u32, f32))),
                Op::F64MulAdd => set!(i.d, bits64(f64!(i.imm as u16) + f64!(i.a) * f64!(i.b))),
                Op::F64MulSub => set!(i.d, bits64(f64!(i.imm as u16) - f64!(i.a) * f64!(i.b))),
                Op::F64MulAddLoad => {
                    let factor = loaded!(i, u64::from(i.imm as u32), u64, f64);
                    set!(i.d, bits64(f64!((i.imm >> 32) as u16) + f64!(i.b) * factor))
                }
                Op::F32MulAddLoad => {
                    let factor = loaded!(i, u64::from(i.imm as u32), u32, f32);
                    set!(i.d, bits32(f32!((i.imm >> 32) as u16) + f32!(i.b) * factor))
                }
            }
        }
    }

    /// Note where the innermost function stands.
    fn stand(&mut self, frame: Frame, pc: usize) {
        let top = self.frames.last_mut().expect("the program runs");
        *top = Frame { pc: pc as u32, ..frame };
    }
}
