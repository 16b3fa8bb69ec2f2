//! The command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

const USAGE: &str = "usage: mayfly-wasm run [OPTION]... MODULE [ARG]... | mayfly-wasm resume [OPTION]... CHECKPOINT
  --dir FOLDER     fill the program's directory, which it sees as /, from this one, and write there what changed when it ends
  --env NAME=VALUE
  --save FILE      stop the program on SIGUSR1, write its checkpoint to FILE and exit with 75
  --stop-at TICKS  the same after this many rounds of loops and calls of its whole life
  --stats          say what was spent, at the end";

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// The first of the arguments is the program's name.
    Run {
        module: PathBuf,
        args: Vec<Vec<u8>>,
    },
    Resume {
        checkpoint: PathBuf,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub action: Action,
    pub folder: Option<PathBuf>,
    pub env: Vec<Vec<u8>>,
    pub save: Option<PathBuf>,
    pub stop_at: Option<u64>,
    pub stats: bool,
}

impl Options {
    pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
        let verb = args.next().ok_or(USAGE)?;
        let (mut folder, mut env, mut save, mut stop_at, mut stats) = (None, vec![], None, None, false);
        let path = loop {
            let option = args.next().ok_or(USAGE)?;
            let mut value = || args.next().ok_or(format!("{} needs a value", option.to_string_lossy()));
            match option.to_str() {
                Some("--dir") => folder = Some(PathBuf::from(value()?)),
                Some("--env") => env.push(value()?.into_vec()),
                Some("--save") => save = Some(PathBuf::from(value()?)),
                Some("--stop-at") => {
                    stop_at = Some(value()?.to_str().and_then(|ticks| ticks.parse().ok()).ok_or("--stop-at needs a number")?)
                }
                Some("--stats") => stats = true,
                Some(unknown) if unknown.starts_with("--") => return Err(format!("unknown option {unknown}\n{USAGE}")),
                _ => break PathBuf::from(option),
            }
        };
        if stop_at.is_some() && save.is_none() {
            return Err("--stop-at needs --save".into());
        }
        let action = match verb.to_str() {
            Some("run") => {
                let name = path.file_name().unwrap_or(path.as_os_str()).to_owned().into_vec();
                Action::Run { args: std::iter::once(name).chain(args.map(OsString::into_vec)).collect(), module: path }
            }
            Some("resume") if args.next().is_none() => Action::Resume { checkpoint: path },
            _ => return Err(USAGE.into()),
        };
        Ok(Options { action, folder, env, save, stop_at, stats })
    }
}
