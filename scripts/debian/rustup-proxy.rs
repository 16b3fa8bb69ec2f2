//! Does what rustup's proxies do when `rustc` is one of them: runs the program of its own name out of the default toolchain. For the
//! reference image that is laid out as Docker's rust images are.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

fn toolchain(home: &Path) -> Option<String> {
    let settings = fs::read_to_string(home.join("settings.toml")).ok()?;
    let line = settings.lines().find(|line| line.starts_with("default_toolchain"))?;
    Some(line.split('"').nth(1)?.to_string())
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    process::exit(1)
}

fn main() {
    let mut arguments = env::args_os();
    let called = PathBuf::from(arguments.next().unwrap_or_default());
    let home = PathBuf::from(env::var_os("RUSTUP_HOME").unwrap_or_else(|| fail("RUSTUP_HOME is not set")));
    let name = toolchain(&home).unwrap_or_else(|| fail("rustup could not choose a version, because no default is configured"));
    let root = home.join("toolchains").join(name);
    let program = root.join("bin").join(called.file_name().unwrap_or_default());
    let error = process::Command::new(&program)
        .args(arguments)
        .env("LD_LIBRARY_PATH", root.join("lib"))
        .exec();
    fail(&format!("{}: {error}", program.display()))
}
