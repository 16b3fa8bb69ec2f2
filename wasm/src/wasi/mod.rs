//! WASI preview 1 (wasi_snapshot_preview1.witx), all of it data: files are in memory, clocks count from a number, and standard
//! input keeps what was taken from the host and not yet read.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::memory::{Memory, OutOfBounds};
use crate::module::{Module, ValueType};
use crate::refusal::{invalid, unsupported, Result};
use crate::run::{Answer, Host};
use crate::sys;

mod calls;
mod descriptors;
mod files;
pub mod host_files;
mod input;
mod paths;
mod poll;
mod resolve;
mod socket_calls;
pub mod socket_options;
pub mod sockets;
pub mod tree;

pub use calls::Call;
pub use descriptors::Descriptor;
pub use input::{Input, MOST_PENDING};
use sockets::Socket;
use tree::Tree;

/// Ticks between two looks at whether the program is to stop: some tenths of a millisecond.
const SLICE: u32 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Errno {
    Acces = 2,
    AddrInUse = 3,
    AddrNotAvail = 4,
    AfNoSupport = 5,
    Again = 6,
    Already = 7,
    BadF = 8,
    Busy = 10,
    ConnAborted = 13,
    ConnRefused = 14,
    ConnReset = 15,
    DestAddrReq = 17,
    Exist = 20,
    Fault = 21,
    FBig = 22,
    HostUnreach = 23,
    InProgress = 26,
    Inval = 28,
    Io = 29,
    IsConn = 30,
    IsDir = 31,
    Loop = 32,
    MFile = 33,
    MsgSize = 35,
    NameTooLong = 37,
    NetDown = 38,
    NetUnreach = 40,
    NFile = 41,
    NoBufs = 42,
    NoEnt = 44,
    NoMem = 48,
    NoProtoOpt = 50,
    NoSpc = 51,
    NotConn = 53,
    NotDir = 54,
    NotEmpty = 55,
    NotSock = 57,
    NotSup = 58,
    Perm = 63,
    Pipe = 64,
    ProtoNoSupport = 66,
    SPipe = 70,
    TimedOut = 73,
    NotCapable = 76,
}

/// The host's numbers of errors that sockets have (Linux, include/uapi/asm-generic/errno.h).
#[rustfmt::skip]
const OF_HOST: [(i32, Errno); 31] = [
    (1, Errno::Perm), (9, Errno::BadF), (11, Errno::Again), (12, Errno::NoMem), (13, Errno::Acces), (14, Errno::Fault), (22, Errno::Inval),
    (23, Errno::NFile), (24, Errno::MFile), (32, Errno::Pipe), (88, Errno::NotSock), (89, Errno::DestAddrReq), (90, Errno::MsgSize),
    (92, Errno::NoProtoOpt), (93, Errno::ProtoNoSupport), (95, Errno::NotSup), (97, Errno::AfNoSupport), (98, Errno::AddrInUse),
    (99, Errno::AddrNotAvail), (100, Errno::NetDown), (101, Errno::NetUnreach), (103, Errno::ConnAborted), (104, Errno::ConnReset),
    (105, Errno::NoBufs), (106, Errno::IsConn), (107, Errno::NotConn), (110, Errno::TimedOut), (111, Errno::ConnRefused),
    (113, Errno::HostUnreach), (114, Errno::Already), (115, Errno::InProgress),
];

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Errno {
        OF_HOST.iter().find(|known| error.raw_os_error() == Some(known.0)).map_or(Errno::Io, |known| known.1)
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno::from(&error)
    }
}

/// Why a call gives no plain success.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusual {
    Errno(Errno),
    Exit(u32),
    Interrupted,
}

pub type Outcome = std::result::Result<(), Unusual>;

impl From<Errno> for Unusual {
    fn from(errno: Errno) -> Unusual {
        Unusual::Errno(errno)
    }
}

impl From<OutOfBounds> for Unusual {
    fn from(_: OutOfBounds) -> Unusual {
        Unusual::Errno(Errno::Fault)
    }
}

/// The program's side of the world.
pub struct Wasi {
    pub args: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    /// What the program calls its directory.
    pub directory: Vec<u8>,
    pub tree: Tree,
    pub descriptors: BTreeMap<u32, Descriptor>,
    pub input: Input,
    /// The program's monotonic clock when this process began, in nanoseconds.
    pub clock_before: u64,
    /// The moment on that clock at which a sleep that is under way ends.
    pub asleep_until: Option<u64>,
    /// Ticks of the program's whole life.
    pub ticks: u64,
    began: Instant,
    calls: Vec<Call>,
    stop_at: u64,
}

impl Wasi {
    pub fn new(args: Vec<Vec<u8>>, env: Vec<Vec<u8>>, directory: Vec<u8>) -> Wasi {
        Wasi {
            args,
            env,
            directory,
            tree: Tree::new(real_time()),
            descriptors: descriptors::standard(),
            input: Input::default(),
            clock_before: 0,
            asleep_until: None,
            ticks: 0,
            began: Instant::now(),
            calls: Vec::new(),
            stop_at: u64::MAX,
        }
    }

    /// Find what a module imports.
    pub fn link(&mut self, module: &Module) -> Result<()> {
        for import in &module.imports {
            let name = import.name.as_str();
            if import.module != "wasi_snapshot_preview1" {
                return match import.module.as_str() {
                    "wasi" if name == "thread-spawn" => unsupported("threads (thread-spawn is imported)"),
                    module => unsupported(format!("import of {module}.{name} (only wasi_snapshot_preview1 is there)")),
                };
            }
            let (params, call) = match calls::find(name) {
                Some(found) => found,
                None if name.starts_with("sock_") => return unsupported(format!("sockets other than WAMR's ({name} is imported)")),
                None => return unsupported(format!("wasi_snapshot_preview1.{name}")),
            };
            let kind = &module.types[import.kind as usize];
            let results: &[ValueType] = if name == "proc_exit" { &[] } else { &[ValueType::I32] };
            if kind.params != params || kind.results != results {
                if name.starts_with("sock_") {
                    return unsupported(format!("sockets other than WAMR's ({name} is imported with another type)"));
                }
                return invalid(format!("wasi_snapshot_preview1.{name} is imported with another type than it has"));
            }
            self.calls.push(call);
        }
        Ok(())
    }

    /// Open a socket that listens, before the program begins.
    pub fn listen(&mut self, address: SocketAddr, nonblocking: bool) -> io::Result<()> {
        let socket = Socket::listener(address, nonblocking)?;
        self.add_descriptor(Descriptor::Socket(Box::new(socket))).map(drop).map_err(|_| io::ErrorKind::Other.into())
    }

    /// Stop when the program's life has had this many ticks.
    pub fn stop_at(&mut self, ticks: u64) {
        self.stop_at = ticks;
    }

    /// The program's monotonic clock.
    pub fn clock(&self) -> u64 {
        self.clock_before + self.began.elapsed().as_nanos() as u64
    }
}

impl Host for Wasi {
    fn call(&mut self, import: usize, args: &[u64], memory: &mut Memory) -> Answer {
        let call = self.calls[import];
        match call(self, Args(args), memory) {
            Ok(()) => Answer::Value(0),
            Err(Unusual::Errno(errno)) => Answer::Value(errno as u32),
            Err(Unusual::Exit(status)) => Answer::Exit(status),
            Err(Unusual::Interrupted) => Answer::Interrupted,
        }
    }

    fn ticks(&mut self) -> Option<u32> {
        let given = self.stop_at.saturating_sub(self.ticks).min(SLICE.into()) as u32;
        if given == 0 || sys::stop_wanted() {
            return None;
        }
        self.ticks += u64::from(given);
        Some(given)
    }
}

/// The arguments of a call.
#[derive(Clone, Copy)]
pub struct Args<'a>(&'a [u64]);

impl Args<'_> {
    pub fn u32(self, place: usize) -> u32 {
        self.0[place] as u32
    }

    pub fn u64(self, place: usize) -> u64 {
        self.0[place]
    }
}

/// Nanoseconds since 1970.
pub fn real_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Bytes that were taken from the host's standard input.
pub type Pending = VecDeque<u8>;
