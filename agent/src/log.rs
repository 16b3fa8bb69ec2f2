//! What the agent says where nobody listens on the channel: on standard error, which is the kernel's log in a machine.

use std::io::{self, Write};

pub const VERSION: &str = "0.1.0";

/// Say something on standard error; in a machine as an error in the kernel's log, which even a quiet console shows.
pub fn complain(text: &str) {
    let level = if std::process::id() == 1 { "<3>" } else { "" };
    // One write is one line of the log. There is nowhere to report a failure.
    let _ = io::stderr().write_all(format!("{level}mayfly-agent: {text}\n").as_bytes());
}
