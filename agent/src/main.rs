//! Mayfly's agent: the init process of a machine, which runs programs for the host and tells how they end (see PROTOCOL.md).
//!
//! As PID 1 it sets the machine up, opens the channel, and restarts the machine when it is done. With `--fd N --work DIR` it is
//! an ordinary process that serves an inherited socket, for tests; with `--zero-memory` a program that zeroes the machine's free memory.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code))]
#![deny(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::unix::io::RawFd;
use std::path::PathBuf;
use std::time::Duration;

mod cgroup;
mod channel;
mod child;
mod collect;
mod door;
mod elf;
#[allow(unsafe_code)]
mod entry;
mod frame;
mod function;
mod glob;
mod init;
mod input;
mod log;
mod login;
mod network;
mod output;
mod procfs;
mod products;
mod run;
mod slip;
mod standby;
mod start;
mod step;
mod streams;
#[allow(unsafe_code)]
mod sys;
mod terminal;
mod user;
mod workspace;
mod zero;

use cgroup::Cgroups;
use channel::Channel;
use frame::{ErrorCode, ToHost};
use log::complain;
use run::Agent;
use user::User;
use workspace::Workspace;

/// The user `runner`, whom programs of a run belong to.
const RUNNER: User = User { uid: 1000, gid: 1000 };
/// How long the host may take to read why the machine restarts.
const LAST_WORDS: Duration = Duration::from_secs(1);
const USAGE: &str = "usage: mayfly-agent --fd N --work DIR [--uid N] | --zero-memory   (without arguments only as a machine's PID 1)";

/// The program, after the C library's start; its exit status.
fn start() -> i32 {
    let done = if let Some(options) = Options::parse(std::env::args_os()) {
        serve_process(options)
    } else if std::process::id() == 1 {
        // The kernel hands on words of its command line that it does not know itself.
        run_machine()
    } else if std::env::args_os().skip(1).eq(["--zero-memory"]) {
        zero::zero_free_memory()
    } else {
        eprintln!("{USAGE}");
        return 2;
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            complain(&error.to_string());
            1
        }
    }
}

/// A machine's life; it ends with a restart.
fn run_machine() -> ! {
    if let Err(error) = serve_machine() {
        complain(&format!("the machine restarts: {error}"));
    }
    let refused = sys::reboot();
    complain(&format!("the restart was refused: {refused}"));
    // The kernel panics when its init ends, and restarts by its `panic=` parameter.
    std::process::exit(1)
}

fn serve_machine() -> io::Result<()> {
    let began = sys::boot_time();
    init::set_up(RUNNER)?;
    let children = sys::watch_children()?;
    let cgroups = Cgroups::of_machine(init::cgroup_root())?;
    let workspace = Workspace::of_machine(RUNNER, init::renew_places);
    let mut channel = Channel::new(init::open_channel()?)?;
    let end_marker = match init::end_marker() {
        Ok(text) => text,
        Err(error) => return Err(last_words(&mut channel, ErrorCode::IncompleteRoot, error)),
    };
    let mut agent = Agent::new(began, channel, children, workspace, Some(cgroups), end_marker, Some(init::identify));
    let served = agent.serve();
    served.map_err(|error| last_words(agent.channel(), ErrorCode::AgentFailed, error))
}

/// Tell the host why the agent cannot go on.
fn last_words(channel: &mut Channel, code: ErrorCode, error: io::Error) -> io::Error {
    channel.send(0, &ToHost::Error(code, &error.to_string()));
    channel.drain(LAST_WORDS);
    error
}

fn serve_process(options: Options) -> io::Result<()> {
    let channel = Channel::new(sys::inherit(options.fd)?)?;
    let children = sys::watch_children()?;
    sys::adopt_orphans()?;
    sys::forbid_tracing()?;
    let user = sys::is_root().then_some(User { uid: options.uid, gid: options.uid });
    let workspace = Workspace::of_process(options.work, user);
    let cgroups = Cgroups::of_process().map_err(|error| complain(&format!("no cgroups: {error}"))).ok();
    Agent::new(sys::boot_time(), channel, children, workspace, cgroups, String::new(), None).serve()
}

/// The command line of the ordinary process.
struct Options {
    fd: RawFd,
    work: PathBuf,
    uid: u32,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Options> {
        let (mut fd, mut work, mut uid) = (None, None, RUNNER.uid);
        args.next();
        while let Some(name) = args.next() {
            let value = args.next()?;
            match name.to_str()? {
                "--fd" => fd = Some(value.to_str()?.parse().ok()?),
                "--work" => work = Some(PathBuf::from(value)),
                "--uid" => uid = value.to_str()?.parse().ok()?,
                _ => return None,
            }
        }
        Some(Options { fd: fd?, work: work?, uid })
    }
}
