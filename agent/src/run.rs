//! The agent's state machine: what each frame of the host means now, and one loop that waits for everything at once.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroups;
use crate::channel::Channel;
use crate::collect::Collection;
use crate::frame::{Ended, Env, ErrorCode, Exit, Frame, FromHost, Identity, Limit, Request, Start, StepSpec, ToHost};
use crate::input::Input;
use crate::log;
use crate::start;
use crate::step::{self, NotStarted, Slots, Step};
use crate::sys::{self, PollSet, Wait};
use crate::workspace::Workspace;

/// Bytes of standard input that may be under way or wait here.
const STDIN_WINDOW: usize = 64 << 10;
const HIGHEST_SIGNAL: u8 = 64;
/// Until the next look whether a step's last process has gone: nobody says so of one that has another parent than us.
const LINGERING: Duration = Duration::from_millis(5);

/// What is under way.
enum State {
    Idle,
    /// START was taken, files are coming.
    Receiving(Start),
    /// The steps are run; the number is that of the present one.
    Running(Start, usize, Box<Step>),
    Collecting(Collection),
}

pub struct Agent {
    began: Duration,
    channel: Channel,
    children: File,
    workspace: Workspace,
    cgroups: Option<Cgroups>,
    end_marker: String,
    identify: Option<fn(&Identity) -> io::Result<()>>,
    state: State,
    /// The run under way or the one that has ended last; 0 before the first.
    run: u32,
    input: Input,
    shutdown: bool,
    /// What stands by for a step of the next run, and whether the run under way has left it.
    standby: Option<Box<Step>>,
    standby_is_new: bool,
}

impl Agent {
    /// `began` is the time from the kernel's start to ours. `children` tells of children that ended. `identify` puts a new identity in force; None where there is no machine to do so for.
    pub fn new(
        began: Duration,
        channel: Channel,
        children: File,
        workspace: Workspace,
        cgroups: Option<Cgroups>,
        end_marker: String,
        identify: Option<fn(&Identity) -> io::Result<()>>,
    ) -> Agent {
        let (state, input) = (State::Idle, Input::default());
        Agent {
            began,
            channel,
            children,
            workspace,
            cgroups,
            end_marker,
            identify,
            state,
            run: 0,
            input,
            shutdown: false,
            standby: None,
            standby_is_new: false,
        }
    }

    /// Say HELLO and serve the host until SHUTDOWN or the end of the channel; then nothing of any run is alive.
    pub fn serve(&mut self) -> io::Result<()> {
        self.hello();
        let served = self.serve_until_closed();
        self.kill_everything();
        if self.channel.dropped > 0 {
            log::complain(&format!("{} packets were dropped", self.channel.dropped));
        }
        served
    }

    fn serve_until_closed(&mut self) -> io::Result<()> {
        while !self.shutdown {
            let mut set = PollSet::default();
            let blocked = self.channel.is_full();
            let out = if self.channel.has_output() { sys::POLLOUT } else { 0 };
            let input = if self.channel.takes_input() { sys::POLLIN } else { 0 };
            let channel = Some(set.add(&self.channel, out | input));
            let children = Some(set.add(&self.children, sys::POLLIN));
            let slots = self.watch_step(&mut set, blocked);
            set.wait(self.patience(blocked))?;
            if set.ready(children) || self.is_lingering() {
                self.reap();
            }
            self.work_on_step(&slots, &set);
            if set.readable(channel) {
                if input == 0 {
                    // Nothing was asked for but room to write, so this is the channel's end.
                    return Ok(());
                }
                match self.channel.receive() {
                    Some(frames) => frames.into_iter().for_each(|frame| self.handle(frame)),
                    None => return Ok(()),
                }
            }
            self.work_on_collection();
            if self.channel.flush().is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn hello(&mut self) {
        let boot_us = self.began.as_micros() as u64;
        let (version, arch, end_marker) = (log::VERSION, std::env::consts::ARCH, self.end_marker.as_str());
        self.channel.send(0, &ToHost::Hello { version, arch, boot_us, end_marker });
    }

    fn watch_step(&mut self, set: &mut PollSet, blocked: bool) -> Slots {
        let waiting = !self.input.waiting.is_empty();
        match &mut self.state {
            State::Running(_, _, step) => {
                step.pause_clock(blocked, Instant::now());
                step.watch(set, waiting, blocked)
            }
            _ => Slots::default(),
        }
    }

    /// How long to wait for events at most.
    fn patience(&self, blocked: bool) -> Option<Duration> {
        let now = Instant::now();
        match &self.state {
            State::Running(_, _, step) if step.stdin.is_some() && self.input.is_over() => Some(Duration::ZERO),
            State::Running(_, _, step) => {
                let limits = step.deadline(now).map(|deadline| deadline.saturating_duration_since(now));
                let output = if blocked { None } else { step.output_patience(now) };
                [limits, output, self.is_lingering().then_some(LINGERING)].into_iter().flatten().min()
            }
            State::Collecting(_) if !blocked => Some(Duration::ZERO),
            _ => None,
        }
    }

    /// Whether a step's program has ended, beside what stands by: what it left need not be our children, whose ends we are told of.
    fn is_lingering(&self) -> bool {
        matches!(&self.state, State::Running(_, _, step) if step.lingers()) && self.standby.is_some()
    }

    fn reap(&mut self) {
        // Only says that there is something; several ends may come as one.
        let _ = self.children.read(&mut [0; 512]);
        let now = Instant::now();
        loop {
            match (sys::wait_any(), &mut self.state) {
                (Wait::StillRunning, State::Running(_, _, step))
                    if step.spares_others() && self.standby.as_ref().map_or(false, |standby| standby.is_alone()) =>
                {
                    return step.all_reaped()
                }
                (Wait::StillRunning, _) => return,
                (Wait::NoChildren, State::Running(_, _, step)) => return step.all_reaped(),
                (Wait::NoChildren, _) => return,
                (Wait::Reaped(child), _) if self.standby.as_ref().map_or(false, |standby| standby.is_of(&child)) => self.standby = None,
                (Wait::Reaped(child), State::Running(_, _, step)) => step.reaped(&child, now),
                (Wait::Reaped(_), _) => {}
            }
        }
    }

    fn work_on_step(&mut self, slots: &Slots, set: &PollSet) {
        let now = Instant::now();
        let (step, channel, run) = match &mut self.state {
            State::Running(_, _, step) => (step, &mut self.channel, self.run),
            _ => return,
        };
        step.enforce(now);
        if !channel.is_full() {
            for (kind, data) in step.output(slots, set, now) {
                channel.send(run, &ToHost::Output(kind, &data));
            }
        }
        step.serve(slots, set, now, run, channel);
        self.input.pass_on(step, slots, set);
        self.input.grant(channel, run);
        if let Some(exit) = step.exit(now) {
            self.end_step(exit);
        }
    }

    fn work_on_collection(&mut self) {
        let collection = match &mut self.state {
            State::Collecting(collection) if !self.channel.is_full() => collection,
            _ => return,
        };
        match collection.step(&mut self.channel) {
            Ok(false) => {}
            Ok(true) => self.state = State::Idle,
            Err(text) => {
                self.state = State::Idle;
                self.error(self.run, ErrorCode::CollectFailed, &text);
            }
        }
    }

    fn error(&mut self, run: u32, code: ErrorCode, text: &str) {
        self.channel.send(run, &ToHost::Error(code, text));
    }

    fn handle(&mut self, frame: Frame) {
        match frame.message {
            FromHost::Shutdown => self.shutdown = true,
            FromHost::Resumed(identity) => self.resumed(&identity),
            FromHost::Moved(identity) => drop(self.take_identity(&identity)),
            FromHost::Start(start) => self.start(frame.run, start),
            _ if frame.run != self.run || frame.run == 0 => self.channel.dropped += 1,
            FromHost::File { index, offset, data } => self.file(index, offset, &data),
            FromHost::Begin => self.begin(),
            FromHost::Stdin(data) => self.stdin(&data),
            FromHost::StdinEof => self.input.eof = true,
            FromHost::Signal(number) => self.signal(number),
            FromHost::Collect { paths, globs } => self.collect(paths.into_iter().map(PathBuf::from).collect(), globs),
            FromHost::Resize { columns, rows } => self.resize(columns, rows),
            FromHost::Request(request) => self.request(request),
        }
    }

    fn wrong_state(&mut self, run: u32, what: &str) {
        self.error(run, ErrorCode::WrongState, what);
    }

    fn resumed(&mut self, identity: &Identity) {
        match &self.state {
            State::Idle => {}
            State::Running(_, _, step) if step.is_loaded() => {}
            _ => return self.wrong_state(0, "RESUMED during a run"),
        }
        if self.take_identity(identity) {
            self.hello();
        }
    }

    /// Take an identity, and tell a function that waits for requests. False if that failed, which the host has been told.
    fn take_identity(&mut self, identity: &Identity) -> bool {
        let text = match self.identify.map(|identify| identify(identity)) {
            Some(Ok(())) => {
                match &mut self.state {
                    State::Running(_, _, step) if step.is_loaded() => step.resumed(),
                    _ => {}
                }
                return true;
            }
            Some(Err(error)) => error.to_string(),
            None => "the agent is not the init of a machine".to_owned(),
        };
        self.error(0, ErrorCode::ResumedFailed, &text);
        false
    }

    fn start(&mut self, run: u32, start: Start) {
        if !matches!(self.state, State::Idle) {
            return self.wrong_state(run, "START during a run");
        }
        if let Err(text) = start::check(run, &start, self.workspace.has_products()) {
            return self.error(run, ErrorCode::StartRefused, &text);
        }
        self.run = run;
        self.input = Input::default();
        self.standby_is_new = false;
        if !start.steps.iter().any(|step| self.stands_by_for(step, &start.env)) {
            self.end_standby();
        }
        if let Err(text) = self.workspace.begin(&start) {
            self.error(run, ErrorCode::FileNotWritten, &text);
            return self.done();
        }
        if start.steps.iter().any(|step| step.stdin) {
            self.input.taken = STDIN_WINDOW;
        } else {
            self.input.gone = true;
        }
        self.input.grant(&mut self.channel, run);
        self.state = State::Receiving(start);
    }

    fn file(&mut self, index: u16, offset: u64, data: &[u8]) {
        let written = match &self.state {
            State::Receiving(start) => self.workspace.write(&start.files, index, offset, data),
            // The host may not have seen yet that an error ended the run.
            State::Idle => return,
            _ => return self.wrong_state(self.run, "FILE after BEGIN"),
        };
        if let Err(text) = written {
            self.error(self.run, ErrorCode::FileNotWritten, &text);
            self.done();
        }
    }

    fn begin(&mut self) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Receiving(start) => match self.workspace.complete(&start.files) {
                Ok(()) if start.steps.is_empty() => self.done(),
                Ok(()) => self.run_step(start, 0),
                Err(text) => {
                    self.error(self.run, ErrorCode::FileNotWritten, &text);
                    self.done();
                }
            },
            State::Idle => {}
            other => {
                self.state = other;
                self.wrong_state(self.run, "a second BEGIN");
            }
        }
    }

    fn run_step(&mut self, start: Start, index: usize) {
        let number = index as u8;
        self.channel.send(self.run, &ToHost::Stage { step: number, name: &start.steps[index].name });
        let spec = &start.steps[index];
        if let Some(step) = self.take_standby(number, spec, &start.env) {
            self.state = State::Running(start, index, step);
            return;
        }
        match Step::start(number, spec, &start.env, &mut self.cgroups, &self.workspace) {
            Ok(step) => self.state = State::Running(start, index, Box::new(step)),
            Err(NotStarted(errno)) => {
                let ended = Ended::NotStarted(errno);
                let exit = Exit { step: number, ended, limit: Limit::None, wall_us: 0, cpu_us: 0, peak_memory: 0, cut: [false; 2] };
                self.channel.send(self.run, &ToHost::Exit(exit));
                self.done();
            }
        }
    }

    fn stands_by_for(&self, spec: &StepSpec, env: &Env) -> bool {
        self.standby.as_ref().map_or(false, |standby| standby.stands_by_for(spec, env))
    }

    /// What stands by as this step, if it fits; one that cannot be told so is ended. No other process is alive.
    fn take_standby(&mut self, number: u8, spec: &StepSpec, env: &Env) -> Option<Box<Step>> {
        if !self.stands_by_for(spec, env) {
            return None;
        }
        let mut step = self.standby.take()?;
        if let Err(error) = step.take_over(number, spec, &self.workspace) {
            log::complain(&format!("what stood by is of no use: {error}"));
            self.kill_everything();
            return None;
        }
        Some(step)
    }

    /// End what stands by, when no other process is alive.
    fn end_standby(&mut self) {
        if let Some(_until_reaped) = self.standby.take() {
            self.kill_everything();
        }
    }

    fn request(&mut self, request: Request) {
        let taken = match &mut self.state {
            State::Running(_, _, step) => step.request(request),
            // The host may not have seen yet that the function has ended.
            State::Idle => return,
            _ => Err("REQUEST before LOADED"),
        };
        if let Err(text) = taken {
            self.wrong_state(self.run, text);
        }
    }

    fn end_step(&mut self, exit: Exit) {
        if let State::Running(_, _, step) = &self.state {
            if let Some(text) = step.breach() {
                self.channel.send(self.run, &ToHost::Error(ErrorCode::FunctionBrokeContract, text));
            }
        }
        self.channel.send(self.run, &ToHost::Exit(exit));
        let (start, index) = match std::mem::replace(&mut self.state, State::Idle) {
            State::Running(start, index, step) if step.stands_by() => {
                (self.standby, self.standby_is_new) = (Some(step), true);
                (start, index)
            }
            // The step's cgroup goes here, before the next one's is made.
            State::Running(start, index, _) => (start, index),
            _ => return,
        };
        self.input.gone |= start.steps[index].stdin;
        let good = exit.ended == Ended::Exited(0) && exit.limit == Limit::None;
        if good && index + 1 < start.steps.len() {
            self.run_step(start, index + 1);
        } else {
            self.done();
        }
    }

    fn done(&mut self) {
        self.state = State::Idle;
        self.input = Input { gone: true, ..Input::default() };
        if !self.standby_is_new {
            // A run's programs may have done something to it.
            self.end_standby();
        }
        self.channel.send(self.run, &ToHost::Done);
    }

    fn stdin(&mut self, data: &[u8]) {
        if self.input.gone {
            return;
        }
        if data.len() > self.input.granted || self.input.eof {
            return self.wrong_state(self.run, "STDIN beyond what CREDIT allows, or after STDIN_EOF");
        }
        self.input.granted -= data.len();
        self.input.waiting.extend(data);
    }

    fn signal(&mut self, number: u8) {
        match &self.state {
            State::Running(_, _, step) if (1..=HIGHEST_SIGNAL).contains(&number) => step.signal(number.into()),
            _ => {}
        }
    }

    fn resize(&mut self, columns: u16, rows: u16) {
        if let State::Running(_, _, step) = &self.state {
            step.resize(columns, rows);
        }
    }

    fn collect(&mut self, paths: Vec<PathBuf>, globs: bool) {
        if !matches!(self.state, State::Idle) {
            return self.wrong_state(self.run, "COLLECT before DONE");
        }
        let collection = if globs {
            Collection::of_matching(self.run, &paths, &self.workspace)
        } else {
            Collection::new(self.run, paths, &self.workspace)
        };
        match collection {
            Ok(collection) => self.state = State::Collecting(collection),
            Err(text) => self.error(self.run, ErrorCode::CollectFailed, &text),
        }
    }

    /// Kill what runs and wait for the end of all of it.
    fn kill_everything(&mut self) {
        loop {
            self.standby.iter().for_each(|standby| standby.kill());
            match &self.state {
                State::Running(_, _, step) => step.kill(),
                _ => step::kill_descendants(),
            }
            match sys::wait_any() {
                Wait::NoChildren => break,
                Wait::Reaped(_) => {}
                Wait::StillRunning => {
                    let mut set = PollSet::default();
                    set.add(&self.children, sys::POLLIN);
                    if set.wait(None).is_err() {
                        break;
                    }
                    let _ = self.children.read(&mut [0; 512]);
                }
            }
        }
        self.state = State::Idle;
    }

    pub fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }
}
