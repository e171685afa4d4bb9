//! What the Rust API does beyond the arithmetic of a step.

mod harness;

use std::ffi::c_void;

use half::{bf16, f16};
use harness::places::tiers;
use mofo::{
    Buffers, Dtype, ErrorKind, Optimizer, Options, ParamMut, StepArgs, StepReport, TensorBinding,
    TensorSpec,
};

fn options() -> Options {
    Options {
        learning_rate: 0.1,
        update_fraction: 1.0,
        num_threads: 1,
        ..Options::default()
    }
}

fn half_spec(step_count: u64) -> TensorSpec<'static> {
    TensorSpec {
        param_dtype: Dtype::BF16,
        step_count,
        ..TensorSpec::new("weight", 8)
    }
}

/// Steps eight bf16 ones with a gradient of ones.
fn step_ones(optimizer: &mut Optimizer) -> Vec<bf16> {
    let mut param = vec![bf16::ONE; 8];
    let grad = vec![1f32; 8];
    let binding = TensorBinding::new(0, &mut param, &grad);
    optimizer
        .step(&StepArgs::default(), &mut [binding])
        .unwrap();
    param
}

#[test]
fn a_new_master_of_a_resumed_tensor_starts_from_the_parameter() {
    let options = Options {
        master_weights: true,
        ..options()
    };
    let mut optimizer = Optimizer::new(options).unwrap();
    optimizer.add_tensor(&half_spec(5)).unwrap();
    let param = step_ones(&mut optimizer);
    assert!(
        param.iter().all(|p| p.to_f32() > 0.5 && p.to_f32() < 1.0),
        "{param:?}"
    );
    assert_eq!(optimizer.tensor_state(0).unwrap().step_count, 6);
}

#[test]
fn a_restored_master_is_taken_as_it_is() {
    let options = Options {
        master_weights: true,
        ..options()
    };
    let mut optimizer = Optimizer::new(options).unwrap();
    optimizer.add_tensor(&half_spec(0)).unwrap();
    let master = optimizer.tensor_state(0).unwrap().master;
    for i in 0..8 {
        // SAFETY: the master copy has eight elements.
        unsafe { master.add(i).write(3.0) };
    }
    optimizer.set_step_count(0, 5).unwrap();
    let param = step_ones(&mut optimizer);
    assert!(
        param.iter().all(|p| p.to_f32() > 2.0 && p.to_f32() < 3.0),
        "{param:?}"
    );

    // And with 0 it starts anew.
    optimizer.set_step_count(0, 0).unwrap();
    let param = step_ones(&mut optimizer);
    assert!(
        param.iter().all(|p| p.to_f32() > 0.5 && p.to_f32() < 1.0),
        "{param:?}"
    );
}

/// A 16-bit type of parameters.
trait Half: Copy + PartialEq + std::fmt::Debug
where
    for<'a> &'a mut [Self]: Into<ParamMut<'a>>,
{
    const DTYPE: Dtype;
    fn round(x: f32) -> Self;
}

impl Half for bf16 {
    const DTYPE: Dtype = Dtype::BF16;
    fn round(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Half for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn round(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Runs a check in all tiers for both types, for a tiny block, one for one thread and one that all threads share, and where
/// few or most entries move.
fn with_masters(check: impl Fn(Options, usize, bool)) {
    for &tier in tiers() {
        for numel in [50, 5_000, 70_001] {
            for update_fraction in [0.03, 0.6] {
                for is_f16 in [false, true] {
                    let options = Options {
                        master_weights: true,
                        update_fraction,
                        num_threads: 2,
                        cpu_tier: Some(tier),
                        ..options()
                    };
                    check(options, numel, is_f16);
                }
            }
        }
    }
}

fn gradient(numel: usize) -> Vec<f32> {
    (0..numel).map(|i| (i as f32).sin()).collect()
}

fn add_half<T: Half>(optimizer: &mut Optimizer, numel: usize)
where
    for<'a> &'a mut [T]: Into<ParamMut<'a>>,
{
    let spec = TensorSpec {
        param_dtype: T::DTYPE,
        ..TensorSpec::new("weight", numel as u64)
    };
    optimizer.add_tensor(&spec).unwrap();
}

fn master(optimizer: &Optimizer, numel: usize) -> Vec<f32> {
    let master = optimizer.tensor_state(0).unwrap().master;
    // SAFETY: the master copy has as many elements as the parameter, and no step runs.
    unsafe { std::slice::from_raw_parts(master, numel) }.to_vec()
}

/// Steps a parameter in this buffer, of whose entries not all move. Those that do.
fn step_half<T: Half>(optimizer: &mut Optimizer, param: &mut [T]) -> Vec<bool>
where
    for<'a> &'a mut [T]: Into<ParamMut<'a>>,
{
    let numel = param.len();
    let grad = gradient(numel);
    let before = master(optimizer, numel);
    let has_started = optimizer.tensor_state(0).unwrap().step_count > 0;
    let binding = TensorBinding::new(0, &mut *param, &grad[..]);
    let report = optimizer
        .step(&StepArgs::default(), &mut [binding])
        .unwrap();
    assert!(0 < report.entries_selected && report.entries_selected < numel as u64);
    let after = master(optimizer, numel);
    let moved: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    let count = moved.iter().filter(|moved| **moved).count() as u64;
    assert!(!has_started || count == report.entries_selected);
    moved
}

#[track_caller]
fn check_rounded<T: Half>(optimizer: &Optimizer, param: &[T])
where
    for<'a> &'a mut [T]: Into<ParamMut<'a>>,
{
    let master = master(optimizer, param.len());
    for (i, (&p, &master)) in param.iter().zip(&master).enumerate() {
        assert_eq!(p, T::round(master), "entry {i}");
    }
}

#[test]
fn a_parameter_becomes_the_rounding_of_its_master_wherever_it_is_bound() {
    fn check<T: Half>(options: &Options, numel: usize)
    where
        for<'a> &'a mut [T]: Into<ParamMut<'a>>,
    {
        let mut optimizer = Optimizer::new(options.clone()).unwrap();
        add_half::<T>(&mut optimizer, numel);
        let start = gradient(numel).into_iter().map(|x| T::round(x - 0.3));
        // Both are there all the time, so that neither has the address of the other.
        let mut one: Vec<T> = start.collect();
        let mut other = vec![T::round(7.0); numel];
        for step in 0..5 {
            let (bound, free) = if step % 4 < 2 {
                (&mut one, &mut other)
            } else {
                (&mut other, &mut one)
            };
            step_half(&mut optimizer, &mut bound[..]);
            check_rounded(&optimizer, bound);
            free.fill(T::round(7.0));
        }
    }
    with_masters(|options, numel, is_f16| match is_f16 {
        false => check::<bf16>(&options, numel),
        true => check::<f16>(&options, numel),
    });
}

/// Whoever writes into a parameter between two steps keeps that, where no entry moves.
#[test]
fn entries_that_stay_are_not_written_where_a_parameter_stays() {
    let options = Options {
        master_weights: true,
        update_fraction: 0.03,
        num_threads: 2,
        ..options()
    };
    for numel in [5_000, 70_001] {
        let mut optimizer = Optimizer::new(options.clone()).unwrap();
        add_half::<bf16>(&mut optimizer, numel);
        let mut param = vec![bf16::ONE; numel];
        step_half(&mut optimizer, &mut param);
        param.fill(bf16::from_f32(7.0));
        let moved = step_half(&mut optimizer, &mut param);
        let master = master(&optimizer, numel);
        for i in 0..numel {
            let expected = if moved[i] { master[i] } else { 7.0 };
            assert_eq!(param[i], bf16::from_f32(expected), "entry {i} of {numel}");
        }
        // A new step count says that memory may be another's.
        param.fill(bf16::from_f32(7.0));
        optimizer.set_step_count(0, 9).unwrap();
        step_half(&mut optimizer, &mut param);
        check_rounded(&optimizer, &param);
    }
}

/// What was given back and is bound again may be another buffer at the same address.
#[test]
fn a_parameter_that_is_bound_again_after_null_is_rounded_in_full() {
    let options = Options {
        master_weights: true,
        update_fraction: 0.03,
        ..options()
    };
    let numel = 5_000;
    let mut optimizer = Optimizer::new(options).unwrap();
    add_half::<bf16>(&mut optimizer, numel);
    let mut param = vec![bf16::ONE; numel];
    let grad = gradient(numel);
    for _ in 0..2 {
        // SAFETY: both buffers have as many elements, and live until the tensor is unbound.
        unsafe {
            let (param, grad) = (param.as_mut_ptr().cast(), grad.as_ptr().cast());
            optimizer.bind_tensor(0, param, grad).unwrap();
            optimizer.step_bound(&StepArgs::default()).unwrap();
            let none = (std::ptr::null_mut(), std::ptr::null());
            optimizer.bind_tensor(0, none.0, none.1).unwrap();
        }
        check_rounded(&optimizer, &param);
        param.fill(bf16::from_f32(7.0));
    }
}

#[test]
fn a_parameter_becomes_the_rounding_of_a_master_that_was_brought() {
    fn check<T: Half>(options: &Options, numel: usize)
    where
        for<'a> &'a mut [T]: Into<ParamMut<'a>>,
    {
        let mut optimizer = Optimizer::new(options.clone()).unwrap();
        let mut brought: Vec<f32> = gradient(numel).iter().map(|x| 3.0 + x / 3.0).collect();
        let before = brought.clone();
        let buffers = Buffers {
            master: brought.as_mut_ptr().cast(),
            ..Buffers::default()
        };
        let spec = TensorSpec {
            param_dtype: T::DTYPE,
            step_count: 5,
            ..TensorSpec::new("weight", numel as u64)
        };
        // SAFETY: the buffer has as many elements, and outlives the optimizer's last step.
        unsafe { optimizer.add_tensor_with_buffers(&spec, buffers).unwrap() };
        let mut param = vec![T::round(7.0); numel];
        let moved = step_half(&mut optimizer, &mut param);
        check_rounded(&optimizer, &param);
        for i in 0..numel {
            assert_eq!(brought[i] != before[i], moved[i], "entry {i}");
        }
    }
    with_masters(|options, numel, is_f16| match is_f16 {
        false => check::<bf16>(&options, numel),
        true => check::<f16>(&options, numel),
    });
}

fn bind(optimizer: &mut Optimizer, name: &str, param: *mut f32, grad: *const f32) {
    let buffers = Buffers {
        param: param.cast(),
        grad: grad.cast(),
        ..Buffers::default()
    };
    // SAFETY: the tests keep their buffers alive.
    unsafe {
        optimizer
            .add_tensor_with_buffers(&TensorSpec::new(name, 8), buffers)
            .unwrap();
    }
}

#[test]
fn a_lent_step_says_nothing_about_bound_buffers() {
    let mut memory = [0f32; 12];
    let grad = [1f32; 8];
    let mut optimizer = Optimizer::new(options()).unwrap();
    let start = memory.as_mut_ptr();
    bind(&mut optimizer, "one", start, grad.as_ptr());
    bind(
        &mut optimizer,
        "other",
        start.wrapping_add(4),
        grad.as_ptr(),
    );

    let (mut one, mut other) = ([0f32; 8], [0f32; 8]);
    let mut lent = [
        TensorBinding::new(0, &mut one[..], &grad[..]),
        TensorBinding::new(1, &mut other[..], &grad[..]),
    ];
    optimizer.step(&StepArgs::default(), &mut lent).unwrap();
    // SAFETY: the buffers are alive and large enough.
    let error = unsafe { optimizer.step_bound(&StepArgs::default()) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidBuffer, "{error}");
    assert!(error.message().contains("\"one\"") && error.message().contains("\"other\""));
    assert_eq!(memory, [0f32; 12]);
}

#[test]
fn overlaps_are_found_tensor_by_tensor_and_gone_after_a_rebinding() {
    let mut memory = [0f32; 16];
    let grad = [1f32; 8];
    let mut optimizer = Optimizer::new(options()).unwrap();
    let start = memory.as_mut_ptr();
    bind(&mut optimizer, "one", start, grad.as_ptr());
    bind(
        &mut optimizer,
        "other",
        start.wrapping_add(4),
        grad.as_ptr(),
    );
    let one_only = StepArgs {
        tensors: Some(&[0]),
        ..StepArgs::default()
    };
    // SAFETY: the buffers are alive and large enough.
    unsafe {
        assert!(optimizer.step_bound(&one_only).is_err());
        optimizer
            .bind_tensor(
                1,
                start.wrapping_add(8).cast(),
                grad.as_ptr().cast::<c_void>(),
            )
            .unwrap();
        assert_eq!(optimizer.step_bound(&one_only).unwrap().entries, 8);
        assert_eq!(
            optimizer.step_bound(&StepArgs::default()).unwrap().entries,
            16
        );
    }
}

#[test]
fn an_empty_list_steps_nothing() {
    let (mut param, grad) = ([0f32; 8], [1f32; 8]);
    let mut optimizer = Optimizer::new(options()).unwrap();
    bind(&mut optimizer, "weight", param.as_mut_ptr(), grad.as_ptr());
    let none = StepArgs {
        tensors: Some(&[]),
        ..StepArgs::default()
    };
    // SAFETY: the buffers are alive and large enough.
    let report = unsafe { optimizer.step_bound(&none) }.unwrap();
    assert_eq!((report.entries, report.entries_selected), (0, 0));
    assert_eq!(optimizer.tensor_state(0).unwrap().step_count, 0);
    assert_eq!(param, [0f32; 8]);
}

/// One step with a bad gradient in the first of eight entries.
fn step_with(bad: f32, options: Options) -> (mofo::Result<mofo::StepReport>, Vec<f32>, u64) {
    let mut optimizer = Optimizer::new(options).unwrap();
    optimizer.add_tensor(&TensorSpec::new("weight", 8)).unwrap();
    let mut param = vec![1f32; 8];
    let mut grad = vec![1f32; 8];
    grad[0] = bad;
    let binding = TensorBinding::new(0, &mut param, &grad);
    let report = optimizer.step(&StepArgs::default(), &mut [binding]);
    let step_count = optimizer.tensor_state(0).unwrap().step_count;
    (report, param, step_count)
}

#[test]
fn bad_gradients_under_clipping() {
    let clipping = || Options {
        max_grad_norm: 1.0,
        ..options()
    };
    // A NaN refuses the step.
    let (report, param, step_count) = step_with(f32::NAN, clipping());
    let error = report.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFinite);
    assert!(error.message().contains("gradient"), "{error}");
    assert_eq!((param, step_count), (vec![1f32; 8], 0));
    // An infinity clips all gradients to zero, so nothing moves; its own entry's moments are spoilt.
    let (report, param, step_count) = step_with(f32::INFINITY, clipping());
    assert_eq!(report.unwrap().entries_selected, 7);
    assert_eq!((param, step_count), (vec![1f32; 8], 1));
    // With `skip_nonfinite` both skip the step.
    for bad in [f32::NAN, f32::INFINITY] {
        let skipping = Options {
            skip_nonfinite: true,
            ..clipping()
        };
        let (report, param, step_count) = step_with(bad, skipping);
        assert!(report.unwrap().skipped);
        assert_eq!((param, step_count), (vec![1f32; 8], 0));
    }
}

#[test]
fn every_entry_may_be_a_block_of_its_own() {
    // Such a block is its own threshold, and moves unless its momentum is zero.
    let numel = 1 << 18;
    let mut optimizer = Optimizer::new(Options {
        update_fraction: 0.5,
        num_threads: 2,
        ..options()
    })
    .unwrap();
    let spec = TensorSpec {
        num_blocks: numel,
        ..TensorSpec::new("weight", numel)
    };
    optimizer.add_tensor(&spec).unwrap();
    let mut param = vec![0f32; numel as usize];
    let grad: Vec<f32> = (0..numel)
        .map(|i| if i % 3 == 0 { 0.0 } else { i as f32 })
        .collect();
    let binding = TensorBinding::new(0, &mut param, &grad);
    let report = optimizer
        .step(&StepArgs::default(), &mut [binding])
        .unwrap();
    assert_eq!(
        report.entries_selected,
        grad.iter().filter(|g| **g != 0.0).count() as u64
    );
}

/// Shards and experts may be empty.
#[test]
fn a_tensor_without_entries_is_counted_and_changes_nothing() {
    let options = Options {
        update_fraction: 0.5,
        max_grad_norm: 0.1,
        ..options()
    };
    let with_empty = |empty: bool| {
        let mut optimizer = Optimizer::new(options.clone()).unwrap();
        let index = optimizer.add_tensor(&TensorSpec::new("full", 8)).unwrap();
        let (mut param, grad) = (gradient(8), gradient(8));
        let mut bindings = vec![TensorBinding::new(index, &mut param, &grad)];
        if empty {
            let spec = TensorSpec::new("empty", 0);
            let index = optimizer.add_tensor(&spec).unwrap();
            // Within another tensor's, as empty ranges may be.
            let inside: &[f32] = &grad[3..3];
            let none: &mut [f32] = &mut [];
            bindings.push(TensorBinding::new(index, none, inside));
        }
        let report = optimizer.step(&StepArgs::default(), &mut bindings).unwrap();
        let count = |index| optimizer.tensor_state(index).map(|state| state.step_count);
        assert_eq!(count(index).unwrap(), 1);
        assert!(!empty || count(index + 1).unwrap() == 1);
        drop(bindings);
        assert_eq!(report.tensors, 1 + u64::from(empty));
        (report, param)
    };
    let (report, param) = with_empty(true);
    let report = StepReport {
        tensors: 1,
        ..report
    };
    assert_eq!((report, param), with_empty(false));
}
