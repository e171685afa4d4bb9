//! Typed views of parameter and gradient buffers.

use half::{bf16, f16};

use crate::config::Dtype;

/// A parameter to be stepped.
#[derive(Debug)]
pub enum ParamMut<'a> {
    /// IEEE binary32.
    F32(&'a mut [f32]),
    /// IEEE binary16.
    F16(&'a mut [f16]),
    /// bfloat16.
    BF16(&'a mut [bf16]),
}

/// A gradient.
#[derive(Clone, Copy, Debug)]
pub enum GradRef<'a> {
    /// IEEE binary32.
    F32(&'a [f32]),
    /// IEEE binary16.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
}

impl ParamMut<'_> {
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::BF16(_) => Dtype::BF16,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(slice) => slice.len(),
            Self::F16(slice) => slice.len(),
            Self::BF16(slice) => slice.len(),
        }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Self::F32(slice) => slice.as_mut_ptr().cast(),
            Self::F16(slice) => slice.as_mut_ptr().cast(),
            Self::BF16(slice) => slice.as_mut_ptr().cast(),
        }
    }
}

impl GradRef<'_> {
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::BF16(_) => Dtype::BF16,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(slice) => slice.len(),
            Self::F16(slice) => slice.len(),
            Self::BF16(slice) => slice.len(),
        }
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        match self {
            Self::F32(slice) => slice.as_ptr().cast(),
            Self::F16(slice) => slice.as_ptr().cast(),
            Self::BF16(slice) => slice.as_ptr().cast(),
        }
    }
}

macro_rules! from_slices {
    ($($element:ty => $variant:ident),+) => {$(
        impl<'a> From<&'a mut [$element]> for ParamMut<'a> {
            fn from(slice: &'a mut [$element]) -> Self {
                Self::$variant(slice)
            }
        }

        impl<'a> From<&'a mut Vec<$element>> for ParamMut<'a> {
            fn from(vector: &'a mut Vec<$element>) -> Self {
                Self::$variant(vector)
            }
        }

        impl<'a> From<&'a [$element]> for GradRef<'a> {
            fn from(slice: &'a [$element]) -> Self {
                Self::$variant(slice)
            }
        }

        impl<'a> From<&'a Vec<$element>> for GradRef<'a> {
            fn from(vector: &'a Vec<$element>) -> Self {
                Self::$variant(vector)
            }
        }
    )+};
}
from_slices!(f32 => F32, f16 => F16, bf16 => BF16);
