//! Mayfly's runtime for WebAssembly: a program that can be stopped at any moment and go on elsewhere, on any processor.
//!
//! A module is read and validated (`module`, `instruction`, `validate`), compiled to code of our own (`compile`, `code`), and interpreted
//! (`run`). All that the program is, its files included (`wasi`), is data, and `checkpoint` writes and reads it.

#![deny(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

mod bytes;
mod checkpoint;
mod code;
mod compile;
mod float;
mod instruction;
#[allow(unsafe_code)]
mod memory;
mod module;
#[allow(unsafe_code)]
mod native;
#[allow(unsafe_code)]
mod net;
mod options;
mod refusal;
#[allow(unsafe_code)]
mod run;
#[allow(unsafe_code)]
mod sys;
mod validate;
mod wasi;

use checkpoint::{AtMost, Stopped};
use options::Options;
use run::{End, Machine};
use wasi::sockets::Socket;
use wasi::{host_files, Descriptor, Wasi};

/// The program was stopped, and its checkpoint is written.
const STOPPED: i32 = 75;
/// As a shell says of a program that SIGABRT ended.
const TRAPPED: i32 = 134;
/// The module or the checkpoint was refused, or a file could not be read or written.
const REFUSED: i32 = 126;
const MISUSED: i32 = 2;

fn main() {
    let status = match Options::parse(std::env::args_os().skip(1)) {
        Ok(options) => start(&options).unwrap_or_else(|message| {
            complain(&message);
            REFUSED
        }),
        Err(message) => {
            complain(&message);
            MISUSED
        }
    };
    std::process::exit(status)
}

fn start(options: &Options) -> Result<i32, String> {
    let began = Instant::now();
    let path = &options.file;
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| told(&error))?;
    let about = file.metadata().map_err(|error| told(&error))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let goes_on = file.fill_buf().map_err(|error| told(&error))?.starts_with(checkpoint::MAGIC);
    let mut taken = Vec::new();
    let mut stopped = if goes_on {
        let mut stopped = checkpoint::load(file, about.len()).map_err(|error| told(&error))?;
        stopped.wasi.sockets().for_each(Socket::reopen);
        stopped
    } else {
        let mut module = Vec::new();
        file.read_to_end(&mut module).map_err(|error| told(&error))?;
        begin(module, options).map_err(|error| told(&error))?
    };
    if let (Some(folder), false) = (&options.folder, goes_on) {
        let own = (about.dev(), about.ino());
        taken = host_files::take(&mut stopped.wasi.tree, folder, own).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    if options.save.is_some() {
        sys::stop_on_signal().map_err(|error| format!("cannot catch signals: {error}"))?;
    }
    if let Some(ticks) = options.stop_at {
        stopped.wasi.stop_at(ticks);
    }
    stopped.machine.compile = options.compile;
    let loaded = Instant::now();
    let mut ran;
    let end = loop {
        let end = stopped.machine.run(&stopped.program, &mut stopped.wasi);
        stopped.wasi.ticks -= u64::from(std::mem::take(&mut stopped.machine.ticks_left));
        ran = Instant::now();
        if end != End::Stopped || stop(&mut stopped, options)? {
            break end;
        }
    };
    let status = match end {
        End::Exit(status) => status as i32,
        End::Trap(text) => {
            complain(&format!("trap: {text}"));
            TRAPPED
        }
        End::Stopped => STOPPED,
    };
    if let (Some(folder), true) = (&options.folder, status != STOPPED) {
        host_files::give(&stopped.wasi.tree, folder, &taken).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    if options.stats {
        let seconds = [loaded - began, ran - loaded, ran.elapsed()].map(|time| time.as_secs_f64());
        let [load, run, save] = seconds;
        complain(&format!("{{\"ticks\": {}, \"load_s\": {load:.6}, \"run_s\": {run:.6}, \"save_s\": {save:.6}}}", stopped.wasi.ticks));
    }
    Ok(status)
}

/// A program at its beginning.
fn begin(file: Vec<u8>, options: &Options) -> refusal::Result<Stopped> {
    let module = module::Module::read(&file)?;
    let start = module.command()?;
    let mut wasi = Wasi::new(options.args.clone(), options.env.clone(), b"/".to_vec());
    wasi.descriptors.insert(0, Descriptor::Input { nonblocking: module.is_go });
    wasi.link(&module)?;
    for address in &options.listen {
        wasi.listen(*address, module.is_go).map_err(|error| refusal::Refusal::Invalid(format!("cannot listen at {address}: {error}")))?;
    }
    let program = compile::compile(&module, &file)?;
    let machine = Machine::new(&module, &program, &file, start).ok_or_else(refusal::no_memory)?;
    Ok(Stopped { file, program, machine, wasi })
}

/// Write the checkpoint of a program that was asked to stop. False if that is not possible, and the program goes on.
fn stop(stopped: &mut Stopped, options: &Options) -> Result<bool, String> {
    let path = options.save.as_ref().expect("only a program that can be saved is stopped");
    let told = |error: io::Error| format!("{}: {error}", path.display());
    stopped.wasi.input.take_waiting().map_err(told)?;
    stopped.wasi.quiesce_sockets();
    match save(stopped, path, options.most.unwrap_or(u64::MAX)).map_err(told) {
        Ok(()) => Ok(true),
        // Whoever said when to stop it wants nothing of it later.
        Err(message) if options.stop_at.is_some() => Err(message),
        Err(message) => {
            complain(&format!("it is not stopped: {message}"));
            sys::do_not_stop().map_err(told)?;
            Ok(false)
        }
    }
}

/// Write the whole checkpoint, or nothing that has its name: so if it would have more than `most` bytes.
fn save(stopped: &Stopped, path: &Path, most: u64) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = File::create(&part).and_then(|file| {
        let mut to = AtMost { most, left: most, to: BufWriter::with_capacity(1 << 20, file) };
        checkpoint::save(stopped, &mut to)?;
        to.flush()
    });
    let named = written.and_then(|()| std::fs::rename(&part, path));
    if named.is_err() {
        drop(std::fs::remove_file(&part));
    }
    named
}

fn complain(message: &str) {
    // There is nobody to tell when standard error is gone.
    drop(writeln!(io::stderr(), "mayfly-wasm: {message}"));
}
