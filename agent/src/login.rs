//! The environment that a login gives, for programs whose START does not set it.

use std::ffi::{OsStr, OsString};

use crate::user::User;
use crate::workspace::Workspace;

/// What login(1) sets, with the working folder as the home: it is writable, and new in each run.
pub fn environment(workspace: &Workspace, cwd: &OsStr) -> Vec<(&'static str, OsString)> {
    let mut found = vec![
        ("HOME", workspace.home().into()),
        ("LANG", "C.UTF-8".into()),
        ("PWD", workspace.real(cwd.as_ref()).into_os_string()),
        ("SHELL", "/bin/sh".into()),
    ];
    if let Some(name) = workspace.user().and_then(User::name) {
        found.extend([("LOGNAME", name.clone().into()), ("USER", name.into())]);
    }
    found
}
