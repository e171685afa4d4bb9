//! A file that is replaced as a whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::io_error;
use crate::error::{Result, fail};

/// Writes a new file in place of the one at `path`, if there is one. Until `write` has returned and all is on the disk,
/// the old file stays; after an error too.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let target = destination(path)?;
    let folder = folder_of(&target);
    let (mut file, temporary) = create_beside(folder)?;
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
            // Windows renames no open file.
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
        Err(error) if error.kind() == IoErrorKind::NotFound => match fs::read_link(path) {
            // To a file that is not there yet. It comes to an end: links in a circle are another error.
            Ok(link) => destination(&folder_of(path).join(link)),
            Err(_) => Ok(path.to_owned()),
        },
        Err(error) => Err(io_error("write", path, &error)),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Creates a file with a name of its own.
fn create_beside(folder: &Path) -> Result<(File, PathBuf)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    const ATTEMPTS: u32 = 1000;
    let mut attempt = 0;
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".mofo-{}-{count}.tmp", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            // Left by a process that crashed, and had this number.
            Err(error) if error.kind() == IoErrorKind::AlreadyExists && attempt < ATTEMPTS => {
                attempt += 1;
            }
            Err(error) => return Err(io_error("create", &path, &error)),
        }
    }
}

/// Makes the new name survive a power failure.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Ok(()) => Ok(()),
        // Some file systems cannot, nor can we in a folder that may be written to and not read. Nothing is to be done then.
        Err(error)
            if matches!(
                error.kind(),
                IoErrorKind::InvalidInput | IoErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(io_error("make sure of", folder, &error)),
    }
}

/// Elsewhere the system sees to it.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> Result<()> {
    Ok(())
}
