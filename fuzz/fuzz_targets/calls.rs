//! Random sequences of C calls, with pointers that keep the header's promises and everything else arbitrary: no call may
//! crash or fail inside the library, and one that fails has left every byte as it was.

#![no_main]

use std::ffi::{CString, c_void};
use std::mem::{size_of, zeroed};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mofo::ffi::*;

/// Bytes that parameters, gradients and the caller's state lie in, wherever the input says: apart, or over each other. Cut
/// into slots, of which a large tensor takes several.
const ARENA: usize = 1 << 16;
const LARGE_ARENA: usize = 1 << 19;
const SLOTS: usize = 16;
/// Large blocks take other ways than small ones.
const LARGE: u64 = 40_000;
/// So many calls of a sequence are made.
const CALLS: usize = 40;
/// So many fields of a struct differ from what works.
const CHANGES: usize = 2;
const NAMES: [&str; 6] = ["a", "b", "c\u{e9}", "d", "first", ""];

#[derive(Arbitrary, Debug)]
struct Input {
    options: OptionChanges,
    /// The first tensor is a large one.
    large: bool,
    calls: Vec<Call>,
}

#[derive(Arbitrary, Debug)]
struct OptionChanges {
    reals: Vec<(u8, Real)>,
    numbers: Vec<(u8, Small)>,
    seed: u64,
    tasks: Tasks,
    struct_size: Size,
}

#[derive(Arbitrary, Debug)]
enum Call {
    Fill {
        seed: u64,
        raw: bool,
    },
    Add(NewTensor),
    StateSize(NewTensor),
    Remove {
        index: u8,
    },
    Find {
        name: u8,
    },
    Bind {
        index: u8,
        param: Place,
        grad: Place,
    },
    TensorState {
        index: u8,
        size: Size,
    },
    SetStepCount {
        index: u8,
        count: Count,
    },
    Step(StepChanges),
    GradNorm(StepChanges),
    Memory {
        size: Size,
    },
    CpuTier,
    Save {
        missing: u8,
    },
    Load {
        cut: u8,
        flip: Option<u16>,
        partial: u8,
        room: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct NewTensor {
    name: u8,
    numel: Count,
    num_blocks: Count,
    dtypes: [u8; 2],
    places: [Place; 5],
    reals: Vec<(u8, Real)>,
    numbers: Vec<(u8, Small)>,
    step_count: Count,
    struct_size: Size,
}

#[derive(Arbitrary, Debug)]
struct StepChanges {
    reals: Vec<(u8, Real)>,
    tensors: Option<Vec<u8>>,
    report: bool,
    report_size: Size,
    struct_size: Size,
}

/// Sets some of these fields.
fn set_reals<const N: usize>(changes: &[(u8, Real)], fields: [&mut f64; N]) {
    for (field, value) in changes.iter().take(CHANGES) {
        value.set(&mut *fields[usize::from(*field) % N]);
    }
}

fn set_numbers<const N: usize>(changes: &[(u8, Small)], fields: [&mut i32; N]) {
    for (field, value) in changes.iter().take(CHANGES) {
        value.set(&mut *fields[usize::from(*field) % N]);
    }
}

/// Numbers for doubles, most of which are usable.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Real {
    Default,
    Inherit,
    Zero,
    One,
    Share(u8),
    Any(f64),
}

impl Real {
    fn set(self, field: &mut f64) {
        match self {
            Self::Default => {}
            Self::Inherit => *field = MOFO_INHERIT,
            Self::Zero => *field = 0.0,
            Self::One => *field = 1.0,
            Self::Share(share) => *field = f64::from(share) / 256.0,
            Self::Any(any) => *field = any,
        }
    }
}

/// Numbers for enumerations, most of which are usable.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Small {
    Of(u8),
    Any(i32),
}

impl Small {
    fn set(self, field: &mut i32) {
        *field = match self {
            Self::Of(number) => i32::from(number % 4),
            Self::Any(any) => any,
        };
    }
}

/// Few, many, or more than any memory has.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Count(u64);

impl Count {
    fn value(self) -> u64 {
        let count = self.0 >> 8;
        match self.0 % 16 {
            0..=7 => count % 65,
            8..=13 => count % 3000,
            14 => LARGE + count % 64,
            _ => count << 8 | 1 << 50,
        }
    }

    /// Mostly what works.
    fn or(self, usual: u64) -> u64 {
        if self.0 % 16 < 12 {
            usual
        } else {
            Self(self.0 >> 4).value()
        }
    }
}

/// Sizes of structs: mostly as many bytes as they have, else fewer, or more, which are there.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Size(u16);

impl Size {
    fn of<T>(self) -> u64 {
        let size = size_of::<T>() as u64;
        let other = u64::from(self.0 >> 8);
        match self.0 % 32 {
            0..=27 => size,
            28 => size.saturating_sub(other),
            29 | 30 => size + other,
            _ => u64::MAX - other,
        }
    }
}

/// The engine's loop: none, one that runs all tasks, one that runs only some.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Tasks(u8);

impl Tasks {
    fn most(self) -> Option<u8> {
        match self.0 {
            0..=127 => None,
            128..=223 => Some(u8::MAX),
            some => Some(some - 224),
        }
    }
}

/// A struct with room behind it for a newer version's fields.
#[repr(C)]
struct Roomy<T> {
    value: T,
    room: [u8; 256],
}

impl<T> Roomy<T> {
    fn new() -> Self {
        // SAFETY: only used with the C structs, of which all bit patterns are values.
        unsafe { zeroed() }
    }
}

/// Where a buffer lies in the arena, if it fits there; else it is NULL.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Null,
    Slot(u8),
    At(u32),
}

struct World {
    optimizer: *mut mofo_optimizer,
    arena: Vec<u64>,
    /// By index; of those that were removed, too.
    numels: Vec<u64>,
    saved: Vec<u8>,
}

impl World {
    fn place(&mut self, place: Place, numel: u64) -> *mut c_void {
        let arena = self.arena.len() * 8;
        let offset = match place {
            Place::Null => return std::ptr::null_mut(),
            Place::Slot(slot) => usize::from(slot) % SLOTS * (arena / SLOTS),
            Place::At(at) => at as usize % arena,
        };
        let fits = (numel as usize)
            .checked_mul(4)
            .is_some_and(|bytes| bytes <= arena - offset);
        if fits {
            self.arena
                .as_mut_ptr()
                .cast::<u8>()
                .wrapping_add(offset)
                .cast()
        } else {
            std::ptr::null_mut()
        }
    }

    fn arena_bytes(&self) -> &[u8] {
        // SAFETY: as many bytes as the vector has; all bit patterns are values.
        unsafe { std::slice::from_raw_parts(self.arena.as_ptr().cast(), self.arena.len() * 8) }
    }

    /// All that can be seen of the optimizer and of the caller's memory.
    fn snapshot(&self) -> Vec<u8> {
        let mut all = self.arena_bytes().to_vec();
        all.extend(self.save().unwrap_or_default());
        for index in 0..self.numels.len() as u64 {
            let mut info = Roomy::<mofo_tensor_info>::new().value;
            let size = size_of::<mofo_tensor_info>() as u64;
            // SAFETY: the optimizer is alive, and `info` has so many bytes.
            if unsafe { mofo_tensor_state(self.optimizer, index, &mut info, size) } != MOFO_OK {
                all.push(0);
                continue;
            }
            all.extend(info.step_count.to_le_bytes());
            let state = if info.state_dtype == MOFO_DTYPE_F32 {
                4
            } else {
                2
            };
            let moments = info.numel as usize * state;
            let parts = [
                (info.exp_avg.cast::<u8>().cast_const(), moments),
                (info.exp_avg_sq.cast::<u8>().cast_const(), moments),
                (
                    info.master.cast::<u8>().cast_const(),
                    info.numel as usize * 4,
                ),
                (info.thresholds.cast::<u8>(), info.num_blocks as usize * 4),
            ];
            for (start, bytes) in parts {
                if !start.is_null() {
                    // SAFETY: the library's memory, which is zero at first, or the arena, as large as the tensor.
                    all.extend(unsafe { std::slice::from_raw_parts(start, bytes) });
                }
            }
        }
        all
    }

    fn save(&self) -> Option<Vec<u8>> {
        let (mut size, mut written) = (0, 0);
        // SAFETY: the optimizer is alive, and the buffer has `size` bytes.
        unsafe {
            if mofo_save_size(self.optimizer, &mut size) != MOFO_OK {
                return None;
            }
            let mut buffer = vec![0u8; size as usize];
            let start = buffer.as_mut_ptr().cast();
            let status = mofo_save_to_memory(self.optimizer, start, size, &mut written);
            assert_eq!((status, written), (MOFO_OK, size));
            Some(buffer)
        }
    }

    /// Mostly one that is there.
    fn index(&self, number: u8) -> u64 {
        u64::from(number) % (self.numels.len() as u64 + 1)
    }

    fn tensor(&mut self, new: &NewTensor, name: &CString) -> Roomy<mofo_tensor> {
        let mut tensor = Roomy::<mofo_tensor>::new();
        let size = size_of::<mofo_tensor>() as u64;
        // SAFETY: so many bytes are there.
        let status = unsafe { mofo_tensor_init(&mut tensor.value, size) };
        assert_eq!(status, MOFO_OK);
        let numel = new.numel.value();
        let c = &mut tensor.value;
        c.name = name.as_ptr();
        c.numel = numel;
        c.num_blocks = new.num_blocks.or(1);
        [c.param_dtype, c.grad_dtype] = new.dtypes.map(|dtype| i32::from(dtype % 3));
        let [param, grad, exp_avg, exp_avg_sq, master] = new.places;
        c.param = self.place(param, numel);
        c.grad = self.place(grad, numel);
        c.exp_avg = self.place(exp_avg, numel);
        c.exp_avg_sq = self.place(exp_avg_sq, numel);
        c.master = self.place(master, numel).cast();
        let reals = [
            &mut c.update_fraction,
            &mut c.weight_decay,
            &mut c.learning_rate_scale,
        ];
        set_reals(&new.reals, reals);
        set_numbers(&new.numbers, [&mut c.param_dtype, &mut c.grad_dtype]);
        c.step_count = new.step_count.or(0);
        c.struct_size = new.struct_size.of::<mofo_tensor>();
        tensor
    }

    /// A tensor with which steps work.
    fn add_first(&mut self, large: bool) {
        let name = name_of(4);
        let new = NewTensor {
            name: 4,
            numel: Count(0),
            num_blocks: Count(0),
            dtypes: [0, 0],
            places: [Place::Null; 5],
            reals: Vec::new(),
            numbers: Vec::new(),
            step_count: Count(0),
            struct_size: Size(0),
        };
        let mut tensor = self.tensor(&new, &name).value;
        tensor.numel = if large { LARGE } else { 300 };
        tensor.param = self.place(Place::Slot(0), tensor.numel);
        tensor.grad = self.place(Place::Slot(8), tensor.numel);
        let mut index = 0;
        // SAFETY: as in `Add`.
        let status = unsafe { mofo_add_tensor(self.optimizer, &tensor, &mut index) };
        assert_eq!(status, MOFO_OK);
        self.numels.push(tensor.numel);
    }

    /// Makes a call; what it returned, and whether it should have left everything alone.
    fn call(&mut self, call: &Call) -> i32 {
        let optimizer = self.optimizer;
        match call {
            Call::Fill { seed, raw } => {
                self.fill(*seed, *raw);
                MOFO_OK
            }
            Call::Add(new) => {
                let name = name_of(new.name);
                let tensor = self.tensor(new, &name);
                let mut index = UNTOUCHED;
                // SAFETY: the buffers are in the arena, which outlives the optimizer, and large enough.
                let status =
                    unsafe { mofo_add_tensor(optimizer, (&raw const tensor).cast(), &mut index) };
                if status == MOFO_OK {
                    assert_eq!(index, self.numels.len() as u64);
                    self.numels.push(new.numel.value());
                } else {
                    assert_eq!(index, UNTOUCHED);
                }
                status
            }
            Call::StateSize(new) => {
                let name = name_of(new.name);
                let tensor = self.tensor(new, &name);
                let mut options = Roomy::<mofo_options>::new().value;
                let mut sizes = Roomy::<mofo_state_sizes>::new();
                let size = size_of::<mofo_state_sizes>() as u64;
                // SAFETY: the structs have so many bytes.
                unsafe {
                    mofo_options_init(&mut options, size_of::<mofo_options>() as u64);
                    mofo_state_size(&options, (&raw const tensor).cast(), &mut sizes.value, size)
                }
            }
            // SAFETY: the optimizer is alive.
            Call::Remove { index } => unsafe { mofo_remove_tensor(optimizer, self.index(*index)) },
            Call::Find { name } => {
                let mut index = UNTOUCHED;
                let name = name_of(*name);
                // SAFETY: the optimizer is alive, and the name ends in a NUL.
                let status = unsafe { mofo_find_tensor(optimizer, name.as_ptr(), &mut index) };
                assert_eq!(status == MOFO_OK, index != UNTOUCHED);
                status
            }
            Call::Bind { index, param, grad } => {
                let index = self.index(*index);
                let numel = self.numels.get(index as usize).copied().unwrap_or(0);
                let (param, grad) = (self.place(*param, numel), self.place(*grad, numel));
                // SAFETY: as in `Add`.
                unsafe { mofo_bind_tensor(optimizer, index, param, grad) }
            }
            Call::TensorState { index, size } => {
                let mut info = Roomy::<mofo_tensor_info>::new();
                let size = size.of::<mofo_tensor_info>();
                // SAFETY: so many bytes are there, or the size is refused.
                unsafe {
                    mofo_tensor_state(optimizer, self.index(*index), (&raw mut info).cast(), size)
                }
            }
            Call::SetStepCount { index, count } => {
                // SAFETY: the optimizer is alive; the moments are in the arena or zero at first.
                unsafe { mofo_set_step_count(optimizer, self.index(*index), count.value()) }
            }
            Call::Step(changes) => step_args(changes, self.numels.len(), |args, report| {
                // SAFETY: the bound buffers are in the arena.
                let status = unsafe { mofo_step(optimizer, args) };
                if status < 0 {
                    assert_eq!(report.entries, UNTOUCHED);
                }
                status
            }),
            Call::GradNorm(changes) => step_args(changes, self.numels.len(), |args, _| {
                let mut norm = -7.0;
                // SAFETY: as above.
                let status = unsafe { mofo_grad_norm(optimizer, args, &mut norm) };
                assert_eq!(status < 0, norm == -7.0);
                status
            }),
            Call::Memory { size } => {
                let mut info = Roomy::<mofo_memory_info>::new();
                // SAFETY: so many bytes are there, or the size is refused.
                unsafe {
                    mofo_memory(
                        optimizer,
                        (&raw mut info).cast(),
                        size.of::<mofo_memory_info>(),
                    )
                }
            }
            // SAFETY: the optimizer is alive.
            Call::CpuTier => unsafe { mofo_cpu_tier(optimizer) },
            Call::Save { missing } => match self.save() {
                None => MOFO_OK,
                Some(whole) => {
                    // Mostly enough.
                    let size = whole.len() - usize::from(missing.saturating_sub(200));
                    let mut buffer = vec![0x5A; size.max(1)];
                    let mut written = UNTOUCHED;
                    let start = buffer.as_mut_ptr().cast();
                    // SAFETY: the buffer has `size` bytes.
                    let status =
                        unsafe { mofo_save_to_memory(optimizer, start, size as u64, &mut written) };
                    if status == MOFO_OK {
                        assert_eq!(buffer, whole);
                        self.saved = whole;
                    } else {
                        assert!(written == UNTOUCHED && buffer.iter().all(|&byte| byte == 0x5A));
                    }
                    status
                }
            },
            Call::Load {
                cut,
                flip,
                partial,
                room,
            } => {
                let mut file = self.saved.clone();
                // Mostly whole.
                file.truncate(
                    file.len()
                        .saturating_sub(usize::from(cut.saturating_sub(200))),
                );
                if let Some(flip) = flip
                    && let Some(byte) = file.get_mut(usize::from(*flip))
                {
                    *byte ^= 1;
                }
                let mut args = Roomy::<mofo_load_args>::new().value;
                let mut report = Roomy::<mofo_load_report>::new().value;
                let mut loaded = [0x5A; 256];
                // SAFETY: the structs and the buffers have so many bytes.
                unsafe {
                    mofo_load_args_init(&mut args, size_of::<mofo_load_args>() as u64);
                    args.partial = i32::from(partial % 4 / 2);
                    args.report = &mut report;
                    args.report_size = size_of::<mofo_load_report>() as u64;
                    args.loaded = loaded.as_mut_ptr();
                    args.num_loaded =
                        u64::from(*room).max(self.numels.len() as u64 - u64::from(*room == 0));
                    let (start, size) = (file.as_ptr().cast(), file.len() as u64);
                    let status = mofo_load_from_memory_with(optimizer, start, size, &args);
                    if status < 0 {
                        assert!(loaded.iter().all(|&byte| byte == 0x5A));
                    }
                    status
                }
            }
        }
    }

    /// Numbers like gradients and weights, or any bits.
    fn fill(&mut self, mut seed: u64, raw: bool) {
        for word in &mut self.arena {
            seed = seed
                .wrapping_mul(0x5851_F42D_4C95_7F2D)
                .wrapping_add(0x1405_7B7E_F767_814F);
            let bits = seed ^ seed >> 29;
            *word = if raw {
                bits
            } else {
                // Both halves, and in each both of its halves, are numbers of moderate size.
                bits & 0x83FF_83FF_83FF_83FF | 0x3800_3800_3800_3800
            };
        }
    }
}

/// What an output holds that was not written.
const UNTOUCHED: u64 = 0xA5A5_A5A5_A5A5_A5A5;

fn name_of(number: u8) -> CString {
    CString::new(NAMES[usize::from(number) % NAMES.len()]).unwrap()
}

fn step_args(
    changes: &StepChanges,
    added: usize,
    call: impl FnOnce(*const mofo_step_args, &mofo_step_report) -> i32,
) -> i32 {
    let mut args = Roomy::<mofo_step_args>::new();
    let size = size_of::<mofo_step_args>() as u64;
    // SAFETY: so many bytes are there.
    let status = unsafe { mofo_step_args_init(&mut args.value, size) };
    assert_eq!(status, MOFO_OK);
    let mut report = Box::new(Roomy::<mofo_step_report>::new());
    report.value.entries = UNTOUCHED;
    let report = Box::into_raw(report);
    let indices: Option<Vec<u64>> = changes.tensors.as_ref().map(|tensors| {
        tensors
            .iter()
            .map(|&index| u64::from(index) % (added as u64 + 1))
            .collect()
    });
    let c = &mut args.value;
    let reals = [
        &mut c.learning_rate,
        &mut c.update_fraction,
        &mut c.grad_scale,
        &mut c.grad_norm,
    ];
    set_reals(&changes.reals, reals);
    if let Some(indices) = &indices {
        c.tensors = indices.as_ptr();
        c.num_tensors = indices.len() as u64;
    }
    if changes.report {
        c.report = report.cast();
        c.report_size = changes.report_size.of::<mofo_step_report>();
    }
    c.struct_size = changes.struct_size.of::<mofo_step_args>();
    // SAFETY: made above, and freed here.
    unsafe {
        let status = call((&raw const args).cast(), &(*report).value);
        drop(Box::from_raw(report));
        status
    }
}

/// Runs the first tasks of those that it is given, as many as `ctx` points to, and leaves out the rest.
unsafe extern "C" fn some_tasks(ctx: *mut c_void, n: i64, task: mofo_task, task_ctx: *mut c_void) {
    // SAFETY: the library's promise about `task`, and that of whoever passes this loop about `ctx`.
    unsafe {
        let most = match *ctx.cast::<u8>() {
            u8::MAX => n,
            most => i64::from(most),
        };
        for i in 0..n.min(most) {
            task.unwrap()(task_ctx, i);
        }
    }
}

fuzz_target!(|input: Input| {
    let mut options = Roomy::<mofo_options>::new();
    let size = size_of::<mofo_options>() as u64;
    // SAFETY: so many bytes are there.
    let status = unsafe { mofo_options_init(&mut options.value, size) };
    assert_eq!(status, MOFO_OK);
    let changes = &input.options;
    let c = &mut options.value;
    let reals = [
        &mut c.learning_rate,
        &mut c.beta1,
        &mut c.beta2,
        &mut c.epsilon,
        &mut c.weight_decay,
        &mut c.update_fraction,
        &mut c.max_grad_norm,
    ];
    set_reals(&changes.reals, reals);
    let numbers = [
        &mut c.weight_decay_scope,
        &mut c.filter,
        &mut c.state_dtype,
        &mut c.master_weights,
        &mut c.rounding,
        &mut c.skip_nonfinite,
        &mut c.cpu_tier,
    ];
    set_numbers(&changes.numbers, numbers);
    c.seed = changes.seed;
    c.num_threads = 1;
    let mut tasks = changes.tasks.most().unwrap_or(0);
    if changes.tasks.most().is_some() {
        c.parallel_for = Some(some_tasks);
        c.parallel_for_ctx = (&raw mut tasks).cast();
        c.num_threads = 3;
    }
    c.struct_size = changes.struct_size.of::<mofo_options>();

    let mut world = World {
        optimizer: std::ptr::null_mut(),
        arena: vec![0; if input.large { LARGE_ARENA } else { ARENA } / 8],
        numels: Vec::new(),
        saved: Vec::new(),
    };
    world.fill(1, false);
    // SAFETY: the struct has room for the size that it says, or the size is refused; the loop outlives the optimizer.
    let status = unsafe { mofo_create((&raw const options).cast(), &mut world.optimizer) };
    assert_eq!(status == MOFO_OK, !world.optimizer.is_null());
    assert_ne!(status, MOFO_ERROR_INTERNAL);
    if status == MOFO_OK {
        world.add_first(input.large);
        for call in input.calls.iter().take(CALLS) {
            let before = world.snapshot();
            let status = world.call(call);
            assert_ne!(status, MOFO_ERROR_INTERNAL, "{call:?}");
            if status < 0 {
                assert!(
                    world.snapshot() == before,
                    "{call:?} changed something, and failed with {status}"
                );
            }
        }
    }
    // SAFETY: made above, or NULL.
    unsafe { mofo_destroy(world.optimizer) };
});
