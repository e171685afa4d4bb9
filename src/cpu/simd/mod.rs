//! What the loops are written over: vectors of f32 or u32 lanes, one for each instruction set, and the element types of
//! the buffers.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod element;
pub(super) mod portable;
mod prefetch;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod vector;

pub(super) use prefetch::prefetch;
