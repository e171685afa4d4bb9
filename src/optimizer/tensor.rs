//! What the optimizer keeps for each tensor.

use std::ffi::{CStr, c_void};

use super::overlap::Extent;
use crate::backend::Backend;
use crate::config::{Device, Dtype, Options, StateDtype, TensorSpec};
use crate::error::{Error, Result, fail};
use crate::memory::{PARTS, Placement, StateMemory, try_with_capacity};
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
    pub(crate) step_count: u64,
    pub(crate) param: *mut u8,
    pub(crate) grad: *const u8,
    pub(crate) exp_avg: *mut u8,
    pub(crate) exp_avg_sq: *mut u8,
    pub(crate) master: *mut f32,
    /// Each block's threshold in the last step, as bits of a float.
    pub(crate) thresholds: *mut u32,
    /// Freed when this is dropped.
    _memory: TensorMemory,
    state_bytes: [usize; PARTS],
    allocated_state: usize,
    used_state: usize,
    /// The master copy has been given its values: by a step, or by the caller.
    pub(crate) master_started: bool,
    /// The last call that this tensor was listed in; to notice one that is listed twice.
    pub(crate) listed_in: u64,
}

// SAFETY: the pointers are to memory that the caller lends to whichever thread uses the optimizer, or to
// `_memory`.
unsafe impl Send for Tensor {}

/// What the library allocated for a tensor.
#[derive(Debug)]
enum TensorMemory {
    Host {
        _state: Option<StateMemory>,
        _thresholds: Vec<u32>,
    },
    #[cfg(feature = "cuda")]
    Cuda { _all: crate::cuda::Memory },
}

/// What of a tensor's memory the library allocates, and where it lies.
struct Allocated {
    memory: TensorMemory,
    /// First moment, second moment, master copy; null where the caller brings it, or there is none.
    parts: [*mut u8; PARTS],
    thresholds: *mut u32,
}

/// What of the state the caller brings: first moment, second moment, master copy.
pub(crate) type Brought = [bool; PARTS];

/// The sizes of a tensor's state, and what of it the library allocates.
pub(crate) fn state_sizes(
    options: &Options,
    spec: &TensorSpec<'_>,
    brought: Brought,
) -> ([usize; PARTS], [usize; PARTS]) {
    let numel = spec.numel as usize;
    let has_master = options.master_weights && spec.param_dtype != Dtype::F32;
    let element = options.state_dtype.size();
    // `TensorSpec::validate` keeps numel · 4 within the address space.
    let sizes = [
        numel * element,
        numel * element,
        if has_master { numel * 4 } else { 0 },
    ];
    let mut allocated = sizes;
    for (size, brought) in allocated.iter_mut().zip(brought) {
        if brought {
            *size = 0;
        }
    }
    (sizes, allocated)
}

/// Bytes that are allocated for state of these sizes and for thresholds; the first number is that of the state, with the
/// distances between its parts.
pub(crate) fn allocated_bytes(
    device: Device,
    allocated: [usize; PARTS],
    num_blocks: u64,
) -> Result<(u64, u64)> {
    let thresholds = num_blocks * size_of::<u32>() as u64;
    let state = match device {
        Device::Cpu => place(allocated)?.allocated() as u64,
        #[cfg(feature = "cuda")]
        Device::Cuda { .. } => {
            let [m, v, master] = allocated;
            crate::cuda::state_bytes([m, v, master, thresholds as usize]) - thresholds
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda { .. } => allocated.iter().map(|&size| size as u64).sum(),
    };
    Ok((state, state.saturating_add(thresholds)))
}

fn place(allocated: [usize; PARTS]) -> Result<Placement> {
    Placement::new(allocated).ok_or_else(|| Error::out_of_memory("the moments", usize::MAX))
}

impl Allocated {
    fn new(backend: &Backend, allocated: [usize; PARTS], num_blocks: u64) -> Result<Self> {
        match backend {
            Backend::Cpu(_) => {
                let mut thresholds = try_with_capacity(num_blocks as usize, "the thresholds")?;
                thresholds.resize(num_blocks as usize, 0);
                let state = StateMemory::new(place(allocated)?)?;
                let mut parts = [std::ptr::null_mut(); PARTS];
                if let Some(memory) = &state {
                    for (i, part) in parts.iter_mut().enumerate() {
                        if allocated[i] > 0 {
                            *part = memory.part(i);
                        }
                    }
                }
                Ok(Self {
                    thresholds: thresholds.as_mut_ptr(),
                    memory: TensorMemory::Host {
                        _state: state,
                        _thresholds: thresholds,
                    },
                    parts,
                })
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => {
                let [m, v, master] = allocated;
                let thresholds = num_blocks as usize * size_of::<u32>();
                let (memory, [m, v, master, thresholds]) =
                    cuda.allocate_state([m, v, master, thresholds])?;
                Ok(Self {
                    memory: TensorMemory::Cuda { _all: memory },
                    parts: [m, v, master],
                    thresholds: thresholds.cast(),
                })
            }
        }
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
        let brought = [
            !buffers.exp_avg.is_null(),
            !buffers.exp_avg_sq.is_null(),
            !buffers.master.is_null(),
        ];
        let (state_bytes, allocated) = state_sizes(options, spec, brought);
        let (allocated_state, _) = allocated_bytes(options.device, allocated, spec.num_blocks)?;
        if brought[2] && state_bytes[2] == 0 {
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
            step_count: spec.step_count,
            param: buffers.param.cast(),
            grad: buffers.grad.cast(),
            exp_avg: buffers.exp_avg.cast(),
            exp_avg_sq: buffers.exp_avg_sq.cast(),
            master: buffers.master.cast(),
            thresholds: std::ptr::null_mut(),
            _memory: TensorMemory::Host {
                _state: None,
                _thresholds: Vec::new(),
            },
            state_bytes,
            allocated_state: allocated_state as usize,
            used_state: allocated.iter().sum(),
            master_started: brought[2] && spec.step_count > 0,
            listed_in: 0,
        };
        tensor.check_own_buffers(tensor.param, tensor.grad)?;
        for extent in tensor.extents(tensor.param, tensor.grad) {
            if let Some(extent) = extent? {
                extent.check_memory(backend)?;
            }
        }
        let new = Allocated::new(backend, allocated, spec.num_blocks)?;
        let [m, v, master] = new.parts;
        if !brought[0] {
            tensor.exp_avg = m;
        }
        if !brought[1] {
            tensor.exp_avg_sq = v;
        }
        if !brought[2] {
            tensor.master = master.cast();
        }
        tensor.thresholds = new.thresholds;
        tensor._memory = new.memory;
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

    /// The thresholds of a tensor on the CPU.
    pub(crate) fn host_thresholds(&self) -> &[f32] {
        match &self._memory {
            TensorMemory::Host { .. } if !self.thresholds.is_null() => {
                // SAFETY: `_thresholds` is as long, lives as long as the tensor, and is written through this pointer
                // alone; all bit patterns are floats.
                unsafe {
                    std::slice::from_raw_parts(self.thresholds.cast(), self.num_blocks as usize)
                }
            }
            _ => &[],
        }
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

    /// The address ranges of all buffers that are not null, with this parameter and gradient.
    pub(crate) fn extents(&self, param: *const u8, grad: *const u8) -> [Result<Option<Extent>>; 5] {
        let state = self.state_dtype.size();
        let extent = |what, start: *const u8, size, written| {
            if start.is_null() {
                return Ok(None);
            }
            Extent::new(what, start, self.numel, size, written).map(Some)
        };
        [
            extent("param", param, self.param_dtype.size(), true),
            extent("grad", grad, self.grad_dtype.size(), false),
            extent("exp_avg", self.exp_avg, state, true),
            extent("exp_avg_sq", self.exp_avg_sq, state, true),
            extent("master", self.master.cast(), 4, true),
        ]
    }

    /// First moment, second moment and master copy: where each begins, and its bytes; 0 bytes for none.
    pub(crate) fn state(&self) -> [(*mut u8, usize); PARTS] {
        let [m, v, master] = self.state_bytes;
        [
            (self.exp_avg, m),
            (self.exp_avg_sq, v),
            (self.master.cast(), master),
        ]
    }

    /// Bytes of moments and master that the library allocated, and that the caller brought.
    pub(crate) fn state_memory(&self) -> (u64, u64) {
        let total: usize = self.state_bytes.iter().sum();
        (
            self.allocated_state as u64,
            (total - self.used_state) as u64,
        )
    }

    /// Bytes of everything else.
    pub(crate) fn bookkeeping(&self) -> u64 {
        (self.name.capacity() as u64) + self.num_blocks * size_of::<u32>() as u64
    }
}
