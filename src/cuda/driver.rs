//! The few things that are asked of the CUDA driver, with its errors as ours.
//!
//! The driver library is loaded at run time. All work is in the device's primary context, which the CUDA runtime,
//! PyTorch and other engines use, too; it is current only while a call of ours needs it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::error::{Error, ErrorKind, Result, fail};

/// A stream of the caller's; null is the legacy default stream.
pub(super) type Stream = *mut c_void;

/// The error of a driver call, with CUDA's own name and text.
fn error_of(call: &str, code: sys::CUresult) -> Error {
    let text = |ask: unsafe fn(sys::CUresult, *mut *const c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the pointer is to a local.
        let known = unsafe { ask(code, &mut text) } == sys::CUresult::CUDA_SUCCESS;
        // SAFETY: the driver's texts are static.
        (known && !text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_str().ok())?
    };
    let kind = match code {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        _ => ErrorKind::Cuda,
    };
    Error::new(
        kind,
        format_args!(
            "{call}: {} ({})",
            text(sys::cuGetErrorName).unwrap_or("unknown CUDA error"),
            text(sys::cuGetErrorString).unwrap_or("no description")
        ),
    )
}

/// `call!(cuFunction(arguments))`: calls the driver; what is not a success becomes an error.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        match sys::$function($($argument),*) {
            sys::CUresult::CUDA_SUCCESS => Ok(()),
            code => Err(error_of(stringify!($function), code)),
        }
    };
}

/// Asks about an address; false if the driver knows nothing about it.
///
/// # Safety
///
/// `value` is writable, and as large as the attribute.
unsafe fn ask_about(
    address: u64,
    attribute: sys::CUpointer_attribute,
    value: *mut c_void,
) -> Result<bool> {
    // SAFETY: the caller's promise; any address may be asked about.
    match unsafe { sys::cuPointerGetAttribute(value, attribute, address) } {
        sys::CUresult::CUDA_SUCCESS => Ok(true),
        sys::CUresult::CUDA_ERROR_INVALID_VALUE => Ok(false),
        code => Err(error_of("cuPointerGetAttribute", code)),
    }
}

/// How many devices there are; an error says why there is none.
pub(super) fn device_count() -> Result<usize> {
    // SAFETY: loads the driver library, whose initialisers are NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        fail!(
            Unsupported,
            "the CUDA driver library (libcuda.so.1 or nvcuda.dll) is not installed"
        );
    }
    let (mut count, mut version) = (0, 0);
    // SAFETY: the library is there (asked above), and the pointers are to locals.
    unsafe {
        call!(cuInit(0))
            .and_then(|()| call!(cuDriverGetVersion(&mut version)))
            .and_then(|()| call!(cuDeviceGetCount(&mut count)))
    }
    .map_err(|error| Error::new(ErrorKind::Unsupported, format_args!("{}", error.message())))?;
    if version < OLDEST_DRIVER {
        fail!(
            Unsupported,
            "the CUDA driver is of CUDA {}.{}; at least 12.0 is needed",
            version / 1000,
            version % 1000 / 10
        );
    }
    if count <= 0 {
        fail!(Unsupported, "the CUDA driver finds no device");
    }
    Ok(count as usize)
}

/// As `cuDriverGetVersion` has it: of the compilers of the kernels.
const OLDEST_DRIVER: c_int = 12_000;

/// A device's primary context.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: contexts may be used by any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn of_device(index: usize) -> Result<Arc<Self>> {
        let count = device_count()?;
        if index >= count {
            fail!(
                InvalidArgument,
                "device_index is {index}; the CUDA driver finds {count} devices, so it must be from 0 to {}",
                count - 1
            );
        }
        let (mut device, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the pointers are to locals.
        unsafe {
            call!(cuDeviceGet(&mut device, index as c_int))?;
            call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        }
        Ok(Arc::new(Self { device, context }))
    }

    /// Makes the context current until the guard is dropped.
    pub(super) fn enter(&self) -> Result<Entered> {
        // SAFETY: the context is retained.
        unsafe { call!(cuCtxPushCurrent_v2(self.context))? };
        Ok(Entered(()))
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<usize> {
        let mut value = 0;
        // SAFETY: the pointer is to a local.
        unsafe { call!(cuDeviceGetAttribute(&mut value, attribute, self.device))? };
        Ok(value as usize)
    }

    pub(super) fn compute_capability(&self) -> Result<(usize, usize)> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        Ok((self.attribute(MAJOR)?, self.attribute(MINOR)?))
    }

    pub(super) fn multiprocessors(&self) -> Result<usize> {
        self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// Refuses what is not `bytes` bytes in the memory of this device.
    pub(super) fn check_memory(&self, what: &str, start: *const c_void, bytes: u64) -> Result<()> {
        use sys::CUpointer_attribute::{
            CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL as DEVICE,
            CU_POINTER_ATTRIBUTE_IS_MANAGED as MANAGED,
            CU_POINTER_ATTRIBUTE_MEMORY_TYPE as MEMORY_TYPE,
        };
        const DEVICE_MEMORY: c_uint = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as c_uint;
        let _current = self.enter()?;
        // The first byte and the last: pools may have put a buffer together from several pieces.
        for offset in [0, bytes.saturating_sub(1)] {
            let address = (start as u64).wrapping_add(offset);
            let mut attributes = [MEMORY_TYPE, DEVICE, MANAGED];
            let mut values: [c_uint; 3] = [0; 3];
            let mut pointers = values
                .each_mut()
                .map(|value| (&raw mut *value).cast::<c_void>());
            // SAFETY: these attributes are of 4 bytes at most; any address may be asked about.
            unsafe {
                let count = attributes.len() as c_uint;
                call!(cuPointerGetAttributes(
                    count,
                    attributes.as_mut_ptr(),
                    pointers.as_mut_ptr(),
                    address
                ))?;
            }
            let [memory_type, device, managed] = values;
            // This call says of an address that CUDA does not know that all of it is 0.
            if memory_type == 0 && managed & 0xFF == 0 {
                fail!(
                    InvalidBuffer,
                    "{what} is {start:p}, {bytes} bytes; it must be in the memory of CUDA device {}, but CUDA knows \
                     nothing of the byte at offset {offset}",
                    self.device
                );
            }
            if managed & 0xFF == 0
                && (memory_type != DEVICE_MEMORY || device != self.device as c_uint)
            {
                let kind = if memory_type == DEVICE_MEMORY {
                    "of device"
                } else {
                    "of the host, registered with device"
                };
                fail!(
                    InvalidBuffer,
                    "{what} is {start:p}, which is memory {kind} {device}; it must be in the memory of CUDA device {}",
                    self.device
                );
            }
        }
        Ok(())
    }

    /// Where kernels on this device find `bytes` bytes of memory; refuses those that they cannot reach.
    pub(super) fn reach(&self, what: &str, start: *const c_void, bytes: u64) -> Result<u64> {
        let _current = self.enter()?;
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_POINTER;
        let ask = |offset: u64| {
            let mut found = 0u64;
            let address = (start as u64).wrapping_add(offset);
            // SAFETY: this attribute is of 8 bytes.
            let is_known = unsafe { ask_about(address, attribute, (&raw mut found).cast())? };
            Ok(is_known.then_some(found))
        };
        let (Some(first), Some(_)) = (ask(0)?, ask(bytes - 1)?) else {
            fail!(
                InvalidBuffer,
                "{what} is {start:p}, {bytes} bytes, which device {} cannot reach (CUDA_ERROR_INVALID_VALUE); on CUDA \
                 it must be in device, managed or page-locked memory",
                self.device
            );
        };
        Ok(first)
    }

    /// True if work on the stream is being captured. Refuses a stream that is not one of this context.
    pub(super) fn check_stream(&self, stream: Stream) -> Result<bool> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointers are to locals; the stream is the caller's.
        unsafe {
            call!(cuStreamIsCapturing(stream.cast(), &mut status))?;
            let captured = status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
            // The two default streams, 1 and 2, are of whichever context is current. To ask anything else about a stream
            // that is being captured would break the capture off.
            if stream as usize > 2 && !captured {
                call!(cuStreamGetCtx(stream.cast(), &mut context))?;
            }
        }
        if !context.is_null() && context != self.context {
            fail!(
                InvalidArgument,
                "stream is {stream:p}, a stream of another context; it must be one of the primary context of CUDA \
                 device {}, or NULL",
                self.device
            );
        }
        match status {
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(false),
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE => Ok(true),
            _ => fail!(
                InvalidState,
                "the capture of stream {stream:p} was invalidated by an earlier call"
            ),
        }
    }

    /// Copies from the device, and waits.
    ///
    /// # Safety
    ///
    /// So many bytes from `from` on are in this device's memory, and nothing writes them.
    pub(super) unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { call!(cuMemcpyDtoH_v2(to.as_mut_ptr().cast(), from, to.len())) }
    }

    /// Copies to the device, and waits.
    ///
    /// # Safety
    ///
    /// So many bytes from `to` on are in this device's memory, and nothing uses them.
    pub(super) unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe {
            call!(cuMemcpyHtoD_v2(to, from.as_ptr().cast(), from.len()))?;
            // The copy may still be on its way when the call returns.
            call!(cuStreamSynchronize(std::ptr::null_mut()))
        }
    }

    /// Waits for a stream.
    pub(super) fn synchronize(&self, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: the stream is the caller's.
        unsafe { call!(cuStreamSynchronize(stream.cast())) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `of_device`. Nothing can be done about an error.
        let _ = unsafe { call!(cuDevicePrimaryCtxRelease_v2(self.device)) };
    }
}

/// A context is current; when this is dropped, the one before is again.
#[derive(Debug)]
pub(super) struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: pops what `enter` has pushed in this thread. Nothing can be done about an error.
        let _ = unsafe { call!(cuCtxPopCurrent_v2(&mut context)) };
    }
}

/// Device memory.
#[derive(Debug)]
pub(crate) struct Memory {
    context: Arc<Context>,
    start: u64,
    bytes: usize,
}

impl Memory {
    /// Allocates zeroed memory, at a multiple of 256. `bytes` is not 0.
    pub(super) fn zeroed(context: &Arc<Context>, bytes: usize, what: &str) -> Result<Self> {
        let explain = |error: Error| {
            Error::new(
                error.kind(),
                format_args!(
                    "no device memory for {what}, {bytes} bytes: {}",
                    error.message()
                ),
            )
        };
        let _current = context.enter()?;
        let mut start = 0;
        // SAFETY: the pointer is to a local.
        unsafe { call!(cuMemAlloc_v2(&mut start, bytes)).map_err(explain)? };
        let memory = Self {
            context: context.clone(),
            start,
            bytes,
        };
        // SAFETY: freshly allocated, of that size.
        unsafe {
            call!(cuMemsetD8_v2(start, 0, bytes)).map_err(explain)?;
            // No other stream waits for the one that this went to.
            call!(cuStreamSynchronize(std::ptr::null_mut())).map_err(explain)?;
        }
        Ok(memory)
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies to the device, and waits.
    pub(super) fn write<T: Plain>(&self, offset: usize, values: &[T]) -> Result<()> {
        let bytes = size_of_val(values);
        assert!(offset <= self.bytes && bytes <= self.bytes - offset);
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.context.enter()?;
        // SAFETY: within this memory (asserted above) and of the slice's size.
        unsafe {
            call!(cuMemcpyHtoD_v2(
                self.start + offset as u64,
                values.as_ptr().cast(),
                bytes
            ))?;
            // The copy may still be on its way when the call returns.
            call!(cuStreamSynchronize(std::ptr::null_mut()))
        }
    }

    /// Copies from the device, and waits.
    pub(super) fn read<T: Plain>(&self, offset: usize) -> Result<T> {
        let bytes = size_of::<T>();
        assert!(offset <= self.bytes && bytes <= self.bytes - offset);
        let _current = self.context.enter()?;
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: within this memory (asserted above), and there is room for the value, of which all bit patterns are
        // valid.
        unsafe {
            call!(cuMemcpyDtoH_v2(
                value.as_mut_ptr().cast(),
                self.start + offset as u64,
                bytes
            ))?;
            Ok(value.assume_init())
        }
    }

    /// Copies all of another memory to the start of this one, and waits.
    pub(super) fn copy_from(&self, other: &Self) -> Result<()> {
        assert!(other.bytes <= self.bytes);
        let _current = self.context.enter()?;
        // SAFETY: both are that large.
        unsafe {
            call!(cuMemcpyDtoD_v2(self.start, other.start, other.bytes))?;
            call!(cuStreamSynchronize(std::ptr::null_mut()))
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else {
            return;
        };
        // SAFETY: allocated in `zeroed`, and not given away. Nothing can be done about an error.
        let _ = unsafe { call!(cuMemFree_v2(self.start)) };
    }
}

/// Types of plain numbers: every bit pattern is valid, and there is no padding.
///
/// # Safety
///
/// As just said.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for u64 {}
// SAFETY: numbers.
unsafe impl Plain for f64 {}

/// Marks the end of the last step.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: events may be used by any thread.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let _current = context.enter()?;
        let mut event = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
        // SAFETY: the pointer is to a local.
        unsafe { call!(cuEventCreate(&mut event, flags))? };
        Ok(Self {
            context: context.clone(),
            event,
        })
    }

    /// Marks what is on the stream so far.
    pub(super) fn record(&self, stream: Stream) -> Result<()> {
        // SAFETY: the event is ours, the stream the caller's.
        unsafe { call!(cuEventRecord(self.event, stream.cast())) }
    }

    /// Lets the stream's next work wait for what was marked.
    pub(super) fn hold_back(&self, stream: Stream) -> Result<()> {
        // SAFETY: the event is ours, the stream the caller's.
        unsafe { call!(cuStreamWaitEvent(stream.cast(), self.event, 0)) }
    }

    /// Waits for what was marked.
    pub(super) fn synchronize(&self) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the event is ours.
        unsafe { call!(cuEventSynchronize(self.event)) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else {
            return;
        };
        // SAFETY: created in `new`. Nothing can be done about an error.
        let _ = unsafe { call!(cuEventDestroy_v2(self.event)) };
    }
}

/// Loaded kernels.
#[derive(Debug)]
pub(super) struct Module {
    context: Arc<Context>,
    module: sys::CUmodule,
}

// SAFETY: modules may be used by any thread.
unsafe impl Send for Module {}

/// A kernel of a [`Module`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(sys::CUfunction);

// SAFETY: functions may be used by any thread.
unsafe impl Send for Function {}

impl Module {
    /// Loads a cubin, or a PTX that ends in a NUL.
    pub(super) fn load(context: &Arc<Context>, image: &[u8]) -> Result<Self> {
        let _current = context.enter()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is one of ours, complete.
        unsafe { call!(cuModuleLoadData(&mut module, image.as_ptr().cast()))? };
        Ok(Self {
            context: context.clone(),
            module,
        })
    }

    /// A kernel, loaded for good: nothing is left to be done at its first launch, which may be captured. With it, how many
    /// blocks of `threads` threads the device runs at a time.
    pub(super) fn function(&self, name: &CStr, threads: u32) -> Result<(Function, usize)> {
        let _current = self.context.enter()?;
        let mut function = std::ptr::null_mut();
        let (mut registers, mut blocks) = (0, 0);
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
        // SAFETY: the pointers are to locals, the name ends in a NUL.
        unsafe {
            call!(cuModuleGetFunction(
                &mut function,
                self.module,
                name.as_ptr()
            ))?;
            // Where kernels are loaded lazily, being asked about one loads it.
            call!(cuFuncGetAttribute(&mut registers, attribute, function))?;
            call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                function,
                threads as c_int,
                0
            ))?;
        }
        let blocks = blocks.max(1) as usize * self.context.multiprocessors()?;
        Ok((Function(function), blocks))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else {
            return;
        };
        // SAFETY: loaded in `load`. Nothing can be done about an error.
        let _ = unsafe { call!(cuModuleUnload(self.module)) };
    }
}

impl Function {
    /// Launches the kernel, in the current context.
    ///
    /// # Safety
    ///
    /// The kernel takes one parameter, of type `T`, and what that points to is valid until the kernel has ended.
    pub(super) unsafe fn launch<T: Copy>(
        self,
        blocks: u32,
        threads: u32,
        stream: Stream,
        parameter: &T,
    ) -> Result<()> {
        let mut parameters = [(&raw const *parameter).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the parameter; the rest is the caller's promise.
        unsafe {
            call!(cuLaunchKernel(
                self.0,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.cast(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut()
            ))
        }
    }
}
