//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::run::Compile;

const USAGE: &str = "usage: mayfly-wasm [OPTION]... FILE [ARG]...
Run the WebAssembly module FILE with arguments, or let the program of the checkpoint FILE go on.
  --dir FOLDER     fill the program's directory, which it sees as /, from this one, and write there what changed when it ends
  --env NAME=VALUE
  --inherit-env    give it the environment that there is
  --listen ADDRESSES   open sockets for it that listen, the first as its descriptor 4: 0.0.0.0:8080,[::]:8081 (empty: none)
  --save FILE      stop the program on SIGUSR1, write its checkpoint to FILE and exit with 75
  --most BYTES     let it go on instead if its checkpoint would have more
  --stop-at TICKS  the same after this many rounds of loops and calls of its whole life
  --compile WHAT   make processor's code of functions: hot (those in which time is spent), always or never
  --stats          say what was spent, at the end";

#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub file: PathBuf,
    /// The program's, the first of which is its name.
    pub args: Vec<Vec<u8>>,
    pub folder: Option<PathBuf>,
    pub env: Vec<Vec<u8>>,
    pub listen: Vec<SocketAddr>,
    pub save: Option<PathBuf>,
    pub most: Option<u64>,
    pub stop_at: Option<u64>,
    pub compile: Compile,
    pub stats: bool,
}

impl Options {
    pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
        let (mut folder, mut env, mut save, mut most, mut stop_at, mut stats) = (None, vec![], None, None, None, false);
        let (mut compile, mut listen) = (Compile::Hot, vec![]);
        let file = loop {
            let option = args.next().ok_or(USAGE)?;
            let mut value = || args.next().ok_or(format!("{} needs a value", option.to_string_lossy()));
            match option.to_str() {
                Some("--dir") => folder = Some(PathBuf::from(value()?)),
                Some("--env") => env.push(value()?.into_vec()),
                Some("--inherit-env") => env.extend(std::env::vars_os().map(|(name, value)| {
                    let mut pair = name.into_vec();
                    pair.push(b'=');
                    pair.extend(value.into_vec());
                    pair
                })),
                Some("--listen") => {
                    let value = value()?;
                    for address in value.to_string_lossy().split(',').filter(|_| !value.is_empty()) {
                        listen.push(
                            address.parse().map_err(|_| format!("--listen: {address:?} is not an address and a port, as 0.0.0.0:8080"))?,
                        );
                    }
                }
                Some("--save") => save = Some(PathBuf::from(value()?)),
                Some(name @ ("--most" | "--stop-at")) => {
                    let number = value()?.to_str().and_then(|number| number.parse().ok()).ok_or(format!("{name} needs a number"))?;
                    *(if name == "--most" { &mut most } else { &mut stop_at }) = Some(number);
                }
                Some("--compile") => {
                    let value = value()?;
                    let known = [("hot", Compile::Hot), ("always", Compile::Always), ("never", Compile::Never)];
                    compile = known.iter().find(|known| value == known.0).ok_or("--compile needs hot, always or never")?.1;
                }
                Some("--stats") => stats = true,
                Some(unknown) if unknown.starts_with("--") => return Err(format!("unknown option {unknown}\n{USAGE}")),
                _ => break PathBuf::from(option),
            }
        };
        if stop_at.is_some() && save.is_none() {
            return Err("--stop-at needs --save".into());
        }
        let name = file.file_name().unwrap_or(file.as_os_str()).to_owned();
        let args = std::iter::once(name).chain(args).map(OsString::into_vec).collect();
        Ok(Options { file, args, folder, env, listen, save, most, stop_at, compile, stats })
    }
}
