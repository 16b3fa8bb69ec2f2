//! Where a function's slots are while its code runs, and where that can be entered.

use super::shapes::{shape, uses, Shape, Use};
use super::target::Code;
use super::{Assembler, Function, Instruction, Op};

/// An instruction counts as many times more for each loop that it is in.
const ROUNDS: u64 = 8;
const DEEPEST: u32 = 6;

/// Where a slot is while the code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Memory,
    Integer(u8),
    Float(u8),
}

/// Where an instruction jumps to.
pub fn target(i: &Instruction) -> Option<usize> {
    let jumps =
        matches!(shape(i.op), Some(Shape::Jump | Shape::JumpIf(..) | Shape::JumpIfConst(..) | Shape::JumpAddNe | Shape::JumpAddNeConst));
    jumps.then_some(i.imm as u32 as usize)
}

/// By slot: whether its register has zeros above 32 bits. That goes for locals of so many by which linear memory is accessed.
pub fn clean(function: &Function, places: &[Place]) -> Vec<bool> {
    let mut clean = vec![false; places.len()];
    for i in &function.code {
        let base = usize::from(i.a);
        if shape(i.op).and_then(Shape::size).is_some() && function.narrow.get(base) == Some(&true) {
            clean[base] = matches!(places[base], Place::Integer(_));
        }
    }
    clean
}

/// By `pc`: whether the interpreter leaves off there.
pub fn entered(function: &Function) -> Vec<bool> {
    let mut entered = vec![false; function.code.len() + 1];
    entered[0] = true;
    for (pc, i) in function.code.iter().enumerate() {
        if matches!(i.op, Op::Loop | Op::Call) || shape(i.op).is_none() {
            entered[pc + 1] = true;
        }
    }
    entered
}

/// How often each instruction is executed, roughly.
fn weights(function: &Function) -> Vec<u64> {
    let mut ends = std::collections::BTreeMap::new();
    for (pc, i) in function.code.iter().enumerate() {
        if let Some(target) = target(i).filter(|target| *target <= pc) {
            ends.insert(target, pc);
        }
    }
    let mut depths = vec![0i32; function.code.len() + 1];
    for (first, last) in ends {
        depths[first] += 1;
        depths[last + 1] -= 1;
    }
    let mut depth = 0;
    let count = |change: &i32| {
        depth += change;
        ROUNDS.pow((depth as u32).min(DEEPEST))
    };
    depths[..function.code.len()].iter().map(count).collect()
}

/// Give registers to the slots that are used most.
pub fn places(function: &Function) -> Vec<Place> {
    let mut counts = vec![(0u64, 0u64, 0u64); function.frame as usize + 1];
    for (i, weight) in function.code.iter().zip(weights(function)) {
        let (reads, write) = match shape(i.op) {
            Some(shape) => uses(shape, i),
            None => continue,
        };
        for (slot, of) in reads.into_iter().chain(write) {
            let count = &mut counts[usize::from(slot)];
            *match of {
                Use::Integer => &mut count.0,
                Use::Float => &mut count.1,
                Use::Either => &mut count.2,
            } += weight;
        }
    }
    let mut order: Vec<usize> = (0..counts.len()).filter(|slot| counts[*slot] != (0, 0, 0)).collect();
    order.sort_by_key(|slot| std::cmp::Reverse(counts[*slot].0 + counts[*slot].1 + counts[*slot].2));
    let mut places = vec![Place::Memory; counts.len()];
    let (mut integers, mut floats) = (Code::INTEGERS.iter(), Code::FLOATS.iter());
    for slot in order {
        places[slot] = if counts[slot].1 > counts[slot].0 {
            floats.next().map_or(Place::Memory, |register| Place::Float(*register))
        } else {
            integers.next().map_or(Place::Memory, |register| Place::Integer(*register))
        };
    }
    places
}
