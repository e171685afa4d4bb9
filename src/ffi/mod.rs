//! The border to C: pointer and size checks, the panic wall, status codes. Everything else is the safe
//! library's.
//!
//! The types and functions are documented for readers of `include/mofo.h`, which is generated from them.

// In the order in which the header presents them.
mod library;

mod status;

mod options;

mod tensor;

mod state;

mod step;

mod optimizer;

mod checkpoint;

mod enums;
mod panic;
mod structs;

pub use checkpoint::*;
pub use library::*;
pub use optimizer::*;
pub use options::*;
pub use state::*;
pub use status::*;
pub use step::*;
pub use tensor::*;
