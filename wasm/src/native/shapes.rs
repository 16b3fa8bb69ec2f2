//! What of three-address code becomes the processor's, and which slots that reads and writes.

use super::{Alu, Condition, Division, Extend, Float, Instruction, Op, Shift, Truncation};

const CONDITIONS: [Condition; 10] = [
    Condition::Eq,
    Condition::Ne,
    Condition::LtS,
    Condition::LtU,
    Condition::GtS,
    Condition::GtU,
    Condition::LeS,
    Condition::LeU,
    Condition::GeS,
    Condition::GeU,
];

/// What an instruction does, as far as this code does it.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Copy,
    Const,
    Jump,
    Loop,
    Select,
    GlobalGet,
    GlobalSet,
    Load(u8, Extend),
    LoadSum(u8),
    Store(u8),
    Alu(Alu, bool),
    AluConst(Alu, bool),
    Divide(Division, bool),
    CountZeros {
        from_highest: bool,
        wide: bool,
    },
    Shift(Shift, bool),
    ShiftConst(Shift, bool),
    Compare(Condition, bool),
    CompareConst(Condition, bool),
    JumpIf(Condition, bool),
    JumpIfConst(Condition, bool),
    JumpAddNe,
    JumpAddNeConst,
    AddShl,
    ZeroExtend,
    SignExtend(u8, bool),
    Float(Float, bool),
    FloatLoad(Float, bool),
    MulAdd(Float),
    MulAddLoad(bool),
    Root(bool),
    CompareFloats(Condition, bool),
    Convert {
        double: bool,
        wide: bool,
        signed: bool,
    },
    /// To this precision, from the other one.
    ChangePrecision(bool),
    Truncate(Truncation),
    /// The bits of a float, changed by a constant.
    Bits(Alu, u64),
    JumpTable,
    Call,
    Return,
}

pub fn shape(op: Op) -> Option<Shape> {
    use Shape::*;
    let within = |first: Op| (op as u16).checked_sub(first as u16).and_then(|place| CONDITIONS.get(usize::from(place)).copied());
    let compared = [
        (Op::I32Eq, false, Compare as fn(Condition, bool) -> Shape),
        (Op::I64Eq, true, Compare),
        (Op::I32EqImm, false, CompareConst),
        (Op::I64EqImm, true, CompareConst),
        (Op::JumpI32Eq, false, JumpIf),
        (Op::JumpI64Eq, true, JumpIf),
        (Op::JumpI32EqImm, false, JumpIfConst),
        (Op::JumpI64EqImm, true, JumpIfConst),
    ];
    if let Some(shape) = compared.iter().find_map(|(first, wide, make)| within(*first).map(|condition| make(condition, *wide))) {
        return Some(shape);
    }
    Some(match op {
        Op::Copy => Copy,
        Op::Const => Const,
        Op::Jump => Jump,
        Op::Loop => Loop,
        Op::Select => Select,
        Op::GlobalGet => GlobalGet,
        Op::GlobalSet => GlobalSet,
        Op::Load8U => Load(1, Extend::Zero),
        Op::Load16U => Load(2, Extend::Zero),
        Op::Load32U => Load(4, Extend::Zero),
        Op::Load64 => Load(8, Extend::Zero),
        Op::Load8S32 => Load(1, Extend::Sign32),
        Op::Load16S32 => Load(2, Extend::Sign32),
        Op::Load8S64 => Load(1, Extend::Sign64),
        Op::Load16S64 => Load(2, Extend::Sign64),
        Op::Load32S64 => Load(4, Extend::Sign64),
        Op::Load8USum => LoadSum(1),
        Op::Load32USum => LoadSum(4),
        Op::Load64Sum => LoadSum(8),
        Op::Store8 => Store(1),
        Op::Store16 => Store(2),
        Op::Store32 => Store(4),
        Op::Store64 => Store(8),
        Op::I32Add => Alu(self::Alu::Add, false),
        Op::I32Sub => Alu(self::Alu::Sub, false),
        Op::I32Mul => Alu(self::Alu::Mul, false),
        Op::I32And => Alu(self::Alu::And, false),
        Op::I32Or => Alu(self::Alu::Or, false),
        Op::I32Xor => Alu(self::Alu::Xor, false),
        Op::I64Add => Alu(self::Alu::Add, true),
        Op::I64Sub => Alu(self::Alu::Sub, true),
        Op::I64Mul => Alu(self::Alu::Mul, true),
        Op::I64And => Alu(self::Alu::And, true),
        Op::I64Or => Alu(self::Alu::Or, true),
        Op::I64Xor => Alu(self::Alu::Xor, true),
        Op::I32AddImm => AluConst(self::Alu::Add, false),
        Op::I32MulImm => AluConst(self::Alu::Mul, false),
        Op::I32AndImm => AluConst(self::Alu::And, false),
        Op::I32OrImm => AluConst(self::Alu::Or, false),
        Op::I32XorImm => AluConst(self::Alu::Xor, false),
        Op::I64AddImm => AluConst(self::Alu::Add, true),
        Op::I64MulImm => AluConst(self::Alu::Mul, true),
        Op::I64AndImm => AluConst(self::Alu::And, true),
        Op::I64OrImm => AluConst(self::Alu::Or, true),
        Op::I64XorImm => AluConst(self::Alu::Xor, true),
        Op::I32DivS => Divide(Division::Signed, false),
        Op::I32DivU => Divide(Division::Unsigned, false),
        Op::I32RemS => Divide(Division::SignedRemainder, false),
        Op::I32RemU => Divide(Division::UnsignedRemainder, false),
        Op::I64DivS => Divide(Division::Signed, true),
        Op::I64DivU => Divide(Division::Unsigned, true),
        Op::I64RemS => Divide(Division::SignedRemainder, true),
        Op::I64RemU => Divide(Division::UnsignedRemainder, true),
        Op::I32Clz => CountZeros { from_highest: true, wide: false },
        Op::I32Ctz => CountZeros { from_highest: false, wide: false },
        Op::I64Clz => CountZeros { from_highest: true, wide: true },
        Op::I64Ctz => CountZeros { from_highest: false, wide: true },
        Op::I32Shl => Shift(self::Shift::Left, false),
        Op::I32ShrS => Shift(self::Shift::RightS, false),
        Op::I32ShrU => Shift(self::Shift::RightU, false),
        Op::I32Rotl => Shift(self::Shift::RotateLeft, false),
        Op::I32Rotr => Shift(self::Shift::RotateRight, false),
        Op::I64Shl => Shift(self::Shift::Left, true),
        Op::I64ShrS => Shift(self::Shift::RightS, true),
        Op::I64ShrU => Shift(self::Shift::RightU, true),
        Op::I64Rotl => Shift(self::Shift::RotateLeft, true),
        Op::I64Rotr => Shift(self::Shift::RotateRight, true),
        Op::I32ShlImm => ShiftConst(self::Shift::Left, false),
        Op::I32ShrSImm => ShiftConst(self::Shift::RightS, false),
        Op::I32ShrUImm => ShiftConst(self::Shift::RightU, false),
        Op::I32RotlImm => ShiftConst(self::Shift::RotateLeft, false),
        Op::I64ShlImm => ShiftConst(self::Shift::Left, true),
        Op::I64ShrSImm => ShiftConst(self::Shift::RightS, true),
        Op::I64ShrUImm => ShiftConst(self::Shift::RightU, true),
        Op::I64RotlImm => ShiftConst(self::Shift::RotateLeft, true),
        Op::JumpI32AddNe => JumpAddNe,
        Op::JumpI32AddNeImm => JumpAddNeConst,
        Op::I32AddShl => AddShl,
        Op::I64ExtendI32U => ZeroExtend,
        Op::I64ExtendI32S | Op::I64Extend32S => SignExtend(32, true),
        Op::I32Extend8S => SignExtend(8, false),
        Op::I32Extend16S => SignExtend(16, false),
        Op::I64Extend8S => SignExtend(8, true),
        Op::I64Extend16S => SignExtend(16, true),
        Op::F32Add => Float(self::Float::Add, false),
        Op::F32Sub => Float(self::Float::Sub, false),
        Op::F32Mul => Float(self::Float::Mul, false),
        Op::F32Div => Float(self::Float::Div, false),
        Op::F64Add => Float(self::Float::Add, true),
        Op::F64Sub => Float(self::Float::Sub, true),
        Op::F64Mul => Float(self::Float::Mul, true),
        Op::F64Div => Float(self::Float::Div, true),
        Op::F64AddLoad => FloatLoad(self::Float::Add, true),
        Op::F64SubLoad => FloatLoad(self::Float::Sub, true),
        Op::F64MulLoad => FloatLoad(self::Float::Mul, true),
        Op::F64MulAdd => MulAdd(self::Float::Add),
        Op::F64MulSub => MulAdd(self::Float::Sub),
        Op::F32MulLoad => FloatLoad(self::Float::Mul, false),
        Op::F64MulAddLoad => MulAddLoad(true),
        Op::F32MulAddLoad => MulAddLoad(false),
        Op::F32Sqrt => Root(false),
        Op::F64Sqrt => Root(true),
        Op::F32Eq => CompareFloats(Condition::Eq, false),
        Op::F32Ne => CompareFloats(Condition::Ne, false),
        Op::F32Lt => CompareFloats(Condition::LtS, false),
        Op::F32Gt => CompareFloats(Condition::GtS, false),
        Op::F32Le => CompareFloats(Condition::LeS, false),
        Op::F32Ge => CompareFloats(Condition::GeS, false),
        Op::F64Eq => CompareFloats(Condition::Eq, true),
        Op::F64Ne => CompareFloats(Condition::Ne, true),
        Op::F64Lt => CompareFloats(Condition::LtS, true),
        Op::F64Gt => CompareFloats(Condition::GtS, true),
        Op::F64Le => CompareFloats(Condition::LeS, true),
        Op::F64Ge => CompareFloats(Condition::GeS, true),
        Op::F32ConvertI32S => Convert { double: false, wide: false, signed: true },
        Op::F32ConvertI32U => Convert { double: false, wide: false, signed: false },
        Op::F32ConvertI64S => Convert { double: false, wide: true, signed: true },
        Op::F64ConvertI32S => Convert { double: true, wide: false, signed: true },
        Op::F64ConvertI32U => Convert { double: true, wide: false, signed: false },
        Op::F64ConvertI64S => Convert { double: true, wide: true, signed: true },
        Op::F32DemoteF64 => ChangePrecision(false),
        Op::F64PromoteF32 => ChangePrecision(true),
        Op::I32TruncF32S | Op::I32TruncSatF32S => Truncate(Truncation { double: false, wide: false, signed: true }),
        Op::I32TruncF32U | Op::I32TruncSatF32U => Truncate(Truncation { double: false, wide: false, signed: false }),
        Op::I32TruncF64S | Op::I32TruncSatF64S => Truncate(Truncation { double: true, wide: false, signed: true }),
        Op::I32TruncF64U | Op::I32TruncSatF64U => Truncate(Truncation { double: true, wide: false, signed: false }),
        Op::I64TruncF32S | Op::I64TruncSatF32S => Truncate(Truncation { double: false, wide: true, signed: true }),
        Op::I64TruncF32U | Op::I64TruncSatF32U => Truncate(Truncation { double: false, wide: true, signed: false }),
        Op::I64TruncF64S | Op::I64TruncSatF64S => Truncate(Truncation { double: true, wide: true, signed: true }),
        Op::I64TruncF64U | Op::I64TruncSatF64U => Truncate(Truncation { double: true, wide: true, signed: false }),
        Op::F32Abs => Bits(self::Alu::And, !(1 << 31)),
        Op::F32Neg => Bits(self::Alu::Xor, 1 << 31),
        Op::F64Abs => Bits(self::Alu::And, !(1 << 63)),
        Op::F64Neg => Bits(self::Alu::Xor, 1 << 63),
        Op::JumpTable => JumpTable,
        Op::Call => Call,
        Op::Return => Return,
        _ => return None,
    })
}

/// What a slot is to an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Integer,
    Float,
    /// Its bits are moved.
    Either,
}

impl Shape {
    /// Whether it takes one NaN for another, and whatever it makes of one does not show which one it was.
    pub fn hides_nan(self) -> bool {
        use Shape::*;
        matches!(
            self,
            Float(..) | FloatLoad(..) | MulAdd(_) | MulAddLoad(_) | Root(_) | CompareFloats(..) | ChangePrecision(_) | Truncate(_)
        )
    }

    /// Whether it makes a value of 32 bits, with zeros above.
    pub fn is_narrow(self) -> bool {
        use Shape::*;
        match self {
            Load(size, extend) => size < 8 && extend != Extend::Sign64,
            LoadSum(size) => size < 8,
            Alu(_, wide) | AluConst(_, wide) | Divide(_, wide) | self::Shape::Shift(_, wide) | ShiftConst(_, wide) => !wide,
            CountZeros { .. } | Compare(..) | CompareConst(..) | CompareFloats(..) | JumpAddNe | JumpAddNeConst | AddShl | ZeroExtend => {
                true
            }
            SignExtend(_, wide) | Truncate(Truncation { wide, .. }) => !wide,
            _ => false,
        }
    }

    /// How many bytes of linear memory it reads or writes behind the first operand and the constant's lower half.
    pub fn size(self) -> Option<u8> {
        match self {
            Shape::Load(size, _) | Shape::Store(size) => Some(size),
            Shape::FloatLoad(_, double) | Shape::MulAddLoad(double) => Some(if double { 8 } else { 4 }),
            _ => None,
        }
    }

    /// Whether it goes on, if nothing is wrong, with the next instruction.
    pub fn goes_on(self) -> bool {
        use Shape::*;
        !matches!(self, Jump | JumpIf(..) | JumpIfConst(..) | JumpAddNe | JumpAddNeConst | JumpTable | Loop | Call | Return)
    }
}

/// The slots that an instruction reads, and the one that it writes.
pub type Uses = (Vec<(u16, Use)>, Option<(u16, Use)>);

pub fn uses(shape: Shape, i: &Instruction) -> Uses {
    use Use::{Either, Float, Integer};
    let (a, b, d) = (i.a, i.b, i.d);
    match shape {
        Shape::Copy => (vec![(a, Either)], Some((d, Either))),
        Shape::Const => (vec![], Some((d, Either))),
        Shape::Jump | Shape::Loop => (vec![], None),
        Shape::Select => (vec![(a, Either), (b, Either), (i.imm as u16, Integer)], Some((d, Either))),
        Shape::GlobalGet => (vec![], Some((d, Integer))),
        Shape::GlobalSet | Shape::JumpTable => (vec![(a, Integer)], None),
        Shape::Load(4, Extend::Zero) | Shape::Load(8, _) => (vec![(a, Integer)], Some((d, Either))),
        Shape::LoadSum(4 | 8) => (vec![(a, Integer), (b, Integer)], Some((d, Either))),
        Shape::Load(..) => (vec![(a, Integer)], Some((d, Integer))),
        Shape::Store(4 | 8) => (vec![(a, Integer), (b, Either)], None),
        Shape::Store(_) | Shape::JumpIf(..) => (vec![(a, Integer), (b, Integer)], None),
        Shape::JumpIfConst(..) => (vec![(a, Integer)], None),
        Shape::LoadSum(_)
        | Shape::Alu(..)
        | Shape::Divide(..)
        | Shape::Shift(..)
        | Shape::Compare(..)
        | Shape::JumpAddNe
        | Shape::AddShl => (vec![(a, Integer), (b, Integer)], Some((d, Integer))),
        Shape::AluConst(..)
        | Shape::ShiftConst(..)
        | Shape::CountZeros { .. }
        | Shape::CompareConst(..)
        | Shape::JumpAddNeConst
        | Shape::ZeroExtend
        | Shape::SignExtend(..) => (vec![(a, Integer)], Some((d, Integer))),
        Shape::Float(..) => (vec![(a, Float), (b, Float)], Some((d, Float))),
        Shape::FloatLoad(..) => (vec![(a, Integer), (b, Float)], Some((d, Float))),
        Shape::MulAdd(_) => (vec![(a, Float), (b, Float), (i.imm as u16, Float)], Some((d, Float))),
        Shape::MulAddLoad(_) => (vec![(a, Integer), (b, Float), ((i.imm >> 32) as u16, Float)], Some((d, Float))),
        Shape::Root(_) | Shape::ChangePrecision(_) => (vec![(a, Float)], Some((d, Float))),
        Shape::CompareFloats(..) => (vec![(a, Float), (b, Float)], Some((d, Integer))),
        Shape::Truncate(_) => (vec![(a, Float)], Some((d, Integer))),
        Shape::Convert { .. } => (vec![(a, Integer)], Some((d, Float))),
        Shape::Bits(..) => (vec![(a, Either)], Some((d, Either))),
        Shape::Return if b == 1 => (vec![(a, Either)], None),
        Shape::Call | Shape::Return => (vec![], None),
    }
}
