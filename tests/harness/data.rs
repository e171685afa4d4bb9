//! Tensors and gradients for steps.

use half::{bf16, f16};
use mofo::rule::convert;
use mofo::{Dtype, GradRef, ParamMut};

/// A small generator for test data (SplitMix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mofo::rule::random::mix64(self.0)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    /// Roughly normal.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| self.bits() as f64 / u64::MAX as f64).sum();
        (sum - 6.0) as f32
    }
}

/// Sets of gradient values that are hard on selection and arithmetic.
pub fn awkward_values() -> Vec<Vec<f32>> {
    vec![
        vec![0.0],
        vec![-0.0, 0.0, 1.0],
        vec![1.0],
        vec![1.0, -1.0, 0.5, -0.5],
        vec![1e-45, -1e-45, 1e-40, 1.2e-38, 0.0],
        vec![1.0, f32::NAN, 2.0],
        vec![1.0, f32::INFINITY, f32::NEG_INFINITY, -3.0],
        vec![f32::MAX, f32::MIN, 1e38, 1e19, 1.0],
        vec![f32::NAN],
        vec![1.0, 1.0 + f32::EPSILON, 1.0 + 2.0 * f32::EPSILON],
    ]
}

#[derive(Clone, Debug)]
pub enum Param {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

#[derive(Clone, Debug)]
pub enum Grad {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Param {
    pub fn as_mut(&mut self) -> ParamMut<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::BF16(values) => values.into(),
        }
    }

    /// The elements as they lie in memory.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: plain numbers, all of whose bytes may have any value.
        unsafe {
            match self {
                Self::F32(values) => values.align_to_mut::<u8>().1,
                Self::F16(values) => values.align_to_mut::<u8>().1,
                Self::BF16(values) => values.align_to_mut::<u8>().1,
            }
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::BF16(values) => values.len(),
        }
    }

    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::BF16(_) => Dtype::BF16,
        }
    }

    /// Bit patterns, with every NaN the same.
    pub fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => values.iter().map(|&x| bits(x)).collect(),
            Self::F16(values) => values
                .iter()
                .map(|x| {
                    if x.is_nan() {
                        u32::MAX
                    } else {
                        x.to_bits().into()
                    }
                })
                .collect(),
            Self::BF16(values) => values
                .iter()
                .map(|x| {
                    if x.is_nan() {
                        u32::MAX
                    } else {
                        x.to_bits().into()
                    }
                })
                .collect(),
        }
    }
}

impl Grad {
    /// The elements as they lie in memory.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: plain numbers, read as bytes.
        unsafe {
            match self {
                Self::F32(values) => values.align_to::<u8>().1,
                Self::F16(values) => values.align_to::<u8>().1,
                Self::BF16(values) => values.align_to::<u8>().1,
            }
        }
    }

    pub fn as_ref(&self) -> GradRef<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::BF16(values) => values.into(),
        }
    }

    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::BF16(_) => Dtype::BF16,
        }
    }

    pub fn widened(&self) -> Vec<f32> {
        match self {
            Self::F32(values) => values.clone(),
            Self::F16(values) => values
                .iter()
                .map(|x| convert::f16_to_f32(x.to_bits()))
                .collect(),
            Self::BF16(values) => values
                .iter()
                .map(|x| convert::bf16_to_f32(x.to_bits()))
                .collect(),
        }
    }
}

/// The bits of a float, with every NaN the same.
pub fn bits(x: f32) -> u32 {
    if x.is_nan() { u32::MAX } else { x.to_bits() }
}

/// A tensor with its gradients of each step.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub param: Param,
    /// Used in turn.
    pub grads: Vec<Grad>,
    pub num_blocks: usize,
    pub update_fraction: Option<f64>,
    pub weight_decay: Option<f64>,
    pub learning_rate_scale: f64,
}

impl Tensor {
    pub fn random(name: &str, numel: usize, param: Dtype, grad: Dtype, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let grad_of = |rng: &mut Rng| {
            let values = (0..numel).map(|_| rng.normal() * 0.01);
            match grad {
                Dtype::F32 => Grad::F32(values.collect()),
                Dtype::F16 => Grad::F16(values.map(f16::from_f32).collect()),
                Dtype::BF16 => Grad::BF16(values.map(bf16::from_f32).collect()),
            }
        };
        let grads = (0..3).map(|_| grad_of(&mut rng)).collect();
        let values = (0..numel).map(|_| rng.normal());
        let param = match param {
            Dtype::F32 => Param::F32(values.collect()),
            Dtype::F16 => Param::F16(values.map(f16::from_f32).collect()),
            Dtype::BF16 => Param::BF16(values.map(bf16::from_f32).collect()),
        };
        Self {
            name: name.to_owned(),
            param,
            grads,
            num_blocks: 1,
            update_fraction: None,
            weight_decay: None,
            learning_rate_scale: 1.0,
        }
    }

    pub fn numel(&self) -> usize {
        self.param.len()
    }
}
