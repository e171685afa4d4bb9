//! What the Rust API does beyond the arithmetic of a step.

mod harness;

use std::ffi::c_void;

use half::{bf16, f16};
use harness::places::tiers;
use mofo::{
    Buffers, CpuTier, Dtype, ErrorKind, Optimizer, Options, ParamMut, StepArgs, TensorBinding,
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

#[test]
fn a_parameter_is_the_rounding_of_its_master_whatever_it_was() {
    for &tier in tiers() {
        // A block for one thread, and one that all threads share.
        for numel in [5_000, 70_001] {
            overwritten_parameter(tier, Dtype::BF16, numel, bf16::from_f32);
            overwritten_parameter(tier, Dtype::F16, numel, f16::from_f32);
        }
    }
}

/// Steps with a master copy, before each of which the parameter is overwritten.
fn overwritten_parameter<T>(tier: CpuTier, dtype: Dtype, numel: usize, round: fn(f32) -> T)
where
    T: Copy + PartialEq + std::fmt::Debug,
    for<'a> &'a mut [T]: Into<ParamMut<'a>>,
{
    let options = Options {
        master_weights: true,
        update_fraction: 0.03,
        num_threads: 2,
        cpu_tier: Some(tier),
        ..options()
    };
    let mut optimizer = Optimizer::new(options).unwrap();
    let spec = TensorSpec {
        param_dtype: dtype,
        ..TensorSpec::new("weight", numel as u64)
    };
    optimizer.add_tensor(&spec).unwrap();
    let grad: Vec<f32> = (0..numel).map(|i| (i as f32).sin()).collect();
    let mut param: Vec<T> = grad.iter().map(|x| round(x - 0.3)).collect();
    for step in 0..3 {
        let binding = TensorBinding::new(0, &mut param[..], &grad[..]);
        let report = optimizer
            .step(&StepArgs::default(), &mut [binding])
            .unwrap();
        assert!(report.entries_selected > 0 && report.entries_selected < numel as u64 / 10);
        let master = optimizer.tensor_state(0).unwrap().master;
        // SAFETY: the master copy has as many elements as the parameter, and no step runs.
        let master = unsafe { std::slice::from_raw_parts(master, numel) };
        for (i, (&p, &master)) in param.iter().zip(master).enumerate() {
            assert_eq!(
                p,
                round(master),
                "entry {i} of {numel} {dtype:?} after step {step} in tier {tier:?}"
            );
        }
        param.fill(round(7.0));
    }
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
