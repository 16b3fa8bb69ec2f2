//! What a step's program has as its standard descriptors: pipes or a terminal, and our ends of them.

use std::fs::File;
use std::io;
use std::os::unix::io::OwnedFd;

use crate::frame::StepSpec;
use crate::streams::Streams;
use crate::sys;
use crate::terminal::Terminal;

/// Where a step's output goes.
pub enum Output {
    Pipes(Streams),
    Terminal(Terminal),
}

/// Bytes of each stream that are passed on at most.
pub fn limit(spec: &StepSpec) -> u64 {
    if spec.output > 0 {
        spec.output
    } else {
        u64::MAX
    }
}

/// A step's output, its standard input, and the program's descriptors 0, 1 and 2.
pub type Standard = (Output, Option<File>, [Option<OwnedFd>; 3]);

/// Make them as the step asks for them.
pub fn open(spec: &StepSpec) -> io::Result<Standard> {
    if spec.has_terminal() {
        at_terminal(spec)
    } else {
        at_pipes(spec)
    }
}

fn at_pipes(spec: &StepSpec) -> io::Result<Standard> {
    let (stdout, stdout_of_child) = sys::packet_pipe()?;
    let (stderr, stderr_of_child) = sys::packet_pipe()?;
    let ends = ((stdout, stdout_of_child.try_clone()?), (stderr, stderr_of_child.try_clone()?));
    let streams = Streams::new(ends.0, ends.1, limit(spec))?;
    let (stdin_of_child, stdin) = match spec.stdin {
        true => sys::pipe().map(|(child, ours)| (Some(child), Some(ours)))?,
        false => (None, None),
    };
    if let Some(stdin) = &stdin {
        sys::set_nonblocking(stdin)?;
    }
    Ok((Output::Pipes(streams), stdin.map(File::from), [stdin_of_child, Some(stdout_of_child), Some(stderr_of_child)]))
}

fn at_terminal(spec: &StepSpec) -> io::Result<Standard> {
    let terminal = Terminal::new(spec.terminal, limit(spec))?;
    let descriptors = [Some(terminal.theirs()?), Some(terminal.theirs()?), Some(terminal.theirs()?)];
    let stdin = spec.stdin.then(|| terminal.keyboard()).transpose()?;
    Ok((Output::Terminal(terminal), stdin, descriptors))
}
