//! Why a module or a checkpoint is not taken.

use std::fmt;

#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The bytes do not follow the format.
    Malformed(String),
    /// The format is followed, but a rule of validation is broken.
    Invalid(String),
    /// A feature that this runtime leaves out; the text begins with its name.
    Unsupported(String),
}

pub type Result<T> = std::result::Result<T, Refusal>;

impl Refusal {
    /// The same refusal, with the place before it.
    pub fn at(self, place: impl fmt::Display) -> Refusal {
        match self {
            Refusal::Malformed(what) => Refusal::Malformed(format!("{place}: {what}")),
            Refusal::Invalid(what) => Refusal::Invalid(format!("{place}: {what}")),
            Refusal::Unsupported(what) => Refusal::Unsupported(format!("{what} ({place})")),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Refusal::Malformed(what) => write!(to, "malformed: {what}"),
            Refusal::Invalid(what) => write!(to, "invalid: {what}"),
            Refusal::Unsupported(what) => write!(to, "not supported: {what}"),
        }
    }
}

pub fn no_memory() -> Refusal {
    Refusal::Unsupported("a program that needs more memory than there is".into())
}

pub fn malformed<T>(what: impl Into<String>) -> Result<T> {
    Err(Refusal::Malformed(what.into()))
}

pub fn invalid<T>(what: impl Into<String>) -> Result<T> {
    Err(Refusal::Invalid(what.into()))
}

pub fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(Refusal::Unsupported(what.into()))
}
