//! The program's directory is filled from one of the host's, and what changed is written there when the program ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::real_time;
use super::tree::{Content, Place, Tree, ROOT};

/// More files than this are not a program's input but somebody's home.
const MOST_FILES: usize = 65_536;

/// Take a folder's files, folders and links, but not the file `own` (device and number), which is the program itself. Returns their
/// paths, those of folders after what is in them.
pub fn take(tree: &mut Tree, folder: &Path, own: (u64, u64)) -> io::Result<Vec<PathBuf>> {
    let mut taken = Vec::new();
    take_into(tree, ROOT, folder, Path::new(""), own, &mut taken)?;
    Ok(taken)
}

fn take_into(tree: &mut Tree, directory: usize, folder: &Path, below: &Path, own: (u64, u64), taken: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, below.join(entry.file_name()));
        let content = if kind.is_file() {
            let about = entry.metadata()?;
            if (about.dev(), about.ino()) == own {
                continue;
            }
            Content::File(fs::read(entry.path())?)
        } else if kind.is_dir() {
            Content::Directory(BTreeMap::new())
        } else if kind.is_symlink() {
            Content::Link(fs::read_link(entry.path())?.into_os_string().into_vec())
        } else {
            continue;
        };
        if taken.len() >= MOST_FILES {
            return Err(io::Error::new(ErrorKind::Other, format!("{}: more than {MOST_FILES} files", folder.display())));
        }
        let place = Place { directory, name: entry.file_name().into_vec(), node: None };
        let full = |errno| io::Error::new(ErrorKind::Other, format!("{}: {errno:?}: files of more than 1 GiB", path.display()));
        let node = tree.create(&place, content, real_time()).map_err(full)?;
        tree.node_mut(node).changed = false;
        if kind.is_dir() {
            take_into(tree, node, folder, &path, own, taken)?;
        }
        taken.push(path);
    }
    Ok(())
}

/// Write to a folder what changed, and remove what was taken from there and is gone.
pub fn give(tree: &Tree, folder: &Path, taken: &[PathBuf]) -> io::Result<()> {
    for path in taken {
        if tree.existing(ROOT, path.as_os_str().as_bytes(), false).is_err() {
            let path = folder.join(path);
            match fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    give_directory(tree, ROOT, folder)
}

fn give_directory(tree: &Tree, directory: usize, folder: &Path) -> io::Result<()> {
    let entries = tree.directory(directory).expect("the caller saw that it is one");
    for (name, node) in entries {
        let path = folder.join(std::ffi::OsStr::from_bytes(name));
        let node_index = *node;
        let node = tree.node(node_index);
        match &node.content {
            Content::Directory(_) => {
                // What is in the way may be a link that leads out of the folder.
                if !fs::symlink_metadata(&path).map_or(false, |there| there.is_dir()) {
                    remove(&path)?;
                    fs::create_dir(&path)?;
                }
                give_directory(tree, node_index, &path)?;
            }
            Content::File(bytes) if node.changed => {
                remove(&path)?;
                fs::write(&path, bytes)?;
            }
            Content::Link(target) if node.changed => {
                remove(&path)?;
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
