//! What the optimizer keeps for each tensor.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use super::overlap::Extent;
use crate::backend::{self, Backend, State};
use crate::config::{Dtype, Options, StateDtype, TensorSpec};
use crate::error::{Result, fail};
use crate::job::TensorBuffers;
use crate::memory::{PARTS, try_with_capacity};
use crate::rule::random::hash_name;

/// A caller's buffers for one tensor. Null pointers: not bound yet (`param`, `grad`), or to be allocated by
/// the library (the others).
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// The parameter, `numel` elements of its dtype.
    pub param: *mut c_void,
    /// The gradient, `numel` elements of its dtype.
    pub grad: *const c_void,
    /// The first moment, `numel` elements of the optimizer's state dtype.
    pub exp_avg: *mut c_void,
    /// The second moment, likewise.
    pub exp_avg_sq: *mut c_void,
    /// The master copy, `numel` f32; only for 16-bit parameters with `master_weights`.
    pub master: *mut c_void,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            param: std::ptr::null_mut(),
            grad: std::ptr::null(),
            exp_avg: std::ptr::null_mut(),
            exp_avg_sq: std::ptr::null_mut(),
            master: std::ptr::null_mut(),
        }
    }
}

impl Buffers {
    /// As they are, or stand-ins where there are no entries: empty containers have any address, NULL among them, which
    /// does not say then that nothing is bound. State there is none.
    pub(super) fn of_entries(self, numel: u64) -> Self {
        if numel > 0 {
            return self;
        }
        let nothing = NonNull::<u64>::dangling().as_ptr().cast::<c_void>();
        Self {
            param: nothing,
            grad: nothing,
            ..Self::default()
        }
    }
}

#[derive(Debug)]
pub(crate) struct Tensor {
    /// UTF-8, with a NUL at the end and nowhere else.
    name: Vec<u8>,
    pub(crate) name_hash: u64,
    pub(crate) numel: u64,
    pub(crate) num_blocks: u64,
    pub(crate) param_dtype: Dtype,
    pub(crate) grad_dtype: Dtype,
    pub(crate) state_dtype: StateDtype,
    pub(crate) update_fraction: Option<f64>,
    pub(crate) weight_decay: Option<f64>,
    pub(crate) learning_rate_scale: f64,
    /// The bound ones, and the state, whoever allocated it.
    pub(crate) buffers: TensorBuffers,
    /// What the device has allocated; there is none only while the tensor is being made.
    state: Option<State>,
    sizes: StateSizes,
    allocated_bytes: u64,
    /// The last call that this tensor was listed in; to notice one that is listed twice.
    pub(crate) listed_in: u64,
}

/// What of the state the caller brings: first moment, second moment, master copy.
pub(crate) type Brought = [bool; PARTS];

/// Bytes of a tensor's first moment, second moment and master copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateSizes {
    pub(super) all: [usize; PARTS],
    /// Of what the library allocates.
    allocated: [usize; PARTS],
}

impl StateSizes {
    pub(super) fn new(options: &Options, spec: &TensorSpec<'_>, brought: Brought) -> Self {
        // `TensorSpec::validate` keeps numel · 4 within the address space.
        let numel = spec.numel as usize;
        let moment = numel * options.state_dtype.size();
        let has_master = options.has_master(spec.param_dtype);
        let all = [moment, moment, if has_master { numel * 4 } else { 0 }];
        let mut allocated = all;
        for (size, brought) in allocated.iter_mut().zip(brought) {
            if brought {
                *size = 0;
            }
        }
        Self { all, allocated }
    }

    /// Bytes of what the library allocates, with the distances between its parts.
    pub(super) fn allocated_bytes(&self, options: &Options, spec: &TensorSpec<'_>) -> Result<u64> {
        backend::state_bytes(options.device, self.allocated, spec.num_blocks)
    }
}

impl Tensor {
    /// Checks and allocates.
    pub(crate) fn new(
        options: &Options,
        spec: &TensorSpec<'_>,
        buffers: &Buffers,
        backend: &Backend,
    ) -> Result<Self> {
        let buffers = &buffers.of_entries(spec.numel);
        let brought = [
            !buffers.exp_avg.is_null(),
            !buffers.exp_avg_sq.is_null(),
            !buffers.master.is_null(),
        ];
        let sizes = StateSizes::new(options, spec, brought);
        let allocated_bytes = sizes.allocated_bytes(options, spec)?;
        if brought[2] && sizes.all[2] == 0 {
            fail!(
                InvalidArgument,
                "master is {:p}, but the tensor has no master copy: that takes master_weights and a \
                 parameter of 16 bits; it must be NULL",
                buffers.master
            );
        }

        let mut name = try_with_capacity(spec.name.len() + 1, "the tensor's name")?;
        name.extend_from_slice(spec.name.as_bytes());
        name.push(0);
        let mut tensor = Self {
            name,
            name_hash: hash_name(spec.name),
            numel: spec.numel,
            num_blocks: spec.num_blocks,
            param_dtype: spec.param_dtype,
            grad_dtype: spec.grad_dtype,
            state_dtype: options.state_dtype,
            update_fraction: spec.update_fraction,
            weight_decay: spec.weight_decay,
            learning_rate_scale: spec.learning_rate_scale,
            buffers: TensorBuffers {
                param: buffers.param.cast(),
                grad: buffers.grad.cast(),
                exp_avg: buffers.exp_avg.cast(),
                exp_avg_sq: buffers.exp_avg_sq.cast(),
                master: buffers.master.cast(),
                thresholds: std::ptr::null_mut(),
            },
            state: None,
            sizes,
            allocated_bytes,
            listed_in: 0,
        };
        let (param, grad) = (tensor.buffers.param, tensor.buffers.grad);
        tensor.check_own_buffers(param, grad)?;
        for extent in tensor.extents(param, grad) {
            if let Some(extent) = extent? {
                extent.check_memory(backend)?;
            }
        }
        let state = backend.allocate_state(sizes.allocated, spec.num_blocks)?;
        let [m, v, master] = state.parts;
        let buffers = &mut tensor.buffers;
        if !brought[0] {
            buffers.exp_avg = m;
        }
        if !brought[1] {
            buffers.exp_avg_sq = v;
        }
        if !brought[2] {
            buffers.master = master.cast();
        }
        buffers.thresholds = state.thresholds;
        tensor.state = Some(state);
        Ok(tensor)
    }

    pub(crate) fn name(&self) -> &str {
        // Made from a `&str` in `new`.
        std::str::from_utf8(&self.name[..self.name.len() - 1]).unwrap_or_default()
    }

    pub(crate) fn c_name(&self) -> &CStr {
        // `add_tensor` refuses names with a NUL, and `new` has added the one at the end.
        CStr::from_bytes_with_nul(&self.name).unwrap_or_default()
    }

    /// Refuses a parameter and gradient that are misaligned or overlap each other or the state.
    pub(crate) fn check_own_buffers(&self, param: *mut u8, grad: *const u8) -> Result<()> {
        let mut extents = [None; 5];
        for (slot, extent) in extents.iter_mut().zip(self.extents(param, grad)) {
            *slot = extent?;
        }
        for (i, one) in extents.iter().flatten().enumerate() {
            for other in extents.iter().flatten().skip(i + 1) {
                if one.conflicts_with(other) {
                    fail!(InvalidBuffer, "{one} overlaps {other}");
                }
            }
        }
        Ok(())
    }

    /// The thresholds, where they are in the host's memory.
    pub(crate) fn host_thresholds(&self) -> &[f32] {
        self.state.as_ref().map_or(&[], State::host_thresholds)
    }

    /// The address ranges of a parameter and gradient that are not null.
    pub(crate) fn param_and_grad(
        &self,
        param: *const u8,
        grad: *const u8,
    ) -> [Result<Option<Extent>>; 2] {
        let [param, grad, ..] = self.extents(param, grad);
        [param, grad]
    }

    /// The address ranges of all buffers that are not null nor empty, with this parameter and gradient.
    pub(crate) fn extents(&self, param: *const u8, grad: *const u8) -> [Result<Option<Extent>>; 5] {
        let state = self.state_dtype.size();
        let extent = |what, start: *const u8, size, written| {
            if start.is_null() || self.numel == 0 {
                return Ok(None);
            }
            Extent::new(what, start, self.numel, size, written).map(Some)
        };
        [
            extent("param", param, self.param_dtype.size(), true),
            extent("grad", grad, self.grad_dtype.size(), false),
            extent("exp_avg", self.buffers.exp_avg, state, true),
            extent("exp_avg_sq", self.buffers.exp_avg_sq, state, true),
            extent("master", self.buffers.master.cast(), 4, true),
        ]
    }

    /// First moment, second moment and master copy: where each begins, and its bytes; 0 bytes for none.
    pub(crate) fn state(&self) -> [(*mut u8, usize); PARTS] {
        let [m, v, master] = self.sizes.all;
        [
            (self.buffers.exp_avg, m),
            (self.buffers.exp_avg_sq, v),
            (self.buffers.master.cast(), master),
        ]
    }

    /// Bytes of moments and master that the library allocated, and that the caller brought.
    pub(crate) fn state_memory(&self) -> (u64, u64) {
        let total: usize = self.sizes.all.iter().sum();
        let allocated: usize = self.sizes.allocated.iter().sum();
        (self.allocated_bytes, (total - allocated) as u64)
    }

    /// Bytes of everything else.
    pub(crate) fn bookkeeping(&self) -> u64 {
        (self.name.capacity() as u64) + self.num_blocks * size_of::<u32>() as u64
    }
}
