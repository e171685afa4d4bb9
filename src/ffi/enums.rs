//! The numbers that enums have in C.

use super::options::*;
use crate::config::{CpuTier, Dtype, Filter, Rounding, StateDtype, WeightDecayScope};
use crate::error::{Result, fail};

/// A type that crosses the border as a number.
pub(super) trait Number: Sized {
    /// What a number stands for; `what` is the name of the field that has it.
    fn read(what: &str, number: i32) -> Result<Self>;

    fn number(self) -> i32;
}

/// `numbers!(Type, "which numbers are allowed", NUMBER = (value), …)`, with all values of the type.
macro_rules! numbers {
    ($type:ty, $allowed:literal, $($number:tt = ($($value:tt)+)),+ $(,)?) => {
        impl Number for $type {
            fn read(what: &str, number: i32) -> Result<Self> {
                match number {
                    $($number => Ok($($value)+),)+
                    _ => fail!(InvalidArgument, concat!("{} is {}; it must be ", $allowed), what, number),
                }
            }

            fn number(self) -> i32 {
                match self {
                    $($($value)+ => $number,)+
                }
            }
        }
    };
}

numbers!(bool, "0 or 1", 0 = (false), 1 = (true));

numbers!(
    Dtype,
    "0 (F32), 1 (F16) or 2 (BF16)",
    MOFO_DTYPE_F32 = (Dtype::F32),
    MOFO_DTYPE_F16 = (Dtype::F16),
    MOFO_DTYPE_BF16 = (Dtype::BF16),
);

numbers!(
    StateDtype,
    "0 (F32) or 2 (BF16)",
    MOFO_DTYPE_F32 = (StateDtype::F32),
    MOFO_DTYPE_BF16 = (StateDtype::BF16),
);

numbers!(
    Filter,
    "0 (momentum), 1 (gradient), 2 (update) or 3 (random)",
    MOFO_FILTER_MOMENTUM = (Filter::Momentum),
    MOFO_FILTER_GRADIENT = (Filter::Gradient),
    MOFO_FILTER_UPDATE = (Filter::Update),
    MOFO_FILTER_RANDOM = (Filter::Random),
);

numbers!(
    WeightDecayScope,
    "0 (selected) or 1 (all)",
    MOFO_WEIGHT_DECAY_SELECTED = (WeightDecayScope::Selected),
    MOFO_WEIGHT_DECAY_ALL = (WeightDecayScope::All),
);

numbers!(
    Rounding,
    "0 (nearest) or 1 (stochastic)",
    MOFO_ROUNDING_NEAREST = (Rounding::Nearest),
    MOFO_ROUNDING_STOCHASTIC = (Rounding::Stochastic),
);

// The best is none that is asked for.
numbers!(
    Option<CpuTier>,
    "0 (best), 1 (portable), 2 (AVX2) or 3 (AVX-512)",
    MOFO_CPU_TIER_BEST = (None),
    MOFO_CPU_TIER_PORTABLE = (Some(CpuTier::Portable)),
    MOFO_CPU_TIER_AVX2 = (Some(CpuTier::Avx2)),
    MOFO_CPU_TIER_AVX512 = (Some(CpuTier::Avx512)),
);
