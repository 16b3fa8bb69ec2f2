//! The working folder and the other places where a run can leave files; writing a run's files, emptying everything after it.
//!
//! No process of the user is alive while anything here runs, and the working folder was empty before, so no link can be slipped
//! in between a check and a use.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::frame::{FileEntry, Start};
use crate::products::Products;
use crate::sys;
use crate::user::User;

/// The working folder's name in the protocol.
pub const WORK: &str = "/work";
/// In a machine; beside the end marker.
const VAULT: &str = "/mayfly/products";
const MAX_FILES_SIZE: u64 = 16 << 20;

pub struct Workspace {
    /// Where the working folder really is.
    work: PathBuf,
    /// Whom steps run as; None when the agent is no root itself.
    user: Option<User>,
    /// In a machine: how to put empty folders over what the user may have written to.
    renew: Option<fn(User) -> io::Result<()>>,
    dirty: bool,
    received: Vec<u64>,
    products: Products,
    /// What is in the working folder now becomes the products.
    keep: bool,
}

impl Workspace {
    /// In a machine, `renew` mounts what the user can write to anew.
    pub fn of_machine(user: User, renew: fn(User) -> io::Result<()>) -> Workspace {
        let products = Products::new(VAULT.into(), true);
        Workspace { work: WORK.into(), user: Some(user), renew: Some(renew), dirty: false, received: Vec::new(), products, keep: false }
    }

    /// As an ordinary process: only `work`, which belongs to the agent from now on, is written to and emptied.
    pub fn of_process(work: PathBuf, user: Option<User>) -> Workspace {
        let mut vault = work.clone().into_os_string();
        vault.push(".products");
        let products = Products::new(vault.into(), false);
        Workspace { work, user, renew: None, dirty: true, received: Vec::new(), products, keep: false }
    }

    pub fn user(&self) -> Option<User> {
        self.user
    }

    /// Where the working folder really is, the home of whom programs run as.
    pub fn home(&self) -> &Path {
        &self.work
    }

    /// Where a path of the protocol really is.
    pub fn real(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(WORK) {
            Ok(rest) if rest.as_os_str().is_empty() => self.work.clone(),
            Ok(rest) => self.work.join(rest),
            Err(_) => path.to_path_buf(),
        }
    }

    /// Check the files that START announces; gives what is wrong and where.
    pub fn check(files: &[FileEntry]) -> Result<(), String> {
        let mut total: u64 = 0;
        let mut seen = HashSet::new();
        for (index, file) in files.iter().enumerate() {
            let place = inside(&file.path).ok_or_else(|| format!("file {index}: the path {:?} is none beneath {WORK}", file.path))?;
            if !seen.insert(place) {
                return Err(format!("file {index}: the path {:?} comes twice", file.path));
            }
            if file.mode & !0o777 != 0 {
                return Err(format!("file {index}: the mode 0o{:o} has more than permission bits", file.mode));
            }
            total = total.saturating_add(file.size);
        }
        if total > MAX_FILES_SIZE {
            return Err(format!("the files have {total} bytes together, {MAX_FILES_SIZE} are allowed"));
        }
        Ok(())
    }

    /// Whether a run can begin with the products of an earlier one.
    pub fn has_products(&self) -> bool {
        self.keep || self.products.are_there()
    }

    /// Empty everything. Then begin with a copy of the products, or make the files, still without content.
    pub fn begin(&mut self, start: &Start) -> Result<(), String> {
        self.save_products(start.from_products).map_err(|error| format!("the products cannot be kept: {error}"))?;
        self.empty().map_err(|error| format!("{WORK} cannot be emptied: {error}"))?;
        self.dirty = true;
        self.keep = start.keep;
        if start.from_products {
            self.products.copy(&self.work, self.user).map_err(|error| format!("the products cannot be copied: {error}"))?;
        }
        let files = &start.files;
        self.received = vec![0; files.len()];
        for (index, file) in files.iter().enumerate() {
            self.create(file).map_err(|error| format!("file {index}: {:?} cannot be made: {error}", file.path))?;
        }
        Ok(())
    }

    fn save_products(&mut self, needed: bool) -> io::Result<()> {
        if !needed {
            return self.products.discard();
        }
        if std::mem::take(&mut self.keep) {
            self.products.take(&self.work)?;
        }
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        if !self.dirty {
            return Ok(());
        }
        if let (Some(renew), Some(user)) = (self.renew, self.user) {
            return renew(user);
        }
        if sys::is_root() {
            // Refused in some containers, where what a run leaves there stays with the host.
            let _ = sys::renew_ipc();
        }
        if fs::symlink_metadata(&self.work).is_ok() {
            fs::remove_dir_all(&self.work)?;
        }
        self.make_folder(&self.work)
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o755).create(path)?;
        self.give(path)
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        self.user.map_or(Ok(()), |user| sys::chown(path, user.uid, user.gid))
    }

    fn create(&self, file: &FileEntry) -> io::Result<()> {
        let mut path = self.work.clone();
        let place = inside(&file.path).ok_or(io::ErrorKind::InvalidInput)?;
        let (name, folders) = place.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        for folder in folders {
            path.push(folder);
            if !path.is_dir() {
                self.make_folder(&path)?;
            }
        }
        path.push(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        self.give(&path)
    }

    /// Write a piece of a file.
    pub fn write(&mut self, files: &[FileEntry], index: u16, offset: u64, data: &[u8]) -> Result<(), String> {
        let file = files.get(usize::from(index)).ok_or_else(|| format!("file {index}: START names {} files", files.len()))?;
        if offset.checked_add(data.len() as u64).map_or(true, |end| end > file.size) {
            return Err(format!("file {index}: {} bytes at {offset} go beyond its {} bytes", data.len(), file.size));
        }
        let written = OpenOptions::new().write(true).custom_flags(sys::O_NOFOLLOW).open(self.place(file));
        written.and_then(|target| target.write_all_at(data, offset)).map_err(|error| format!("file {index}: {error}"))?;
        self.received[usize::from(index)] += data.len() as u64;
        Ok(())
    }

    /// Check that all bytes of all files have come (a frame may have been lost on the way), and give the files their modes.
    pub fn complete(&self, files: &[FileEntry]) -> Result<(), String> {
        for (index, (file, received)) in files.iter().zip(&self.received).enumerate() {
            if file.size != *received {
                return Err(format!("file {index}: {received} of its {} bytes came", file.size));
            }
            let set = fs::set_permissions(self.place(file), Permissions::from_mode(file.mode));
            set.map_err(|error| format!("file {index}: {error}"))?;
        }
        Ok(())
    }

    fn place(&self, file: &FileEntry) -> PathBuf {
        inside(&file.path).unwrap_or_default().iter().fold(self.work.clone(), |path, part| path.join(part))
    }
}

/// The components of a path beneath the working folder; None for any other path.
fn inside(path: &OsStr) -> Option<Vec<OsString>> {
    let bytes = path.as_bytes();
    let rest = match bytes.first()? {
        b'/' => bytes.strip_prefix(WORK.as_bytes())?.strip_prefix(b"/")?,
        _ => bytes,
    };
    let part = |part: &[u8]| (!matches!(part, b"" | b"." | b"..")).then(|| OsStr::from_bytes(part).to_os_string());
    rest.split(|&byte| byte == b'/').map(part).collect()
}

/// Whether a path is absolute and has only plain components.
pub fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, size: u64) -> FileEntry {
        FileEntry { path: path.into(), mode: 0o644, size }
    }

    #[test]
    fn only_paths_beneath_work_are_taken() {
        for good in ["a", "a/b", "/work/a", "...", "a b", "..a/b"] {
            assert_eq!(Workspace::check(&[entry(good, 0)]), Ok(()), "{good}");
        }
        for bad in
            ["", ".", "..", "/", "/work", "/work/", "/workx/a", "/etc/passwd", "a/", "a//b", "a/../b", "./a", "/work/../etc", "/work//a"]
        {
            assert!(Workspace::check(&[entry(bad, 0)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_modes_and_doubles_are_checked() {
        let half = MAX_FILES_SIZE / 2;
        assert_eq!(Workspace::check(&[entry("a", half), entry("b", half)]), Ok(()));
        assert!(Workspace::check(&[entry("a", half), entry("b", half + 1)]).is_err());
        assert!(Workspace::check(&[entry("a", u64::MAX), entry("b", u64::MAX)]).is_err());
        assert!(Workspace::check(&[entry("a", 1), entry("/work/a", 1)]).is_err());
        assert!(Workspace::check(&[FileEntry { mode: 0o4755, ..entry("a", 1) }]).is_err());
    }
}
