//! The definition of a step, in plain scalar code.
//!
//! `docs/numerics.md` is its text. Everything else in the library computes the same bits faster; tests
//! compare against [`step::step`]. Nothing here is used on the hot path but the scalars, the generator's
//! keys and the shapes of sums.

pub mod convert;
pub mod entry;
pub mod norm;
pub mod random;
pub mod scalars;
pub mod select;
pub mod step;
