//! The work space of a step stays within what the documentation and `state_size` promise.

use std::ffi::c_void;

use half::bf16;
use mofo::{
    Dtype, Optimizer, Options, ParallelFor, StateDtype, StepArgs, Task, TensorBinding, TensorSpec,
    WeightDecayScope, state_size,
};

const MIB: u64 = 1 << 20;

/// Steps tensors of these numbers of entries and blocks twice, and returns the bytes of work space.
fn work_space(options: &Options, tensors: &[(usize, usize)]) -> u64 {
    let mut optimizer = Optimizer::new(options.clone()).unwrap();
    let mut buffers = Vec::new();
    for (i, &(numel, num_blocks)) in tensors.iter().enumerate() {
        let name = format!("weight {i}");
        let index = optimizer
            .add_tensor(&spec(&name, numel, num_blocks))
            .unwrap();
        let grad: Vec<bf16> = (0..numel)
            .map(|i| bf16::from_bits(0x3000 + (i as u32).wrapping_mul(0x9E37_79B9) as u16 % 0x0C00))
            .collect();
        buffers.push((index, vec![bf16::ONE; numel], grad));
    }
    for _ in 0..2 {
        let mut bindings: Vec<_> = buffers
            .iter_mut()
            .map(|(index, param, grad)| TensorBinding::new(*index, &mut param[..], &grad[..]))
            .collect();
        optimizer.step(&StepArgs::default(), &mut bindings).unwrap();
    }
    optimizer.memory().scratch
}

fn spec(name: &str, numel: usize, num_blocks: usize) -> TensorSpec<'_> {
    TensorSpec {
        num_blocks: num_blocks as u64,
        param_dtype: Dtype::BF16,
        grad_dtype: Dtype::BF16,
        ..TensorSpec::new(name, numel as u64)
    }
}

/// What is documented.
fn documented(tensors: &[(usize, usize)], num_threads: usize) -> u64 {
    let block = |&(numel, num_blocks): &(usize, usize)| (numel / num_blocks) as u64;
    let constant = if num_threads > 64 {
        200_000 * num_threads as u64
    } else {
        16 * MIB
    };
    tensors.iter().map(block).max().unwrap() + constant
}

fn options(num_threads: usize, weight_decay_scope: WeightDecayScope) -> Options {
    Options {
        num_threads,
        // Where the most old values are kept.
        update_fraction: 0.25,
        weight_decay_scope,
        weight_decay: 0.1,
        max_grad_norm: 1.0,
        state_dtype: StateDtype::BF16,
        ..Options::default()
    }
}

const SCOPES: [WeightDecayScope; 2] = [WeightDecayScope::Selected, WeightDecayScope::All];

/// Tasks one after the other, so that a test can ask for many of them.
unsafe extern "C" fn in_turn(_: *mut c_void, n: i64, task: Task, task_ctx: *mut c_void) {
    for i in 0..n {
        // SAFETY: the library's own task and context, each number once.
        unsafe { task(task_ctx, i) };
    }
}

/// With `in_turn` in place of the library's own threads.
fn options_in_turn(num_threads: usize, weight_decay_scope: WeightDecayScope) -> Options {
    // SAFETY: the function may be called from any thread, and returns after all tasks.
    let engine = unsafe { ParallelFor::new(in_turn, std::ptr::null_mut()) };
    Options {
        parallel_for: Some(engine),
        ..options(num_threads, weight_decay_scope)
    }
}

#[test]
fn one_tensor_takes_no_more_than_its_state_size_says() {
    let sizes = [
        (1, 1),
        (1000, 1000),
        (65_537, 1),
        (100_003, 1),
        (40 * 70_000, 40),
        (3_000_000, 1),
        (3_000_000, 3),
        (200 * 66_000, 200),
        (20_000_000, 1),
    ];
    for (numel, num_blocks) in sizes {
        for (num_threads, scope) in [(1, SCOPES[0]), (2, SCOPES[0]), (1, SCOPES[1])] {
            let options = options(num_threads, scope);
            let tensor = spec("weight", numel, num_blocks);
            let promised = state_size(&options, &tensor, [false; 3]).unwrap();
            let taken = work_space(&options, &[(numel, num_blocks)]);
            let what = format!("{numel} entries in {num_blocks} blocks, {options:?}");
            assert!(
                taken <= promised.scratch,
                "{what}: {taken}, not {promised:?}"
            );
            assert!(
                taken <= documented(&[(numel, num_blocks)], num_threads),
                "{what}: {taken}"
            );
        }
    }
}

#[test]
fn many_tensors_take_no_more_than_the_largest_block_and_a_constant() {
    let mut tensors = vec![(66_000, 1); 200];
    tensors.extend([(1_000_000, 1), (600_000, 10), (5, 1)]);
    for scope in SCOPES {
        for num_threads in [1, 64] {
            let taken = work_space(&options_in_turn(num_threads, scope), &tensors);
            assert!(
                taken <= documented(&tensors, num_threads),
                "{num_threads} threads: {taken}"
            );
        }
    }
}

/// Where a block's own room and that of the threads are both large.
#[test]
fn one_huge_block_among_many_threads_takes_no_more_than_documented() {
    let numel = 20_000_000;
    for num_threads in [64, 80] {
        let options = options_in_turn(num_threads, WeightDecayScope::Selected);
        let promised = state_size(&options, &spec("weight", numel, 1), [false; 3]).unwrap();
        let taken = work_space(&options, &[(numel, 1)]);
        let most = documented(&[(numel, 1)], num_threads).min(promised.scratch);
        assert!(
            taken <= most,
            "{num_threads} threads: {taken}, not {most}; {promised:?}"
        );
    }
}
