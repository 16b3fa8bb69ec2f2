//! The answer to COLLECT: files and folders, piece by piece, no faster than the channel takes them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::channel::Channel;
use crate::frame::{CollectedHead, ToHost};
use crate::glob::{Globs, Places};
use crate::sys;
use crate::workspace::{is_plain, Workspace, WORK};

const PIECE: usize = 32 << 10;
const MAX_ENTRIES: usize = 65535;

/// An answer that is under way.
pub struct Collection {
    run: u32,
    /// Still to come, next one last: (path as the host knows it, where it is, which patterns it can match).
    waiting: Vec<(PathBuf, PathBuf, Places)>,
    /// If only files are wanted, those that match.
    globs: Option<Globs>,
    index: u16,
    count: usize,
    open: Option<Open>,
}

impl Collection {
    /// `paths` are absolute and as the protocol knows them. No link is followed, be it at the end of a path or on the way.
    pub fn new(run: u32, paths: Vec<PathBuf>, workspace: &Workspace) -> Result<Collection, String> {
        let mut waiting = Vec::new();
        for path in paths.into_iter().rev() {
            let real = workspace.real(&path);
            if !is_plain(&path) || has_link(&real).map_err(|error| describe(&path, &error))? {
                return Err(format!("{path:?} is no absolute path without links"));
            }
            waiting.push((path, real, Places::new()));
        }
        Ok(Collection { run, waiting, globs: None, index: 0, count: 0, open: None })
    }

    /// The files of the working folder whose paths match one of the `patterns`, which begin with that folder.
    pub fn of_matching(run: u32, patterns: &[PathBuf], workspace: &Workspace) -> Result<Collection, String> {
        let inside = |path: &PathBuf| path.strip_prefix(WORK).map(Path::to_path_buf).map_err(|_| format!("{path:?} is not beneath {WORK}"));
        let patterns = patterns.iter().map(inside).collect::<Result<Vec<_>, _>>()?;
        let (globs, places) = Globs::new(&patterns.iter().map(|pattern| pattern.as_os_str().as_bytes()).collect::<Vec<_>>());
        let waiting = vec![(WORK.into(), workspace.real(WORK.as_ref()), places)];
        Ok(Collection { run, waiting, globs: Some(globs), index: 0, count: 0, open: None })
    }

    /// Send one more piece; true when the last one has been sent.
    pub fn step(&mut self, channel: &mut Channel) -> Result<bool, String> {
        if let Some(open) = self.open.take() {
            self.send_piece(open, None, channel).map_err(|error| format!("entry {}: {error}", self.index))?;
            return Ok(false);
        }
        match self.waiting.pop() {
            Some((path, real, places)) => {
                self.enter(&path, &real, &places, channel).map(|()| false).map_err(|error| describe(&path, &error))
            }
            None => {
                channel.send(self.run, &ToHost::Collected { index: self.index, head: None, ends: false, last: true, data: &[] });
                Ok(true)
            }
        }
    }

    fn enter(&mut self, path: &Path, real: &Path, places: &Places, channel: &mut Channel) -> io::Result<()> {
        let metadata = fs::symlink_metadata(real)?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Ok(());
        }
        if metadata.is_file() && self.globs.as_ref().map_or(false, |globs| !globs.complete(places)) {
            return Ok(());
        }
        let size = if metadata.is_file() { metadata.len() } else { 0 };
        let head = CollectedHead { path: path.as_os_str().as_bytes(), mode: metadata.mode(), size };
        if metadata.is_file() {
            let file = OpenOptions::new().read(true).custom_flags(sys::O_NOFOLLOW).open(real)?;
            return self.send_piece(Open { file, left: size }, Some(head), channel);
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(real)? {
            self.count += 1;
            if self.count > MAX_ENTRIES {
                return Err(io::Error::new(io::ErrorKind::Other, format!("there are more than {MAX_ENTRIES} files and folders")));
            }
            names.push(entry?.file_name());
        }
        names.sort_by(|a, b| b.cmp(a));
        for name in names {
            let places = self.globs.as_ref().map_or_else(Places::new, |globs| globs.enter(places, name.as_bytes()));
            if self.globs.is_none() || !places.is_empty() {
                self.waiting.push((path.join(&name), real.join(&name), places));
            }
        }
        if self.globs.is_some() {
            return Ok(());
        }
        channel.send(self.run, &ToHost::Collected { index: self.index, head: Some(head), ends: true, last: false, data: &[] });
        self.index = self.index.wrapping_add(1);
        Ok(())
    }

    fn send_piece(&mut self, mut open: Open, head: Option<CollectedHead>, channel: &mut Channel) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(PIECE);
        let count = Read::by_ref(&mut open.file).take(open.left.min(PIECE as u64)).read_to_end(&mut buffer)? as u64;
        open.left -= count;
        let ends = open.left == 0 || count == 0;
        channel.send(self.run, &ToHost::Collected { index: self.index, head, ends, last: false, data: &buffer });
        if ends {
            self.index = self.index.wrapping_add(1);
        } else {
            self.open = Some(open);
        }
        Ok(())
    }
}

struct Open {
    file: File,
    left: u64,
}

fn has_link(path: &Path) -> io::Result<bool> {
    let mut links = path.ancestors().map(|part| fs::symlink_metadata(part).map(|metadata| metadata.file_type().is_symlink()));
    links.try_fold(false, |found, link| Ok(found | link?))
}

fn describe(path: &Path, error: &io::Error) -> String {
    format!("{path:?}: {error}")
}
