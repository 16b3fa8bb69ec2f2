//! One step: its program started as an unprivileged user, its pipes or terminal, its limits, and its end.
//!
//! A step goes through: program running -> program ended, what it left being killed -> all reaped -> output read to its end.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::io::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::{Cgroup, Cgroups};
use crate::channel::Channel;
use crate::child::{self, Preparation};
use crate::elf;
use crate::frame::{Ended, Env, Exit, Limit, Request, StepSpec, StreamKind};
use crate::function::Function;
use crate::login;
use crate::output::{self, Output};
use crate::procfs;
use crate::standby::Standby;
use crate::streams;
use crate::sys::{self, PollSet, Reaped, Slot};
use crate::workspace::Workspace;

/// What TERM says unless START does: what terminals on screens and in browsers understand.
const TERMINAL_KIND: &str = "xterm-256color";
/// Between two looks at the CPU time that a step has used, at least.
const CPU_CHECK: Duration = Duration::from_millis(20);

/// Counts time only while it runs.
struct Stopwatch {
    counted: Duration,
    since: Option<Instant>,
}

impl Stopwatch {
    fn started(now: Instant) -> Stopwatch {
        Stopwatch { counted: Duration::ZERO, since: Some(now) }
    }

    fn set_running(&mut self, running: bool, now: Instant) {
        match (running, self.since) {
            (true, None) => self.since = Some(now),
            (false, Some(since)) => {
                self.counted += now - since;
                self.since = None;
            }
            _ => {}
        }
    }

    fn elapsed(&self, now: Instant) -> Duration {
        self.counted + self.since.map_or(Duration::ZERO, |since| now - since)
    }
}

/// Where a running step's descriptors are in a `PollSet`.
#[derive(Default)]
pub struct Slots {
    stdin: Option<Slot>,
    streams: streams::Slots,
    terminal: Option<Slot>,
    function: Option<Slot>,
    standby: Option<Slot>,
}

pub struct Step {
    number: u8,
    pid: i32,
    spec: Limits,
    cgroup: Option<Cgroup>,
    pub stdin: Option<File>,
    output: Output,
    function: Option<Function>,
    standby: Option<Standby>,
    clock: Stopwatch,
    next_cpu_check: Option<Instant>,
    ended: Option<Ended>,
    tripped: Limit,
    all_reaped: bool,
    reaped_cpu: Duration,
    /// What its program had used before it became the step's.
    earlier_cpu: Duration,
    /// How many forks it had been refused by then.
    earlier_refusals: u64,
    largest_rss: u64,
}

struct Limits {
    wall: Option<Duration>,
    cpu: Option<Duration>,
    /// What no single segment of the program can be larger than.
    segment: u64,
    program: PathBuf,
}

impl Limits {
    fn new(spec: &StepSpec, cgroup: Option<&Cgroup>, workspace: &Workspace) -> Limits {
        let limit = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
        Limits {
            wall: limit(spec.wall_ms),
            cpu: limit(spec.cpu_ms),
            segment: largest_possible_segment(spec, cgroup),
            // As exec finds it; a program that is looked for in PATH is the image's, and not too large.
            program: workspace.real(spec.cwd.as_ref()).join(&spec.argv[0]),
        }
    }
}

/// A step's program that could not be started, with the errno.
pub struct NotStarted(pub u32);

impl Step {
    /// Start the program of step `number`.
    pub fn start(number: u8, spec: &StepSpec, env: &Env, cgroups: &mut Option<Cgroups>, workspace: &Workspace) -> Result<Step, NotStarted> {
        Step::spawn(number, spec, env, cgroups, workspace).map_err(|error| NotStarted(error.raw_os_error().unwrap_or(0) as u32))
    }

    fn spawn(number: u8, spec: &StepSpec, env: &Env, cgroups: &mut Option<Cgroups>, workspace: &Workspace) -> io::Result<Step> {
        let cgroup = cgroups.as_mut().map(|cgroups| cgroups.make(spec)).transpose()?;
        let (output, mut stdin, descriptors) = output::open(spec)?;
        if let Some(user) = workspace.user() {
            // So that the program can open /dev/stdin, /dev/stdout and /dev/stderr, or /dev/tty.
            for fd in descriptors.iter().flatten() {
                sys::chown(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_ref(), user.uid, user.gid)?;
            }
        }
        let mut command = Command::new(&spec.argv[0]);
        command.args(&spec.argv[1..]).env_clear().envs(login::environment(workspace, &spec.cwd));
        command.envs(spec.has_terminal().then_some(("TERM", TERMINAL_KIND)));
        command.envs(env.iter().cloned()).envs(spec.env.iter().cloned());
        let [stdin_of_child, stdout_of_child, stderr_of_child] = descriptors.map(|fd| fd.map_or_else(Stdio::null, Stdio::from));
        command.stdin(stdin_of_child).stdout(stdout_of_child).stderr(stderr_of_child);
        let (mut function, mut standby, mut socket) = (None, None, None);
        if spec.function || spec.standby {
            let (ours, theirs) = UnixStream::pair()?;
            socket = Some(theirs);
            if spec.function {
                function = Some(Function::new(ours)?);
            } else {
                let limits = child::limits(spec, cgroup.as_ref(), Duration::ZERO);
                standby = Some(Standby::new(ours, spec, env, stdin.take(), limits)?);
            }
        }
        let mut preparation = Preparation::new(spec, cgroup.as_ref(), workspace, socket)?;
        let child = sys::spawn(&mut command, move || preparation.apply())?;
        let now = Instant::now();
        Ok(Step {
            number,
            pid: child.id() as i32,
            spec: Limits::new(spec, cgroup.as_ref(), workspace),
            cgroup,
            stdin,
            output,
            function,
            standby,
            clock: Stopwatch::started(now),
            next_cpu_check: (spec.cpu_ms > 0).then_some(now),
            ended: None,
            tripped: Limit::None,
            all_reaped: false,
            reaped_cpu: Duration::ZERO,
            earlier_cpu: Duration::ZERO,
            earlier_refusals: 0,
            largest_rss: 0,
        })
    }

    /// Whether its program stands by, ready to be that of a step as asked for.
    pub fn stands_by_for(&self, spec: &StepSpec, env: &Env) -> bool {
        self.standby.as_ref().map_or(false, |standby| standby.is_ready() && standby.fits(spec, env))
    }

    /// Become the step `number`, whose program is what stood by.
    pub fn take_over(&mut self, number: u8, spec: &StepSpec, workspace: &Workspace) -> io::Result<()> {
        self.earlier_cpu = self.cpu();
        self.earlier_refusals = self.cgroup.as_ref().map_or(0, Cgroup::refused_forks);
        self.number = number;
        self.spec = Limits::new(spec, self.cgroup.as_ref(), workspace);
        if let Some(cgroup) = &self.cgroup {
            cgroup.limit(spec)?;
        }
        let before = self.standby.as_ref().map_or(&[][..], |standby| &standby.limits);
        for (resource, soft, hard) in child::limits(spec, self.cgroup.as_ref(), self.earlier_cpu) {
            if !before.contains(&(resource, soft, hard)) {
                sys::limit(self.pid, resource, soft, hard)?;
            }
        }
        if let Output::Pipes(streams) = &mut self.output {
            streams.limit(output::limit(spec));
        }
        let now = Instant::now();
        self.clock = Stopwatch::started(now);
        self.next_cpu_check = (spec.cpu_ms > 0).then_some(now);
        self.stdin = self.standby.take().map_or(Ok(None), |standby| standby.tell(&spec.argv))?;
        Ok(())
    }

    /// Add what the step waits for. `stdin_waits`: there are bytes for its standard input; `blocked`: the channel takes no output now.
    pub fn watch(&self, set: &mut PollSet, stdin_waits: bool, blocked: bool) -> Slots {
        let stdin = self.stdin.as_ref().map(|pipe| set.add(pipe, if stdin_waits { sys::POLLOUT } else { 0 }));
        if blocked {
            return Slots { stdin, ..Slots::default() };
        }
        let function = self.function.as_ref().and_then(|function| function.watch(set));
        let standby = self.standby.as_ref().and_then(|standby| standby.watch(set));
        match &self.output {
            Output::Pipes(streams) => Slots { stdin, streams: streams.watch(set), terminal: None, function, standby },
            Output::Terminal(terminal) => Slots { stdin, terminal: terminal.watch(set), ..Slots::default() },
        }
    }

    /// When to look at the limits again at the latest.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.ended.is_some() || self.tripped != Limit::None {
            return None;
        }
        let wall = self.spec.wall.filter(|_| self.clock.since.is_some()).map(|wall| now + wall.saturating_sub(self.clock.elapsed(now)));
        let function = self.function.as_ref().and_then(Function::deadline);
        [wall, self.next_cpu_check, function].into_iter().flatten().min()
    }

    /// Stop the wall clock while the host is what the program waits for.
    pub fn pause_clock(&mut self, paused: bool, now: Instant) {
        self.clock.set_running(!paused && self.ended.is_none(), now);
    }

    /// Kill the step if it has used up its wall clock or CPU time.
    pub fn enforce(&mut self, now: Instant) {
        if self.ended.is_some() || self.tripped != Limit::None {
            return;
        }
        if self.spec.wall.map_or(false, |wall| self.clock.elapsed(now) >= wall) {
            self.trip(Limit::Wall);
            return;
        }
        if self.next_cpu_check.map_or(true, |check| now < check) {
            return;
        }
        let left = self.spec.cpu.unwrap_or(Duration::MAX).saturating_sub(self.cpu());
        if left.is_zero() {
            self.trip(Limit::Cpu);
            return;
        }
        // All processors together cannot use up what is left before this.
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        self.next_cpu_check = Some(now + (left / processors).max(CPU_CHECK));
    }

    fn trip(&mut self, limit: Limit) {
        self.tripped = limit;
        self.kill();
    }

    /// Send a signal to every process of the step.
    pub fn signal(&self, signal: i32) {
        let pids = match &self.cgroup {
            Some(cgroup) => cgroup.processes(),
            None => procfs::descendants().into_iter().map(|process| process.pid).collect(),
        };
        pids.into_iter().for_each(|pid| sys::kill(pid, signal));
    }

    /// Kill every process of the step.
    pub fn kill(&self) {
        if self.cgroup.as_ref().map_or(true, |cgroup| cgroup.kill().is_err()) {
            kill_descendants();
        }
    }

    /// Whether `kill` leaves what else descends from us alone.
    pub fn spares_others(&self) -> bool {
        self.cgroup.is_some()
    }

    /// Take note of a child that has ended, the program or an orphan that came to us.
    pub fn reaped(&mut self, child: &Reaped, now: Instant) {
        self.reaped_cpu += child.cpu;
        self.largest_rss = self.largest_rss.max(child.max_rss);
        if child.pid == self.pid {
            self.clock.set_running(false, now);
            self.ended = Some(if child.signal == 0 { Ended::Exited(child.exit_code as u32) } else { Ended::Signaled(child.signal as u32) });
        }
        // Also for later ones: where there is no cgroup to kill as a whole, each may have left children to us.
        if self.ended.is_some() || self.tripped != Limit::None {
            self.kill();
        }
    }

    /// Whether its program has ended, and perhaps not all that it left.
    pub fn lingers(&self) -> bool {
        self.ended.is_some() && !self.all_reaped
    }

    /// No process of the step is left.
    pub fn all_reaped(&mut self) {
        self.all_reaped = true;
    }

    /// Pass on standard input from the front of `input` as far as the program takes it; gives the count, None when it takes no more ever.
    pub fn feed(&mut self, input: &[u8], slots: &Slots, set: &PollSet) -> Option<usize> {
        if !set.ready(slots.stdin) {
            return Some(0);
        }
        match self.stdin.as_mut()?.write(input) {
            Ok(0) if input.is_empty() => self.stdin_is_gone(),
            Ok(count) => {
                if let Output::Terminal(terminal) = &mut self.output {
                    terminal.typed(&input[..count]);
                }
                Some(count)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Some(0),
            Err(_) => self.stdin_is_gone(),
        }
    }

    /// What is to be typed at the end of standard input; None where it is to be closed.
    pub fn type_end(&mut self) -> Option<Vec<u8>> {
        match &mut self.output {
            Output::Pipes(_) => None,
            Output::Terminal(terminal) => terminal.type_end(),
        }
    }

    /// Give its terminal another size, if it has one.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Output::Terminal(terminal) = &self.output {
            terminal.resize(columns, rows);
        }
    }

    fn stdin_is_gone(&mut self) -> Option<usize> {
        self.stdin = None;
        None
    }

    /// Read what the step has put out, and give what is to be passed on, in the order of its writes.
    pub fn output(&mut self, slots: &Slots, set: &PollSet, now: Instant) -> Vec<(StreamKind, Vec<u8>)> {
        match &mut self.output {
            Output::Pipes(streams) => streams.read(&slots.streams, set, self.all_reaped, now),
            Output::Terminal(terminal) => terminal.read(slots.terminal, set, self.all_reaped),
        }
    }

    /// How long there is nothing to do for its output; None: until it writes.
    pub fn output_patience(&self, now: Instant) -> Option<Duration> {
        match &self.output {
            _ if self.function.as_ref().map_or(false, Function::is_held_up) => Some(Duration::ZERO),
            Output::Pipes(streams) => streams.patience(now),
            Output::Terminal(terminal) => (self.all_reaped && !terminal.is_over()).then_some(Duration::ZERO),
        }
    }

    /// Whether it is a function that waits for requests.
    pub fn is_loaded(&self) -> bool {
        self.ended.is_none() && self.function.as_ref().map_or(false, Function::is_loaded)
    }

    /// Give its function a request, or a piece of one. Fails with why it is refused.
    pub fn request(&mut self, request: Request) -> Result<(), &'static str> {
        match (&mut self.function, &mut self.output) {
            (Some(function), Output::Pipes(streams)) => function.request(request, streams),
            _ => Err("REQUEST before LOADED"),
        }
    }

    /// Tell its function that the machine goes on from a snapshot.
    pub fn resumed(&mut self) {
        if let Some(function) = &mut self.function {
            function.resumed();
        }
    }

    /// Pass on what its function says, and kill it if that breaks the contract. Hear whether what is to stand by is ready.
    pub fn serve(&mut self, slots: &Slots, set: &PollSet, now: Instant, run: u32, channel: &mut Channel) {
        if let Some(standby) = self.standby.as_mut().filter(|_| set.ready(slots.standby)) {
            standby.hear();
        }
        let broken = match (&mut self.function, &mut self.output) {
            (Some(function), Output::Pipes(streams)) => function.serve((slots.function, set), now, run, channel, streams),
            _ => false,
        };
        if broken {
            self.kill();
        }
    }

    /// How its function broke the contract, if it did.
    pub fn breach(&self) -> Option<&str> {
        self.function.as_ref().and_then(Function::breach)
    }

    /// Whether this child is its program.
    pub fn is_of(&self, child: &Reaped) -> bool {
        self.pid == child.pid
    }

    /// Whether no other process descends from us than those of this step.
    pub fn is_alone(&self) -> bool {
        let mut own = self.cgroup.as_ref().map_or_else(Vec::new, Cgroup::processes);
        // A cgroup does not list those that have ended, and that their parent has not waited for.
        own.extend(procfs::descendants_of(self.pid).iter().map(|process| process.pid));
        procfs::descendants().iter().all(|process| process.pid == self.pid || own.contains(&process.pid))
    }

    /// Whether its program stands by, or has just become ready to.
    pub fn stands_by(&self) -> bool {
        self.ended.is_none() && self.standby.as_ref().map_or(false, Standby::is_ready)
    }

    /// How the step ended, once it is over altogether; what stands by ended well, for the host.
    pub fn exit(&self, now: Instant) -> Option<Exit> {
        let (over, cut) = match &self.output {
            Output::Pipes(streams) => (streams.are_over(), streams.cut()),
            Output::Terminal(terminal) => (terminal.is_over(), [terminal.was_cut(), false]),
        };
        let stands_by = (self.stands_by() && self.output_patience(now).is_none()).then_some(Ended::Exited(0));
        let ended = self.ended.filter(|_| self.all_reaped && over).or(stands_by)?;
        Some(Exit {
            step: self.number,
            ended,
            limit: self.limit(ended),
            wall_us: self.clock.elapsed(now).as_micros() as u64,
            cpu_us: self.cpu().as_micros() as u64,
            peak_memory: self.cgroup.as_ref().and_then(Cgroup::peak_memory).unwrap_or(self.largest_rss),
            cut,
        })
    }

    fn limit(&self, ended: Ended) -> Limit {
        if self.tripped != Limit::None || ended == Ended::Exited(0) {
            return self.tripped;
        }
        let used_up = self.spec.cpu.map_or(false, |cpu| self.cpu() >= cpu);
        match (&self.cgroup, ended) {
            (Some(cgroup), _) if cgroup.ran_out_of_memory() => Limit::Memory,
            (_, Ended::Signaled(signal)) if signal == sys::SIGXFSZ as u32 => Limit::FileSize,
            // A program that does not fit is killed by exec itself: it is too late then for an error.
            (_, Ended::Signaled(signal)) if signal == sys::SIGSEGV as u32 && self.is_too_large() => Limit::Memory,
            (_, Ended::Signaled(signal)) if used_up && (signal == sys::SIGXCPU as u32 || signal == sys::SIGKILL as u32) => Limit::Cpu,
            (Some(cgroup), _) if cgroup.refused_forks() > self.earlier_refusals => Limit::Processes,
            _ => Limit::None,
        }
    }

    fn is_too_large(&self) -> bool {
        elf::largest_segment(&self.spec.program).map_or(false, |size| size > self.spec.segment)
    }

    fn cpu(&self) -> Duration {
        let living = || procfs::descendants().into_iter().map(|process| process.cpu).sum::<Duration>();
        self.cgroup.as_ref().and_then(Cgroup::cpu).unwrap_or_else(|| self.reaped_cpu + living()).saturating_sub(self.earlier_cpu)
    }
}

/// The kernel refuses a segment that is larger than all memory, or than RLIMIT_DATA.
fn largest_possible_segment(spec: &StepSpec, cgroup: Option<&Cgroup>) -> u64 {
    if spec.memory > 0 && !cgroup.map_or(false, Cgroup::limits_memory) {
        return spec.memory;
    }
    procfs::total_memory().unwrap_or(u64::MAX)
}

/// Kill all that descends from us. What is forked meanwhile comes to us when its parent dies, and is killed then.
pub fn kill_descendants() {
    procfs::descendants().iter().for_each(|process| sys::kill(process.pid, sys::SIGKILL));
}
