//! A module as its sections say it (WebAssembly 1.0, 5.5), checked except for the functions' code.

use std::collections::HashSet;
use std::ops::Range;

use crate::bytes::Bytes;
use crate::refusal::{invalid, malformed, unsupported, Refusal, Result};

/// Bytes of a page of linear memory.
pub const PAGE: usize = 65536;
/// A 32-bit memory has no more pages.
const MOST_PAGES: u32 = 65536;
/// As much as the embedders of browsers take.
const MOST_TABLE: u32 = 10_000_000;
const MOST_FUNCTIONS: usize = 1_000_000;
const MOST_PARAMETERS: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    I32,
    I64,
    F32,
    F64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FunctionType {
    pub params: Vec<ValueType>,
    pub results: Vec<ValueType>,
}

#[derive(Debug)]
pub struct Import {
    pub module: String,
    pub name: String,
    pub kind: u32,
}

#[derive(Debug)]
pub struct Global {
    pub kind: ValueType,
    pub mutable: bool,
    pub value: u64,
}

#[derive(Debug)]
pub struct Segment {
    pub at: u32,
    pub bytes: Range<usize>,
}

#[derive(Debug, Default)]
pub struct Module {
    pub types: Vec<FunctionType>,
    pub imports: Vec<Import>,
    /// The type of every function, the imported ones first.
    pub functions: Vec<u32>,
    /// Functions that can be called indirectly. Nothing can change it.
    pub table: Vec<Option<u32>>,
    /// Pages at the start and at most.
    pub memory: Option<(u32, u32)>,
    pub globals: Vec<Global>,
    pub data: Vec<Segment>,
    /// Where the code of each function that is not imported stands in the file.
    pub bodies: Vec<Range<usize>>,
    /// The function that a command begins with.
    pub start: Option<u32>,
    /// Go's linker made it. While a read waits for standard input, none of the program's goroutines would run; where such a read says
    /// that there is nothing yet, Go waits by `poll_oneoff`, and only if no goroutine can run.
    pub is_go: bool,
    has_table: bool,
    exports_memory: bool,
}

impl Module {
    pub fn read(file: &[u8]) -> Result<Module> {
        let mut bytes = Bytes::new(file);
        if bytes.take(4).map_or(true, |magic| magic != b"\0asm") {
            return malformed("not a WebAssembly module");
        }
        match bytes.array()? {
            [1, 0, 0, 0] => {}
            [_, _, 1, 0] => return unsupported("components (build for wasip1)"),
            version => return malformed(format!("version {version:?}")),
        }
        let mut module = Module::default();
        let mut last = 0;
        while !bytes.is_empty() {
            let id = bytes.byte()?;
            let size = bytes.u32()? as usize;
            let start = bytes.position();
            let mut section = Bytes::new(&file[..start + bytes.take(size)?.len()]);
            section.take(start)?;
            if id == 0 {
                module.is_go |= section.name()? == "go:buildid";
                continue;
            }
            let order = section_order(id)?;
            if order <= last {
                return malformed(format!("section {id} is out of order"));
            }
            last = order;
            module.section(id, &mut section).map_err(|error| error.at(format_args!("section {id}")))?;
            if !section.is_empty() {
                return malformed(format!("section {id} has {} bytes too many", section.left()));
            }
        }
        if module.bodies.len() != module.functions.len() - module.imports.len() {
            return malformed("functions and their code differ in number");
        }
        Ok(module)
    }

    /// The start function of a WASI command.
    pub fn command(&self) -> Result<u32> {
        let start = match self.start {
            Some(start) => start,
            None => return unsupported("a module without `_start` (build a program, not a library)"),
        };
        if self.function_type(start) != &FunctionType::default() {
            return invalid("_start takes or gives values");
        }
        if self.memory.is_some() && !self.exports_memory {
            return invalid("the memory is not exported as `memory`");
        }
        Ok(start)
    }

    pub fn function_type(&self, function: u32) -> &FunctionType {
        &self.types[self.functions[function as usize] as usize]
    }

    pub fn has_table(&self) -> bool {
        self.has_table
    }

    fn section(&mut self, id: u8, bytes: &mut Bytes) -> Result<()> {
        match id {
            1 => self.type_section(bytes),
            2 => self.import_section(bytes),
            3 => self.function_section(bytes),
            4 => self.table_section(bytes),
            5 => self.memory_section(bytes),
            6 => self.global_section(bytes),
            7 => self.export_section(bytes),
            8 => unsupported("start functions (threads need one)"),
            9 => self.element_section(bytes),
            10 => self.code_section(bytes),
            11 => self.data_section(bytes),
            12 => bytes.u32().map(drop),
            _ => unsupported("exceptions"),
        }
    }

    fn type_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        for _ in 0..bytes.count()? {
            match bytes.byte()? {
                0x60 => {}
                0x4e..=0x50 | 0x5e | 0x5f => return unsupported("garbage collection"),
                form => return malformed(format!("type form {form:#x}")),
            }
            let params = value_types(bytes)?;
            let results = value_types(bytes)?;
            self.types.push(FunctionType { params, results });
        }
        Ok(())
    }

    fn import_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        for _ in 0..bytes.count()? {
            let (module, name) = (bytes.name()?, bytes.name()?);
            let kind = match bytes.byte()? {
                0 => self.type_index(bytes)?,
                2 => return unsupported(format!("threads (the memory is imported, as {module}.{name})")),
                4 => return unsupported("exceptions"),
                kind => return unsupported(format!("import of {module}.{name}, which is not a function (kind {kind})")),
            };
            self.imports.push(Import { module, name, kind });
            self.functions.push(kind);
        }
        Ok(())
    }

    fn function_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        let count = bytes.count()?;
        if count > MOST_FUNCTIONS {
            return unsupported(format!("{count} functions, at most {MOST_FUNCTIONS}"));
        }
        for _ in 0..count {
            let kind = self.type_index(bytes)?;
            self.functions.push(kind);
        }
        Ok(())
    }

    fn table_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        for _ in 0..single(bytes, "tables")? {
            match bytes.byte()? {
                0x70 => {}
                kind => return unsupported(format!("reference types (a table of {kind:#x})")),
            }
            let (least, most) = limits(bytes, u32::MAX)?;
            if least > MOST_TABLE {
                return unsupported(format!("a table of {least} entries, at most {MOST_TABLE} to {most}"));
            }
            self.table = vec![None; least as usize];
            self.has_table = true;
        }
        Ok(())
    }

    fn memory_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        for _ in 0..single(bytes, "memories")? {
            self.memory = Some(limits(bytes, MOST_PAGES)?);
        }
        Ok(())
    }

    fn global_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        for _ in 0..bytes.count()? {
            let kind = value_type(bytes.byte()?)?;
            let mutable = match bytes.byte()? {
                0 => false,
                1 => true,
                flag => return malformed(format!("mutability {flag}")),
            };
            let value = self.constant(bytes, kind)?;
            self.globals.push(Global { kind, mutable, value });
        }
        Ok(())
    }

    fn export_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        let mut names = HashSet::new();
        for _ in 0..bytes.count()? {
            let name = bytes.name()?;
            let (kind, index) = (bytes.byte()?, bytes.u32()?);
            let known = match kind {
                0 => self.functions.len(),
                1 => usize::from(self.has_table),
                2 => usize::from(self.memory.is_some()),
                3 => self.globals.len(),
                _ => return malformed(format!("export kind {kind}")),
            };
            if index as usize >= known {
                return invalid(format!("export {name:?} of an unknown index {index}"));
            }
            match (kind, name.as_str()) {
                (0, "_start") => self.start = Some(index),
                (2, "memory") => self.exports_memory = true,
                _ => {}
            }
            if !names.insert(name) {
                return invalid("two exports of one name");
            }
        }
        Ok(())
    }

    fn element_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        for _ in 0..bytes.count()? {
            match bytes.u32()? {
                0 => {}
                flags => return unsupported(format!("reference types (an element segment of kind {flags})")),
            }
            let at = self.constant(bytes, ValueType::I32)? as usize;
            let count = bytes.count()?;
            if !self.has_table || at + count > self.table.len() {
                return invalid(format!("elements {at} to {} are outside the table of {}", at + count, self.table.len()));
            }
            for entry in 0..count {
                let function = bytes.u32()?;
                if function as usize >= self.functions.len() {
                    return invalid(format!("element of an unknown function {function}"));
                }
                self.table[at + entry] = Some(function);
            }
        }
        Ok(())
    }

    fn code_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        for _ in 0..bytes.count()? {
            let size = bytes.u32()? as usize;
            let start = bytes.position();
            bytes.take(size)?;
            self.bodies.push(start..start + size);
        }
        Ok(())
    }

    fn data_section(&mut self, bytes: &mut Bytes) -> Result<()> {
        for _ in 0..bytes.count()? {
            match bytes.u32()? {
                0 => {}
                flags => return unsupported(format!("passive data segments (kind {flags}; threads need them)")),
            }
            let at = self.constant(bytes, ValueType::I32)? as u32;
            let size = bytes.u32()? as usize;
            let start = bytes.position();
            bytes.take(size)?;
            let pages = match self.memory {
                Some((least, _)) => least as usize,
                None => return invalid("data without a memory"),
            };
            if at as usize + size > pages * PAGE {
                return invalid(format!("data {at:#x} to {:#x} is outside the memory of {pages} pages", at as usize + size));
            }
            self.data.push(Segment { at, bytes: start..start + size });
        }
        Ok(())
    }

    fn type_index(&self, bytes: &mut Bytes) -> Result<u32> {
        let index = bytes.u32()?;
        if index as usize >= self.types.len() {
            return invalid(format!("unknown type {index}"));
        }
        Ok(index)
    }

    /// The value of a constant expression (WebAssembly 1.0, 3.3.7): one instruction and `end`.
    fn constant(&self, bytes: &mut Bytes, wanted: ValueType) -> Result<u64> {
        let (kind, value) = match bytes.byte()? {
            0x41 => (ValueType::I32, u64::from(bytes.i32()? as u32)),
            0x42 => (ValueType::I64, bytes.i64()? as u64),
            0x43 => (ValueType::F32, u64::from(u32::from_le_bytes(bytes.array()?))),
            0x44 => (ValueType::F64, u64::from_le_bytes(bytes.array()?)),
            0x23 => return unsupported("imported globals"),
            0xd0 | 0xd2 => return unsupported("reference types"),
            op => return invalid(format!("instruction {op:#x} in a constant expression")),
        };
        if kind != wanted {
            return invalid(format!("a constant of type {kind:?} where {wanted:?} is wanted"));
        }
        match bytes.byte()? {
            0x0b => Ok(value),
            op => unsupported(format!("extended constant expressions (instruction {op:#x})")),
        }
    }
}

/// The sections' order in a file: that of data's count (12) is before code, that of tags (13) after memories.
fn section_order(id: u8) -> Result<u8> {
    match id {
        1..=5 => Ok(id),
        13 => Ok(6),
        6..=9 => Ok(id + 1),
        12 => Ok(11),
        10 => Ok(12),
        11 => Ok(13),
        _ => malformed(format!("unknown section {id}")),
    }
}

fn single(bytes: &mut Bytes, what: &str) -> Result<u32> {
    match bytes.u32()? {
        count @ (0 | 1) => Ok(count),
        count => unsupported(format!("several {what} ({count})")),
    }
}

fn limits(bytes: &mut Bytes, most: u32) -> Result<(u32, u32)> {
    let flags = bytes.byte()?;
    match flags {
        0 | 1 => {}
        2 | 3 => return unsupported("threads (a shared memory)"),
        4..=7 => return unsupported("64-bit memories"),
        _ => return malformed(format!("limits of kind {flags}")),
    }
    let least = bytes.u32()?;
    let upper = if flags == 1 { bytes.u32()? } else { most };
    if least > upper || upper > most {
        return invalid(format!("limits {least} to {upper}, at most {most}"));
    }
    Ok((least, upper))
}

fn value_types(bytes: &mut Bytes) -> Result<Vec<ValueType>> {
    let count = bytes.count()?;
    if count > MOST_PARAMETERS {
        return unsupported(format!("{count} parameters or results, at most {MOST_PARAMETERS}"));
    }
    (0..count).map(|_| value_type(bytes.byte()?)).collect()
}

pub fn value_type(byte: u8) -> Result<ValueType> {
    match byte {
        0x7f => Ok(ValueType::I32),
        0x7e => Ok(ValueType::I64),
        0x7d => Ok(ValueType::F32),
        0x7c => Ok(ValueType::F64),
        0x7b => unsupported("SIMD (a value of type v128)"),
        0x69 => unsupported("exceptions (a value of type exnref)"),
        0x63..=0x74 => unsupported(format!("reference types (a value of type {byte:#x})")),
        _ => Err(Refusal::Malformed(format!("value type {byte:#x}"))),
    }
}
