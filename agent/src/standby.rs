//! A step whose program stands by: it is started ahead, says when it is ready, and becomes the program of a step of the next run, which
//! tells it its arguments over descriptor 3 (PROTOCOL.md).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;

use crate::frame::{Env, StepSpec};
use crate::sys::{self, PollSet, Slot};

pub struct Standby {
    /// Our end of the program's descriptor 3.
    socket: UnixStream,
    /// Whether the program may still say something on it.
    open: bool,
    ready: bool,
    /// What the program was started with, and cannot change any more.
    name: String,
    cwd: OsString,
    env: Env,
    memory: u64,
    /// Our end of its standard input, if that is a pipe.
    stdin: Option<File>,
    /// What it was limited to, as of `child::limits`.
    pub limits: Vec<(i32, u64, u64)>,
}

impl Standby {
    /// `env` is START's, `stdin` our end of the program's standard input.
    pub fn new(socket: UnixStream, spec: &StepSpec, env: &Env, stdin: Option<File>, limits: Vec<(i32, u64, u64)>) -> io::Result<Standby> {
        socket.set_nonblocking(true)?;
        let (name, cwd, env) = (spec.name.clone(), spec.cwd.clone(), whole(env, spec));
        Ok(Standby { socket, open: true, ready: false, name, cwd, env, memory: spec.memory, stdin, limits })
    }

    pub fn is_ready(&self) -> bool {
        self.ready
    }

    pub fn watch(&self, set: &mut PollSet) -> Option<Slot> {
        self.open.then(|| set.add(&self.socket, sys::POLLIN))
    }

    /// Hear whether it is ready: it says one byte. One that closes the socket before is never.
    pub fn hear(&mut self) {
        match self.socket.read(&mut [0]) {
            Ok(0) => self.open = false,
            Ok(_) => self.ready = true,
            Err(_) => {}
        }
    }

    /// Whether it can be this step's program.
    pub fn fits(&self, spec: &StepSpec, env: &Env) -> bool {
        // A program may choose by its limit how much memory it is going to use.
        let memory = spec.memory == 0 || (self.memory > 0 && spec.memory >= self.memory);
        let asked = spec.by_standby && !spec.function && !spec.has_terminal();
        asked
            && memory
            && self.name == spec.name
            && self.cwd == spec.cwd
            && self.env == whole(env, spec)
            && self.stdin.is_some() == spec.stdin
    }

    /// Tell it what to do, each argument with a NUL at its end; gives our end of its standard input.
    pub fn tell(mut self, argv: &[OsString]) -> io::Result<Option<File>> {
        let text: Vec<u8> = argv.iter().flat_map(|argument| [argument.as_bytes(), b"\0"].concat()).collect();
        // It fits: all of a START does.
        self.socket.write_all(&text)?;
        Ok(self.stdin)
    }
}

/// A step's environment, but for what each has.
fn whole(env: &Env, spec: &StepSpec) -> Env {
    env.iter().chain(&spec.env).cloned().collect()
}
