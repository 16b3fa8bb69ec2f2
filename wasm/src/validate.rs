//! The types of a function's operands, instruction by instruction (WebAssembly 1.0, appendix "Validation Algorithm").

use crate::instruction::{BlockType, Instruction};
use crate::module::ValueType::{self, I32};
use crate::module::{FunctionType, Module};
use crate::refusal::{invalid, Result};

/// Nested blocks of one function; a compiler would need more than this only for generated code.
const MOST_NESTED: usize = 100_000;

pub struct Validator<'a> {
    module: &'a Module,
    locals: &'a [ValueType],
    function: &'a FunctionType,
    /// `None` stands for a value of any type, which code that is never reached can take.
    operands: Vec<Option<ValueType>>,
    frames: Vec<Frame>,
}

struct Frame {
    opened_by: Opener,
    block: BlockType,
    height: usize,
    unreachable: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Opener {
    Function,
    Block,
    Loop,
    If,
    Else,
}

impl<'a> Validator<'a> {
    pub fn new(module: &'a Module, function: &'a FunctionType, locals: &'a [ValueType]) -> Validator<'a> {
        let outermost = Frame { opened_by: Opener::Function, block: BlockType::Empty, height: 0, unreachable: false };
        Validator { module, locals, function, operands: Vec::new(), frames: vec![outermost] }
    }

    /// Whether the next instruction is never reached.
    pub fn unreachable(&self) -> bool {
        self.frames.last().map_or(true, |frame| frame.unreachable)
    }

    pub fn step(&mut self, instruction: &Instruction) -> Result<()> {
        match instruction {
            Instruction::Unreachable => self.rest_unreachable(),
            Instruction::Nop => Ok(()),
            Instruction::Block(block) => self.open(Opener::Block, block),
            Instruction::Loop(block) => self.open(Opener::Loop, block),
            Instruction::If(block) => {
                self.pop(I32)?;
                self.open(Opener::If, block)
            }
            Instruction::Else => {
                let frame = self.close()?;
                if frame.opened_by != Opener::If {
                    return invalid("else without if");
                }
                self.open_frame(Opener::Else, frame.block)
            }
            Instruction::End => self.end(),
            Instruction::Branch(depth) => {
                let types = self.label(*depth)?;
                self.pop_all(&types)?;
                self.rest_unreachable()
            }
            Instruction::BranchIf(depth) => {
                self.pop(I32)?;
                let types = self.label(*depth)?;
                self.pop_all(&types)?;
                self.push_all(&types);
                Ok(())
            }
            Instruction::BranchTable(depths) => self.branch_table(depths),
            Instruction::Return => {
                let function = self.function;
                self.pop_all(&function.results)?;
                self.rest_unreachable()
            }
            Instruction::Call(function) => {
                if *function as usize >= self.module.functions.len() {
                    return invalid(format!("unknown function {function}"));
                }
                let kind = self.module.function_type(*function);
                self.pop_all(&kind.params)?;
                self.push_all(&kind.results);
                Ok(())
            }
            Instruction::CallIndirect(kind) => {
                if !self.module.has_table() {
                    return invalid("unknown table 0");
                }
                let kind = match self.module.types.get(*kind as usize) {
                    Some(kind) => kind,
                    None => return invalid(format!("unknown type {kind}")),
                };
                self.pop(I32)?;
                self.pop_all(&kind.params)?;
                self.push_all(&kind.results);
                Ok(())
            }
            Instruction::Drop => self.pop_any().map(drop),
            Instruction::Select(kind) => self.select(*kind),
            Instruction::LocalGet(local) => {
                let kind = self.local(*local)?;
                self.push(kind);
                Ok(())
            }
            Instruction::LocalSet(local) => {
                let kind = self.local(*local)?;
                self.pop(kind)
            }
            Instruction::LocalTee(local) => {
                let kind = self.local(*local)?;
                self.pop(kind)?;
                self.push(kind);
                Ok(())
            }
            Instruction::GlobalGet(global) => {
                let kind = self.global(*global)?.0;
                self.push(kind);
                Ok(())
            }
            Instruction::GlobalSet(global) => match self.global(*global)? {
                (kind, true) => self.pop(kind),
                (_, false) => invalid(format!("global {global} cannot be changed")),
            },
            Instruction::Load(_, kind, _) => self.compute(true, &[I32], Some(*kind)),
            Instruction::Store(_, kind, _) => self.compute(true, &[I32, *kind], None),
            Instruction::MemorySize => self.compute(true, &[], Some(I32)),
            Instruction::MemoryGrow => self.compute(true, &[I32], Some(I32)),
            Instruction::MemoryCopy | Instruction::MemoryFill => self.compute(true, &[I32, I32, I32], None),
            Instruction::Const(kind, _) => self.compute(false, &[], Some(*kind)),
            Instruction::Numeric(numeric) => {
                let inputs = [numeric.input; 2];
                self.compute(false, &inputs[..usize::from(numeric.inputs)], Some(numeric.output))
            }
        }
    }

    /// After the last instruction: the function's own block must be closed.
    pub fn finished(&self) -> bool {
        self.frames.is_empty()
    }

    fn compute(&mut self, memory: bool, inputs: &[ValueType], output: Option<ValueType>) -> Result<()> {
        if memory && self.module.memory.is_none() {
            return invalid("unknown memory 0");
        }
        self.pop_all(inputs)?;
        self.operands.extend(output.map(Some));
        Ok(())
    }

    fn select(&mut self, kind: Option<ValueType>) -> Result<()> {
        self.pop(I32)?;
        if let Some(kind) = kind {
            return self.compute(false, &[kind, kind], Some(kind));
        }
        let second = self.pop_any()?;
        let first = self.pop_any()?;
        match (first, second) {
            (Some(first), Some(second)) if first != second => invalid(format!("select of {first:?} and {second:?}")),
            _ => {
                self.operands.push(first.or(second));
                Ok(())
            }
        }
    }

    fn branch_table(&mut self, depths: &[u32]) -> Result<()> {
        self.pop(I32)?;
        let (default, others) = depths.split_last().expect("a table has a default");
        let default = self.label(*default)?;
        for depth in others {
            let types = self.label(*depth)?;
            if types.len() != default.len() {
                return invalid("a branch table of labels with different numbers of values");
            }
            self.fits(&types)?;
        }
        self.pop_all(&default)?;
        self.rest_unreachable()
    }

    fn open(&mut self, opened_by: Opener, block: &BlockType) -> Result<()> {
        if let BlockType::Function(index) = block {
            if *index as usize >= self.module.types.len() {
                return invalid(format!("unknown type {index}"));
            }
        }
        if self.frames.len() >= MOST_NESTED {
            return invalid(format!("more than {MOST_NESTED} nested blocks"));
        }
        let module = self.module;
        self.pop_all(block.params(module))?;
        self.open_frame(opened_by, block.clone())
    }

    fn open_frame(&mut self, opened_by: Opener, block: BlockType) -> Result<()> {
        let height = self.operands.len();
        let module = self.module;
        self.push_all(block.params(module));
        self.frames.push(Frame { opened_by, block, height, unreachable: false });
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let frame = self.close()?;
        let module = self.module;
        if frame.opened_by == Opener::If && frame.block.params(module) != frame.block.results(module) {
            return invalid("if without else changes the operands");
        }
        if frame.opened_by != Opener::Function {
            self.push_all(frame.block.results(module));
        }
        Ok(())
    }

    /// The operands of the innermost block must be its results.
    fn close(&mut self) -> Result<Frame> {
        let types = match self.frames.last() {
            Some(frame) => self.results(frame),
            None => return invalid("code after the function's end"),
        };
        self.pop_all(&types)?;
        let frame = self.frames.pop().expect("a frame was there");
        if self.operands.len() != frame.height {
            return invalid(format!("{} operands too many at the end of a block", self.operands.len() - frame.height));
        }
        Ok(frame)
    }

    fn results(&self, frame: &Frame) -> Vec<ValueType> {
        match frame.opened_by {
            Opener::Function => self.function.results.clone(),
            _ => frame.block.results(self.module).to_vec(),
        }
    }

    /// What a branch to a label takes.
    fn label(&self, depth: u32) -> Result<Vec<ValueType>> {
        let frame = match self.frames.len().checked_sub(1 + depth as usize) {
            Some(index) => &self.frames[index],
            None => return invalid(format!("unknown label {depth}")),
        };
        Ok(match frame.opened_by {
            Opener::Loop => frame.block.params(self.module).to_vec(),
            _ => self.results(frame),
        })
    }

    fn local(&self, local: u32) -> Result<ValueType> {
        match self.locals.get(local as usize) {
            Some(kind) => Ok(*kind),
            None => invalid(format!("unknown local {local}")),
        }
    }

    fn global(&self, global: u32) -> Result<(ValueType, bool)> {
        match self.module.globals.get(global as usize) {
            Some(global) => Ok((global.kind, global.mutable)),
            None => invalid(format!("unknown global {global}")),
        }
    }

    fn push(&mut self, kind: ValueType) {
        self.operands.push(Some(kind));
    }

    fn push_all(&mut self, types: &[ValueType]) {
        self.operands.extend(types.iter().copied().map(Some));
    }

    fn pop_any(&mut self) -> Result<Option<ValueType>> {
        let frame = match self.frames.last() {
            Some(frame) => frame,
            None => return invalid("code after the function's end"),
        };
        if self.operands.len() > frame.height {
            return Ok(self.operands.pop().expect("there are operands"));
        }
        if frame.unreachable {
            return Ok(None);
        }
        invalid("an operand is missing")
    }

    fn pop(&mut self, wanted: ValueType) -> Result<()> {
        match self.pop_any()? {
            Some(kind) if kind != wanted => invalid(format!("an operand of type {kind:?} where {wanted:?} is wanted")),
            _ => Ok(()),
        }
    }

    fn pop_all(&mut self, types: &[ValueType]) -> Result<()> {
        types.iter().rev().try_for_each(|kind| self.pop(*kind))
    }

    /// As `pop_all`, but the operands stay.
    fn fits(&self, types: &[ValueType]) -> Result<()> {
        let frame = self.frames.last().expect("the caller has popped an operand of this frame");
        let here = &self.operands[frame.height..];
        if here.len() < types.len() && !frame.unreachable {
            return invalid("an operand is missing");
        }
        let mismatch = |(have, wanted): (&Option<ValueType>, &ValueType)| have.map_or(false, |kind| kind != *wanted);
        if here.iter().rev().zip(types.iter().rev()).any(mismatch) {
            return invalid("a branch table's operands have other types than its labels");
        }
        Ok(())
    }

    fn rest_unreachable(&mut self) -> Result<()> {
        match self.frames.last_mut() {
            Some(frame) => {
                frame.unreachable = true;
                self.operands.truncate(frame.height);
                Ok(())
            }
            None => invalid("code after the function's end"),
        }
    }
}
