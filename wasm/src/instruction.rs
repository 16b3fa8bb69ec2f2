//! One instruction of WebAssembly at a time (WebAssembly 1.0, 5.4; of later versions sign extension, saturating conversion,
//! several values, and memory.copy and memory.fill). What is left out is refused by its name.

use crate::bytes::Bytes;
use crate::code::Op;
use crate::module::ValueType::{self, F32, F64, I32, I64};
use crate::module::{value_type, Module};
use crate::refusal::{invalid, malformed, unsupported, Result};

#[derive(Clone, Debug)]
pub enum BlockType {
    Empty,
    Value(ValueType),
    Function(u32),
}

#[derive(Clone, Debug)]
pub enum Instruction {
    Unreachable,
    Nop,
    Block(BlockType),
    Loop(BlockType),
    If(BlockType),
    Else,
    End,
    Branch(u32),
    BranchIf(u32),
    BranchTable(Vec<u32>),
    Return,
    Call(u32),
    CallIndirect(u32),
    Drop,
    Select(Option<ValueType>),
    LocalGet(u32),
    LocalSet(u32),
    LocalTee(u32),
    GlobalGet(u32),
    GlobalSet(u32),
    Load(Op, ValueType, u32),
    Store(Op, ValueType, u32),
    MemorySize,
    MemoryGrow,
    MemoryCopy,
    MemoryFill,
    Const(ValueType, u64),
    Numeric(Numeric),
}

/// An instruction that takes one or two values of one type.
#[derive(Clone, Copy, Debug)]
pub struct Numeric {
    pub op: Op,
    pub inputs: u8,
    pub input: ValueType,
    pub output: ValueType,
}

pub fn decode(bytes: &mut Bytes) -> Result<Instruction> {
    Ok(match bytes.byte()? {
        0x00 => Instruction::Unreachable,
        0x01 => Instruction::Nop,
        0x02 => Instruction::Block(block_type(bytes)?),
        0x03 => Instruction::Loop(block_type(bytes)?),
        0x04 => Instruction::If(block_type(bytes)?),
        0x05 => Instruction::Else,
        0x06..=0x0a | 0x18 | 0x19 | 0x1f => return unsupported("exceptions"),
        0x0b => Instruction::End,
        0x0c => Instruction::Branch(bytes.u32()?),
        0x0d => Instruction::BranchIf(bytes.u32()?),
        0x0e => {
            let count = bytes.count()?;
            Instruction::BranchTable((0..=count).map(|_| bytes.u32()).collect::<Result<_>>()?)
        }
        0x0f => Instruction::Return,
        0x10 => Instruction::Call(bytes.u32()?),
        0x11 => {
            let kind = bytes.u32()?;
            match bytes.u32()? {
                0 => Instruction::CallIndirect(kind),
                table => return invalid(format!("unknown table {table}")),
            }
        }
        0x12 | 0x13 => return unsupported("tail calls"),
        0x14 | 0x15 | 0xd0..=0xd6 | 0x25 | 0x26 => return unsupported("reference types"),
        0x1a => Instruction::Drop,
        0x1b => Instruction::Select(None),
        0x1c => match bytes.u32()? {
            1 => Instruction::Select(Some(value_type(bytes.byte()?)?)),
            count => return invalid(format!("select of {count} types")),
        },
        0x20 => Instruction::LocalGet(bytes.u32()?),
        0x21 => Instruction::LocalSet(bytes.u32()?),
        0x22 => Instruction::LocalTee(bytes.u32()?),
        0x23 => Instruction::GlobalGet(bytes.u32()?),
        0x24 => Instruction::GlobalSet(bytes.u32()?),
        op @ 0x28..=0x35 => {
            let (load, kind, alignment) = LOADS[usize::from(op) - 0x28];
            Instruction::Load(load, kind, offset(bytes, alignment)?)
        }
        op @ 0x36..=0x3e => {
            let (store, kind, alignment) = STORES[usize::from(op) - 0x36];
            Instruction::Store(store, kind, offset(bytes, alignment)?)
        }
        0x3f => memory(bytes, Instruction::MemorySize)?,
        0x40 => memory(bytes, Instruction::MemoryGrow)?,
        0x41 => Instruction::Const(I32, u64::from(bytes.i32()? as u32)),
        0x42 => Instruction::Const(I64, bytes.i64()? as u64),
        0x43 => Instruction::Const(F32, u64::from(u32::from_le_bytes(bytes.array()?))),
        0x44 => Instruction::Const(F64, u64::from_le_bytes(bytes.array()?)),
        op @ 0x45..=0xc4 => Instruction::Numeric(numeric(NUMERIC[usize::from(op) - 0x45])),
        0xfb => return unsupported("garbage collection"),
        0xfc => match bytes.u32()? {
            op @ 0..=7 => Instruction::Numeric(numeric(SATURATING[op as usize])),
            8 | 9 => return unsupported("passive data segments"),
            10 => {
                let copy = memory(bytes, Instruction::MemoryCopy)?;
                memory(bytes, copy)?
            }
            11 => memory(bytes, Instruction::MemoryFill)?,
            12..=17 => return unsupported("reference types"),
            op => return malformed(format!("instruction 0xfc {op}")),
        },
        0xfd => return unsupported("SIMD"),
        0xfe => return unsupported("threads (atomic instructions)"),
        op => return malformed(format!("instruction {op:#x}")),
    })
}

impl BlockType {
    pub fn params<'a>(&'a self, module: &'a Module) -> &'a [ValueType] {
        match self {
            BlockType::Function(index) => &module.types[*index as usize].params,
            _ => &[],
        }
    }

    pub fn results<'a>(&'a self, module: &'a Module) -> &'a [ValueType] {
        match self {
            BlockType::Empty => &[],
            BlockType::Value(kind) => std::slice::from_ref(kind),
            BlockType::Function(index) => &module.types[*index as usize].results,
        }
    }
}

fn block_type(bytes: &mut Bytes) -> Result<BlockType> {
    match bytes.i33()? {
        -64 => Ok(BlockType::Empty),
        kind @ -63..=-1 => Ok(BlockType::Value(value_type((kind & 0x7f) as u8)?)),
        index => match u32::try_from(index) {
            Ok(index) => Ok(BlockType::Function(index)),
            Err(_) => malformed(format!("block type {index}")),
        },
    }
}

/// The operand of a load or a store: a power of two as the alignment, at most the natural one, and an offset.
fn offset(bytes: &mut Bytes, natural: u32) -> Result<u32> {
    let alignment = bytes.u32()?;
    if alignment > natural {
        return invalid(format!("alignment 2^{alignment}, at most 2^{natural}"));
    }
    bytes.u32()
}

fn memory(bytes: &mut Bytes, instruction: Instruction) -> Result<Instruction> {
    match bytes.byte()? {
        0 => Ok(instruction),
        index => invalid(format!("unknown memory {index}")),
    }
}

fn numeric((op, inputs, input, output): (Op, u8, ValueType, ValueType)) -> Numeric {
    Numeric { op, inputs, input, output }
}

/// 0x28 to 0x35: what is loaded, its type, the natural alignment.
#[rustfmt::skip]
const LOADS: [(Op, ValueType, u32); 14] = [
    (Op::Load32U, I32, 2), (Op::Load64, I64, 3), (Op::Load32U, F32, 2), (Op::Load64, F64, 3), (Op::Load8S32, I32, 0),
    (Op::Load8U, I32, 0), (Op::Load16S32, I32, 1), (Op::Load16U, I32, 1), (Op::Load8S64, I64, 0), (Op::Load8U, I64, 0),
    (Op::Load16S64, I64, 1), (Op::Load16U, I64, 1), (Op::Load32S64, I64, 2), (Op::Load32U, I64, 2),
];

/// 0x36 to 0x3e.
#[rustfmt::skip]
const STORES: [(Op, ValueType, u32); 9] = [
    (Op::Store32, I32, 2), (Op::Store64, I64, 3), (Op::Store32, F32, 2), (Op::Store64, F64, 3), (Op::Store8, I32, 0),
    (Op::Store16, I32, 1), (Op::Store8, I64, 0), (Op::Store16, I64, 1), (Op::Store32, I64, 2),
];

/// 0x45 to 0xc4: inputs, their type, the output's.
#[rustfmt::skip]
const NUMERIC: [(Op, u8, ValueType, ValueType); 128] = [
    (Op::I32Eqz, 1, I32, I32), (Op::I32Eq, 2, I32, I32), (Op::I32Ne, 2, I32, I32), (Op::I32LtS, 2, I32, I32), (Op::I32LtU, 2, I32, I32),
    (Op::I32GtS, 2, I32, I32), (Op::I32GtU, 2, I32, I32), (Op::I32LeS, 2, I32, I32), (Op::I32LeU, 2, I32, I32), (Op::I32GeS, 2, I32, I32),
    (Op::I32GeU, 2, I32, I32), (Op::I64Eqz, 1, I64, I32), (Op::I64Eq, 2, I64, I32), (Op::I64Ne, 2, I64, I32), (Op::I64LtS, 2, I64, I32),
    (Op::I64LtU, 2, I64, I32), (Op::I64GtS, 2, I64, I32), (Op::I64GtU, 2, I64, I32), (Op::I64LeS, 2, I64, I32), (Op::I64LeU, 2, I64, I32),
    (Op::I64GeS, 2, I64, I32), (Op::I64GeU, 2, I64, I32), (Op::F32Eq, 2, F32, I32), (Op::F32Ne, 2, F32, I32), (Op::F32Lt, 2, F32, I32),
    (Op::F32Gt, 2, F32, I32), (Op::F32Le, 2, F32, I32), (Op::F32Ge, 2, F32, I32), (Op::F64Eq, 2, F64, I32), (Op::F64Ne, 2, F64, I32),
    (Op::F64Lt, 2, F64, I32), (Op::F64Gt, 2, F64, I32), (Op::F64Le, 2, F64, I32), (Op::F64Ge, 2, F64, I32), (Op::I32Clz, 1, I32, I32),
    (Op::I32Ctz, 1, I32, I32), (Op::I32Popcnt, 1, I32, I32), (Op::I32Add, 2, I32, I32), (Op::I32Sub, 2, I32, I32),
    (Op::I32Mul, 2, I32, I32), (Op::I32DivS, 2, I32, I32), (Op::I32DivU, 2, I32, I32), (Op::I32RemS, 2, I32, I32),
    (Op::I32RemU, 2, I32, I32), (Op::I32And, 2, I32, I32), (Op::I32Or, 2, I32, I32), (Op::I32Xor, 2, I32, I32), (Op::I32Shl, 2, I32, I32),
    (Op::I32ShrS, 2, I32, I32), (Op::I32ShrU, 2, I32, I32), (Op::I32Rotl, 2, I32, I32), (Op::I32Rotr, 2, I32, I32),
    (Op::I64Clz, 1, I64, I64), (Op::I64Ctz, 1, I64, I64), (Op::I64Popcnt, 1, I64, I64), (Op::I64Add, 2, I64, I64),
    (Op::I64Sub, 2, I64, I64), (Op::I64Mul, 2, I64, I64), (Op::I64DivS, 2, I64, I64), (Op::I64DivU, 2, I64, I64),
    (Op::I64RemS, 2, I64, I64), (Op::I64RemU, 2, I64, I64), (Op::I64And, 2, I64, I64), (Op::I64Or, 2, I64, I64),
    (Op::I64Xor, 2, I64, I64), (Op::I64Shl, 2, I64, I64), (Op::I64ShrS, 2, I64, I64), (Op::I64ShrU, 2, I64, I64),
    (Op::I64Rotl, 2, I64, I64), (Op::I64Rotr, 2, I64, I64), (Op::F32Abs, 1, F32, F32), (Op::F32Neg, 1, F32, F32),
    (Op::F32Ceil, 1, F32, F32), (Op::F32Floor, 1, F32, F32), (Op::F32Trunc, 1, F32, F32), (Op::F32Nearest, 1, F32, F32),
    (Op::F32Sqrt, 1, F32, F32), (Op::F32Add, 2, F32, F32), (Op::F32Sub, 2, F32, F32), (Op::F32Mul, 2, F32, F32),
    (Op::F32Div, 2, F32, F32), (Op::F32Min, 2, F32, F32), (Op::F32Max, 2, F32, F32), (Op::F32Copysign, 2, F32, F32),
    (Op::F64Abs, 1, F64, F64), (Op::F64Neg, 1, F64, F64), (Op::F64Ceil, 1, F64, F64), (Op::F64Floor, 1, F64, F64),
    (Op::F64Trunc, 1, F64, F64), (Op::F64Nearest, 1, F64, F64), (Op::F64Sqrt, 1, F64, F64), (Op::F64Add, 2, F64, F64),
    (Op::F64Sub, 2, F64, F64), (Op::F64Mul, 2, F64, F64), (Op::F64Div, 2, F64, F64), (Op::F64Min, 2, F64, F64), (Op::F64Max, 2, F64, F64),
    (Op::F64Copysign, 2, F64, F64), (Op::I32WrapI64, 1, I64, I32), (Op::I32TruncF32S, 1, F32, I32), (Op::I32TruncF32U, 1, F32, I32),
    (Op::I32TruncF64S, 1, F64, I32), (Op::I32TruncF64U, 1, F64, I32), (Op::I64ExtendI32S, 1, I32, I64), (Op::I64ExtendI32U, 1, I32, I64),
    (Op::I64TruncF32S, 1, F32, I64), (Op::I64TruncF32U, 1, F32, I64), (Op::I64TruncF64S, 1, F64, I64), (Op::I64TruncF64U, 1, F64, I64),
    (Op::F32ConvertI32S, 1, I32, F32), (Op::F32ConvertI32U, 1, I32, F32), (Op::F32ConvertI64S, 1, I64, F32),
    (Op::F32ConvertI64U, 1, I64, F32), (Op::F32DemoteF64, 1, F64, F32), (Op::F64ConvertI32S, 1, I32, F64),
    (Op::F64ConvertI32U, 1, I32, F64), (Op::F64ConvertI64S, 1, I64, F64), (Op::F64ConvertI64U, 1, I64, F64),
    (Op::F64PromoteF32, 1, F32, F64),
    // Reinterpretations: a slot holds bits.
    (Op::Copy, 1, F32, I32), (Op::Copy, 1, F64, I64), (Op::Copy, 1, I32, F32), (Op::Copy, 1, I64, F64), (Op::I32Extend8S, 1, I32, I32),
    (Op::I32Extend16S, 1, I32, I32), (Op::I64Extend8S, 1, I64, I64), (Op::I64Extend16S, 1, I64, I64), (Op::I64Extend32S, 1, I64, I64),
];

/// 0xfc 0 to 7.
#[rustfmt::skip]
const SATURATING: [(Op, u8, ValueType, ValueType); 8] = [
    (Op::I32TruncSatF32S, 1, F32, I32), (Op::I32TruncSatF32U, 1, F32, I32), (Op::I32TruncSatF64S, 1, F64, I32),
    (Op::I32TruncSatF64U, 1, F64, I32), (Op::I64TruncSatF32S, 1, F32, I64), (Op::I64TruncSatF32U, 1, F32, I64),
    (Op::I64TruncSatF64S, 1, F64, I64), (Op::I64TruncSatF64U, 1, F64, I64),
];
