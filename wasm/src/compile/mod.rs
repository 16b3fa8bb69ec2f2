//! From a validated function's instructions to three-address code.
//!
//! The operands that WebAssembly keeps on a stack are slots here. A `local.get` or a constant emits nothing: the value is noted, and
//! whoever takes it reads the local or has the constant in its own instruction. At a loop's head and at a call, where the program can
//! be stopped, every operand is in its slot, so what a checkpoint says of a frame does not depend on this file.

use std::collections::HashMap;

use crate::bytes::Bytes;
use crate::code::{Function, Program, Stand};
use crate::instruction::decode;
use crate::module::{value_type, FunctionType, Module, ValueType};
use crate::refusal::{malformed, unsupported, Result};
use crate::validate::Validator;

mod emit;
mod fuse;

use emit::Emitter;

/// As in browsers (WebAssembly JavaScript interface, "Implementation limits").
const MOST_LOCALS: usize = 50_000;
/// Slots are named by 16 bits.
const MOST_SLOTS: usize = 65_000;

/// Validate and compile all functions of a module.
pub fn compile(module: &Module, file: &[u8]) -> Result<Program> {
    let mut kinds = HashMap::new();
    for (index, kind) in module.types.iter().enumerate() {
        kinds.entry(kind).or_insert(index as u32);
    }
    let canonical: Vec<u32> = module.types.iter().map(|kind| kinds[kind]).collect();
    let mut functions = Vec::with_capacity(module.functions.len());
    for index in 0..module.functions.len() {
        let kind = module.function_type(index as u32);
        let function = match index.checked_sub(module.imports.len()) {
            Some(own) => one(module, &canonical, kind, &file[module.bodies[own].clone()]),
            None => one(module, &canonical, kind, &forwarder(index, kind.params.len())),
        };
        let mut function = function.map_err(|error| error.at(format_args!("function {index}")))?;
        function.kind = canonical[module.functions[index] as usize];
        functions.push(function);
    }
    Ok(Program { functions, table: module.table.clone() })
}

/// Code that calls an imported function, for those who call it indirectly.
fn forwarder(import: usize, params: usize) -> Vec<u8> {
    let leb = |value: usize| [0, 7, 14, 21, 28].map(|shift| (value >> shift) as u8 & 0x7f | if shift < 28 { 0x80 } else { 0 });
    let mut body = vec![0];
    for param in 0..params {
        body.push(0x20);
        body.extend(leb(param));
    }
    body.push(0x10);
    body.extend(leb(import));
    body.push(0x0b);
    body
}

fn one(module: &Module, canonical: &[u32], kind: &FunctionType, body: &[u8]) -> Result<Function> {
    let mut bytes = Bytes::new(body);
    let locals = locals(&mut bytes, kind)?;
    let mut validator = Validator::new(module, kind, &locals);
    let mut emitter = Emitter::new(module, canonical, kind, locals.len());
    while !validator.finished() {
        let offset = bytes.position();
        let instruction = decode(&mut bytes)?;
        let dead = validator.unreachable();
        validator.step(&instruction).map_err(|error| error.at(format_args!("byte {offset}")))?;
        emitter.step(offset as u32, &instruction, dead);
    }
    if !bytes.is_empty() {
        return malformed(format!("{} bytes after the function's end", bytes.left()));
    }
    let mut function = emitter.finish();
    function.narrow = locals.iter().map(|kind| *kind == ValueType::I32).collect();
    if function.frame as usize > MOST_SLOTS {
        return unsupported(format!("{} locals and operands of one function, at most {MOST_SLOTS}", function.frame));
    }
    Ok(function)
}

fn locals(bytes: &mut Bytes, kind: &FunctionType) -> Result<Vec<ValueType>> {
    let mut locals = kind.params.clone();
    for _ in 0..bytes.count()? {
        let count = bytes.u32()? as usize;
        if locals.len() + count > MOST_LOCALS {
            return unsupported(format!("{} locals of one function, at most {MOST_LOCALS}", locals.len() + count));
        }
        let kind = value_type(bytes.byte()?)?;
        locals.resize(locals.len() + count, kind);
    }
    Ok(locals)
}
