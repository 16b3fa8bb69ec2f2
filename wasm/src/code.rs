//! What functions are compiled to: three-address instructions over the slots of a frame.
//!
//! A frame's slots are the function's parameters and locals, then its operands, one slot of 64 bits each. A call's arguments are the
//! caller's topmost operands and the callee's first locals at once, so that all frames together are one array without gaps.

/// Instructions of our own first, then those of WebAssembly that compute, by its names.
///
/// `…Imm` has its second operand in the instruction. `Jump…` are jumps under a condition; a jump back leads to a `Loop`. Values of 32
/// bits ignore the upper half of their slots. What stands after `Two and more in one` does what its parts do, one after the other:
/// an interpreter's time goes by the count of its instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[rustfmt::skip]
pub enum Op {
    Unreachable, Copy, Const, Jump, JumpTable, Return, Call, CallIndirect, Host, Loop, Select, GlobalGet, GlobalSet,
    MemorySize, MemoryGrow, MemoryCopy, MemoryFill,
    Load8U, Load16U, Load32U, Load64, Load8S32, Load16S32, Load8S64, Load16S64, Load32S64, Store8, Store16, Store32, Store64,
    I32Eqz, I32Eq, I32Ne, I32LtS, I32LtU, I32GtS, I32GtU, I32LeS, I32LeU, I32GeS, I32GeU,
    I64Eqz, I64Eq, I64Ne, I64LtS, I64LtU, I64GtS, I64GtU, I64LeS, I64LeU, I64GeS, I64GeU,
    F32Eq, F32Ne, F32Lt, F32Gt, F32Le, F32Ge, F64Eq, F64Ne, F64Lt, F64Gt, F64Le, F64Ge,
    I32Clz, I32Ctz, I32Popcnt, I32Add, I32Sub, I32Mul, I32DivS, I32DivU, I32RemS, I32RemU, I32And, I32Or, I32Xor, I32Shl, I32ShrS,
    I32ShrU, I32Rotl, I32Rotr,
    I64Clz, I64Ctz, I64Popcnt, I64Add, I64Sub, I64Mul, I64DivS, I64DivU, I64RemS, I64RemU, I64And, I64Or, I64Xor, I64Shl, I64ShrS,
    I64ShrU, I64Rotl, I64Rotr,
    F32Abs, F32Neg, F32Ceil, F32Floor, F32Trunc, F32Nearest, F32Sqrt, F32Add, F32Sub, F32Mul, F32Div, F32Min, F32Max, F32Copysign,
    F64Abs, F64Neg, F64Ceil, F64Floor, F64Trunc, F64Nearest, F64Sqrt, F64Add, F64Sub, F64Mul, F64Div, F64Min, F64Max, F64Copysign,
    I32WrapI64, I32TruncF32S, I32TruncF32U, I32TruncF64S, I32TruncF64U, I64ExtendI32S, I64ExtendI32U, I64TruncF32S, I64TruncF32U,
    I64TruncF64S, I64TruncF64U, F32ConvertI32S, F32ConvertI32U, F32ConvertI64S, F32ConvertI64U, F32DemoteF64, F64ConvertI32S,
    F64ConvertI32U, F64ConvertI64S, F64ConvertI64U, F64PromoteF32,
    I32Extend8S, I32Extend16S, I64Extend8S, I64Extend16S, I64Extend32S,
    I32TruncSatF32S, I32TruncSatF32U, I32TruncSatF64S, I32TruncSatF64U, I64TruncSatF32S, I64TruncSatF32U, I64TruncSatF64S, I64TruncSatF64U,
    I32EqImm, I32NeImm, I32LtSImm, I32LtUImm, I32GtSImm, I32GtUImm, I32LeSImm, I32LeUImm, I32GeSImm, I32GeUImm,
    I64EqImm, I64NeImm, I64LtSImm, I64LtUImm, I64GtSImm, I64GtUImm, I64LeSImm, I64LeUImm, I64GeSImm, I64GeUImm,
    I32AddImm, I32MulImm, I32AndImm, I32OrImm, I32XorImm, I32ShlImm, I32ShrSImm, I32ShrUImm, I32RotlImm,
    I64AddImm, I64MulImm, I64AndImm, I64OrImm, I64XorImm, I64ShlImm, I64ShrSImm, I64ShrUImm, I64RotlImm,
    JumpI32Eq, JumpI32Ne, JumpI32LtS, JumpI32LtU, JumpI32GtS, JumpI32GtU, JumpI32LeS, JumpI32LeU, JumpI32GeS, JumpI32GeU,
    JumpI64Eq, JumpI64Ne, JumpI64LtS, JumpI64LtU, JumpI64GtS, JumpI64GtU, JumpI64LeS, JumpI64LeU, JumpI64GeS, JumpI64GeU,
    JumpI32EqImm, JumpI32NeImm, JumpI32LtSImm, JumpI32LtUImm, JumpI32GtSImm, JumpI32GtUImm, JumpI32LeSImm, JumpI32LeUImm,
    JumpI32GeSImm, JumpI32GeUImm,
    JumpI64EqImm, JumpI64NeImm, JumpI64LtSImm, JumpI64LtUImm, JumpI64GtSImm, JumpI64GtUImm, JumpI64LeSImm, JumpI64LeUImm,
    JumpI64GeSImm, JumpI64GeUImm,
    // Two and more in one.
    /// d = a + the upper half of `imm`; a jump if d is not b, or not the constant that is in b's place.
    JumpI32AddNe, JumpI32AddNeImm,
    /// d = a + (b << imm)
    I32AddShl,
    /// Loads from a + b.
    Load8USum, Load32USum, Load64Sum,
    /// d = b op what is loaded from a
    F64AddLoad, F64SubLoad, F64MulLoad, F32MulLoad,
    /// d = the slot `imm` ± a * b; of `…Load`: the slot in the upper half of `imm` + b * what is loaded from a
    F64MulAdd, F64MulSub, F64MulAddLoad, F32MulAddLoad,
}

/// `d` is the slot of the result, or a call's first argument; `a` and `b` are slots of operands. A jump has its target in the low half of
/// `imm` and a constant to compare with, extended by its sign, in the upper one.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    pub op: Op,
    pub d: u16,
    pub a: u16,
    pub b: u16,
    pub imm: u64,
}

/// Where a function can stand while the program is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// At its beginning, or at a loop's: about to go on.
    Loop,
    /// About to call a function of the host, which may have been interrupted: its arguments are operands.
    Host,
    /// In a call of another function: the arguments belong to the callee.
    Call,
}

/// A place where a function can stand. The offset of the WebAssembly instruction in the function's code and the count of
/// operands are the module's own: a checkpoint that names them outlives changes of the compiler.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    pub offset: u32,
    pub stand: Stand,
    pub pc: u32,
    pub operands: u32,
}

#[derive(Debug, Default)]
pub struct Function {
    pub code: Vec<Instruction>,
    /// Targets of the jump tables, one table after the other.
    pub targets: Vec<u32>,
    /// By offset.
    pub sites: Vec<Site>,
    pub params: u32,
    pub locals: u32,
    /// By local: whether it is an integer of 32 bits.
    pub narrow: Vec<bool>,
    /// Slots of a frame: locals, operands at most, results.
    pub frame: u32,
    /// Equal for functions of equal types, so that an indirect call compares one number.
    pub kind: u32,
}

impl Function {
    pub fn site(&self, offset: u32) -> Option<&Site> {
        self.sites.binary_search_by_key(&offset, |site| site.offset).ok().map(|at| &self.sites[at])
    }

    /// Where a function stands in a call, or elsewhere. A call that a function or a loop begins with is at the same place in the code.
    pub fn site_at(&self, pc: u32, in_call: bool) -> Option<&Site> {
        // The compiler writes code and sites in one order.
        let first = self.sites.partition_point(|site| site.pc < pc);
        self.sites[first..].iter().take_while(|site| site.pc == pc).find(|site| (site.stand == Stand::Call) == in_call)
    }
}

#[derive(Debug)]
pub struct Program {
    pub functions: Vec<Function>,
    pub table: Vec<Option<u32>>,
}
