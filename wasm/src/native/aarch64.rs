//! 64-bit Arm (Arm Architecture Reference Manual, C6 and C7).

use super::{
    Alu, Assembler, At, CallOf, Condition, Division, Extend, Float, Patch, Shift, Truncation, BASE, BY_PC, CODES, END_OF_FRAMES,
    END_OF_SLOTS, ENTER, ENTRIES_SHIFT, FIRST_FRAME, FIRST_SLOT, FRAMES, FRAME_SIZE, FUNCTION, GLOBALS, MEMORY, MEMORY_SIZE, PC, SLOTS,
    START, TICKS,
};

/// The frame's slots, linear memory, its size, the ticks that are left, the context. None of all these registers belongs to the caller (AAPCS64).
const FRAME: u8 = 16;
const BYTES: u8 = 17;
const SIZE: u8 = 7;
const LEFT: u8 = 6;
const CONTEXT: u8 = 8;
/// For instructions that are several.
const OWN: u8 = 15;
const ZERO: u8 = 31;

/// Of a word that is jumped with: the bits that say which jump it is, and where the distance is.
const FAR: u32 = 0x1400_0000;
const FAR_MASK: u32 = 0xfc00_0000;

#[derive(Default)]
pub struct Code {
    words: Vec<u32>,
    /// A jump leads farther than it can.
    too_far: bool,
}

impl Code {
    fn word(&mut self, word: u32) {
        self.words.push(word);
    }

    /// An instruction with its registers: the result, the first and the second operand.
    fn three(&mut self, word: u32, d: u8, n: u8, m: u8) {
        self.word(word | u32::from(m) << 16 | u32::from(n) << 5 | u32::from(d));
    }

    fn two(&mut self, word: u32, d: u8, n: u8) {
        self.word(word | u32::from(n) << 5 | u32::from(d));
    }

    fn with_constant(&mut self, word: u32, d: u8, n: u8, constant: u32) {
        self.two(word | constant << 10, d, n);
    }

    /// Load or store 64 bits: `near` has the offset in the instruction, `far` in a register.
    fn at(&mut self, near: u32, far: u32, register: u8, base: u8, place: u32, scratch: u8) {
        if place < 4096 {
            self.with_constant(near, register, base, place);
        } else {
            self.constant(scratch, u64::from(place) * 8);
            self.three(far, register, base, scratch);
        }
    }

    fn compare_integers(&mut self, wide: bool, a: u8, b: u8) {
        self.three(sized(0x6b00_001f, wide), 0, a, b);
    }

    /// Load and store at a register's value and an offset, from -256 to 255.
    fn get(&mut self, wide: bool, to: u8, base: u8, offset: i32) {
        self.two((0xb840_0000 | u32::from(wide) << 30) | (offset as u32 & 0x1ff) << 12, to, base);
    }

    fn put(&mut self, wide: bool, from: u8, base: u8, offset: i32) {
        self.two((0xb800_0000 | u32::from(wide) << 30) | (offset as u32 & 0x1ff) << 12, from, base);
    }

    fn field(&mut self, to: u8, field: u32) {
        self.with_constant(0xf940_0000, to, CONTEXT, field / 8);
    }

    fn put_field(&mut self, from: u8, field: u32) {
        self.with_constant(0xf900_0000, from, CONTEXT, field / 8);
    }

    /// Add a constant to a register.
    fn add(&mut self, to: u8, base: u8, value: u32) {
        if value < 4096 {
            self.with_constant(0x9100_0000, to, base, value);
        } else {
            self.constant(OWN, value.into());
            self.three(0x8b00_0000, to, base, OWN);
        }
    }

    fn jump_if_zero(&mut self, wide: bool, register: u8) -> Patch {
        self.word(sized(0x3400_0000, wide) | u32::from(register));
        Patch(self.words.len() - 1)
    }

    /// Compare a register with a constant.
    fn compare_value(&mut self, wide: bool, a: u8, constant: u64) {
        match near(wide, constant) {
            Some((false, near)) => self.with_constant(sized(0x7100_001f, wide), 0, a, near),
            Some((true, near)) => self.with_constant(sized(0x3100_001f, wide), 0, a, near),
            None => {
                self.constant(OWN, constant);
                self.compare_integers(wide, a, OWN);
            }
        }
    }

    fn set_on(&mut self, condition: u32, to: u8) {
        self.word(0x1a9f_07e0 | (condition ^ 1) << 12 | u32::from(to));
    }

    fn jump_on(&mut self, condition: u32) -> Patch {
        self.word(0x5400_0000 | condition);
        Patch(self.words.len() - 1)
    }
}

/// A constant as instructions have it that add or compare: whether it is less than 0, and its amount.
fn near(wide: bool, constant: u64) -> Option<(bool, u32)> {
    let constant = if wide { constant as i64 } else { (constant as i32).into() };
    (constant.unsigned_abs() < 4096).then_some((constant < 0, constant.unsigned_abs() as u32))
}

fn sized(word: u32, wide: bool) -> u32 {
    word | u32::from(wide) << 31
}

fn precise(word: u32, double: bool) -> u32 {
    word | u32::from(double) << 22
}

fn code_of(condition: Condition) -> u32 {
    match condition {
        Condition::Eq => 0,
        Condition::Ne => 1,
        Condition::LtS => 11,
        Condition::LtU => 3,
        Condition::GtS => 12,
        Condition::GtU => 8,
        Condition::LeS => 13,
        Condition::LeU => 9,
        Condition::GeS => 10,
        Condition::GeU => 2,
    }
}

impl Assembler for Code {
    const SCRATCH: [u8; 3] = [0, 1, 2];
    const FLOAT_SCRATCH: [u8; 2] = [0, 1];
    const INTEGERS: &'static [u8] = &[3, 4, 5, 9, 10, 11, 12, 13, 14];
    const FLOATS: &'static [u8] = &[2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31];

    fn position(&self) -> usize {
        self.words.len() * 4
    }

    fn finish(self) -> Option<Vec<u8>> {
        (!self.too_far).then(|| self.words.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    fn begin(&mut self) {
        self.copy(CONTEXT, 0);
        self.with_constant(0xf940_0000, FRAME, CONTEXT, SLOTS / 8);
        self.with_constant(0xf940_0000, BYTES, CONTEXT, MEMORY / 8);
        self.with_constant(0xf940_0000, SIZE, CONTEXT, MEMORY_SIZE / 8);
        self.with_constant(0xf940_0000, LEFT, CONTEXT, TICKS / 8);
        self.two(0xd61f_0000, 0, 1); // br x1
    }

    fn end(&mut self) {
        self.put_field(LEFT, TICKS);
        self.word(0xd65f_03c0);
    }

    fn patch(&mut self, jump: Patch, to: usize) {
        let distance = to as i64 / 4 - jump.0 as i64;
        let word = &mut self.words[jump.0];
        if *word & FAR_MASK == FAR {
            self.too_far |= !(-(1 << 25)..1 << 25).contains(&distance);
            *word |= distance as u32 & 0x03ff_ffff;
        } else {
            self.too_far |= !(-(1 << 18)..1 << 18).contains(&distance);
            *word |= (distance as u32 & 0x7_ffff) << 5;
        }
    }

    fn load_slot(&mut self, to: u8, slot: u16) {
        self.at(0xf940_0000, 0xf860_6800, to, FRAME, slot.into(), OWN);
    }

    fn store_slot(&mut self, from: u8, slot: u16) {
        self.at(0xf900_0000, 0xf820_6800, from, FRAME, slot.into(), OWN);
    }

    fn load_float_slot(&mut self, to: u8, slot: u16) {
        self.at(0xfd40_0000, 0xfc60_6800, to, FRAME, slot.into(), OWN);
    }

    fn store_float_slot(&mut self, from: u8, slot: u16) {
        self.at(0xfd00_0000, 0xfc20_6800, from, FRAME, slot.into(), OWN);
    }

    fn load_global(&mut self, to: u8, global: u32) {
        self.with_constant(0xf940_0000, OWN, CONTEXT, GLOBALS / 8);
        self.at(0xf940_0000, 0xf860_6800, to, OWN, global, 1);
    }

    fn store_global(&mut self, from: u8, global: u32) {
        self.with_constant(0xf940_0000, OWN, CONTEXT, GLOBALS / 8);
        self.at(0xf900_0000, 0xf820_6800, from, OWN, global, 1);
    }

    fn constant(&mut self, to: u8, value: u64) {
        let inverse = (!value).count_ones() < 32 && value >> 16 == u64::MAX >> 16;
        if inverse {
            return self.two(0x9280_0000 | (!value as u32 & 0xffff) << 5, to, 0);
            // movn
        }
        let mut first = true;
        for place in 0..4 {
            let part = (value >> (16 * place)) as u32 & 0xffff;
            if part != 0 || place == 3 && first {
                let word = if first { 0xd280_0000 } else { 0xf280_0000 }; // movz, movk
                self.two(word | (place as u32) << 21 | part << 5, to, 0);
                first = false;
            }
        }
    }

    fn copy(&mut self, to: u8, from: u8) {
        if to != from {
            self.three(0xaa00_0000, to, ZERO, from);
        }
    }

    fn copy_float(&mut self, to: u8, from: u8) {
        if to != from {
            self.two(0x1e60_4000, to, from);
        }
    }

    fn move_to_float(&mut self, to: u8, from: u8) {
        self.two(0x9e67_0000, to, from);
    }

    fn move_from_float(&mut self, to: u8, from: u8) {
        self.two(0x9e66_0000, to, from);
    }

    fn zero_extend(&mut self, to: u8, from: u8) {
        self.three(0x2a00_0000, to, ZERO, from);
    }

    fn sign_extend(&mut self, to: u8, from: u8, bits: u8, wide: bool) {
        let word = if wide { 0x9340_0000 } else { 0x1300_0000 };
        self.with_constant(word, to, from, u32::from(bits) - 1);
    }

    fn alu(&mut self, alu: Alu, wide: bool, to: u8, a: u8, b: u8) {
        let word = match alu {
            Alu::Add => 0x0b00_0000,
            Alu::Sub => 0x4b00_0000,
            Alu::Mul => 0x1b00_7c00,
            Alu::And => 0x0a00_0000,
            Alu::Or => 0x2a00_0000,
            Alu::Xor => 0x4a00_0000,
        };
        self.three(sized(word, wide), to, a, b);
    }

    fn alu_constant(&mut self, alu: Alu, wide: bool, to: u8, a: u8, constant: u64) {
        match near(wide, constant) {
            Some((negative, near)) if alu == Alu::Add => {
                self.with_constant(sized(if negative { 0x5100_0000 } else { 0x1100_0000 }, wide), to, a, near);
            }
            _ => {
                self.constant(OWN, constant);
                self.alu(alu, wide, to, a, OWN);
            }
        }
    }

    fn divide(&mut self, division: Division, wide: bool, to: u8, a: u8, b: u8) -> Vec<Patch> {
        let mut out = vec![self.jump_if_zero(wide, b)];
        let signed = matches!(division, Division::Signed | Division::SignedRemainder);
        if signed {
            self.compare_value(wide, b, u64::MAX);
            out.push(self.jump_on(0));
        }
        let word = sized(if signed { 0x1ac0_0c00 } else { 0x1ac0_0800 }, wide);
        if matches!(division, Division::Signed | Division::Unsigned) {
            self.three(word, to, a, b);
        } else {
            self.three(word, OWN, a, b);
            self.three(sized(0x1b00_8000, wide) | u32::from(a) << 10, to, OWN, b);
            // msub
        }
        out
    }

    fn count_zeros(&mut self, from_highest: bool, wide: bool, to: u8, a: u8) {
        let mut from = a;
        if !from_highest {
            self.two(sized(0x5ac0_0000, wide), OWN, a); // rbit
            from = OWN;
        }
        self.two(sized(0x5ac0_1000, wide), to, from);
    }

    fn shift(&mut self, shift: Shift, wide: bool, to: u8, a: u8, b: u8) {
        let (word, b) = match shift {
            Shift::Left => (0x1ac0_2000, b),
            Shift::RightU => (0x1ac0_2400, b),
            Shift::RightS => (0x1ac0_2800, b),
            Shift::RotateRight => (0x1ac0_2c00, b),
            Shift::RotateLeft => {
                self.three(sized(0x4b00_0000, wide), OWN, ZERO, b);
                (0x1ac0_2c00, OWN)
            }
        };
        self.three(sized(word, wide), to, a, b);
    }

    fn shift_constant(&mut self, shift: Shift, wide: bool, to: u8, a: u8, count: u8) {
        let (bits, count) = (if wide { 64 } else { 32 }, u32::from(count));
        let (unsigned, signed) = if wide { (0xd340_0000, 0x9340_0000) } else { (0x5300_0000, 0x1300_0000) };
        let rotate = |by: u32| (if wide { 0x93c0_0000 } else { 0x1380_0000 }) | by << 10 | u32::from(a) << 16;
        let word = match shift {
            Shift::Left => unsigned | ((bits - count) % bits) << 16 | (bits - 1 - count) << 10,
            Shift::RightU => unsigned | count << 16 | (bits - 1) << 10,
            Shift::RightS => signed | count << 16 | (bits - 1) << 10,
            Shift::RotateRight => rotate(count),
            Shift::RotateLeft => rotate((bits - count) % bits),
        };
        self.two(word, to, a);
    }

    fn compare(&mut self, condition: Condition, wide: bool, to: u8, a: u8, b: u8) {
        self.compare_integers(wide, a, b);
        self.set_on(code_of(condition), to);
    }

    fn compare_constant(&mut self, condition: Condition, wide: bool, to: u8, a: u8, constant: u64) {
        self.compare_value(wide, a, constant);
        self.set_on(code_of(condition), to);
    }

    fn select(&mut self, to: u8, by: u8, a: u8, b: u8) {
        self.two(0x7100_001f, 0, by); // cmp by, #0
        self.three(0x9a80_1000, to, a, b); // csel, if not equal
    }

    fn jump(&mut self) -> Patch {
        self.word(FAR);
        Patch(self.words.len() - 1)
    }

    fn jump_if(&mut self, condition: Condition, wide: bool, a: u8, b: u8) -> Patch {
        self.compare_integers(wide, a, b);
        self.jump_on(code_of(condition))
    }

    fn jump_if_constant(&mut self, condition: Condition, wide: bool, a: u8, constant: u64) -> Patch {
        self.compare_value(wide, a, constant);
        self.jump_on(code_of(condition))
    }

    fn call(&mut self, call: &CallOf) -> Vec<Patch> {
        let mut out = vec![];
        let d = u32::from(call.d);
        self.field(0, FRAMES);
        self.field(1, END_OF_FRAMES);
        self.compare_integers(true, 0, 1);
        out.push(self.jump_on(2));
        self.add(1, FRAME, (d + call.frame) * 8);
        self.field(2, END_OF_SLOTS);
        self.compare_integers(true, 1, 2);
        out.push(self.jump_on(8));
        self.field(2, CODES);
        self.add(2, 2, call.function << ENTRIES_SHIFT);
        self.get(true, 2, 2, ENTER);
        out.push(self.jump_if_zero(true, 2));
        out.push(self.tick());
        self.constant(1, call.pc.into());
        self.put(false, 1, 0, PC - FRAME_SIZE);
        self.get(false, 1, 0, BASE - FRAME_SIZE);
        self.add(1, 1, d);
        self.put(false, 1, 0, BASE);
        self.constant(1, call.function.into());
        self.put(false, 1, 0, FUNCTION);
        self.put(false, ZERO, 0, PC);
        for local in call.params..call.locals {
            self.at(0xf900_0000, 0xf820_6800, ZERO, FRAME, d + local, OWN);
        }
        self.add(0, 0, FRAME_SIZE as u32);
        self.put_field(0, FRAMES);
        self.add(FRAME, FRAME, d * 8);
        self.two(0xd61f_0000, 0, 2); // br x2
        out
    }

    fn jump_table(&mut self, last: u32) -> usize {
        self.constant(1, last.into());
        self.compare_integers(false, 0, 1);
        self.three(0x1a80_9000, 0, 0, 1); // csel w0, w0, w1, if lower or same
        self.word(0x1000_0081); // adr x1, four instructions on
        self.three(0xb8a0_7800, 0, 1, 0); // ldrsw x0, [x1, x0, lsl 2]
        self.three(0x8b00_0000, 0, 0, 1);
        self.two(0xd61f_0000, 0, 0); // br x0
        let table = self.position();
        self.words.resize(self.words.len() + last as usize + 1, 0);
        table
    }

    fn set_place(&mut self, table: usize, place: usize, to: usize) {
        self.words[table / 4 + place] = (to as i32 - table as i32) as u32;
    }

    fn jump_if_outermost(&mut self) -> Patch {
        self.field(0, FRAMES);
        self.with_constant(0xd100_0000, 0, 0, FRAME_SIZE as u32);
        self.field(1, FIRST_FRAME);
        self.compare_integers(true, 0, 1);
        self.jump_on(0)
    }

    fn go_back(&mut self) -> Vec<Patch> {
        self.field(1, FRAMES);
        self.with_constant(0xd100_0000, 1, 1, FRAME_SIZE as u32);
        self.put_field(1, FRAMES);
        self.get(false, 2, 1, FUNCTION - FRAME_SIZE);
        self.get(false, 0, 1, PC - FRAME_SIZE);
        self.add(0, 0, 1);
        self.get(false, OWN, 1, BASE - FRAME_SIZE);
        self.field(FRAME, FIRST_SLOT);
        self.three(0x8b00_0c00, FRAME, FRAME, OWN); // add, lsl 3
        self.field(1, CODES);
        self.three(0x8b00_0000 | u32::from(ENTRIES_SHIFT) << 10, 2, 1, 2);
        self.get(true, 1, 2, BY_PC);
        let none = self.jump_if_zero(true, 1);
        self.three(0xb860_7800, 1, 1, 0); // ldr w1, [x1, x0, lsl 2]
        let nowhere = self.jump_if_zero(true, 1);
        self.get(true, 2, 2, START);
        self.three(0x8b00_0000, 1, 1, 2);
        self.two(0xd61f_0000, 0, 1); // br x1
        vec![none, nowhere]
    }

    fn tick(&mut self) -> Patch {
        let none = self.jump_if_zero(true, LEFT);
        self.with_constant(0xd100_0000, LEFT, LEFT, 1);
        none
    }

    fn point(&mut self, base: u8, _: bool, offset: u32, size: u8, end: Option<u64>) -> (At, Option<Patch>) {
        let outside = end.map(|end| {
            self.zero_extend(1, base);
            self.alu_constant(Alu::Add, true, 1, 1, end);
            self.compare_integers(true, 1, SIZE);
            self.jump_on(8)
        });
        self.three(0x8b20_4000, 0, BYTES, base); // add, uxtw
        if offset % u32::from(size) == 0 && offset / u32::from(size) < 4096 {
            return (At { register: 0, offset }, outside);
        }
        self.alu_constant(Alu::Add, true, 0, 0, offset.into());
        (At { register: 0, offset: 0 }, outside)
    }

    fn load(&mut self, to: u8, at: At, size: u8, extend: Extend) {
        let word = match (size, extend) {
            (1, Extend::Zero) => 0x3940_0000,
            (2, Extend::Zero) => 0x7940_0000,
            (4, Extend::Zero) => 0xb940_0000,
            (1, Extend::Sign32) => 0x39c0_0000,
            (2, Extend::Sign32) => 0x79c0_0000,
            (1, Extend::Sign64) => 0x3980_0000,
            (2, Extend::Sign64) => 0x7980_0000,
            (4, _) => 0xb980_0000,
            _ => 0xf940_0000,
        };
        self.with_constant(word, to, at.register, at.offset / u32::from(size));
    }

    fn store(&mut self, from: u8, at: At, size: u8) {
        let word = match size {
            1 => 0x3900_0000,
            2 => 0x7900_0000,
            4 => 0xb900_0000,
            _ => 0xf900_0000,
        };
        self.with_constant(word, from, at.register, at.offset / u32::from(size));
    }

    fn load_float(&mut self, to: u8, at: At, size: u8) {
        let word = if size == 8 { 0xfd40_0000 } else { 0xbd40_0000 };
        self.with_constant(word, to, at.register, at.offset / u32::from(size));
    }

    fn store_float(&mut self, from: u8, at: At, size: u8) {
        let word = if size == 8 { 0xfd00_0000 } else { 0xbd00_0000 };
        self.with_constant(word, from, at.register, at.offset / u32::from(size));
    }

    fn float(&mut self, float: Float, double: bool, to: u8, a: u8, b: u8) {
        let word = match float {
            Float::Mul => 0x1e20_0800,
            Float::Div => 0x1e20_1800,
            Float::Add => 0x1e20_2800,
            Float::Sub => 0x1e20_3800,
        };
        self.three(precise(word, double), to, a, b);
    }

    fn square_root(&mut self, double: bool, to: u8, a: u8) {
        self.two(precise(0x1e21_c000, double), to, a);
    }

    fn jump_if_nan(&mut self, double: bool, a: u8) -> Patch {
        self.three(precise(0x1e20_2000, double), 0, a, a);
        self.jump_on(6)
    }

    fn compare_floats(&mut self, condition: Condition, double: bool, to: u8, a: u8, b: u8) {
        self.three(precise(0x1e20_2000, double), 0, a, b);
        // These are false of NaN, but for "not equal".
        let code = match condition {
            Condition::Eq => 0,
            Condition::Ne => 1,
            Condition::LtS | Condition::LtU => 4,
            Condition::LeS | Condition::LeU => 9,
            Condition::GtS | Condition::GtU => 12,
            Condition::GeS | Condition::GeU => 10,
        };
        self.set_on(code, to);
    }

    fn convert(&mut self, double: bool, wide: bool, to: u8, from: u8) {
        self.two(sized(precise(0x1e22_0000, double), wide), to, from);
    }
    fn change_precision(&mut self, double: bool, to: u8, a: u8) {
        self.two(if double { 0x1e22_c000 } else { 0x1e62_4000 }, to, a);
    }

    fn truncate(&mut self, Truncation { double, wide, signed }: Truncation, a: u8) -> Vec<Patch> {
        let mut out = vec![self.jump_if_nan(double, a)];
        // To 64 bits with a sign; the nearest such integer if there is none.
        self.two(precise(0x9e38_0000, double), 0, a);
        if wide {
            // Neither the least nor the greatest one; without a sign, none below 0.
            self.three(0xca80_fc00, OWN, 0, 0); // eor, asr 63
            self.with_constant(0xb100_001f, 0, OWN, 1); // cmn
            out.push(self.jump_on(6));
            if !signed {
                self.compare_value(true, 0, 0);
                out.push(self.jump_on(11));
            }
        } else {
            if signed {
                self.sign_extend(OWN, 0, 32, true);
            } else {
                self.zero_extend(OWN, 0);
            }
            self.compare_integers(true, OWN, 0);
            out.push(self.jump_on(1));
            self.zero_extend(0, 0);
        }
        out
    }
}
