//! Whom the steps of a run belong to.

use std::fs;

/// Where users have their names.
const PASSWD: &str = "/etc/passwd";

#[derive(Clone, Copy)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// The user's name, if the machine has one for the number.
    pub fn name(self) -> Option<String> {
        self.name_in(&fs::read_to_string(PASSWD).unwrap_or_default())
    }

    fn name_in(self, passwd: &str) -> Option<String> {
        let of_line = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(self.uid)).then(|| name.to_string())
        };
        passwd.lines().find_map(of_line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nx:y\nnode:x:1000:1000::/home/node:\nrunner:x:1000:1000::/work:\n";
        assert_eq!(User { uid: 1000, gid: 1000 }.name_in(passwd), Some("node".into()));
        assert_eq!(User { uid: 7, gid: 7 }.name_in(passwd), None);
    }
}
