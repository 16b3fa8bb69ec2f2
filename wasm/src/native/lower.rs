//! From three-address code to the processor's.

use super::places::{clean, entered, places, target, Place};
use super::shapes::{shape, uses, Shape};
use super::target::Code;
use super::{Alu, Assembler, At, CallOf, Condition, Extend, Float, Function, Instruction, Patch, Program, Shift};

const CANONICAL_32: u64 = 0x7fc0_0000;
const CANONICAL_64: u64 = 0x7ff8_0000_0000_0000;
/// A call of a function with more locals besides its parameters is the interpreter's.
const MOST_CLEARED: u32 = 64;
/// So many instructions are looked at in advance.
const AHEAD: usize = 64;

struct Lowering<'a> {
    program: &'a Program,
    function: &'a Function,
    code: Code,
    places: Vec<Place>,
    clean: Vec<bool>,
    /// By `pc`: whether the code can be entered there, and whether it can be reached from elsewhere than the instruction before.
    entered: Vec<bool>,
    landings: Vec<bool>,
    /// Slots behind whose value linear memory has so many bytes, at this place in the code.
    checked: Vec<(u16, u64)>,
    /// By `pc`: where its code begins.
    starts: Vec<usize>,
    /// Jumps to an instruction, and out of the code to one.
    jumps: Vec<(Patch, usize)>,
    exits: Vec<(Patch, usize)>,
    /// Tables of places, and where each leads.
    tables: Vec<(usize, Vec<u32>)>,
    /// Jumps of a float that is NaN, its register, and where to go on.
    nans: Vec<(Patch, u8, bool, usize)>,
    /// Jumps out of the code that need to store nothing: the place is in the first scratch register.
    leaves: Vec<Patch>,
    /// The slots with a register that are written.
    written: Vec<u16>,
}

/// A function's code, and by `pc` where it can be entered, or 0.
pub fn lower(program: &Program, function: &Function) -> Option<(Vec<u8>, Vec<u32>)> {
    let places = places(function);
    let writes = function.code.iter().filter_map(|i| uses(shape(i.op)?, i).1);
    let mut written: Vec<u16> = writes.map(|(slot, _)| slot).filter(|slot| places[usize::from(*slot)] != Place::Memory).collect();
    written.sort_unstable();
    written.dedup();
    let entered = entered(function);
    let mut landings = entered.clone();
    let targets = function.targets.iter().map(|target| *target as usize);
    function.code.iter().filter_map(target).chain(targets).for_each(|target| landings[target] = true);
    let mut lowering = Lowering {
        program,
        function,
        code: Code::default(),
        clean: clean(function, &places),
        places,
        entered,
        landings,
        checked: vec![],
        leaves: vec![],
        written,
        starts: Vec::with_capacity(function.code.len()),
        jumps: vec![],
        exits: vec![],
        tables: vec![],
        nans: vec![],
    };
    lowering.code.begin();
    for (pc, i) in function.code.iter().enumerate() {
        lowering.starts.push(lowering.code.position());
        if lowering.landings[pc] {
            lowering.checked.clear();
        }
        match shape(i.op) {
            Some(shape) => {
                lowering.step(pc, shape, i);
                if let Some((written, _)) = uses(shape, i).1 {
                    lowering.checked.retain(|(slot, _)| *slot != written);
                    if !shape.is_narrow() {
                        lowering.keep_clean(written);
                    }
                }
            }
            None => {
                let out = lowering.code.jump();
                lowering.exits.push((out, pc));
            }
        }
    }
    let entries = lowering.entries();
    lowering.finish();
    Some((lowering.code.finish()?, entries))
}

impl Lowering<'_> {
    /// The places where the interpreter leaves off.
    fn entries(&mut self) -> Vec<u32> {
        let code = &self.function.code;
        let mut entries = vec![0; code.len() + 1];
        for pc in 0..code.len() {
            if self.entered[pc] && shape(code[pc].op).is_some() {
                entries[pc] = self.code.position() as u32;
                for slot in 0..self.places.len() {
                    match self.places[slot] {
                        Place::Memory => {}
                        Place::Integer(register) => self.code.load_slot(register, slot as u16),
                        Place::Float(register) => self.code.load_float_slot(register, slot as u16),
                    }
                    self.keep_clean(slot as u16);
                }
                let jump = self.code.jump();
                self.jumps.push((jump, pc));
            }
        }
        entries
    }

    /// What all the jumps lead to that are left.
    fn finish(&mut self) {
        for (jump, register, double, back) in std::mem::take(&mut self.nans) {
            self.code.patch(jump, self.code.position());
            let [scratch, ..] = Code::SCRATCH;
            self.code.constant(scratch, if double { CANONICAL_64 } else { CANONICAL_32 });
            self.code.move_to_float(register, scratch);
            let jump = self.code.jump();
            self.code.patch(jump, back);
        }
        let mut out = vec![];
        self.exits.sort_by_key(|exit| exit.1);
        let mut last = None;
        for (jump, pc) in std::mem::take(&mut self.exits) {
            match last {
                Some((same, at)) if same == pc => self.code.patch(jump, at),
                _ => {
                    let at = self.code.position();
                    last = Some((pc, at));
                    self.code.patch(jump, at);
                    self.code.constant(Code::SCRATCH[0], pc as u64);
                    out.push(self.code.jump());
                }
            }
        }
        let end = self.code.position();
        out.into_iter().for_each(|jump| self.code.patch(jump, end));
        self.store_all();
        let leave = self.code.position();
        std::mem::take(&mut self.leaves).into_iter().for_each(|jump| self.code.patch(jump, leave));
        self.code.end();
        for (jump, pc) in std::mem::take(&mut self.jumps) {
            self.code.patch(jump, self.starts[pc]);
        }
        for (table, targets) in std::mem::take(&mut self.tables) {
            for (place, target) in targets.iter().enumerate() {
                self.code.set_place(table, place, self.starts[*target as usize]);
            }
        }
    }

    /// Make zeros of what is above a slot's 32 bits, if others rely on them.
    fn keep_clean(&mut self, slot: u16) {
        if let (true, Place::Integer(register)) = (self.clean[usize::from(slot)], self.places[usize::from(slot)]) {
            self.code.zero_extend(register, register);
        }
    }

    /// Bring every slot to where it belongs.
    fn store_all(&mut self) {
        for slot in self.written.clone() {
            match self.places[usize::from(slot)] {
                Place::Memory => {}
                Place::Integer(register) => self.code.store_slot(register, slot),
                Place::Float(register) => self.code.store_float_slot(register, slot),
            }
        }
    }

    /// The register that has an operand: its own, or the scratch register of that number.
    fn integer(&mut self, slot: u16, scratch: usize) -> u8 {
        let scratch = Code::SCRATCH[scratch];
        match self.places[usize::from(slot)] {
            Place::Integer(register) => return register,
            Place::Float(register) => self.code.move_from_float(scratch, register),
            Place::Memory => self.code.load_slot(scratch, slot),
        }
        scratch
    }

    fn float(&mut self, slot: u16, scratch: usize) -> u8 {
        let scratch = Code::FLOAT_SCRATCH[scratch];
        match self.places[usize::from(slot)] {
            Place::Float(register) => return register,
            Place::Integer(register) => self.code.move_to_float(scratch, register),
            Place::Memory => self.code.load_float_slot(scratch, slot),
        }
        scratch
    }

    /// The register for a result: its own, or the first scratch register. `set` has to follow.
    fn for_integer(&self, slot: u16) -> u8 {
        match self.places[usize::from(slot)] {
            Place::Integer(register) => register,
            _ => Code::SCRATCH[0],
        }
    }

    fn for_float(&self, slot: u16) -> u8 {
        match self.places[usize::from(slot)] {
            Place::Float(register) => register,
            _ => Code::FLOAT_SCRATCH[0],
        }
    }

    fn set(&mut self, slot: u16, register: u8) {
        match self.places[usize::from(slot)] {
            Place::Integer(own) => self.code.copy(own, register),
            Place::Float(own) => self.code.move_to_float(own, register),
            Place::Memory => self.code.store_slot(register, slot),
        }
    }

    fn set_float(&mut self, slot: u16, register: u8) {
        match self.places[usize::from(slot)] {
            Place::Float(own) => self.code.copy_float(own, register),
            Place::Integer(own) => self.code.move_from_float(own, register),
            Place::Memory => self.code.store_float_slot(register, slot),
        }
    }

    fn is_float(&self, slot: u16) -> bool {
        matches!(self.places[usize::from(slot)], Place::Float(_))
    }

    /// The instructions behind this one that are executed after it, as far as nothing else leads to them.
    fn behind(&self, pc: usize) -> impl Iterator<Item = (Shape, &Instruction)> {
        let places = (pc + 1..self.function.code.len()).take(AHEAD).take_while(|pc| !self.landings[*pc]);
        places.map_while(|pc| {
            let i = &self.function.code[pc];
            Some((shape(i.op).filter(|shape| shape.goes_on())?, i))
        })
    }

    /// Whether it can be seen which NaN an instruction put into a slot, before another value is there.
    fn shows_nan(&self, pc: usize, made: u16) -> bool {
        for (shape, i) in self.behind(pc) {
            let (reads, write) = uses(shape, i);
            let is_read = reads.iter().any(|(slot, _)| *slot == made);
            if is_read && !shape.hides_nan() {
                return true;
            }
            // An operand is read once.
            if is_read && u32::from(made) >= self.function.locals || write.map_or(false, |(slot, _)| slot == made) {
                return false;
            }
        }
        true
    }

    /// A float that the instruction made for a slot: a NaN becomes the canonical one.
    fn canonical(&mut self, pc: usize, slot: u16, double: bool, register: u8) {
        if !self.shows_nan(pc, slot) {
            return;
        }
        let jump = self.code.jump_if_nan(double, register);
        self.nans.push((jump, register, double, self.code.position()));
    }

    /// How many bytes behind a slot's value are asked for, by this instruction and those behind it.
    fn reach(&self, pc: usize, slot: u16) -> u64 {
        let own = &self.function.code[pc];
        let mut most = 0;
        for (shape, i) in shape(own.op).map(|shape| (shape, own)).into_iter().chain(self.behind(pc)) {
            if let (Some(size), true) = (shape.size(), i.a == slot) {
                most = most.max(u64::from(i.imm as u32) + u64::from(size));
            }
            if uses(shape, i).1.map_or(false, |(written, _)| written == slot) {
                break;
            }
        }
        most
    }

    /// Point at an operand's bytes. If not all that are asked for together are in linear memory, the interpreter goes on, which knows
    /// what to say of the one that is not.
    fn point(&mut self, pc: usize, slot: u16, offset: u32, size: u8) -> At {
        let base = self.integer(slot, 0);
        let end = u64::from(offset) + u64::from(size);
        let known = self.checked.iter().any(|(checked, until)| *checked == slot && end <= *until);
        let until = (!known).then(|| self.reach(pc, slot));
        self.checked.extend(until.map(|until| (slot, until)));
        self.point_behind(pc, base, self.clean[usize::from(slot)], offset, size, until)
    }

    fn point_behind(&mut self, pc: usize, base: u8, clean: bool, offset: u32, size: u8, until: Option<u64>) -> At {
        let (at, outside) = self.code.point(base, clean, offset, size, until);
        self.exits.extend(outside.map(|outside| (outside, pc)));
        at
    }

    fn constant(&mut self, value: u64) -> u8 {
        self.code.constant(Code::SCRATCH[1], value);
        Code::SCRATCH[1]
    }

    fn jump_to(&mut self, i: &Instruction, jump: Patch) {
        self.jumps.push((jump, i.imm as u32 as usize));
    }

    fn step(&mut self, pc: usize, shape: Shape, i: &Instruction) {
        let [first, second, _] = Code::SCRATCH;
        match shape {
            Shape::Copy if self.is_float(i.a) => {
                let a = self.float(i.a, 0);
                self.set_float(i.d, a);
            }
            Shape::Copy if self.is_float(i.d) => {
                let a = self.float(i.a, 0);
                self.set_float(i.d, a);
            }
            Shape::Copy => {
                let a = self.integer(i.a, 0);
                self.set(i.d, a);
            }
            Shape::Const => {
                let to = self.for_integer(i.d);
                self.code.constant(to, i.imm);
                self.set(i.d, to);
            }
            Shape::Jump => {
                let jump = self.code.jump();
                self.jump_to(i, jump);
            }
            Shape::Loop => {
                let none = self.code.tick();
                self.exits.push((none, pc));
            }
            Shape::Select => {
                let (a, b, by) = (self.integer(i.a, 0), self.integer(i.b, 1), self.integer(i.imm as u16, 2));
                let to = self.for_integer(i.d);
                self.code.select(to, by, a, b);
                self.set(i.d, to);
            }
            Shape::GlobalGet => {
                let to = self.for_integer(i.d);
                self.code.load_global(to, i.imm as u32);
                self.set(i.d, to);
            }
            Shape::GlobalSet => {
                let a = self.integer(i.a, 0);
                self.code.store_global(a, i.imm as u32);
            }
            Shape::Load(size @ 4, Extend::Zero) | Shape::Load(size @ 8, _) if self.is_float(i.d) => {
                let at = self.point(pc, i.a, i.imm as u32, size);
                let to = self.for_float(i.d);
                self.code.load_float(to, at, size);
            }
            Shape::Load(size, extend) => {
                let at = self.point(pc, i.a, i.imm as u32, size);
                let to = self.for_integer(i.d);
                self.code.load(to, at, size, extend);
                self.set(i.d, to);
            }
            Shape::LoadSum(size) => {
                let (a, b) = (self.integer(i.a, 0), self.integer(i.b, 1));
                self.code.alu(Alu::Add, false, first, a, b);
                let at = self.point_behind(pc, first, true, i.imm as u32, size, Some(u64::from(i.imm as u32) + u64::from(size)));
                if size >= 4 && self.is_float(i.d) {
                    let to = self.for_float(i.d);
                    self.code.load_float(to, at, size);
                } else {
                    let to = self.for_integer(i.d);
                    self.code.load(to, at, size, Extend::Zero);
                    self.set(i.d, to);
                }
            }
            Shape::Store(size) => {
                let at = self.point(pc, i.a, i.imm as u32, size);
                if size >= 4 && self.is_float(i.b) {
                    let b = self.float(i.b, 0);
                    self.code.store_float(b, at, size);
                } else {
                    let b = self.integer(i.b, 1);
                    self.code.store(b, at, size);
                }
            }
            Shape::Alu(alu, wide) => {
                let (a, b, to) = (self.integer(i.a, 0), self.integer(i.b, 1), self.for_integer(i.d));
                self.code.alu(alu, wide, to, a, b);
                self.set(i.d, to);
            }
            Shape::AluConst(alu, wide) => {
                let (a, to) = (self.integer(i.a, 0), self.for_integer(i.d));
                self.code.alu_constant(alu, wide, to, a, i.imm);
                self.set(i.d, to);
            }
            Shape::Divide(division, wide) => {
                let (a, b, to) = (self.integer(i.a, 0), self.integer(i.b, 1), self.for_integer(i.d));
                let out = self.code.divide(division, wide, to, a, b);
                self.exits.extend(out.into_iter().map(|jump| (jump, pc)));
                self.set(i.d, to);
            }
            Shape::CountZeros { from_highest, wide } => {
                let (a, to) = (self.integer(i.a, 0), self.for_integer(i.d));
                self.code.count_zeros(from_highest, wide, to, a);
                self.set(i.d, to);
            }
            Shape::Shift(shift, wide) => {
                let (a, b, to) = (self.integer(i.a, 0), self.integer(i.b, 1), self.for_integer(i.d));
                self.code.shift(shift, wide, to, a, b);
                self.set(i.d, to);
            }
            Shape::ShiftConst(shift, wide) => {
                let (a, to) = (self.integer(i.a, 0), self.for_integer(i.d));
                self.code.shift_constant(shift, wide, to, a, i.imm as u8 & if wide { 63 } else { 31 });
                self.set(i.d, to);
            }
            Shape::Compare(condition, wide) => {
                let (a, b, to) = (self.integer(i.a, 0), self.integer(i.b, 1), self.for_integer(i.d));
                self.code.compare(condition, wide, to, a, b);
                self.set(i.d, to);
            }
            Shape::CompareConst(condition, wide) => {
                let (a, to) = (self.integer(i.a, 0), self.for_integer(i.d));
                self.code.compare_constant(condition, wide, to, a, i.imm);
                self.set(i.d, to);
            }
            Shape::JumpIf(condition, wide) => {
                let (a, b) = (self.integer(i.a, 0), self.integer(i.b, 1));
                let jump = self.code.jump_if(condition, wide, a, b);
                self.jump_to(i, jump);
            }
            Shape::JumpIfConst(condition, wide) => {
                let a = self.integer(i.a, 0);
                let jump = self.code.jump_if_constant(condition, wide, a, (i.imm as i64 >> 32) as u64);
                self.jump_to(i, jump);
            }
            Shape::JumpAddNe | Shape::JumpAddNeConst => {
                let (a, to) = (self.integer(i.a, 0), self.for_integer(i.d));
                self.code.alu_constant(Alu::Add, false, to, a, i.imm >> 32);
                self.set(i.d, to);
                let jump = if matches!(shape, Shape::JumpAddNe) {
                    let b = self.integer(i.b, 1);
                    self.code.jump_if(Condition::Ne, false, to, b)
                } else {
                    self.code.jump_if_constant(Condition::Ne, false, to, i.b.into())
                };
                self.jump_to(i, jump);
            }
            Shape::AddShl => {
                let b = self.integer(i.b, 1);
                self.code.shift_constant(Shift::Left, false, second, b, i.imm as u8 & 31);
                let (a, to) = (self.integer(i.a, 0), self.for_integer(i.d));
                self.code.alu(Alu::Add, false, to, a, second);
                self.set(i.d, to);
            }
            Shape::ZeroExtend => {
                let (a, to) = (self.integer(i.a, 0), self.for_integer(i.d));
                self.code.zero_extend(to, a);
                self.set(i.d, to);
            }
            Shape::SignExtend(bits, wide) => {
                let (a, to) = (self.integer(i.a, 0), self.for_integer(i.d));
                self.code.sign_extend(to, a, bits, wide);
                self.set(i.d, to);
            }
            Shape::Float(float, double) => {
                let (a, b, to) = (self.float(i.a, 0), self.float(i.b, 1), self.for_float(i.d));
                self.made(pc, float, double, to, a, b);
            }
            Shape::FloatLoad(float, double) => {
                let size = if double { 8 } else { 4 };
                let at = self.point(pc, i.a, i.imm as u32, size);
                let loaded = Code::FLOAT_SCRATCH[1];
                self.code.load_float(loaded, at, size);
                let (b, to) = (self.float(i.b, 0), self.for_float(i.d));
                self.made(pc, float, double, to, b, loaded);
            }
            Shape::MulAdd(float) => {
                let product = Code::FLOAT_SCRATCH[1];
                let (a, b) = (self.float(i.a, 0), self.float(i.b, 1));
                self.code.float(Float::Mul, true, product, a, b);
                let (other, to) = (self.float(i.imm as u16, 0), self.for_float(i.d));
                self.made(pc, float, true, to, other, product);
            }
            Shape::MulAddLoad(double) => {
                let size = if double { 8 } else { 4 };
                let at = self.point(pc, i.a, i.imm as u32, size);
                let factor = Code::FLOAT_SCRATCH[1];
                self.code.load_float(factor, at, size);
                let b = self.float(i.b, 0);
                self.code.float(Float::Mul, double, factor, b, factor);
                let (other, to) = (self.float((i.imm >> 32) as u16, 0), self.for_float(i.d));
                self.made(pc, Float::Add, double, to, other, factor);
            }
            Shape::Root(double) => {
                let (a, to) = (self.float(i.a, 0), self.for_float(i.d));
                self.code.square_root(double, to, a);
                self.canonical(pc, i.d, double, to);
                self.set_float(i.d, to);
            }
            Shape::ChangePrecision(double) => {
                let (a, to) = (self.float(i.a, 0), self.for_float(i.d));
                self.code.change_precision(double, to, a);
                self.canonical(pc, i.d, double, to);
                self.set_float(i.d, to);
            }
            Shape::Truncate(truncation) => {
                let a = self.float(i.a, 0);
                let out = self.code.truncate(truncation, a);
                self.exits.extend(out.into_iter().map(|jump| (jump, pc)));
                self.set(i.d, first);
            }
            Shape::CompareFloats(condition, double) => {
                let (a, b, to) = (self.float(i.a, 0), self.float(i.b, 1), self.for_integer(i.d));
                self.code.compare_floats(condition, double, to, a, b);
                self.set(i.d, to);
            }
            Shape::Convert { double, wide, signed } => {
                let (mut a, to) = (self.integer(i.a, 0), self.for_float(i.d));
                if !signed {
                    self.code.zero_extend(first, a);
                    a = first;
                }
                self.code.convert(double, wide || !signed, to, a);
                self.set_float(i.d, to);
            }
            Shape::Bits(alu, mask) => {
                let a = self.integer(i.a, 0);
                let mask = self.constant(mask);
                self.code.alu(alu, true, first, a, mask);
                self.set(i.d, first);
            }
            Shape::JumpTable => {
                let a = self.integer(i.a, 0);
                self.code.zero_extend(first, a);
                let (begin, last) = (i.imm as u32 as usize, (i.imm >> 32) as u32);
                let table = self.code.jump_table(last);
                self.tables.push((table, self.function.targets[begin..=begin + last as usize].to_vec()));
            }
            Shape::Call => {
                let callee = &self.program.functions[i.imm as usize];
                let call = CallOf {
                    pc: pc as u32,
                    d: i.d,
                    function: i.imm as u32,
                    frame: callee.frame,
                    params: callee.params,
                    locals: callee.locals,
                };
                let out = if callee.locals - callee.params > MOST_CLEARED {
                    vec![self.code.jump()]
                } else {
                    self.store_all();
                    self.code.call(&call)
                };
                self.exits.extend(out.into_iter().map(|jump| (jump, pc)));
            }
            Shape::Return if i.b > 1 => {
                let out = self.code.jump();
                self.exits.push((out, pc));
            }
            Shape::Return => {
                let outermost = self.code.jump_if_outermost();
                self.exits.push((outermost, pc));
                if i.b == 1 {
                    let a = self.integer(i.a, 0);
                    self.code.store_slot(a, 0);
                }
                let leaves = self.code.go_back();
                self.leaves.extend(leaves);
            }
        }
    }

    fn made(&mut self, pc: usize, float: Float, double: bool, to: u8, a: u8, b: u8) {
        let slot = self.function.code[pc].d;
        self.code.float(float, double, to, a, b);
        self.canonical(pc, slot, double, to);
        self.set_float(slot, to);
    }
}
