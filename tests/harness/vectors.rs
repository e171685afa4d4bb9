//! Reading the vectors: safetensors files with a `case` in JSON, and elements computed from their index.

use std::path::{Path, PathBuf};

use mofo::ffi::{MOFO_DTYPE_BF16, MOFO_DTYPE_F16, MOFO_DTYPE_F32};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::c_api::Elements;
use super::toolchain::root;

/// A file's bytes and its case.
pub struct File {
    bytes: Vec<u8>,
    pub name: String,
    pub case: Value,
}

impl File {
    /// Every `.safetensors` file of a directory below `tests`, in the order of their names.
    pub fn all(directory: &str) -> Vec<Self> {
        let directory = directory_of(directory);
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "safetensors")
            })
            .collect();
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = &header.metadata().as_ref().unwrap()["case"];
        let case = serde_json::from_str(text).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Self { bytes, name, case }
    }

    pub fn tensor(&self, key: &str) -> Elements {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors
            .tensor(key)
            .unwrap_or_else(|error| panic!("{}: {key}: {error}", self.name));
        match tensor.dtype() {
            Dtype::F32 => {
                let (values, rest) = tensor.data().as_chunks();
                assert!(rest.is_empty());
                Elements::F32(
                    values
                        .iter()
                        .map(|&bytes| f32::from_le_bytes(bytes))
                        .collect(),
                )
            }
            Dtype::U16 => {
                let (values, rest) = tensor.data().as_chunks();
                assert!(rest.is_empty());
                Elements::Half(
                    values
                        .iter()
                        .map(|&bytes| u16::from_le_bytes(bytes))
                        .collect(),
                )
            }
            dtype => panic!("{}: {key} is of type {dtype:?}", self.name),
        }
    }

    /// Input data, as `tests/reference/README.md` describes it; `None` for null.
    pub fn input(&self, data: &Value, numel: usize, dtype: i32) -> Option<Elements> {
        match data {
            Value::Null => None,
            Value::String(key) => Some(self.tensor(key)),
            description => Some(Computed::of(description).elements(numel, dtype)),
        }
    }

    /// Compares a buffer with the expected data, bit for bit but for the NaN's; the text says where they differ.
    pub fn compare(&self, expected: &Value, found: &Elements, dtype: i32) -> Result<(), String> {
        let found = found.canonical_bits(dtype);
        let Value::String(key) = expected else {
            let expected = expected["digest"].as_str().unwrap();
            let found = format!("{:016x}", digest(&found));
            return if found == expected {
                Ok(())
            } else {
                Err(format!("digest {found}, expected {expected}"))
            };
        };
        let expected = self.tensor(key).canonical_bits(dtype);
        if expected.len() != found.len() {
            return Err(format!(
                "{} elements, expected {}",
                found.len(),
                expected.len()
            ));
        }
        let differing: Vec<usize> = (0..found.len())
            .filter(|&i| found[i] != expected[i])
            .collect();
        match differing.first() {
            None => Ok(()),
            Some(&i) => Err(format!(
                "{} of {} differ, first entry {i}: {:#x}, expected {:#x}",
                differing.len(),
                found.len(),
                found[i],
                expected[i]
            )),
        }
    }
}

/// A directory below `tests`.
pub fn directory_of(directory: &str) -> PathBuf {
    root().join("tests").join(directory)
}

/// The rows of a tab-separated table below its heading.
pub fn table(path: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(directory_of(path)).unwrap();
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip(1)
        .map(|line| line.split('\t').map(String::from).collect())
        .collect();
    assert!(!rows.is_empty(), "{path} is empty");
    rows
}

/// A double, which is text in the JSON; `None` for null.
pub fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.parse().unwrap()),
        other => panic!("{other} is not a double as text"),
    }
}

pub fn dtype(name: &str) -> i32 {
    match name {
        "f32" => MOFO_DTYPE_F32,
        "f16" => MOFO_DTYPE_F16,
        "bf16" => MOFO_DTYPE_BF16,
        other => panic!("no element type is called {other}"),
    }
}

/// Elements computed from their index; `tests/reference/README.md` has the formulas.
pub struct Computed {
    seed: u32,
    exponent: u32,
    mask: u32,
    cluster: u32,
    multiplier: Option<u32>,
    offset: u32,
    period: u32,
}

impl Computed {
    pub fn new(seed: u32, exponent: u32) -> Self {
        Self {
            seed,
            exponent,
            mask: u32::MAX,
            cluster: 1,
            multiplier: None,
            offset: 0,
            period: 1,
        }
    }

    fn of(description: &Value) -> Self {
        let number = |what: &str| {
            let value = description.get(what)?;
            Some(u32::try_from(value.as_u64().unwrap()).unwrap())
        };
        let defaults = Self::new(0, 0);
        Self {
            seed: number("seed").unwrap_or(defaults.seed),
            exponent: number("exponent").unwrap(),
            mask: number("mask").unwrap_or(defaults.mask),
            cluster: number("cluster").unwrap_or(defaults.cluster),
            multiplier: number("multiplier"),
            offset: number("offset").unwrap_or(defaults.offset),
            period: number("period").unwrap_or(defaults.period),
        }
    }

    pub fn elements(&self, numel: usize, dtype: i32) -> Elements {
        let seed = mix32(self.seed);
        let bits = (0..u32::try_from(numel).unwrap()).map(|i| {
            if i % self.period != 0 {
                return 0;
            }
            let h = match self.multiplier {
                Some(multiplier) => i.wrapping_mul(multiplier).wrapping_add(self.offset),
                None => mix32((i / self.cluster) ^ seed) & self.mask,
            };
            if dtype == MOFO_DTYPE_F16 {
                (h & 0x83FF) | (self.exponent + ((h >> 10) & 7)) << 10
            } else {
                (h & 0x807F_FFFF) | (self.exponent + ((h >> 23) & 15)) << 23
            }
        });
        match dtype {
            MOFO_DTYPE_F32 => Elements::F32(bits.map(f32::from_bits).collect()),
            MOFO_DTYPE_F16 => Elements::Half(bits.map(|bits| bits as u16).collect()),
            _ => Elements::Half(bits.map(|bits| (bits >> 16) as u16).collect()),
        }
    }
}

fn digest(bits: &[u32]) -> u64 {
    bits.iter().enumerate().fold(0, |sum: u64, (i, &bits)| {
        sum.wrapping_add(mix64((i as u64) << 32 | u64::from(bits)))
    })
}

fn mix32(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

fn mix64(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
