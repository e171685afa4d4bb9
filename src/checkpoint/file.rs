//! A file that is replaced as a whole, or not at all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};

use super::io_error;
use crate::error::{Error, ErrorKind, Result, fail};

/// Writes a new file in place of the one at `path`, if there is one. Until `write` has returned and all is on the disk,
/// the old file stays; after an error too.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let target = destination(path)?;
    let folder = folder_of(&target);
    let (mut file, temporary) = create_beside(&target)?;
    // First, so that nobody reads in the new file what the old one kept from him. As far as the system lets us.
    if let Ok(old) = fs::metadata(&target) {
        let _ = file.set_permissions(old.permissions());
    }
    let result = write(&mut file)
        .and_then(|()| {
            file.sync_all()
                .map_err(|error| io_error("write", &temporary, &error))
        })
        .and_then(|()| {
            // Windows renames no open file; elsewhere the lock stays until there is nothing more to lock.
            #[cfg(not(unix))]
            drop(file);
            fs::rename(&temporary, &target).map_err(|error| io_error("write", &target, &error))
        });
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
        return result;
    }
    sync_folder(folder)
}

/// What `path` leads to. Refuses what is there and is not a file.
fn destination(path: &Path) -> Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(target) if target.is_file() => Ok(target),
        Ok(target) => fail!(
            Io,
            "cannot write {}: it is there, and not a regular file",
            target.display()
        ),
        Err(error) if error.kind() == IoErrorKind::NotFound && ends_in_a_slash(path) => {
            fail!(Io, "cannot write {}: the name of a folder", path.display())
        }
        Err(error) if error.kind() == IoErrorKind::NotFound => match fs::read_link(path) {
            // To a file that is not there yet. It comes to an end: links in a circle are another error.
            Ok(link) => destination(&folder_of(path).join(link)),
            Err(_) => Ok(path.to_owned()),
        },
        Err(error) => Err(io_error("write", path, &error)),
    }
}

fn ends_in_a_slash(path: &Path) -> bool {
    let name = path.as_os_str().as_encoded_bytes();
    name.last()
        .is_some_and(|&byte| std::path::is_separator(byte.into()))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Creates the file that will replace `target`, beside it, and locks it for as long as it is open. Those that processes
/// left behind when they died are nobody's any more, and go.
fn create_beside(target: &Path) -> Result<(File, PathBuf)> {
    /// So many processes may save to one path at a time.
    const NUMBERS: u32 = 1000;
    /// And so many may have died over it.
    const LOOKED_AT: u32 = 8;
    /// With four bytes each they leave room for the rest of the name.
    const LONGEST_NAME: usize = 50;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().take(LONGEST_NAME).collect();
    let path_of = |number| folder_of(target).join(format!(".{name}.mofo-{number}.tmp"));
    for number in 0..LOOKED_AT {
        remove_abandoned(&path_of(number));
    }
    let mut number = 0;
    loop {
        let path = path_of(number);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) if lock(&file, &path) => return Ok((file, path)),
            // Another process is looking whether it is anybody's.
            Ok(_) => {}
            Err(error) if error.kind() == IoErrorKind::AlreadyExists && number < NUMBERS => {}
            Err(error) => return Err(io_error("create", &path, &error)),
        }
        number += 1;
    }
}

/// Locks a file; false if somebody else has, or if it is not at `path` any more. Where files cannot be locked, nothing is
/// removed either.
fn lock(file: &File, path: &Path) -> bool {
    match file.try_lock() {
        Ok(()) => is_at(file, path),
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => true,
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => place(ours) == place(there),
        _ => false,
    }
}

/// Open files are not removed there.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

/// Removes a file that no process has locked: whoever wrote it is dead.
#[cfg(unix)]
fn remove_abandoned(path: &Path) {
    let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    if let Some(file) = is_file.then(|| File::open(path).ok()).flatten()
        && file.try_lock().is_ok()
        // While it is locked here, no other process removes it, nor therefore makes a new one of the name.
        && is_at(&file, path)
    {
        // Nothing is lost if it stays.
        let _ = fs::remove_file(path);
    }
}

/// Elsewhere there is no telling whether it is still the file that was looked at.
#[cfg(not(unix))]
fn remove_abandoned(_path: &Path) {}

/// Makes the new name survive a power failure.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Ok(()) => Ok(()),
        // Some file systems cannot, nor can we in a folder that may be written to and not read. Nothing is to be done then.
        Err(error)
            if matches!(
                error.kind(),
                IoErrorKind::InvalidInput
                    | IoErrorKind::PermissionDenied
                    | IoErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(Error::new(
            ErrorKind::Io,
            format_args!(
                "the checkpoint is written, but may not survive a power failure: cannot sync {}: {error}",
                folder.display()
            ),
        )),
    }
}

/// Elsewhere the system sees to it.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> Result<()> {
    Ok(())
}
