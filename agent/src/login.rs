//! The environment that a login gives, for programs whose START does not set it.

use std::ffi::{OsStr, OsString};
use std::fs;

use crate::workspace::{User, Workspace};

/// Where users have their names and homes.
const PASSWD: &str = "/etc/passwd";

/// What login(1) sets, with the working folder as the home: it is writable, and new in each run.
pub fn environment(workspace: &Workspace, cwd: &OsStr) -> Vec<(&'static str, OsString)> {
    let mut found = vec![
        ("HOME", workspace.home().into()),
        ("LANG", "C.UTF-8".into()),
        ("PWD", workspace.real(cwd.as_ref()).into_os_string()),
        ("SHELL", "/bin/sh".into()),
    ];
    let name = workspace.user().and_then(|user| name_of(user, &fs::read_to_string(PASSWD).unwrap_or_default()));
    if let Some(name) = name {
        found.extend([("LOGNAME", name.clone().into()), ("USER", name.into())]);
    }
    found
}

/// A user's name by a text as of /etc/passwd.
fn name_of(user: User, passwd: &str) -> Option<String> {
    let of_line = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user.uid)).then(|| name.to_string())
    };
    passwd.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nx:y\nnode:x:1000:1000::/home/node:\nrunner:x:1000:1000::/work:\n";
        assert_eq!(name_of(User { uid: 1000, gid: 1000 }, passwd), Some("node".into()));
        assert_eq!(name_of(User { uid: 7, gid: 7 }, passwd), None);
    }
}
