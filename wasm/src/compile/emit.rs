//! Emitting one function's code.

use super::fuse::{immediate, joined, jumping, loading, Condition};
use super::Stand;
use crate::code::{self, Function, Op, Site};
use crate::instruction::{BlockType, Instruction, Numeric};
use crate::module::{FunctionType, Module};

/// Where an operand is.
#[derive(Clone, Copy, PartialEq)]
enum Value {
    /// In the slot of its place on the stack.
    Slot,
    Local(u16),
    Const(u64),
}

/// A block that is open.
struct Label {
    is_loop: bool,
    /// The block is in code that is never reached: nothing is emitted for it.
    dead: bool,
    /// Operands below the block's own.
    height: usize,
    params: usize,
    results: usize,
    /// Operands that a branch to the label takes along.
    carried: usize,
    /// The loop's instruction.
    start: usize,
    /// Jumps to the block's end, places in jump tables that lead there, and an `if`'s jump to its `else`.
    jumps: Vec<usize>,
    targets: Vec<usize>,
    otherwise: Option<usize>,
}

pub struct Emitter<'a> {
    module: &'a Module,
    canonical: &'a [u32],
    results: usize,
    function: Function,
    stack: Vec<Value>,
    /// The most operands there were.
    top: usize,
    /// The last instruction, while it is the one that made the topmost operand.
    last: Option<usize>,
    /// The last place in the code that is jumped to: what is before it is no longer changed.
    landing: usize,
    labels: Vec<Label>,
    offset: u32,
}

impl<'a> Emitter<'a> {
    pub fn new(module: &'a Module, canonical: &'a [u32], kind: &FunctionType, locals: usize) -> Emitter<'a> {
        let function = Function { params: kind.params.len() as u32, locals: locals as u32, ..Function::default() };
        let results = kind.results.len();
        let mut emitter =
            Emitter { module, canonical, results, function, stack: vec![], top: 0, last: None, landing: 0, labels: vec![], offset: 0 };
        emitter.site(Stand::Loop, 0);
        emitter.open(false, 0, 0, results);
        emitter
    }

    pub fn finish(mut self) -> Function {
        self.function.frame = self.function.locals + self.top.max(self.results) as u32;
        self.function
    }

    /// Emit one instruction that is valid and, unless `dead`, can be reached.
    pub fn step(&mut self, offset: u32, instruction: &Instruction, dead: bool) {
        self.offset = offset;
        if dead || self.labels.last().map_or(false, |label| label.dead) {
            return self.step_dead(instruction);
        }
        match instruction {
            Instruction::Unreachable => drop(self.emit(Op::Unreachable, 0, 0, 0, 0)),
            Instruction::Nop => {}
            Instruction::Block(block) => {
                self.settle_all();
                self.open_block(false, block);
            }
            Instruction::Loop(block) => {
                self.settle_all();
                self.open_block(true, block);
            }
            Instruction::If(block) => {
                let condition = self.condition();
                self.settle_all();
                let otherwise = self.jump_if(condition.opposite());
                self.open_block(false, block);
                self.innermost().otherwise = Some(otherwise);
            }
            Instruction::Else => {
                self.settle_top(self.labels[self.labels.len() - 1].results);
                let jump = self.emit(Op::Jump, 0, 0, 0, 0);
                self.innermost().jumps.push(jump);
                self.begin_else();
            }
            Instruction::End => {
                self.settle_top(self.labels[self.labels.len() - 1].results);
                self.end();
            }
            Instruction::Branch(depth) => self.branch(*depth, None),
            Instruction::BranchIf(depth) => {
                let condition = self.condition();
                self.branch(*depth, Some(condition));
            }
            Instruction::BranchTable(depths) => self.branch_table(depths),
            Instruction::Return => self.return_results(),
            Instruction::Call(function) => self.call(*function),
            Instruction::CallIndirect(kind) => {
                let index = self.pop();
                let kind = self.canonical[*kind as usize];
                let types = &self.module.types[kind as usize];
                self.call_with(Op::CallIndirect, Stand::Call, types, index, u64::from(kind));
            }
            Instruction::Drop => drop(self.stack.pop()),
            Instruction::Select(_) => {
                let condition = self.pop();
                let b = self.pop();
                let a = self.pop();
                self.push_result(Op::Select, a, b, condition.into());
            }
            Instruction::LocalGet(local) => self.push(Value::Local(*local as u16)),
            Instruction::LocalSet(local) => self.set(*local as u16),
            Instruction::LocalTee(local) => {
                self.set(*local as u16);
                self.push(Value::Local(*local as u16));
            }
            Instruction::GlobalGet(global) => self.push_result(Op::GlobalGet, 0, 0, u64::from(*global)),
            Instruction::GlobalSet(global) => {
                let a = self.pop();
                self.emit(Op::GlobalSet, 0, a, 0, u64::from(*global));
            }
            Instruction::Load(op, _, offset) => {
                let made = self.made(self.stack.len() - 1);
                if let Some(load) = made.and_then(|at| loading(*op, self.function.code[at], *offset)) {
                    return self.replace(1, load);
                }
                let a = self.pop();
                self.push_result(*op, a, 0, u64::from(*offset));
            }
            Instruction::Store(op, _, offset) => {
                let b = self.pop();
                let a = self.pop();
                self.emit(*op, 0, a, b, u64::from(*offset));
            }
            Instruction::MemorySize => self.push_result(Op::MemorySize, 0, 0, 0),
            Instruction::MemoryGrow => {
                let a = self.pop();
                self.push_result(Op::MemoryGrow, a, 0, 0);
            }
            Instruction::MemoryCopy => self.memory_block(Op::MemoryCopy),
            Instruction::MemoryFill => self.memory_block(Op::MemoryFill),
            Instruction::Const(_, value) => self.push(Value::Const(*value)),
            Instruction::Numeric(numeric) => self.numeric(*numeric),
        }
    }

    /// Code that is never reached only opens and closes blocks.
    fn step_dead(&mut self, instruction: &Instruction) {
        match instruction {
            Instruction::Block(_) | Instruction::Loop(_) | Instruction::If(_) => {
                self.open(false, 0, 0, 0);
                self.innermost().dead = true;
            }
            Instruction::Else if !self.innermost().dead => self.begin_else(),
            Instruction::End if self.innermost().dead => drop(self.labels.pop()),
            Instruction::End => self.end(),
            _ => {}
        }
    }

    fn emit(&mut self, op: Op, d: u16, a: u16, b: u16, imm: u64) -> usize {
        self.function.code.push(code::Instruction { op, d, a, b, imm });
        self.last = None;
        self.function.code.len() - 1
    }

    fn site(&mut self, stand: Stand, operands: usize) {
        let pc = self.function.code.len() as u32;
        self.function.sites.push(Site { offset: self.offset, stand, pc, operands: operands as u32 });
    }

    /// The slot of a place on the stack of operands.
    fn slot(&self, place: usize) -> u16 {
        (self.function.locals as usize + place) as u16
    }

    fn innermost(&mut self) -> &mut Label {
        self.labels.last_mut().expect("the function's own label is open")
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
        self.top = self.top.max(self.stack.len());
    }

    fn push_result(&mut self, op: Op, a: u16, b: u16, imm: u64) {
        let at = self.emit(op, self.slot(self.stack.len()), a, b, imm);
        self.push(Value::Slot);
        self.last = Some(at);
    }

    /// The slot that holds the topmost operand, which leaves the stack.
    fn pop(&mut self) -> u16 {
        let place = self.stack.len() - 1;
        let slot = match self.stack[place] {
            Value::Local(local) => local,
            _ => {
                self.settle(place);
                self.slot(place)
            }
        };
        self.stack.pop();
        slot
    }

    /// Bring an operand into the slot of its place.
    fn settle(&mut self, place: usize) {
        self.copy_to(place, place);
        self.stack[place] = Value::Slot;
    }

    fn copy_to(&mut self, from: usize, to: usize) {
        let d = self.slot(to);
        match self.stack[from] {
            Value::Local(local) => drop(self.emit(Op::Copy, d, local, 0, 0)),
            Value::Const(value) => drop(self.emit(Op::Const, d, 0, 0, value)),
            Value::Slot if from != to => drop(self.emit(Op::Copy, d, self.slot(from), 0, 0)),
            Value::Slot => {}
        }
    }

    fn settle_all(&mut self) {
        (0..self.stack.len()).for_each(|place| self.settle(place));
    }

    fn settle_top(&mut self, count: usize) {
        (self.stack.len() - count..self.stack.len()).for_each(|place| self.settle(place));
    }

    /// The instruction whose result is the topmost operand, if nothing came after it.
    fn maker(&self) -> Option<usize> {
        self.made(self.stack.len() - 1)
    }

    /// The last instruction, if its result is the operand at this place.
    fn made(&self, place: usize) -> Option<usize> {
        let at = self.last?;
        let made = self.stack[place] == Value::Slot && self.function.code[at].d == self.slot(place);
        (made && at + 1 == self.function.code.len()).then_some(at)
    }

    /// Have one instruction take the place of the last one and of what takes its result and other operands, `count` in all.
    fn replace(&mut self, count: usize, instruction: code::Instruction) {
        self.function.code.pop();
        self.stack.truncate(self.stack.len() - count);
        self.push_result(instruction.op, instruction.a, instruction.b, instruction.imm);
    }

    /// The operation of the two topmost operands together with the instruction that made one of them.
    fn join(&self, op: Op) -> Option<code::Instruction> {
        let second = self.stack.len() - 1;
        [(second, second - 1, true), (second - 1, second, false)].into_iter().find_map(|(place, other, is_second)| {
            let slot = match self.stack[other] {
                Value::Slot => self.slot(other),
                Value::Local(local) => local,
                Value::Const(_) => return None,
            };
            joined(op, self.function.code[self.made(place)?], slot, is_second)
        })
    }

    fn set(&mut self, local: u16) {
        let place = self.stack.len() - 1;
        let others: Vec<usize> = (0..place).filter(|place| self.stack[*place] == Value::Local(local)).collect();
        match (others.is_empty(), self.maker()) {
            (true, Some(at)) => {
                self.function.code[at].d = local;
                self.last = None;
            }
            _ => {
                // Who noted the local's old value takes it before it changes.
                others.into_iter().for_each(|place| self.settle(place));
                match self.stack[place] {
                    Value::Const(value) => drop(self.emit(Op::Const, local, 0, 0, value)),
                    Value::Local(same) if same == local => {}
                    Value::Local(from) => drop(self.emit(Op::Copy, local, from, 0, 0)),
                    Value::Slot => drop(self.emit(Op::Copy, local, self.slot(place), 0, 0)),
                }
            }
        }
        self.stack.pop();
    }

    fn numeric(&mut self, numeric: Numeric) {
        match numeric.op {
            // Slots hold bits, and values of 32 bits ignore the upper half.
            Op::Copy | Op::I32WrapI64 => {}
            Op::I32Eqz => {
                let a = self.pop();
                self.push_result(Op::I32EqImm, a, 0, 0);
            }
            Op::I64Eqz => {
                let a = self.pop();
                self.push_result(Op::I64EqImm, a, 0, 0);
            }
            op if numeric.inputs == 1 => {
                let a = self.pop();
                self.push_result(op, a, 0, 0);
            }
            op => {
                if let Some(Value::Const(constant)) = self.stack.last() {
                    if let Some((op, constant)) = immediate(op, *constant) {
                        self.stack.pop();
                        let a = self.pop();
                        return self.push_result(op, a, 0, constant);
                    }
                }
                if let Some(both) = self.join(op) {
                    return self.replace(2, both);
                }
                let b = self.pop();
                let a = self.pop();
                self.push_result(op, a, b, 0);
            }
        }
    }

    fn memory_block(&mut self, op: Op) {
        let count = self.pop();
        let b = self.pop();
        let a = self.pop();
        self.emit(op, count, a, b, 0);
    }

    /// Take the topmost operand as a condition, together with the comparison that made it.
    fn condition(&mut self) -> Condition {
        if let Some(at) = self.maker() {
            let made = self.function.code[at];
            if let Some(condition) = Condition::of(made.op, made.a, made.b, made.imm) {
                self.function.code.pop();
                self.last = None;
                self.stack.pop();
                return condition;
            }
        }
        Condition::not_zero(self.pop())
    }

    fn jump_if(&mut self, condition: Condition) -> usize {
        let made = self.function.code.last().filter(|_| self.landing < self.function.code.len());
        if let Some(jump) = made.and_then(|made| jumping(condition, *made)) {
            self.function.code.pop();
            return self.emit(jump.op, jump.d, jump.a, jump.b, jump.imm);
        }
        self.emit(condition.op, 0, condition.a, condition.b, u64::from(condition.constant as u32) << 32)
    }

    /// Let a jump lead to the next instruction.
    fn land(&mut self, jump: usize) {
        self.function.code[jump].imm |= self.function.code.len() as u64;
        self.landed();
    }

    /// Something leads to the next instruction.
    fn landed(&mut self) {
        self.last = None;
        self.landing = self.function.code.len();
    }

    fn open(&mut self, is_loop: bool, height: usize, params: usize, results: usize) {
        self.labels.push(Label {
            is_loop,
            dead: false,
            height,
            params,
            results,
            carried: if is_loop { params } else { results },
            start: self.function.code.len(),
            jumps: vec![],
            targets: vec![],
            otherwise: None,
        });
        self.landed();
    }

    fn open_block(&mut self, is_loop: bool, block: &BlockType) {
        let params = block.params(self.module).len();
        self.open(is_loop, self.stack.len() - params, params, block.results(self.module).len());
        if is_loop {
            self.site(Stand::Loop, self.stack.len());
            self.emit(Op::Loop, 0, 0, 0, 0);
        }
    }

    fn begin_else(&mut self) {
        let label = self.innermost();
        let (height, params, otherwise) = (label.height, label.params, label.otherwise.take());
        if let Some(jump) = otherwise {
            self.land(jump);
        }
        // The parameters are in their slots still: the jump was before the other branch.
        self.stack.truncate(height);
        (0..params).for_each(|_| self.push(Value::Slot));
    }

    fn end(&mut self) {
        let label = self.labels.pop().expect("the block is open");
        for jump in label.jumps.into_iter().chain(label.otherwise) {
            self.land(jump);
        }
        for place in label.targets {
            self.function.targets[place] = self.function.code.len() as u32;
        }
        self.stack.truncate(label.height);
        (0..label.results).for_each(|_| self.push(Value::Slot));
        self.landed();
        if self.labels.is_empty() {
            let first = self.slot(0);
            self.emit(Op::Return, 0, first, label.results as u16, 0);
        }
    }

    fn branch(&mut self, depth: u32, condition: Option<Condition>) {
        let index = self.labels.len() - 1 - depth as usize;
        let Label { is_loop, height, carried, start, .. } = self.labels[index];
        let from = self.stack.len() - carried;
        let moves = (from..self.stack.len()).any(|place| self.stack[place] != Value::Slot) || carried > 0 && from != height;
        let jump = match condition {
            Some(condition) if moves => {
                let past = self.jump_if(condition.opposite());
                self.carry(from, height, carried);
                let jump = self.emit(Op::Jump, 0, 0, 0, 0);
                self.land(past);
                jump
            }
            Some(condition) => self.jump_if(condition),
            None => {
                self.carry(from, height, carried);
                self.emit(Op::Jump, 0, 0, 0, 0)
            }
        };
        if is_loop {
            self.function.code[jump].imm |= start as u64;
        } else {
            self.labels[index].jumps.push(jump);
        }
    }

    /// Copy operands down to where a label wants them. None is overwritten before it is read, as they only move down.
    fn carry(&mut self, from: usize, to: usize, count: usize) {
        (0..count).for_each(|place| self.copy_to(from + place, to + place));
    }

    fn branch_table(&mut self, depths: &[u32]) {
        let index = self.pop();
        let first = self.function.targets.len();
        self.function.targets.resize(first + depths.len(), 0);
        // The last one is the default, for an index that is too large.
        self.emit(Op::JumpTable, 0, index, 0, (depths.len() as u64 - 1) << 32 | first as u64);
        for (place, depth) in (first..).zip(depths) {
            let label = self.labels.len() - 1 - *depth as usize;
            if self.labels[label].carried > 0 {
                self.function.targets[place] = self.function.code.len() as u32;
                self.branch(*depth, None);
            } else if self.labels[label].is_loop {
                self.function.targets[place] = self.labels[label].start as u32;
            } else {
                self.labels[label].targets.push(place);
            }
        }
    }

    fn return_results(&mut self) {
        let slot = if self.results == 1 {
            self.pop()
        } else {
            self.settle_top(self.results);
            self.slot(self.stack.len() - self.results)
        };
        self.emit(Op::Return, 0, slot, self.results as u16, 0);
    }

    fn call(&mut self, function: u32) {
        let types = self.module.function_type(function);
        // A forwarder calls its import; all others do so directly.
        if (function as usize) < self.module.imports.len() {
            self.call_with(Op::Host, Stand::Host, types, 0, u64::from(function));
        } else {
            self.call_with(Op::Call, Stand::Call, types, 0, u64::from(function));
        }
    }

    fn call_with(&mut self, op: Op, stand: Stand, types: &FunctionType, index: u16, imm: u64) {
        self.settle_all();
        let height = self.stack.len() - types.params.len();
        self.site(stand, if stand == Stand::Host { self.stack.len() } else { height });
        self.emit(op, self.slot(height), index, 0, imm);
        self.stack.truncate(height);
        types.results.iter().for_each(|_| self.push(Value::Slot));
    }
}
