//! Checkpoints: the state of an optimizer in a safetensors file.
//!
//! Data goes through one buffer of fixed size, so that the state is never in memory twice.

mod array;
mod file;
mod header;
mod load;
mod save;

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result, fail};
use crate::optimizer::Optimizer;
use load::Readable;
pub(crate) use load::Scope;
use save::{Snapshot, Writable};

/// What a partial load has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// The indices of the tensors whose state was taken, in ascending order.
    pub loaded: Vec<u64>,
    /// Those of tensors that the checkpoint has not: they are as they were.
    pub missing: Vec<u64>,
    /// The names of tensors of the checkpoint that the optimizer has not.
    pub ignored: Vec<String>,
}

impl Optimizer {
    /// Writes moments, master copies, step counts and the seed to a safetensors file. Parameters are the caller's to
    /// save.
    ///
    /// A file that is already at `path` is replaced as a whole: a new one is written beside it (`.NAME.mofo-0.tmp`), brought
    /// to the disk and renamed. If that fails, or the process dies meanwhile, the old one stays. What is there and not a regular
    /// file is not replaced. On CUDA this waits for the steps that were taken, but not for those replayed from a graph,
    /// which the caller must have waited for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the system cannot write the file, [`ErrorKind::InvalidState`] after a load that broke off
    /// half-way.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let snapshot = Snapshot::new(self)?;
        file::replace(path, |file| {
            let explain = |error: &io::Error| io_error("write", path, error);
            let mut sink = Writable::new(file).map_err(|error| explain(&error))?;
            snapshot.write(&mut sink, &explain).map(drop)
        })
    }

    /// How many bytes [`Optimizer::save_to`] would write now.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::save`].
    pub fn save_size(&self) -> Result<u64> {
        Snapshot::new(self)?.bytes()
    }

    /// Writes what [`Optimizer::save`] does, from the sink's position on; how many bytes.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::save`]. Part of the checkpoint may have been written then.
    pub fn save_to(&self, sink: &mut (impl Write + Seek)) -> Result<u64> {
        let explain = |error: &io::Error| stream_error("write", error);
        let snapshot = Snapshot::new(self)?;
        let mut sink = Writable::new(sink).map_err(|error| explain(&error))?;
        snapshot.write(&mut sink, &explain)
    }

    /// As [`Optimizer::save_to`], unless there are fewer than `size` bytes of room.
    pub(crate) fn save_if_it_fits(&self, sink: &mut (impl Write + Seek), size: u64) -> Result<u64> {
        let snapshot = Snapshot::new(self)?;
        let needed = snapshot.bytes()?;
        if size < needed {
            fail!(
                InvalidArgument,
                "size is {size}; this checkpoint takes {needed} bytes (mofo_save_size)"
            );
        }
        let explain = |error: &io::Error| stream_error("write", error);
        let mut sink = Writable::new(sink).map_err(|error| explain(&error))?;
        snapshot.write(&mut sink, &explain)
    }

    /// Takes moments, master copies, step counts and the seed from a file that [`Optimizer::save`] wrote. With the same
    /// parameters and settings, training then goes on with the same bits.
    ///
    /// Tensors are matched by name, in any order: the file must have each of the optimizer's, with as many entries and
    /// moments of the same type, and no others. Hyper-parameters, overrides and numbers of blocks stay as they are set
    /// here. Where a tensor has a master copy and the file has none for it, the master starts from the parameter at the
    /// next step. On CUDA this waits as [`Optimizer::save`] does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the system cannot read the file, [`ErrorKind::Checkpoint`] if it is damaged or not a
    /// checkpoint of these tensors. The whole file is checked before anything is changed, and read again then. Only if
    /// that fails (the disk, or the file was changed meanwhile), the state is lost: the optimizer then refuses to step
    /// and to save until a load succeeds.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.load_file(path.as_ref(), Scope::Whole).map(drop)
    }

    /// As [`Optimizer::load`], of the tensors that both the file and the optimizer have: the others stay as they are, or
    /// are ignored. Those of a name must have as many entries, and be whole, here too. The seed is taken from the file.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::load`]; [`ErrorKind::Checkpoint`] if both have tensors, but none in common;
    /// [`ErrorKind::InvalidState`] after a load that broke off half-way, unless the file has all tensors.
    pub fn load_partial(&mut self, path: impl AsRef<Path>) -> Result<LoadReport> {
        self.load_file(path.as_ref(), Scope::Partial)
    }

    pub(crate) fn load_file(&mut self, path: &Path, scope: Scope) -> Result<LoadReport> {
        let explain = |error: &io::Error| io_error("read", path, error);
        // Before it is opened: opening a FIFO waits for somebody who writes to it.
        let metadata = fs::metadata(path).map_err(|error| explain(&error))?;
        if !metadata.is_file() {
            fail!(Io, "cannot read {}: not a regular file", path.display());
        }
        let mut file = File::open(path).map_err(|error| explain(&error))?;
        let mut source = Readable::new(&mut file).map_err(|error| explain(&error))?;
        load::load(self, &mut source, scope, &explain).map_err(|error| match error.kind() {
            ErrorKind::Checkpoint => Error::new(
                ErrorKind::Checkpoint,
                format_args!("{}: {}", path.display(), error.message()),
            ),
            _ => error,
        })
    }

    /// Loads what [`Optimizer::save_to`] wrote: all of the source from its position on.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::load`].
    pub fn load_from(&mut self, source: &mut (impl Read + Seek)) -> Result<()> {
        self.load_source(source, Scope::Whole).map(drop)
    }

    /// As [`Optimizer::load_partial`], of what [`Optimizer::save_to`] wrote: all of the source from its position on.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::load_partial`].
    pub fn load_partial_from(&mut self, source: &mut (impl Read + Seek)) -> Result<LoadReport> {
        self.load_source(source, Scope::Partial)
    }

    pub(crate) fn load_source(
        &mut self,
        source: &mut (impl Read + Seek),
        scope: Scope,
    ) -> Result<LoadReport> {
        let explain = |error: &io::Error| stream_error("read", error);
        let mut source = Readable::new(source).map_err(|error| explain(&error))?;
        load::load(self, &mut source, scope, &explain)
    }
}

/// Says what the system said.
type Explain<'a> = &'a dyn Fn(&io::Error) -> Error;

fn stream_error(what: &str, error: &io::Error) -> Error {
    Error::new(
        ErrorKind::Io,
        format_args!("cannot {what} the checkpoint: {error}"),
    )
}

fn io_error(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(
        ErrorKind::Io,
        format_args!("cannot {what} {}: {error}", path.display()),
    )
}
