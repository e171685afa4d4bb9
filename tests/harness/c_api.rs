//! A wrapper over the C API for tests: it owns the buffers, and failures carry the library's own text.

use std::ffi::{CStr, CString, c_void};
use std::mem::size_of;

use mofo::ffi::*;

use super::device::DeviceBuffer;

/// The elements of a buffer; those of 16 bits as their bit patterns.
#[derive(Clone, Debug)]
pub enum Elements {
    F32(Vec<f32>),
    Half(Vec<u16>),
}

impl Elements {
    /// `numel` elements of a `MOFO_DTYPE_…`, all bits set: NaN in every type.
    pub fn dirty(numel: usize, dtype: i32) -> Self {
        if dtype == MOFO_DTYPE_F32 {
            Self::F32(vec![f32::from_bits(u32::MAX); numel])
        } else {
            Self::Half(vec![u16::MAX; numel])
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Half(values) => values.len(),
        }
    }

    pub fn f32(&self) -> &[f32] {
        match self {
            Self::F32(values) => values,
            Self::Half(_) => panic!("elements of 16 bits where f32 were expected"),
        }
    }

    /// The bit patterns, every NaN replaced by one: which NaN comes out is nobody's promise.
    pub fn canonical_bits(&self, dtype: i32) -> Vec<u32> {
        let half = |values: &[u16], infinity: u16, quiet: u32| {
            let canonical = |&bits: &u16| {
                if bits & 0x7FFF > infinity {
                    quiet
                } else {
                    u32::from(bits)
                }
            };
            values.iter().map(canonical).collect()
        };
        match self {
            Self::F32(values) => values
                .iter()
                .map(|value| {
                    if value.is_nan() {
                        0x7FC0_0000
                    } else {
                        value.to_bits()
                    }
                })
                .collect(),
            Self::Half(values) if dtype == MOFO_DTYPE_F16 => half(values, 0x7C00, 0x7E00),
            Self::Half(values) => half(values, 0x7F80, 0x7FC0),
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: plain numbers, read as bytes.
        unsafe {
            match self {
                Self::F32(values) => values.align_to::<u8>().1,
                Self::Half(values) => values.align_to::<u8>().1,
            }
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: plain numbers, all of whose bytes may have any value.
        unsafe {
            match self {
                Self::F32(values) => values.align_to_mut::<u8>().1,
                Self::Half(values) => values.align_to_mut::<u8>().1,
            }
        }
    }

    fn as_mut_ptr(&mut self) -> *mut c_void {
        match self {
            Self::F32(values) => values.as_mut_ptr().cast(),
            Self::Half(values) => values.as_mut_ptr().cast(),
        }
    }

    fn as_ptr(&self) -> *const c_void {
        match self {
            Self::F32(values) => values.as_ptr().cast(),
            Self::Half(values) => values.as_ptr().cast(),
        }
    }

    /// Copies a buffer of the library's.
    ///
    /// # Safety
    ///
    /// `pointer` points to `numel` readable elements of that type, on the device or not.
    unsafe fn copy(pointer: *const c_void, numel: usize, dtype: i32, on_device: bool) -> Self {
        if on_device {
            let mut copy = Self::dirty(numel, dtype);
            DeviceBuffer::borrowed(pointer as u64, copy.bytes().len())
                .download_into(copy.bytes_mut());
            return copy;
        }
        // SAFETY: the caller's promise.
        unsafe {
            if dtype == MOFO_DTYPE_F32 {
                Self::F32(std::slice::from_raw_parts(pointer.cast(), numel).to_vec())
            } else {
                Self::Half(std::slice::from_raw_parts(pointer.cast(), numel).to_vec())
            }
        }
    }
}

/// The defaults of `mofo_options_init`.
pub fn options() -> mofo_options {
    let mut options = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct is writable, and written if the call succeeds.
    unsafe {
        let status = mofo_options_init(options.as_mut_ptr(), size_of::<mofo_options>() as u64);
        expect_ok("mofo_options_init", status);
        options.assume_init()
    }
}

/// The defaults of `mofo_tensor_init`.
pub fn tensor() -> mofo_tensor {
    let mut tensor = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct is writable, and written if the call succeeds.
    unsafe {
        let status = mofo_tensor_init(tensor.as_mut_ptr(), size_of::<mofo_tensor>() as u64);
        expect_ok("mofo_tensor_init", status);
        tensor.assume_init()
    }
}

/// The defaults of `mofo_step_args_init`.
pub fn step_args() -> mofo_step_args {
    let mut args = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct is writable, and written if the call succeeds.
    unsafe {
        let status = mofo_step_args_init(args.as_mut_ptr(), size_of::<mofo_step_args>() as u64);
        expect_ok("mofo_step_args_init", status);
        args.assume_init()
    }
}

/// The text of this thread's last failing call.
pub fn last_error() -> String {
    // SAFETY: never NULL, NUL-terminated, and not changed before the next failing call.
    unsafe { CStr::from_ptr(mofo_last_error()) }
        .to_string_lossy()
        .into_owned()
}

/// `"MOFO_OK"` and its like.
pub fn status_name(status: i32) -> &'static str {
    // SAFETY: a static text.
    unsafe { CStr::from_ptr(mofo_status_name(status)) }
        .to_str()
        .unwrap()
}

/// Fails the test, with the library's text, unless the call succeeded.
#[track_caller]
pub fn expect_ok(call: &str, status: i32) {
    assert!(
        status == MOFO_OK,
        "{call}: {}: {}",
        status_name(status),
        last_error()
    );
}

/// What `mofo_step` returned and reported; the report is there unless the step failed.
pub struct Step {
    pub status: &'static str,
    pub report: Option<mofo_step_report>,
    /// The library's text if the step failed.
    pub error: String,
}

/// A copy of what the library keeps for a tensor.
pub struct State {
    pub step_count: u64,
    pub thresholds: Vec<f32>,
    pub exp_avg: Elements,
    pub exp_avg_sq: Elements,
    pub master: Option<Elements>,
}

/// State in the caller's memory; `None`: the library's.
#[derive(Default)]
pub struct CallerState {
    pub exp_avg: Option<Elements>,
    pub exp_avg_sq: Option<Elements>,
    pub master: Option<Elements>,
}

/// A `mofo_optimizer` with the buffers of its tensors.
pub struct Optimizer {
    handle: *mut mofo_optimizer,
    tensors: Vec<Owned>,
    on_device: bool,
}

struct Owned {
    index: u64,
    param: Elements,
    /// The library holds pointers into these.
    _state: CallerState,
    device: Option<OnDevice>,
}

/// A tensor's buffers in device memory: parameter, gradient, and what the library holds pointers into.
struct OnDevice {
    param: DeviceBuffer,
    grad: DeviceBuffer,
    _state: Vec<DeviceBuffer>,
}

impl Optimizer {
    /// `None` if this machine cannot do it, a CPU tier that the processor lacks for example.
    pub fn create(options: &mofo_options) -> Option<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: an initialised struct (`options`), and a writable pointer.
        let status = unsafe { mofo_create(options, &raw mut handle) };
        if status == MOFO_ERROR_UNSUPPORTED {
            return None;
        }
        expect_ok("mofo_create", status);
        assert!(!handle.is_null());
        Some(Self {
            handle,
            tensors: Vec::new(),
            on_device: options.device == MOFO_DEVICE_CUDA,
        })
    }

    /// Adds a tensor with the given settings; name, sizes and pointers are filled in here. Returns its
    /// position, which [`Self::step`] and the others take.
    pub fn add(
        &mut self,
        name: &str,
        settings: &mofo_tensor,
        param: Elements,
        mut state: CallerState,
    ) -> usize {
        let name = CString::new(name).unwrap();
        let mut spec = *settings;
        let mut copies = Vec::new();
        let mut pointer = |elements: &mut Option<Elements>| match elements {
            Some(elements) if self.on_device => {
                assert_eq!(elements.len(), param.len());
                let copy = DeviceBuffer::new(elements.bytes().len());
                copy.upload(elements.bytes());
                let start = copy.start as *mut c_void;
                copies.push(copy);
                start
            }
            Some(elements) => {
                assert_eq!(elements.len(), param.len());
                elements.as_mut_ptr()
            }
            None => std::ptr::null_mut(),
        };
        spec.exp_avg = pointer(&mut state.exp_avg);
        spec.exp_avg_sq = pointer(&mut state.exp_avg_sq);
        spec.master = pointer(&mut state.master);
        spec.name = name.as_ptr();
        spec.numel = param.len() as u64;
        let mut index = u64::MAX;
        // SAFETY: an initialised struct; its buffers hold `numel` elements and live, unmoved on the heap, as
        // long as `self`; the optimizer is alive.
        let status = unsafe { mofo_add_tensor(self.handle, &raw const spec, &raw mut index) };
        expect_ok("mofo_add_tensor", status);
        let device = self.on_device.then(|| {
            let buffer = DeviceBuffer::new(param.bytes().len());
            buffer.upload(param.bytes());
            OnDevice {
                param: buffer,
                // As large as any gradient of that many entries.
                grad: DeviceBuffer::new(4 * param.len()),
                _state: copies,
            }
        });
        self.tensors.push(Owned {
            index,
            param,
            _state: state,
            device,
        });
        self.tensors.len() - 1
    }

    /// Steps with these gradients, one a tensor, where `None` is no gradient. `tensors` and `report` are filled
    /// in here.
    pub fn step(
        &mut self,
        grads: &[Option<Elements>],
        args: &mofo_step_args,
        tensors: Option<&[usize]>,
    ) -> Step {
        self.bind(grads);
        let indices = tensors.map(|positions| self.indices(positions));
        let mut report = mofo_step_report {
            grad_norm: f64::NAN,
            entries: u64::MAX,
            entries_selected: u64::MAX,
            skipped: -1,
            status: -1,
            blocks_estimated: u64::MAX,
            estimates_failed: u64::MAX,
            tensors: u64::MAX,
            entries_nonfinite: u64::MAX,
        };
        let mut args = *args;
        if let Some(indices) = &indices {
            args.tensors = indices.as_ptr();
            args.num_tensors = indices.len() as u64;
        }
        args.report = &raw mut report;
        args.report_size = size_of::<mofo_step_report>() as u64;
        let report_on_device = self.on_device.then(|| {
            let buffer = DeviceBuffer::new(size_of::<mofo_step_report>());
            args.report = buffer.start as *mut mofo_step_report;
            buffer
        });
        // SAFETY: the optimizer and, through `grads` and `self`, the bound buffers are alive; `args` is
        // initialised and its pointers are valid.
        let mut status = unsafe { mofo_step(self.handle, &raw const args) };
        if let Some(buffer) = report_on_device
            && status >= 0
        {
            assert_eq!(status, MOFO_OK, "a step on CUDA has only been launched");
            let copy = buffer.download();
            // SAFETY: the device has written a report there, of plain numbers.
            report = unsafe { copy.as_ptr().cast::<mofo_step_report>().read() };
            status = report.status;
            self.fetch_params();
        }
        Step {
            status: status_name(status),
            report: (status >= 0).then_some(report),
            error: if status < 0 {
                last_error()
            } else {
                String::new()
            },
        }
    }

    /// The gradient norm that a step with these gradients would compute.
    pub fn grad_norm(&mut self, grads: &[Option<Elements>], args: &mofo_step_args) -> f64 {
        self.bind(grads);
        let mut norm = f64::NAN;
        // SAFETY: as for `mofo_step` above; `norm` is writable.
        let status = unsafe { mofo_grad_norm(self.handle, args, &raw mut norm) };
        expect_ok("mofo_grad_norm", status);
        norm
    }

    pub fn param(&self, position: usize) -> &Elements {
        &self.tensors[position].param
    }

    pub fn state(&self, position: usize) -> State {
        let mut info = std::mem::MaybeUninit::<mofo_tensor_info>::uninit();
        // SAFETY: the optimizer is alive, `info` is writable, and written if the call succeeds.
        let info = unsafe {
            let status = mofo_tensor_state(
                self.handle,
                self.tensors[position].index,
                info.as_mut_ptr(),
                size_of::<mofo_tensor_info>() as u64,
            );
            expect_ok("mofo_tensor_state", status);
            info.assume_init()
        };
        let (numel, num_blocks) = (info.numel as usize, info.num_blocks as usize);
        assert_eq!(numel, self.tensors[position].param.len());
        let on_device = self.on_device;
        let copy = |pointer: *const c_void, numel: usize, dtype: i32| {
            // SAFETY: the library says that these pointers are valid for as many elements, and no call on the
            // optimizer runs.
            unsafe { Elements::copy(pointer, numel, dtype, on_device) }
        };
        State {
            step_count: info.step_count,
            thresholds: copy(info.thresholds.cast(), num_blocks, MOFO_DTYPE_F32)
                .f32()
                .to_vec(),
            exp_avg: copy(info.exp_avg, numel, info.state_dtype),
            exp_avg_sq: copy(info.exp_avg_sq, numel, info.state_dtype),
            master: (!info.master.is_null())
                .then(|| copy(info.master.cast(), numel, MOFO_DTYPE_F32)),
        }
    }

    fn indices(&self, positions: &[usize]) -> Vec<u64> {
        positions
            .iter()
            .map(|&position| self.tensors[position].index)
            .collect()
    }

    /// Brings the parameters back from the device.
    fn fetch_params(&mut self) {
        for tensor in &mut self.tensors {
            if let Some(device) = &tensor.device {
                device.param.download_into(tensor.param.bytes_mut());
            }
        }
    }

    fn bind(&mut self, grads: &[Option<Elements>]) {
        assert_eq!(grads.len(), self.tensors.len());
        for (tensor, grad) in self.tensors.iter_mut().zip(grads) {
            let param = match &tensor.device {
                Some(device) => device.param.start as *mut c_void,
                None => tensor.param.as_mut_ptr(),
            };
            let grad = match (grad, &tensor.device) {
                (Some(grad), Some(device)) => {
                    assert_eq!(grad.len(), tensor.param.len());
                    device.grad.upload(grad.bytes());
                    device.grad.start as *const c_void
                }
                (Some(grad), None) => {
                    assert_eq!(grad.len(), tensor.param.len());
                    grad.as_ptr()
                }
                (None, _) => std::ptr::null(),
            };
            // SAFETY: the optimizer is alive; both buffers hold `numel` elements (asserted) and outlive the
            // next call that reads them, before which they are bound anew.
            let status = unsafe { mofo_bind_tensor(self.handle, tensor.index, param, grad) };
            expect_ok("mofo_bind_tensor", status);
        }
    }
}

impl Drop for Optimizer {
    fn drop(&mut self) {
        // SAFETY: it came from `mofo_create`, and this is its only owner.
        unsafe { mofo_destroy(self.handle) };
    }
}
