//! The library's one error type.

use std::fmt::{self, Write};

/// What kind of failure an [`Error`] is. Each has one status code in the C API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value is not finite, out of range, unknown or missing.
    InvalidArgument,
    /// A buffer is misaligned, overlaps another one or is not bound.
    InvalidBuffer,
    /// No tensor has that index or name.
    NotFound,
    /// The call makes no sense in the optimizer's present state.
    InvalidState,
    /// The system gave no memory or no thread.
    OutOfMemory,
    /// This build or this machine cannot do it.
    Unsupported,
    /// A derived scalar is not a finite f32.
    NotFinite,
    /// The engine's `parallel_for` left tasks out.
    ParallelFor,
    /// A call of the CUDA driver failed.
    Cuda,
    /// A file is damaged, or not a checkpoint of these tensors.
    Checkpoint,
    /// The system cannot read or write a file.
    Io,
    /// A defect in the library.
    Internal,
}

/// Why a call failed: a kind to act on and a message to read. Nothing was changed.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Message,
}

/// The result of every call that can fail.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
enum Message {
    Owned(String),
    /// Stands in where there was no memory for the real one.
    Static(&'static str),
}

impl Error {
    /// Formats a message; where there is no memory for it, a short static one takes its place.
    pub(crate) fn new(kind: ErrorKind, arguments: fmt::Arguments<'_>) -> Self {
        let mut text = FallibleString(String::new());
        let message = match text.write_fmt(arguments) {
            Ok(()) => Message::Owned(text.0),
            Err(_) => Message::Static("(no memory for the message)"),
        };
        Self { kind, message }
    }

    /// An out-of-memory error, for `bytes` bytes of `what`.
    pub(crate) fn out_of_memory(what: &str, bytes: usize) -> Self {
        Self::new(
            ErrorKind::OutOfMemory,
            format_args!("no memory for {what}: {bytes} bytes"),
        )
    }

    /// The same error, its message led by the tensor's name.
    pub(crate) fn in_tensor(self, name: &str) -> Self {
        if name.is_empty() {
            return self;
        }
        Self::new(
            self.kind,
            format_args!("tensor \"{name:.200}\": {}", self.message()),
        )
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was wrong: the tensor's name, the value and the allowed range.
    #[must_use]
    pub fn message(&self) -> &str {
        match &self.message {
            Message::Owned(text) => text,
            Message::Static(text) => text,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.message())
    }
}

impl std::error::Error for Error {}

/// A string whose growth can fail: formatting with `format!` would abort the process instead.
struct FallibleString(String);

impl Write for FallibleString {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
        self.0.push_str(text);
        Ok(())
    }
}

/// `fail!(InvalidArgument, "…", …)`: returns an [`Error`] of that kind from the function.
macro_rules! fail {
    ($kind:ident, $($message:tt)+) => {
        return Err($crate::error::Error::new(
            $crate::error::ErrorKind::$kind,
            format_args!($($message)+),
        ))
    };
}
pub(crate) use fail;
