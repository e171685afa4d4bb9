//! What the host and the kernels share: the structs of `kernels/layout.cuh`, and how the work of a step is cut.

use super::driver::Plain;

/// Threads of a block of most kernels, of the pass, and of kernels of one block.
pub(super) const THREADS: u32 = 512;
pub(super) const THREADS_OF_PASS: u32 = 256;
pub(super) const THREADS_OF_ONE: u32 = 1024;
const GROUP: u64 = 4;
/// Entries of a strip, what a warp of the pass deals with at a time.
const STRIP: u64 = 32 * GROUP;
const TILE: u64 = THREADS as u64 * GROUP;
const RUN: u64 = 4096;
pub(super) const LINE: u64 = 16;
const GATHER: u64 = 128;
const CHUNK: u64 = 4096;
const BINS: usize = 2048;
/// Digits of a key that selections look at, one a launch.
pub(super) const DIGITS: u32 = 3;
const BOUND_AT_ONCE: usize = 500;
const LISTED_AT_ONCE: usize = 480 * 32;
/// Tensors whose buffers one launch binds.
pub(super) const TENSORS_BOUND_AT_ONCE: usize = BOUND_AT_ONCE / 2;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tensor {
    pub param: u64,
    pub grad: u64,
    pub exp_avg: u64,
    pub exp_avg_sq: u64,
    pub master: u64,
    pub thresholds: u64,
    pub numel: u64,
    pub block_numel: u64,
    pub name_hash: u64,
    pub step_count: u64,
    pub update_fraction: f64,
    pub weight_decay: f64,
    pub learning_rate_scale: f64,
    pub blocks: u64,
    pub sums: u64,
    pub exists: u32,
    pub is_large: u32,
    pub param_dtype: u32,
    pub grad_dtype: u32,
    pub state_dtype: u32,
    pub master_started: u32,
}

/// A tensor's record of a step; the host only knows how large it is.
pub(super) const WORK_BYTES: usize = 144;

/// The part of a large block's record that the host writes. The rest starts as zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Block {
    pub tensor: u64,
    pub index: u64,
    pub notes: u64,
    pub held: u64,
    pub capacity: u32,
    pub lines: u32,
}

pub(super) const BLOCK_BYTES: usize = 128 + 8 * BINS;
pub(super) const CONTROL_BYTES: usize = 112;
/// Where in the control record the gradient norm is.
pub(super) const CONTROL_GRAD_NORM: usize = 96;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub tensors: u64,
    pub works: u64,
    pub blocks: u64,
    pub control: u64,
    pub sums: u64,
    pub device_hyper: [u64; 5],
    pub report: u64,
    pub report_size: u64,
    pub num_tensors: u64,
    pub num_blocks: u64,
    pub seed: u64,
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub update_fraction: f64,
    pub grad_scale: f64,
    pub grad_norm: f64,
    pub max_grad_norm: f64,
    pub filter: u32,
    pub scope: u32,
    pub rounding: u32,
    pub skip_nonfinite: u32,
    pub needs_sum: u32,
    pub only_norm: u32,
    pub forced_bracket: u32,
    pub no_room: u32,
    pub digit: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Bind {
    pub tensors: u64,
    pub first: u64,
    pub count: u64,
    pub pointers: [u64; BOUND_AT_ONCE],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    pub step: Step,
    pub first: u64,
    pub listed: u32,
    pub is_last: u32,
    pub mask: [u32; LISTED_AT_ONCE / 32],
}

const _: () = {
    assert!(size_of::<Tensor>() == 144);
    assert!(size_of::<Block>() == 40);
    assert!(size_of::<Step>() == 232);
    assert!(size_of::<Bind>() <= 4096 && size_of::<Begin>() <= 4096);
    assert!(BOUND_AT_ONCE.is_multiple_of(2));
};

// SAFETY: `repr(C)`, numbers without padding between them.
unsafe impl Plain for Tensor {}
// SAFETY: as above.
unsafe impl Plain for Block {}

impl Begin {
    /// Tensors that one launch lists.
    pub(super) const LISTED: usize = LISTED_AT_ONCE;
}

/// Chunks of the gradient norm.
pub(super) fn chunks_of(numel: u64) -> u64 {
    numel.div_ceil(CHUNK)
}

/// Strips of a range, wherever it starts.
pub(super) fn strips_of(entries: u64) -> u64 {
    (entries + GROUP - 1).div_ceil(STRIP)
}

/// Tiles of a range, wherever it starts.
pub(super) fn tiles_of(entries: u64) -> u64 {
    (entries + GROUP - 1).div_ceil(TILE)
}

/// Strips that a block of threads of the pass deals with at a time.
pub(super) const STRIPS_AT_A_TIME: u64 = THREADS_OF_PASS as u64 / 32;

/// Runs of a tensor of small blocks.
pub(super) fn runs_of(numel: u64, block_numel: u64) -> u64 {
    let each = (RUN / block_numel).max(1);
    (numel / block_numel).div_ceil(each)
}

/// Gathers of a block's sample.
pub(super) fn gathers_of(lines: u64) -> u64 {
    lines.div_ceil(GATHER)
}
