//! The library against a naive optimizer that sorts, and that shares no code with it.

use half::{bf16, f16};
use mofo::{
    Filter, Optimizer, Options, Rounding, StepArgs, TensorBinding, TensorSpec, WeightDecayScope,
};
use proptest::prelude::*;

/// Gradients and parameters that tie, vanish, overflow or are no numbers at all.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0f32..1.0,
        3 => prop::sample::select(vec![0.5f32, -0.5, 0.25, 1.0, -1.0]),
        2 => prop::sample::select(vec![0.0f32, -0.0]),
        1 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(vec![1e-45f32, -1e-40, 1.2e-38, 3e38, -1e20]),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ]
}

#[derive(Clone, Debug)]
struct Setting {
    update_fraction: f64,
    num_blocks: usize,
    filter: Filter,
    scope: WeightDecayScope,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    num_threads: usize,
}

fn setting() -> impl Strategy<Value = Setting> {
    (
        prop_oneof![2 => 0.001..1.0f64, 1 => Just(1.0), 1 => Just(0.1)],
        1usize..5,
        prop::sample::select(vec![Filter::Momentum, Filter::Gradient, Filter::Update]),
        prop::sample::select(vec![WeightDecayScope::Selected, WeightDecayScope::All]),
        prop::sample::select(vec![0.0, 0.1]),
        prop::sample::select(vec![0.9, 0.0, 0.99]),
        prop::sample::select(vec![0.999, 0.5]),
        prop::sample::select(vec![1e-8, 1e-3]),
        1usize..4,
    )
        .prop_map(
            |(
                update_fraction,
                num_blocks,
                filter,
                scope,
                weight_decay,
                beta1,
                beta2,
                epsilon,
                num_threads,
            )| Setting {
                update_fraction,
                num_blocks,
                filter,
                scope,
                weight_decay,
                beta1,
                beta2,
                epsilon,
                num_threads,
            },
        )
}

/// Adam with a filter, the slow and obvious way.
struct Naive {
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    t: i32,
}

impl Naive {
    /// The new value of each entry, or `None` where its bits must stay; and each block's threshold.
    fn step(
        &mut self,
        setting: &Setting,
        learning_rate: f64,
        param: &[f32],
        grad: &[f32],
    ) -> (Vec<Option<f32>>, Vec<f32>) {
        self.t += 1;
        // In the first two steps there is only one way to multiply.
        let power = |base: f64| (0..self.t).fold(1.0, |product, _| product * base);
        let rate = (learning_rate / (1.0 - power(setting.beta1))) as f32;
        let root = (1.0 / (1.0 - power(setting.beta2)).sqrt()) as f32;
        let decay = (1.0 - learning_rate * setting.weight_decay) as f32;
        let [b1, b2] = [setting.beta1 as f32, setting.beta2 as f32];
        let [c1, c2] = [(1.0 - setting.beta1) as f32, (1.0 - setting.beta2) as f32];
        let tiny_is_zero = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };

        let numel = grad.len();
        let mut updates = vec![0.0; numel];
        let mut sizes = vec![0.0; numel];
        for i in 0..numel {
            self.exp_avg[i] = tiny_is_zero(b1 * self.exp_avg[i] + c1 * grad[i]);
            self.exp_avg_sq[i] = tiny_is_zero(b2 * self.exp_avg_sq[i] + (c2 * grad[i]) * grad[i]);
            updates[i] =
                self.exp_avg[i] / (self.exp_avg_sq[i].sqrt() * root + setting.epsilon as f32);
            let filtered = match setting.filter {
                Filter::Momentum => self.exp_avg[i],
                Filter::Gradient => grad[i],
                _ => updates[i],
            };
            let usable = filtered.is_finite() && self.exp_avg[i].is_finite();
            sizes[i] = if usable { filtered.abs() } else { 0.0 };
        }

        let block = numel / setting.num_blocks;
        let k = ((setting.update_fraction * block as f64) as usize).max(1);
        let mut thresholds = Vec::new();
        for sizes in sizes.chunks(block) {
            let mut sorted = sizes.to_vec();
            sorted.sort_by(|a, b| b.partial_cmp(a).unwrap());
            thresholds.push(if setting.update_fraction == 1.0 {
                0.0
            } else {
                sorted[k - 1]
            });
        }
        let new = (0..numel).map(|i| {
            let selected = if setting.update_fraction == 1.0 {
                self.exp_avg[i].is_finite()
            } else {
                sizes[i] > 0.0 && sizes[i] >= thresholds[i / block]
            };
            match (selected, setting.scope) {
                (true, _) => Some(param[i] * decay - rate * updates[i]),
                (false, WeightDecayScope::All) => Some(param[i] * decay),
                (false, WeightDecayScope::Selected) => None,
            }
        });
        (new.collect(), thresholds)
    }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// An element type, and how the `half` crate converts it.
trait Element: Copy + Default + 'static {
    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
    fn step(
        optimizer: &mut Optimizer,
        param: &mut [Self],
        grad: &[f32],
    ) -> mofo::Result<mofo::StepReport>;
    fn dtype() -> mofo::Dtype;
}

macro_rules! element {
    ($type:ty, $dtype:expr, $from:expr, $to:expr) => {
        impl Element for $type {
            fn from_f32(x: f32) -> Self {
                $from(x)
            }

            fn to_f32(self) -> f32 {
                $to(self)
            }

            fn step(
                optimizer: &mut Optimizer,
                param: &mut [Self],
                grad: &[f32],
            ) -> mofo::Result<mofo::StepReport> {
                let binding = TensorBinding::new(0, param, grad);
                optimizer.step(&StepArgs::default(), &mut [binding])
            }

            fn dtype() -> mofo::Dtype {
                $dtype
            }
        }
    };
}
element!(f32, mofo::Dtype::F32, |x| x, |x| x);
element!(
    f16,
    mofo::Dtype::F16,
    f16::from_f32_const,
    f16::to_f32_const
);
element!(
    bf16,
    mofo::Dtype::BF16,
    bf16::from_f32_const,
    bf16::to_f32_const
);

fn compare<T: Element>(
    setting: &Setting,
    values: &[f32],
    grads: &[Vec<f32>],
) -> Result<(), TestCaseError> {
    let learning_rate = 0.03;
    let block = values.len() / setting.num_blocks;
    prop_assume!(block > 0);
    let numel = block * setting.num_blocks;
    let mut optimizer = Optimizer::new(Options {
        learning_rate,
        beta1: setting.beta1,
        beta2: setting.beta2,
        epsilon: setting.epsilon,
        weight_decay: setting.weight_decay,
        weight_decay_scope: setting.scope,
        update_fraction: setting.update_fraction,
        filter: setting.filter,
        rounding: Rounding::Nearest,
        num_threads: setting.num_threads,
        ..Options::default()
    })
    .unwrap();
    let spec = TensorSpec {
        num_blocks: setting.num_blocks as u64,
        param_dtype: T::dtype(),
        ..TensorSpec::new("weight", numel as u64)
    };
    optimizer.add_tensor(&spec).unwrap();
    let mut param: Vec<T> = values[..numel].iter().map(|&x| T::from_f32(x)).collect();
    let mut naive = Naive {
        exp_avg: vec![0.0; numel],
        exp_avg_sq: vec![0.0; numel],
        t: 0,
    };
    for grad in grads {
        let grad = &grad[..numel];
        let before = param.clone();
        let widened: Vec<f32> = before.iter().map(|x| x.to_f32()).collect();
        let (expected, thresholds) = naive.step(setting, learning_rate, &widened, grad);
        T::step(&mut optimizer, &mut param, grad).unwrap();

        let state = optimizer.tensor_state(0).unwrap();
        for (ours, theirs) in thresholds.iter().zip(state.thresholds) {
            prop_assert!(same(*ours, *theirs), "threshold {theirs:e}, not {ours:e}");
        }
        // SAFETY: the moments are f32 and as many as the entries.
        let [m, v] = [state.exp_avg, state.exp_avg_sq]
            .map(|moment| unsafe { std::slice::from_raw_parts(moment.cast::<f32>(), numel) });
        for i in 0..numel {
            prop_assert!(same(m[i], naive.exp_avg[i]), "exp_avg {i}");
            prop_assert!(same(v[i], naive.exp_avg_sq[i]), "exp_avg_sq {i}");
            let expected = expected[i].map_or(before[i], T::from_f32).to_f32();
            prop_assert!(
                same(param[i].to_f32(), expected),
                "entry {i} is {:e}, not {expected:e}",
                param[i].to_f32()
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_naive_optimizer_agrees(
        setting in setting(),
        entries in prop_oneof![
            4 => prop::collection::vec((value(), value(), value()), 1..80),
            1 => prop::collection::vec((value(), value(), value()), 1..6000),
        ],
        dtype in 0..3,
    ) {
        let values: Vec<f32> = entries.iter().map(|entry| entry.0).collect();
        let grads = [
            entries.iter().map(|entry| entry.1).collect(),
            entries.iter().map(|entry| entry.2).collect(),
        ];
        match dtype {
            0 => compare::<f32>(&setting, &values, &grads)?,
            1 => compare::<f16>(&setting, &values, &grads)?,
            _ => compare::<bf16>(&setting, &values, &grads)?,
        }
    }
}
