//! The messages of PROTOCOL.md: parsing what the host sends, packing what the agent says.

use std::ffi::OsString;

mod cursor;
pub use cursor::Cursor;

pub const MAX_PAYLOAD: usize = 65536;
pub const MAX_PACKET: usize = MAX_PAYLOAD + 9;
pub const PROTOCOL_VERSION: u16 = 6;
const MIN_ENTROPY: usize = 16;
const MAX_ENTROPY: usize = 512;

pub type Env = Vec<(OsString, OsString)>;

/// A message of the host with its run.
#[derive(Debug)]
pub struct Frame {
    pub run: u32,
    pub message: FromHost,
}

#[derive(Debug)]
pub enum FromHost {
    Start(Start),
    File {
        index: u16,
        offset: u64,
        data: Vec<u8>,
    },
    Begin,
    Stdin(Vec<u8>),
    StdinEof,
    Signal(u8),
    Collect {
        paths: Vec<OsString>,
        globs: bool,
    },
    Resumed(Identity),
    Shutdown,
    /// Of the running step's terminal.
    Resize {
        columns: u16,
        rows: u16,
    },
    Request(Request),
    Moved(Identity),
}

#[derive(Debug)]
pub struct Start {
    /// What the run leaves in the working folder becomes the products.
    pub keep: bool,
    /// The working folder begins as a copy of the products.
    pub from_products: bool,
    pub env: Env,
    pub steps: Vec<StepSpec>,
    pub files: Vec<FileEntry>,
}

/// A step to run; a limit of 0 means none.
#[derive(Debug)]
pub struct StepSpec {
    pub name: String,
    pub argv: Vec<OsString>,
    pub cwd: OsString,
    pub env: Env,
    pub wall_ms: u32,
    pub cpu_ms: u32,
    pub memory: u64,
    pub processes: u32,
    pub output: u64,
    pub file_size: u64,
    pub stdin: bool,
    /// Columns and rows of its terminal; both 0: it has none.
    pub terminal: (u16, u16),
    pub function: bool,
    /// Its program does not end: it stands by for a step of a later run.
    pub standby: bool,
    /// What stands by may be its program.
    pub by_standby: bool,
}

impl StepSpec {
    pub fn has_terminal(&self) -> bool {
        self.terminal != (0, 0)
    }
}

#[derive(Debug)]
pub struct FileEntry {
    pub path: OsString,
    pub mode: u32,
    pub size: u64,
}

#[derive(Debug)]
pub struct Identity {
    pub time_ns: u64,
    pub boot_id: [u8; 16],
    pub hostname: String,
    pub network: String,
    pub entropy: Vec<u8>,
}

/// A request to a function, or a piece of one.
#[derive(Debug)]
pub struct Request {
    pub id: u32,
    pub content_type: String,
    /// Of all its pieces.
    pub size: u32,
    pub data: Vec<u8>,
}

/// Which limit ended a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    None = 0,
    Wall = 1,
    Cpu = 2,
    Memory = 3,
    Processes = 4,
    FileSize = 5,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    IncompleteRoot = 1,
    StartRefused = 2,
    FileNotWritten = 3,
    CollectFailed = 4,
    ResumedFailed = 5,
    WrongState = 6,
    AgentFailed = 7,
    FunctionBrokeContract = 8,
}

/// How a step's program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(u32),
    Signaled(u32),
    /// With the errno of what failed.
    NotStarted(u32),
}

#[derive(Clone, Copy, Debug)]
pub struct Exit {
    pub step: u8,
    pub ended: Ended,
    pub limit: Limit,
    pub wall_us: u64,
    pub cpu_us: u64,
    pub peak_memory: u64,
    /// Whether stdout, stderr were cut.
    pub cut: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    Answer = 0,
    Exception = 1,
}

/// What the agent says.
#[derive(Debug)]
pub enum ToHost<'a> {
    Hello {
        version: &'a str,
        arch: &'a str,
        boot_us: u64,
        end_marker: &'a str,
    },
    Stage {
        step: u8,
        name: &'a str,
    },
    Output(StreamKind, &'a [u8]),
    Exit(Exit),
    Done,
    Credit(u32),
    Collected {
        index: u16,
        head: Option<CollectedHead<'a>>,
        ends: bool,
        last: bool,
        data: &'a [u8],
    },
    Error(ErrorCode, &'a str),
    Loaded,
    /// Or a piece of one; the size is that of all.
    Response {
        id: u32,
        kind: ResponseKind,
        took_us: u64,
        content_type: &'a str,
        size: u32,
        data: &'a [u8],
    },
}

/// Begins a file or folder in the answer to COLLECT; the mode has the type bits.
#[derive(Debug)]
pub struct CollectedHead<'a> {
    pub path: &'a [u8],
    pub mode: u32,
    pub size: u64,
}

/// Why a packet is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    Short,
    Long,
    Crc,
    Type,
    Payload,
}

/// Parse a packet that is no longer escaped.
pub fn parse(packet: &[u8]) -> Result<Frame, Drop> {
    if packet.len() < MAX_PACKET - MAX_PAYLOAD {
        return Err(Drop::Short);
    }
    if packet.len() > MAX_PACKET {
        return Err(Drop::Long);
    }
    let (body, crc) = packet.split_at(packet.len() - 4);
    if crc32(body).to_le_bytes() != crc {
        return Err(Drop::Crc);
    }
    let mut cursor = Cursor { data: &body[1..] };
    let run = cursor.u32().ok_or(Drop::Short)?;
    if !(0x01..=0x0C).contains(&body[0]) {
        return Err(Drop::Type);
    }
    let message = parse_payload(body[0], &mut cursor).ok_or(Drop::Payload)?;
    if !cursor.data.is_empty() {
        return Err(Drop::Payload);
    }
    Ok(Frame { run, message })
}

fn parse_payload(kind: u8, cursor: &mut Cursor) -> Option<FromHost> {
    Some(match kind {
        0x01 => FromHost::Start(cursor.start()?),
        0x02 => FromHost::File { index: cursor.u16()?, offset: cursor.u64()?, data: cursor.rest() },
        0x03 => FromHost::Begin,
        0x04 => FromHost::Stdin(cursor.rest()),
        0x05 => FromHost::StdinEof,
        0x06 => FromHost::Signal(cursor.u8()?),
        0x07 => FromHost::Collect { paths: cursor.list(Cursor::raw)?, globs: cursor.flags::<1>()?[0] },
        0x08 => FromHost::Resumed(cursor.identity()?),
        0x09 => FromHost::Shutdown,
        0x0A => FromHost::Resize { columns: cursor.u16()?, rows: cursor.u16()? },
        0x0B => FromHost::Request(Request { id: cursor.u32()?, content_type: cursor.text()?, size: cursor.u32()?, data: cursor.rest() }),
        0x0C => FromHost::Moved(cursor.identity()?),
        _ => return None,
    })
}

impl Cursor<'_> {
    fn start(&mut self) -> Option<Start> {
        let [keep, from_products] = self.flags()?;
        Some(Start { keep, from_products, env: self.env()?, steps: self.list(Cursor::step)?, files: self.list(Cursor::file_entry)? })
    }

    fn step(&mut self) -> Option<StepSpec> {
        let (name, argv, cwd, env) = (self.text()?, self.list(Cursor::raw)?, self.raw()?, self.env()?);
        let (wall_ms, cpu_ms, memory, processes) = (self.u32()?, self.u32()?, self.u64()?, self.u32()?);
        let (output, file_size, [stdin, function, standby, by_standby]) = (self.u64()?, self.u64()?, self.flags()?);
        let terminal = (self.u16()?, self.u16()?);
        Some(StepSpec {
            name,
            argv,
            cwd,
            env,
            wall_ms,
            cpu_ms,
            memory,
            processes,
            output,
            file_size,
            stdin,
            terminal,
            function,
            standby,
            by_standby,
        })
    }

    fn file_entry(&mut self) -> Option<FileEntry> {
        Some(FileEntry { path: self.raw()?, mode: self.u32()?, size: self.u64()? })
    }

    fn identity(&mut self) -> Option<Identity> {
        let identity =
            Identity { time_ns: self.u64()?, boot_id: self.array()?, hostname: self.text()?, network: self.text()?, entropy: self.rest() };
        (MIN_ENTROPY..=MAX_ENTROPY).contains(&identity.entropy.len()).then_some(identity)
    }
}

/// The packet of a message: type, run, payload, CRC.
pub fn pack(run: u32, message: &ToHost) -> Vec<u8> {
    let mut out = vec![kind(message)];
    out.extend(run.to_le_bytes());
    match message {
        ToHost::Hello { version, arch, boot_us, end_marker } => {
            out.extend(PROTOCOL_VERSION.to_le_bytes());
            put_str(&mut out, version.as_bytes());
            put_str(&mut out, arch.as_bytes());
            out.extend(boot_us.to_le_bytes());
            put_str(&mut out, end_marker.as_bytes());
        }
        ToHost::Stage { step, name } => {
            out.push(*step);
            put_str(&mut out, name.as_bytes());
        }
        ToHost::Output(_, data) => out.extend(*data),
        ToHost::Exit(exit) => put_exit(&mut out, exit),
        ToHost::Done => {}
        ToHost::Credit(count) => out.extend(count.to_le_bytes()),
        ToHost::Collected { index, head, ends, last, data } => {
            out.extend(index.to_le_bytes());
            out.push(u8::from(head.is_some()) | u8::from(*ends) << 1 | u8::from(*last) << 2);
            if let Some(head) = head {
                put_str(&mut out, head.path);
                out.extend(head.mode.to_le_bytes());
                out.extend(head.size.to_le_bytes());
            }
            out.extend(*data);
        }
        ToHost::Error(code, text) => {
            out.extend((*code as u16).to_le_bytes());
            put_str(&mut out, text.as_bytes());
        }
        ToHost::Loaded => {}
        ToHost::Response { id, kind, took_us, content_type, size, data } => {
            out.extend(id.to_le_bytes());
            out.push(*kind as u8);
            out.extend(took_us.to_le_bytes());
            put_str(&mut out, content_type.as_bytes());
            out.extend(size.to_le_bytes());
            out.extend(*data);
        }
    }
    let crc = crc32(&out);
    out.extend(crc.to_le_bytes());
    out
}

fn kind(message: &ToHost) -> u8 {
    match message {
        ToHost::Hello { .. } => 0x81,
        ToHost::Stage { .. } => 0x82,
        ToHost::Output(StreamKind::Stdout, _) => 0x83,
        ToHost::Output(StreamKind::Stderr, _) => 0x84,
        ToHost::Exit(_) => 0x85,
        ToHost::Done => 0x86,
        ToHost::Credit(_) => 0x87,
        ToHost::Collected { .. } => 0x88,
        ToHost::Error(..) => 0x89,
        ToHost::Loaded => 0x8A,
        ToHost::Response { .. } => 0x8B,
    }
}

fn put_exit(out: &mut Vec<u8>, exit: &Exit) {
    let (how, code) = match exit.ended {
        Ended::Exited(code) => (0, code),
        Ended::Signaled(signal) => (1, signal),
        Ended::NotStarted(errno) => (2, errno),
    };
    out.extend([exit.step, how]);
    out.extend(code.to_le_bytes());
    out.push(exit.limit as u8);
    for value in [exit.wall_us, exit.cpu_us, exit.peak_memory] {
        out.extend(value.to_le_bytes());
    }
    out.push(u8::from(exit.cut[0]) | u8::from(exit.cut[1]) << 1);
}

/// Nothing that the agent says comes near the 65,535 bytes of a `str`: names and paths came in frames themselves, or are below PATH_MAX.
fn put_str(out: &mut Vec<u8>, text: &[u8]) {
    let count = text.len().min(u16::MAX.into());
    out.extend((count as u16).to_le_bytes());
    out.extend(&text[..count]);
}

const CRC_TABLE: [u32; 256] = crc_table();

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ 0xEDB8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
}

/// CRC-32 of IEEE 802.3.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| crc >> 8 ^ CRC_TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests;
