//! x86-64 (Intel SDM, volume 2).

use super::{
    Alu, Assembler, At, CallOf, Condition, Division, Extend, Float, Patch, Shift, Truncation, BASE, BY_PC, CODES, END_OF_FRAMES,
    END_OF_SLOTS, ENTER, ENTRIES_SHIFT, FIRST_FRAME, FIRST_SLOT, FRAMES, FRAME_SIZE, FUNCTION, GLOBALS, MEMORY, MEMORY_SIZE, PC, SLOTS,
    START, TICKS,
};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RBP: u8 = 5;
const R12: u8 = 12;
const R13: u8 = 13;
const R14: u8 = 14;
const R15: u8 = 15;

/// The frame's slots, linear memory, the ticks that are left, the context.
const FRAME: u8 = RBX;
const BYTES: u8 = R12;
const LEFT: u8 = R13;
const CONTEXT: u8 = R15;
const SAVED: [u8; 6] = [RBX, RBP, R12, R13, R14, R15];

#[derive(Default)]
pub struct Code(Vec<u8>);

impl Code {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn i32(&mut self, value: i32) {
        self.0.extend(value.to_le_bytes());
    }

    /// Prefix, REX, opcode; `bytes` asks for a REX that makes the low bytes of all registers reachable.
    fn opcode(&mut self, prefix: Option<u8>, wide: bool, opcode: &[u8], [reg, index, base]: [u8; 3], bytes: bool) {
        prefix.into_iter().for_each(|prefix| self.byte(prefix));
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0x40 || bytes {
            self.byte(rex);
        }
        self.0.extend(opcode);
    }

    /// An instruction of two registers, the second one in the place of a memory operand.
    fn registers(&mut self, prefix: Option<u8>, wide: bool, opcode: &[u8], reg: u8, other: u8) {
        self.opcode(prefix, wide, opcode, [reg, 0, other], false);
        self.byte(0xc0 | (reg & 7) << 3 | other & 7);
    }

    /// An instruction of a register and what is at a register's value and an offset.
    fn memory(&mut self, prefix: Option<u8>, wide: bool, opcode: &[u8], reg: u8, base: u8, offset: i32) {
        self.opcode(prefix, wide, opcode, [reg, 0, base], false);
        let near = i8::try_from(offset);
        self.byte((if near.is_ok() { 0x40 } else { 0x80 }) | (reg & 7) << 3 | base & 7);
        if base & 7 == 4 {
            self.byte(0x24);
        }
        match near {
            Ok(near) => self.byte(near as u8),
            Err(_) => self.i32(offset),
        }
    }

    /// An instruction of a register and what is in linear memory.
    fn in_memory(&mut self, prefix: Option<u8>, wide: bool, opcode: &[u8], reg: u8, at: At) {
        self.opcode(prefix, wide, opcode, [reg, at.register, BYTES], prefix.is_none() && opcode == [0x88]);
        let near = i8::try_from(at.offset);
        self.byte(0x04 | if near.is_ok() { 0x40 } else { 0x80 } | (reg & 7) << 3);
        self.byte((at.register & 7) << 3 | BYTES & 7);
        match near {
            Ok(near) => self.byte(near as u8),
            Err(_) => self.i32(at.offset as i32),
        }
    }

    /// An instruction of a register and a constant, which is one of eight.
    fn immediate(&mut self, which: u8, wide: bool, register: u8, constant: i32) {
        match i8::try_from(constant) {
            Ok(near) => {
                self.registers(None, wide, &[0x83], which, register);
                self.byte(near as u8);
            }
            Err(_) => {
                self.registers(None, wide, &[0x81], which, register);
                self.i32(constant);
            }
        }
    }

    /// Compare a register with a constant.
    fn compare_value(&mut self, wide: bool, a: u8, constant: u64) {
        match narrow(wide, constant) {
            Some(constant) => self.immediate(7, wide, a, constant),
            None => {
                self.constant(RCX, constant);
                self.registers(None, wide, &[0x3b], a, RCX);
            }
        }
    }

    fn jump_on(&mut self, code: u8) -> Patch {
        self.0.extend([0x0f, 0x80 | code]);
        self.i32(0);
        Patch(self.0.len() - 4)
    }

    /// Load and store what is at a register's value and an offset.
    fn get(&mut self, wide: bool, to: u8, base: u8, offset: i32) {
        self.memory(None, wide, &[0x8b], to, base, offset);
    }

    fn put(&mut self, wide: bool, from: u8, base: u8, offset: i32) {
        self.memory(None, wide, &[0x89], from, base, offset);
    }

    /// Add a constant to a register.
    fn add(&mut self, to: u8, value: i32) {
        self.immediate(0, true, to, value);
    }

    /// Compare a register with a field of the context.
    fn compare_with(&mut self, register: u8, field: u32) {
        self.memory(None, true, &[0x3b], register, CONTEXT, field as i32);
    }

    /// Jump if a register is 0.
    fn jump_if_zero(&mut self, register: u8) -> Patch {
        self.registers(None, true, &[0x85], register, register);
        self.jump_on(4)
    }

    fn set_on(&mut self, code: u8, to: u8) {
        self.opcode(None, false, &[0x0f, 0x90 | code], [0, 0, to], true);
        self.byte(0xc0 | to & 7);
        self.opcode(None, false, &[0x0f, 0xb6], [to, 0, to], true);
        self.byte(0xc0 | (to & 7) << 3 | to & 7);
    }
}

/// A constant as instructions have it.
fn narrow(wide: bool, constant: u64) -> Option<i32> {
    if wide {
        i32::try_from(constant as i64).ok()
    } else {
        Some(constant as i32)
    }
}

fn code_of(condition: Condition) -> u8 {
    match condition {
        Condition::Eq => 4,
        Condition::Ne => 5,
        Condition::LtS => 12,
        Condition::LtU => 2,
        Condition::GtS => 15,
        Condition::GtU => 7,
        Condition::LeS => 14,
        Condition::LeU => 6,
        Condition::GeS => 13,
        Condition::GeU => 3,
    }
}

fn prefix_of(double: bool) -> Option<u8> {
    Some(if double { 0xf2 } else { 0xf3 })
}

impl Assembler for Code {
    const SCRATCH: [u8; 3] = [RAX, RCX, RDX];
    const FLOAT_SCRATCH: [u8; 2] = [0, 1];
    const INTEGERS: &'static [u8] = &[6, 7, 8, 9, 10, 11, RBP, R14];
    const FLOATS: &'static [u8] = &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn position(&self) -> usize {
        self.0.len()
    }

    fn finish(self) -> Option<Vec<u8>> {
        Some(self.0)
    }

    fn begin(&mut self) {
        for register in SAVED {
            self.opcode(None, false, &[], [0, 0, register], false);
            self.byte(0x50 | register & 7);
        }
        self.registers(None, true, &[0x8b], CONTEXT, 7);
        self.memory(None, true, &[0x8b], FRAME, CONTEXT, SLOTS as i32);
        self.memory(None, true, &[0x8b], BYTES, CONTEXT, MEMORY as i32);
        self.memory(None, true, &[0x8b], LEFT, CONTEXT, TICKS as i32);
        self.0.extend([0xff, 0xe6]); // jmp rsi
    }

    fn end(&mut self) {
        self.memory(None, true, &[0x89], LEFT, CONTEXT, TICKS as i32);
        for register in SAVED.iter().rev() {
            self.opcode(None, false, &[], [0, 0, *register], false);
            self.byte(0x58 | register & 7);
        }
        self.byte(0xc3);
    }

    fn patch(&mut self, jump: Patch, to: usize) {
        let distance = (to as i64 - (jump.0 as i64 + 4)) as i32;
        self.0[jump.0..jump.0 + 4].copy_from_slice(&distance.to_le_bytes());
    }

    fn load_slot(&mut self, to: u8, slot: u16) {
        self.memory(None, true, &[0x8b], to, FRAME, i32::from(slot) * 8);
    }

    fn store_slot(&mut self, from: u8, slot: u16) {
        self.memory(None, true, &[0x89], from, FRAME, i32::from(slot) * 8);
    }

    fn load_float_slot(&mut self, to: u8, slot: u16) {
        self.memory(Some(0xf2), false, &[0x0f, 0x10], to, FRAME, i32::from(slot) * 8);
    }

    fn store_float_slot(&mut self, from: u8, slot: u16) {
        self.memory(Some(0xf2), false, &[0x0f, 0x11], from, FRAME, i32::from(slot) * 8);
    }

    fn load_global(&mut self, to: u8, global: u32) {
        self.memory(None, true, &[0x8b], RCX, CONTEXT, GLOBALS as i32);
        self.memory(None, true, &[0x8b], to, RCX, global as i32 * 8);
    }

    fn store_global(&mut self, from: u8, global: u32) {
        self.memory(None, true, &[0x8b], RCX, CONTEXT, GLOBALS as i32);
        self.memory(None, true, &[0x89], from, RCX, global as i32 * 8);
    }

    fn constant(&mut self, to: u8, value: u64) {
        if value == 0 {
            self.registers(None, false, &[0x33], to, to);
        } else if value <= u32::MAX.into() {
            self.opcode(None, false, &[], [0, 0, to], false);
            self.byte(0xb8 | to & 7);
            self.i32(value as i32);
        } else {
            self.opcode(None, true, &[], [0, 0, to], false);
            self.byte(0xb8 | to & 7);
            self.0.extend(value.to_le_bytes());
        }
    }

    fn copy(&mut self, to: u8, from: u8) {
        if to != from {
            self.registers(None, true, &[0x8b], to, from);
        }
    }

    fn copy_float(&mut self, to: u8, from: u8) {
        if to != from {
            self.registers(None, false, &[0x0f, 0x28], to, from);
        }
    }

    fn move_to_float(&mut self, to: u8, from: u8) {
        self.registers(Some(0x66), true, &[0x0f, 0x6e], to, from);
    }

    fn move_from_float(&mut self, to: u8, from: u8) {
        self.registers(Some(0x66), true, &[0x0f, 0x7e], from, to);
    }

    fn zero_extend(&mut self, to: u8, from: u8) {
        self.registers(None, false, &[0x8b], to, from);
    }

    fn sign_extend(&mut self, to: u8, from: u8, bits: u8, wide: bool) {
        match bits {
            8 => {
                self.opcode(None, wide, &[0x0f, 0xbe], [to, 0, from], true);
                self.byte(0xc0 | (to & 7) << 3 | from & 7);
            }
            16 => self.registers(None, wide, &[0x0f, 0xbf], to, from),
            _ => self.registers(None, true, &[0x63], to, from),
        }
    }

    fn alu(&mut self, alu: Alu, wide: bool, to: u8, a: u8, b: u8) {
        let opcode: &[u8] = match alu {
            Alu::Add => &[0x03],
            Alu::Sub => &[0x2b],
            Alu::Mul => &[0x0f, 0xaf],
            Alu::And => &[0x23],
            Alu::Or => &[0x0b],
            Alu::Xor => &[0x33],
        };
        let (mut to_now, mut a, mut b) = (to, a, b);
        if to == b && to != a {
            if alu == Alu::Sub {
                to_now = RDX;
            } else {
                std::mem::swap(&mut a, &mut b);
            }
        }
        if to_now != a {
            self.registers(None, true, &[0x8b], to_now, a);
        }
        self.registers(None, wide, opcode, to_now, b);
        self.copy(to, to_now);
    }

    fn alu_constant(&mut self, alu: Alu, wide: bool, to: u8, a: u8, constant: u64) {
        let Some(narrow) = narrow(wide, constant) else {
            self.constant(RCX, constant);
            return self.alu(alu, wide, to, a, RCX);
        };
        let which = match alu {
            Alu::Add if to != a => return self.memory(None, wide, &[0x8d], to, a, narrow), // lea
            Alu::Mul => {
                self.registers(None, wide, &[0x69], to, a);
                return self.i32(narrow);
            }
            Alu::Add => 0,
            Alu::Or => 1,
            Alu::And => 4,
            Alu::Sub => 5,
            Alu::Xor => 6,
        };
        self.copy(to, a);
        self.immediate(which, wide, to, narrow);
    }

    fn divide(&mut self, division: Division, wide: bool, to: u8, a: u8, b: u8) -> Vec<Patch> {
        let signed = matches!(division, Division::Signed | Division::SignedRemainder);
        self.registers(None, wide, &[0x85], b, b);
        let mut out = vec![self.jump_on(4)];
        if signed {
            self.immediate(7, wide, b, -1);
            out.push(self.jump_on(4));
        }
        self.copy(RAX, a);
        if signed {
            self.opcode(None, wide, &[0x99], [0; 3], false); // cdq
        } else {
            self.constant(RDX, 0);
        }
        self.registers(None, wide, &[0xf7], if signed { 7 } else { 6 }, b);
        self.copy(to, if matches!(division, Division::Signed | Division::Unsigned) { RAX } else { RDX });
        out
    }

    fn count_zeros(&mut self, from_highest: bool, wide: bool, to: u8, a: u8) {
        let bits = if wide { 64 } else { 32 };
        // The place of a bit, if there is one.
        self.registers(None, wide, &[0x0f, if from_highest { 0xbd } else { 0xbc }], RAX, a);
        self.0.extend([0xb9]); // mov ecx, which leaves the flags
        self.i32(if from_highest { 2 * bits - 1 } else { bits });
        self.registers(None, false, &[0x0f, 0x44], RAX, RCX); // cmovz
        if from_highest {
            self.immediate(6, false, RAX, bits - 1);
        }
        self.copy(to, RAX);
    }

    fn shift(&mut self, shift: Shift, wide: bool, to: u8, a: u8, b: u8) {
        self.copy(RDX, a);
        self.copy(RCX, b);
        let which = which(shift);
        self.registers(None, wide, &[0xd3], which, RDX);
        self.copy(to, RDX);
    }

    fn shift_constant(&mut self, shift: Shift, wide: bool, to: u8, a: u8, count: u8) {
        self.registers(None, wide, &[0x8b], to, a);
        let which = which(shift);
        self.registers(None, wide, &[0xc1], which, to);
        self.byte(count);
    }

    fn compare(&mut self, condition: Condition, wide: bool, to: u8, a: u8, b: u8) {
        self.registers(None, wide, &[0x3b], a, b);
        self.set_on(code_of(condition), to);
    }

    fn compare_constant(&mut self, condition: Condition, wide: bool, to: u8, a: u8, constant: u64) {
        self.compare_value(wide, a, constant);
        self.set_on(code_of(condition), to);
    }

    fn select(&mut self, to: u8, by: u8, a: u8, b: u8) {
        self.registers(None, false, &[0x85], by, by);
        if to == a {
            self.registers(None, true, &[0x0f, 0x44], to, b); // cmovz
        } else {
            self.copy(to, b);
            self.registers(None, true, &[0x0f, 0x45], to, a); // cmovnz
        }
    }

    fn jump(&mut self) -> Patch {
        self.byte(0xe9);
        self.i32(0);
        Patch(self.0.len() - 4)
    }

    fn jump_if(&mut self, condition: Condition, wide: bool, a: u8, b: u8) -> Patch {
        self.registers(None, wide, &[0x3b], a, b);
        self.jump_on(code_of(condition))
    }

    fn jump_if_constant(&mut self, condition: Condition, wide: bool, a: u8, constant: u64) -> Patch {
        self.compare_value(wide, a, constant);
        self.jump_on(code_of(condition))
    }

    fn call(&mut self, call: &CallOf) -> Vec<Patch> {
        let mut out = vec![];
        let d = i32::from(call.d);
        self.get(true, RAX, CONTEXT, FRAMES as i32);
        self.compare_with(RAX, END_OF_FRAMES);
        out.push(self.jump_on(3));
        self.memory(None, true, &[0x8d], RCX, FRAME, (d + call.frame as i32) * 8);
        self.compare_with(RCX, END_OF_SLOTS);
        out.push(self.jump_on(7));
        self.get(true, RDX, CONTEXT, CODES as i32);
        self.get(true, RDX, RDX, ((call.function as i32) << ENTRIES_SHIFT) + ENTER);
        out.push(self.jump_if_zero(RDX));
        out.push(self.tick());
        self.constant(RCX, call.pc.into());
        self.put(false, RCX, RAX, PC - FRAME_SIZE);
        self.get(false, RCX, RAX, BASE - FRAME_SIZE);
        self.add(RCX, d);
        self.put(false, RCX, RAX, BASE);
        self.constant(RCX, call.function.into());
        self.put(false, RCX, RAX, FUNCTION);
        self.constant(RCX, 0);
        self.put(false, RCX, RAX, PC);
        for local in call.params..call.locals {
            self.put(true, RCX, FRAME, (d + local as i32) * 8);
        }
        self.add(RAX, FRAME_SIZE);
        self.put(true, RAX, CONTEXT, FRAMES as i32);
        self.add(FRAME, d * 8);
        self.0.extend([0xff, 0xe2]); // jmp rdx
        out
    }

    fn jump_table(&mut self, last: u32) -> usize {
        self.constant(RCX, last.into());
        self.registers(None, false, &[0x3b], RAX, RCX);
        self.registers(None, false, &[0x0f, 0x47], RAX, RCX); // cmova
        self.0.extend([0x48, 0x8d, 0x0d, 9, 0, 0, 0]); // lea rcx, [rip + 9]
        self.0.extend([0x48, 0x63, 0x04, 0x81]); // movsxd rax, dword [rcx + rax * 4]
        self.registers(None, true, &[0x03], RAX, RCX);
        self.0.extend([0xff, 0xe0]); // jmp rax
        let table = self.0.len();
        self.0.resize(table + (last as usize + 1) * 4, 0);
        table
    }

    fn set_place(&mut self, table: usize, place: usize, to: usize) {
        let at = table + place * 4;
        self.0[at..at + 4].copy_from_slice(&(to as i32 - table as i32).to_le_bytes());
    }

    fn jump_if_outermost(&mut self) -> Patch {
        self.get(true, RAX, CONTEXT, FRAMES as i32);
        self.add(RAX, -FRAME_SIZE);
        self.compare_with(RAX, FIRST_FRAME);
        self.jump_on(4)
    }

    fn go_back(&mut self) -> Vec<Patch> {
        self.get(true, RCX, CONTEXT, FRAMES as i32);
        self.add(RCX, -FRAME_SIZE);
        self.put(true, RCX, CONTEXT, FRAMES as i32);
        self.get(false, RDX, RCX, FUNCTION - FRAME_SIZE);
        self.get(false, RAX, RCX, PC - FRAME_SIZE);
        self.add(RAX, 1);
        self.get(false, FRAME, RCX, BASE - FRAME_SIZE);
        self.shift_constant(Shift::Left, true, FRAME, FRAME, 3);
        self.memory(None, true, &[0x03], FRAME, CONTEXT, FIRST_SLOT as i32);
        self.shift_constant(Shift::Left, true, RDX, RDX, ENTRIES_SHIFT);
        self.memory(None, true, &[0x03], RDX, CONTEXT, CODES as i32);
        self.get(true, RCX, RDX, BY_PC);
        let none = self.jump_if_zero(RCX);
        self.0.extend([0x8b, 0x0c, 0x81]); // mov ecx, [rcx + rax * 4]
        let nowhere = self.jump_if_zero(RCX);
        self.memory(None, true, &[0x03], RCX, RDX, START);
        self.0.extend([0xff, 0xe1]); // jmp rcx
        vec![none, nowhere]
    }

    fn tick(&mut self) -> Patch {
        let none = self.jump_if_zero(LEFT);
        self.add(LEFT, -1);
        none
    }

    fn point(&mut self, base: u8, clean: bool, offset: u32, _: u8, end: Option<u64>) -> (At, Option<Patch>) {
        let mut register = base;
        if !clean {
            self.zero_extend(RAX, base);
            register = RAX;
        }
        let outside = end.map(|end| {
            self.alu_constant(Alu::Add, true, RCX, register, end);
            self.compare_with(RCX, MEMORY_SIZE);
            self.jump_on(7)
        });
        if i32::try_from(offset).is_ok() {
            return (At { register, offset }, outside);
        }
        self.alu_constant(Alu::Add, true, RAX, register, offset.into());
        (At { register: RAX, offset: 0 }, outside)
    }

    fn load(&mut self, to: u8, at: At, size: u8, extend: Extend) {
        match (size, extend) {
            (1, Extend::Zero) => self.in_memory(None, false, &[0x0f, 0xb6], to, at),
            (2, Extend::Zero) => self.in_memory(None, false, &[0x0f, 0xb7], to, at),
            (4, Extend::Zero) => self.in_memory(None, false, &[0x8b], to, at),
            (1, _) => self.in_memory(None, extend == Extend::Sign64, &[0x0f, 0xbe], to, at),
            (2, _) => self.in_memory(None, extend == Extend::Sign64, &[0x0f, 0xbf], to, at),
            (4, _) => self.in_memory(None, true, &[0x63], to, at),
            _ => self.in_memory(None, true, &[0x8b], to, at),
        }
    }

    fn store(&mut self, from: u8, at: At, size: u8) {
        match size {
            1 => self.in_memory(None, false, &[0x88], from, at),
            2 => self.in_memory(Some(0x66), false, &[0x89], from, at),
            4 => self.in_memory(None, false, &[0x89], from, at),
            _ => self.in_memory(None, true, &[0x89], from, at),
        }
    }

    fn load_float(&mut self, to: u8, at: At, size: u8) {
        self.in_memory(prefix_of(size == 8), false, &[0x0f, 0x10], to, at);
    }

    fn store_float(&mut self, from: u8, at: At, size: u8) {
        self.in_memory(prefix_of(size == 8), false, &[0x0f, 0x11], from, at);
    }

    fn float(&mut self, float: Float, double: bool, to: u8, a: u8, b: u8) {
        let opcode = match float {
            Float::Add => 0x58,
            Float::Mul => 0x59,
            Float::Sub => 0x5c,
            Float::Div => 0x5e,
        };
        let (a, b) = if to == b && matches!(float, Float::Add | Float::Mul) { (b, a) } else { (a, b) };
        let to_now = if to == b && to != a { 0 } else { to };
        self.copy_float(to_now, a);
        self.registers(prefix_of(double), false, &[0x0f, opcode], to_now, b);
        self.copy_float(to, to_now);
    }

    fn square_root(&mut self, double: bool, to: u8, a: u8) {
        // In place, as the instruction would wait for what else is in the register.
        self.copy_float(to, a);
        self.registers(prefix_of(double), false, &[0x0f, 0x51], to, to);
    }

    fn jump_if_nan(&mut self, double: bool, a: u8) -> Patch {
        self.registers(double.then_some(0x66), false, &[0x0f, 0x2e], a, a);
        self.jump_on(10)
    }

    fn compare_floats(&mut self, condition: Condition, double: bool, to: u8, a: u8, b: u8) {
        // With operands such that "above" and "above or equal" say it: they are false for NaN.
        let (a, b) = if matches!(condition, Condition::LtS | Condition::LeS) { (b, a) } else { (a, b) };
        self.registers(double.then_some(0x66), false, &[0x0f, 0x2e], a, b);
        match condition {
            Condition::LtS | Condition::GtS => self.set_on(7, to),
            Condition::LeS | Condition::GeS => self.set_on(3, to),
            _ => {
                let (parity, equal, join) = if condition == Condition::Eq { (11, 4, 0x23) } else { (10, 5, 0x0b) };
                self.set_on(parity, RCX);
                self.set_on(equal, RDX);
                self.registers(None, false, &[join], RCX, RDX);
                self.copy(to, RCX);
            }
        }
    }

    fn convert(&mut self, double: bool, wide: bool, to: u8, from: u8) {
        self.registers(None, false, &[0x0f, 0x57], to, to);
        self.registers(prefix_of(double), wide, &[0x0f, 0x2a], to, from);
    }

    fn change_precision(&mut self, double: bool, to: u8, a: u8) {
        let from = if to == a { 1 } else { a };
        self.copy_float(from, a);
        self.registers(None, false, &[0x0f, 0x57], to, to);
        self.registers(prefix_of(!double), false, &[0x0f, 0x5a], to, from);
    }

    fn truncate(&mut self, Truncation { double, wide, signed }: Truncation, a: u8) -> Vec<Patch> {
        // To 64 bits with a sign; the least integer if there is none.
        self.registers(prefix_of(double), true, &[0x0f, 0x2c], RAX, a);
        let out = match (wide, signed) {
            (true, true) => {
                self.immediate(7, true, RAX, 1);
                0 // overflow
            }
            (true, false) => {
                self.registers(None, true, &[0x85], RAX, RAX);
                8 // negative
            }
            (false, _) => {
                if signed {
                    self.sign_extend(RCX, RAX, 32, true);
                } else {
                    self.zero_extend(RCX, RAX);
                }
                self.registers(None, true, &[0x3b], RCX, RAX);
                self.zero_extend(RAX, RAX);
                5
            }
        };
        vec![self.jump_on(out)]
    }
}

fn which(shift: Shift) -> u8 {
    match shift {
        Shift::RotateLeft => 0,
        Shift::RotateRight => 1,
        Shift::Left => 4,
        Shift::RightU => 5,
        Shift::RightS => 7,
    }
}
