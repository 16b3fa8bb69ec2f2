//! Serves requests to a function over descriptor 3 (agent/PROTOCOL.md, "Functions"). The function is in the crate `handler`;
//! `entry.rs`, which the build writes, says which of it is called. Compiles with Rust 1.63.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::io::FromRawFd;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::time::Instant;

mod entry;

const REQUEST: u8 = 1;
const LOADED: u8 = 0;
const ANSWER: u8 = 1;
const EXCEPTION: u8 = 2;
const MAX_PAYLOAD: usize = 6 << 20;
const MAX_TEXT: usize = 64 << 10;

/// What went wrong: its type, a message, and where.
struct Exception {
    name: String,
    message: String,
    trace: String,
}

thread_local! {
    /// This thread is in the handler. Other threads' panics are the function's own affair.
    static HANDLING: Cell<bool> = Cell::new(false);
    static PLACE: RefCell<String> = RefCell::new(String::new());
}

fn main() {
    // SAFETY: the descriptor is the agent's, for this program; nothing else here knows of it.
    let given = unsafe { File::from_raw_fd(3) };
    // Another number, which programs that the function starts do not get.
    let channel = given.try_clone().unwrap_or_else(|_| {
        eprintln!("descriptor 3 is not open; the guest's agent starts this program");
        process::exit(1)
    });
    drop(given);
    load();
    note_panics();
    // An error is the end of the channel: nobody is there who could be told.
    let _ = serve(channel, entry::function);
}

/// What is called before the first request, unless the function has its own.
#[allow(dead_code)]
fn init() {}

fn load() {
    #[allow(unused_imports)]
    use handler::*; // a `pub fn init` of the crate hides ours
    init();
}

fn note_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !HANDLING.with(Cell::get) {
            return usual(info);
        }
        PLACE.with(|place| *place.borrow_mut() = info.location().map(|place| format!("panicked at {place}")).unwrap_or_default());
    }));
}

fn serve<A: AsRef<[u8]>, E: Display>(mut channel: File, function: fn(&[u8]) -> Result<A, E>) -> io::Result<()> {
    send(&mut channel, LOADED, 0, 0, &[])?;
    loop {
        let (kind, id, payload) = receive(&mut channel)?;
        if kind != REQUEST {
            continue; // resumed from a snapshot: std keeps no random numbers that matter
        }
        let begin = Instant::now();
        let outcome = call(function, &payload);
        let took = begin.elapsed().as_micros() as u64;
        match &outcome {
            Ok(answer) => send(&mut channel, ANSWER, id, took, answer.as_ref())?,
            Err(exception) => send(&mut channel, EXCEPTION, id, took, exception.to_json().as_bytes())?,
        }
    }
}

fn call<A: AsRef<[u8]>, E: Display>(function: fn(&[u8]) -> Result<A, E>, payload: &[u8]) -> Result<A, Exception> {
    HANDLING.with(|handling| handling.set(true));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        function(payload).map_err(|error| Exception {
            name: std::any::type_name::<E>().into(),
            message: error.to_string(),
            trace: String::new(),
        })
    }));
    HANDLING.with(|handling| handling.set(false));
    match outcome {
        Ok(Ok(answer)) if answer.as_ref().len() > MAX_PAYLOAD => Err(Exception {
            name: "answer too large".into(),
            message: format!("the answer has {} bytes; at most {MAX_PAYLOAD} can be sent", answer.as_ref().len()),
            trace: String::new(),
        }),
        Ok(result) => result,
        Err(payload) => {
            let message = text_of(&*payload).unwrap_or("panicked with a value that is not text").into();
            std::mem::forget(payload); // dropping it may panic again
            Err(Exception { name: "panic".into(), message, trace: PLACE.with(RefCell::take) })
        }
    }
}

fn text_of(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

impl Exception {
    fn to_json(&self) -> String {
        let [name, message, trace] = [&self.name, &self.message, &self.trace].map(|text| quoted(text));
        format!("{{\"error\":{name},\"message\":{message},\"trace\":{trace}}}")
    }
}

/// A text, or its beginning, as JSON.
fn quoted(text: &str) -> String {
    let mut json = String::from("\"");
    for character in text.chars().take(MAX_TEXT) {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            '\0'..='\x1f' => write!(json, "\\u{:04x}", character as u32).unwrap_or_default(),
            _ => json.push(character),
        }
    }
    json.push('"');
    json
}

fn receive(channel: &mut File) -> io::Result<(u8, u32, Vec<u8>)> {
    let mut header = [0; 7];
    channel.read_exact(&mut header)?;
    let [kind, a, b, c, d, low, high] = header;
    // The content type, which a handler is not told, and the size.
    let mut rest = vec![0; usize::from(u16::from_le_bytes([low, high])) + 4];
    channel.read_exact(&mut rest)?;
    let mut size = [0; 4];
    size.copy_from_slice(&rest[rest.len() - 4..]);
    let mut payload = vec![0; u32::from_le_bytes(size) as usize];
    channel.read_exact(&mut payload)?;
    Ok((kind, u32::from_le_bytes([a, b, c, d]), payload))
}

fn send(channel: &mut File, kind: u8, id: u32, took: u64, payload: &[u8]) -> io::Result<()> {
    let _ = io::stdout().flush(); // what was printed belongs before the message
    let content_type: &[u8] = if kind == EXCEPTION { b"application/json" } else { b"" };
    let mut message = vec![kind];
    message.extend(id.to_le_bytes());
    message.extend(took.to_le_bytes());
    message.extend((content_type.len() as u16).to_le_bytes());
    message.extend(content_type);
    message.extend((payload.len() as u32).to_le_bytes());
    message.extend(payload);
    channel.write_all(&message)
}
