//! What START may ask for.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::frame::{Start, StepSpec};
use crate::workspace::Workspace;

const MAX_STEPS: usize = 255;

/// Check all that START asks for, before anything of it is done. Fails with what is wrong and where.
pub fn check(run: u32, start: &Start, has_products: bool) -> Result<(), String> {
    if run == 0 {
        return Err("a run's id is never 0".into());
    }
    if start.from_products && !has_products {
        return Err("no run has left products".into());
    }
    if start.from_products && !start.files.is_empty() {
        // They would be written through whatever links are among the products.
        return Err("a run that begins with products has no files of its own".into());
    }
    if (start.steps.is_empty() && !start.keep) || start.steps.len() > MAX_STEPS {
        return Err(format!("{} steps, 1 to {MAX_STEPS} are allowed", start.steps.len()));
    }
    for (index, step) in start.steps.iter().enumerate() {
        check_step(step).map_err(|text| format!("step {index}: {text}"))?;
    }
    if let Some(index) = start.steps.iter().rev().skip(1).rev().position(|step| step.function) {
        return Err(format!("step {index}: a function is the last step"));
    }
    if start.steps.iter().filter(|step| step.stdin).count() > 1 {
        return Err("more than one step takes standard input".into());
    }
    if start.steps.iter().filter(|step| step.standby).count() > 1 {
        return Err("more than one program stands by".into());
    }
    check_env(start.env.iter())?;
    Workspace::check(&start.files)
}

fn check_step(step: &StepSpec) -> Result<(), String> {
    if step.argv.first().map_or(true, |program| program.is_empty()) {
        return Err("there is no program".into());
    }
    if !Path::new(&step.cwd).is_absolute() {
        return Err(format!("the working directory {:?} is not absolute", step.cwd));
    }
    if step.has_terminal() && (step.terminal.0 == 0 || step.terminal.1 == 0) {
        return Err("a terminal has both columns and rows".into());
    }
    if step.function && (step.stdin || step.has_terminal()) {
        return Err("a function has neither standard input nor a terminal".into());
    }
    if step.standby && (step.function || step.has_terminal() || step.by_standby) {
        return Err("what stands by is not a function, has no terminal, and starts anew".into());
    }
    check_env(step.env.iter())
}

fn check_env<'a>(mut env: impl Iterator<Item = &'a (OsString, OsString)>) -> Result<(), String> {
    match env.find(|(name, _)| name.is_empty() || name.as_bytes().contains(&b'=')) {
        Some((name, _)) => Err(format!("{name:?} is not a name of an environment variable")),
        None => Ok(()),
    }
}
