//! Which instructions have a form with a constant, which comparisons a form that jumps, and which two become one.

use crate::code::{Instruction, Op};

/// The comparisons: plain, with a constant, as a jump, as a jump with a constant; and the place of the opposite one.
#[rustfmt::skip]
const COMPARISONS: [(Op, Op, Op, Op, usize); 20] = [
    (Op::I32Eq, Op::I32EqImm, Op::JumpI32Eq, Op::JumpI32EqImm, 1), (Op::I32Ne, Op::I32NeImm, Op::JumpI32Ne, Op::JumpI32NeImm, 0),
    (Op::I32LtS, Op::I32LtSImm, Op::JumpI32LtS, Op::JumpI32LtSImm, 8), (Op::I32LtU, Op::I32LtUImm, Op::JumpI32LtU, Op::JumpI32LtUImm, 9),
    (Op::I32GtS, Op::I32GtSImm, Op::JumpI32GtS, Op::JumpI32GtSImm, 6), (Op::I32GtU, Op::I32GtUImm, Op::JumpI32GtU, Op::JumpI32GtUImm, 7),
    (Op::I32LeS, Op::I32LeSImm, Op::JumpI32LeS, Op::JumpI32LeSImm, 4), (Op::I32LeU, Op::I32LeUImm, Op::JumpI32LeU, Op::JumpI32LeUImm, 5),
    (Op::I32GeS, Op::I32GeSImm, Op::JumpI32GeS, Op::JumpI32GeSImm, 2), (Op::I32GeU, Op::I32GeUImm, Op::JumpI32GeU, Op::JumpI32GeUImm, 3),
    (Op::I64Eq, Op::I64EqImm, Op::JumpI64Eq, Op::JumpI64EqImm, 11), (Op::I64Ne, Op::I64NeImm, Op::JumpI64Ne, Op::JumpI64NeImm, 10),
    (Op::I64LtS, Op::I64LtSImm, Op::JumpI64LtS, Op::JumpI64LtSImm, 18), (Op::I64LtU, Op::I64LtUImm, Op::JumpI64LtU, Op::JumpI64LtUImm, 19),
    (Op::I64GtS, Op::I64GtSImm, Op::JumpI64GtS, Op::JumpI64GtSImm, 16), (Op::I64GtU, Op::I64GtUImm, Op::JumpI64GtU, Op::JumpI64GtUImm, 17),
    (Op::I64LeS, Op::I64LeSImm, Op::JumpI64LeS, Op::JumpI64LeSImm, 14), (Op::I64LeU, Op::I64LeUImm, Op::JumpI64LeU, Op::JumpI64LeUImm, 15),
    (Op::I64GeS, Op::I64GeSImm, Op::JumpI64GeS, Op::JumpI64GeSImm, 12), (Op::I64GeU, Op::I64GeUImm, Op::JumpI64GeU, Op::JumpI64GeUImm, 13),
];

/// A jump's condition: a comparison of two slots, or of a slot with a constant.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    pub op: Op,
    pub a: u16,
    pub b: u16,
    pub constant: i32,
}

impl Condition {
    /// Whether the 32 bits of a slot are not zero.
    pub fn not_zero(slot: u16) -> Condition {
        Condition { op: Op::JumpI32NeImm, a: slot, b: 0, constant: 0 }
    }

    /// The condition that a comparison's result is not zero.
    pub fn of(op: Op, a: u16, b: u16, imm: u64) -> Option<Condition> {
        let row = COMPARISONS.iter().find(|row| row.0 == op || row.1 == op)?;
        if row.0 == op {
            return Some(Condition { op: row.2, a, b, constant: 0 });
        }
        let wide = row.1 as u16 >= Op::I64EqImm as u16;
        let constant = imm as i32;
        if wide && i64::from(constant) as u64 != imm {
            return None; // the jump has room for 32 bits
        }
        Some(Condition { op: row.3, a, b: 0, constant })
    }

    pub fn opposite(self) -> Condition {
        let row = COMPARISONS.iter().find(|row| row.2 == self.op || row.3 == self.op).expect("the op is a jump of the table");
        let other = &COMPARISONS[row.4];
        Condition { op: if row.2 == self.op { other.2 } else { other.3 }, ..self }
    }
}

/// What does `made` and then an operation of its result and the slot `other`, if there is such an instruction. `is_second` says which
/// operand of the two the result is.
pub fn joined(op: Op, made: Instruction, other: u16, is_second: bool) -> Option<Instruction> {
    let Instruction { d, a, b, imm, .. } = made;
    let (op, a, b, imm) = match (op, made.op) {
        (Op::I32Add, Op::I32ShlImm) => (Op::I32AddShl, other, a, imm),
        (Op::F64Add, Op::Load64) => (Op::F64AddLoad, a, other, imm),
        (Op::F64Mul, Op::Load64) => (Op::F64MulLoad, a, other, imm),
        (Op::F64Sub, Op::Load64) if is_second => (Op::F64SubLoad, a, other, imm),
        (Op::F64Add, Op::F64Mul) => (Op::F64MulAdd, a, b, other.into()),
        (Op::F64Sub, Op::F64Mul) if is_second => (Op::F64MulSub, a, b, other.into()),
        (Op::F64Add, Op::F64MulLoad) => (Op::F64MulAddLoad, a, b, imm | u64::from(other) << 32),
        (Op::F32Mul, Op::Load32U) => (Op::F32MulLoad, a, other, imm),
        (Op::F32Add, Op::F32MulLoad) => (Op::F32MulAddLoad, a, b, imm | u64::from(other) << 32),
        _ => return None,
    };
    Some(Instruction { op, d, a, b, imm })
}

/// A load whose address `made` computes.
pub fn loading(op: Op, made: Instruction, offset: u32) -> Option<Instruction> {
    let op = match (op, made.op) {
        (Op::Load8U, Op::I32Add) => Op::Load8USum,
        (Op::Load32U, Op::I32Add) => Op::Load32USum,
        (Op::Load64, Op::I32Add) => Op::Load64Sum,
        _ => return None,
    };
    Some(Instruction { op, imm: offset.into(), ..made })
}

/// A jump under a condition on what `made` computes; it leads to no place yet.
pub fn jumping(condition: Condition, made: Instruction) -> Option<Instruction> {
    if made.op != Op::I32AddImm || made.d != condition.a {
        return None;
    }
    let (op, b) = match condition.op {
        Op::JumpI32Ne => (Op::JumpI32AddNe, condition.b),
        Op::JumpI32NeImm => (Op::JumpI32AddNeImm, u16::try_from(condition.constant).ok()?),
        _ => return None,
    };
    Some(Instruction { op, b, imm: made.imm << 32, ..made })
}

/// The form of an instruction whose second operand is a constant.
pub fn immediate(op: Op, constant: u64) -> Option<(Op, u64)> {
    let negated = constant.wrapping_neg();
    Some(match op {
        Op::I32Add => (Op::I32AddImm, constant),
        Op::I32Sub => (Op::I32AddImm, negated),
        Op::I32Mul => (Op::I32MulImm, constant),
        Op::I32And => (Op::I32AndImm, constant),
        Op::I32Or => (Op::I32OrImm, constant),
        Op::I32Xor => (Op::I32XorImm, constant),
        Op::I32Shl => (Op::I32ShlImm, constant),
        Op::I32ShrS => (Op::I32ShrSImm, constant),
        Op::I32ShrU => (Op::I32ShrUImm, constant),
        Op::I32Rotl => (Op::I32RotlImm, constant),
        Op::I32Rotr => (Op::I32RotlImm, negated),
        Op::I64Add => (Op::I64AddImm, constant),
        Op::I64Sub => (Op::I64AddImm, negated),
        Op::I64Mul => (Op::I64MulImm, constant),
        Op::I64And => (Op::I64AndImm, constant),
        Op::I64Or => (Op::I64OrImm, constant),
        Op::I64Xor => (Op::I64XorImm, constant),
        Op::I64Shl => (Op::I64ShlImm, constant),
        Op::I64ShrS => (Op::I64ShrSImm, constant),
        Op::I64ShrU => (Op::I64ShrUImm, constant),
        Op::I64Rotl => (Op::I64RotlImm, constant),
        Op::I64Rotr => (Op::I64RotlImm, negated),
        _ => (COMPARISONS.iter().find(|row| row.0 == op)?.1, constant),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opposite_of_the_opposite_is_the_same() {
        for (place, row) in COMPARISONS.iter().enumerate() {
            assert_ne!(row.4, place);
            assert_eq!(COMPARISONS[row.4].4, place, "{:?}", row.0);
            for op in [row.2, row.3] {
                let condition = Condition { op, a: 1, b: 2, constant: 3 };
                assert_eq!(condition.opposite().opposite().op, op);
            }
        }
    }

    #[test]
    fn a_wide_constant_is_not_fused_into_a_jump() {
        assert!(Condition::of(Op::I64EqImm, 0, 0, 1 << 40).is_none());
        assert!(Condition::of(Op::I64EqImm, 0, 0, u64::MAX).is_some());
    }
}
