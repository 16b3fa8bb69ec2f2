//! What a step's process does to itself between fork and exec.

use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::cgroup::{Cgroup, Door};
use crate::frame::StepSpec;
use crate::function;
use crate::sys;
use crate::user::User;
use crate::workspace::Workspace;

const OPEN_FILES: u64 = 1024;
const SOFT_STACK: u64 = 64 << 20;

/// What each process of a step may use, where its cgroup does not say it: resource, soft limit, hard limit. `used`: the CPU time that its
/// program has used before.
pub fn limits(spec: &StepSpec, cgroup: Option<&Cgroup>, used: Duration) -> Vec<(i32, u64, u64)> {
    let file_size = if spec.file_size > 0 { spec.file_size } else { u64::MAX };
    // A backstop per process; the sum over all of them is what `enforce` looks at.
    let seconds = if spec.cpu_ms > 0 { u64::from(spec.cpu_ms / 1000) + 2 + used.as_secs() } else { u64::MAX };
    let mut rlimits = vec![(sys::RLIMIT_FSIZE, file_size, file_size), (sys::RLIMIT_CPU, seconds, seconds.saturating_add(1))];
    if spec.processes > 0 && !cgroup.map_or(false, Cgroup::limits_processes) {
        rlimits.push((sys::RLIMIT_NPROC, spec.processes.into(), spec.processes.into()));
    }
    if spec.memory > 0 && !cgroup.map_or(false, Cgroup::limits_memory) {
        rlimits.push((sys::RLIMIT_DATA, spec.memory, spec.memory));
    }
    rlimits
}

/// The way from root to the unprivileged user, with what it needs opened before.
pub struct Preparation {
    door: Option<Door>,
    terminal: bool,
    user: Option<User>,
    cwd: PathBuf,
    rlimits: Vec<(i32, u64, u64)>,
    /// The program's end of its socket: a function's, or that of what stands by.
    socket: Option<UnixStream>,
}

impl Preparation {
    pub fn new(spec: &StepSpec, cgroup: Option<&Cgroup>, workspace: &Workspace, socket: Option<UnixStream>) -> io::Result<Preparation> {
        let mut rlimits =
            vec![(sys::RLIMIT_CORE, 0, 0), (sys::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES), (sys::RLIMIT_STACK, SOFT_STACK, u64::MAX)];
        rlimits.extend(limits(spec, cgroup, Duration::ZERO));
        let door = cgroup.map(Cgroup::door).transpose()?;
        let (user, cwd) = (workspace.user(), workspace.real(spec.cwd.as_ref()));
        Ok(Preparation { door, terminal: spec.has_terminal(), user, cwd, rlimits, socket })
    }

    pub fn apply(&mut self) -> io::Result<()> {
        sys::new_session()?;
        if self.terminal {
            sys::take_terminal()?;
        }
        if let Some(door) = &mut self.door {
            door.enter()?;
        }
        // The kernel takes a step's process first when memory runs out. Refused only where we are no root.
        let _ = fs::write("/proc/self/oom_score_adj", "1000");
        for &(resource, soft, hard) in &self.rlimits {
            // An ordinary process may be unable to raise what it was given.
            sys::limit(0, resource, soft, hard).or_else(|error| if sys::is_root() { Err(error) } else { Ok(()) })?;
        }
        sys::umask(0o022);
        if let Some(user) = self.user {
            sys::become_user(user.uid, user.gid)?;
        }
        sys::no_new_privileges()?;
        sys::die_with_parent()?;
        env::set_current_dir(&self.cwd)?;
        // Last, for it may take the place of the door. It never is that of std's pipe for our error: that has two ends above 2,
        // and ours is the second.
        self.socket.as_ref().map_or(Ok(()), |socket| sys::duplicate_onto(socket, function::DESCRIPTOR))
    }
}
