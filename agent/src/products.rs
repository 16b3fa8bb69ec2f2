//! The products: the working folder that a run with KEEP left, of which later runs begin with a copy of their own.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{symlink, DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::procfs;
use crate::sys::{self, MS_BIND};
use crate::user::User;

pub struct Products {
    /// Only the agent gets in here: no program may change what later ones begin with.
    vault: PathBuf,
    /// In a machine the working folder is a mount, of which there will be a second view here.
    mounts: bool,
    there: bool,
}

impl Products {
    pub fn new(vault: PathBuf, mounts: bool) -> Products {
        Products { vault, mounts, there: false }
    }

    pub fn are_there(&self) -> bool {
        self.there
    }

    fn place(&self) -> PathBuf {
        self.vault.join("work")
    }

    /// Take what is in the working folder, in the place of what there was. In a machine it stays there too, until it is renewed.
    pub fn take(&mut self, work: &Path) -> io::Result<()> {
        self.discard()?;
        DirBuilder::new().mode(0o700).recursive(true).create(&self.vault)?;
        if self.mounts {
            DirBuilder::new().recursive(true).create(self.place())?;
            sys::mount(work, &self.place(), "", MS_BIND, "")?;
        } else {
            fs::rename(work, self.place())?;
        }
        self.there = true;
        Ok(())
    }

    pub fn discard(&mut self) -> io::Result<()> {
        if !self.there {
            return Ok(());
        }
        self.there = false;
        if self.mounts {
            sys::unmount(&self.place())
        } else {
            fs::remove_dir_all(self.place())
        }
    }

    /// Fill the empty working folder with a copy that belongs to `user`: folders, files and links; nothing else is copied.
    pub fn copy(&self, work: &Path, user: Option<User>) -> io::Result<()> {
        // Holes of a file take memory in a copy, which is not to take the agent's own.
        let mut room = procfs::available_memory().map_or(u64::MAX, |available| available / 2);
        let mut folders = vec![(self.place(), work.to_path_buf())];
        while let Some((from, to)) = folders.pop() {
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                let (source, target, metadata) = (entry.path(), to.join(entry.file_name()), entry.metadata()?);
                if metadata.is_symlink() {
                    symlink(fs::read_link(source)?, target)?;
                    continue;
                } else if metadata.is_dir() {
                    DirBuilder::new().mode(0o700).create(&target)?;
                    fs::set_permissions(&target, Permissions::from_mode(metadata.permissions().mode() & 0o7777))?;
                    folders.push((source, target.clone()));
                } else if metadata.is_file() {
                    room = room.checked_sub(metadata.len()).ok_or_else(too_large)?;
                    fs::copy(source, &target)?;
                } else {
                    continue;
                }
                if let Some(user) = user {
                    sys::chown(&target, user.uid, user.gid)?;
                }
            }
        }
        Ok(())
    }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::Other, "they are larger than half of the memory that is free")
}
