//! What stands before the arrays of a checkpoint: the header of a safetensors file, and the description in it.

use std::borrow::Cow;
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::array::{Array, Part};
use crate::config::{self, Options, StateDtype};
use crate::error::{Error, ErrorKind, Result, fail};
use crate::memory::try_with_capacity;

/// The version that this library writes, and the only one that it reads.
const FORMAT_VERSION: u64 = 1;
/// Before the header a safetensors file says in so many bytes how long it is.
pub(super) const LENGTH_BYTES: u64 = 8;
/// What stands there besides the arrays.
const METADATA: &str = "__metadata__";

/// What a checkpoint says of itself and of its tensors. Fields that loading does not look at are for people and tools.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Description<'a> {
    format_version: u64,
    #[serde(skip_deserializing)]
    library_version: &'static str,
    pub seed: u64,
    pub state_dtype: StateDtype,
    #[serde(skip_deserializing)]
    options: Option<Settings>,
    pub tensors: Vec<Entry<'a>>,
}

#[derive(Debug, Serialize)]
struct Settings {
    learning_rate: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    weight_decay_scope: config::WeightDecayScope,
    update_fraction: f64,
    filter: config::Filter,
    master_weights: bool,
    rounding: config::Rounding,
    max_grad_norm: f64,
    skip_nonfinite: bool,
}

/// One tensor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry<'a> {
    pub name: Cow<'a, str>,
    pub numel: u64,
    pub step_count: u64,
    /// Its master copy is among the arrays.
    pub master: bool,
    /// Of the bytes of first moment, second moment and master copy, one after the other; 0 if there are none.
    pub crc32: u32,
    #[serde(skip_deserializing)]
    pub num_blocks: u64,
    #[serde(skip_deserializing)]
    pub param_dtype: Option<config::Dtype>,
    #[serde(skip_deserializing)]
    pub update_fraction: Option<f64>,
    #[serde(skip_deserializing)]
    pub weight_decay: Option<f64>,
    #[serde(skip_deserializing)]
    pub learning_rate_scale: f64,
}

impl<'a> Description<'a> {
    pub(super) fn new(options: &Options, tensors: Vec<Entry<'a>>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            library_version: env!("CARGO_PKG_VERSION"),
            seed: options.seed,
            state_dtype: options.state_dtype,
            options: Some(Settings {
                learning_rate: options.learning_rate,
                beta1: options.beta1,
                beta2: options.beta2,
                epsilon: options.epsilon,
                weight_decay: options.weight_decay,
                weight_decay_scope: options.weight_decay_scope,
                update_fraction: options.update_fraction,
                filter: options.filter,
                master_weights: options.master_weights,
                rounding: options.rounding,
                max_grad_norm: options.max_grad_norm,
                skip_nonfinite: options.skip_nonfinite,
            }),
            tensors,
        }
    }

    /// The header of a file with these arrays, in which its length comes first. It is filled up with spaces to
    /// `bytes`, or to a multiple of the length's size.
    pub(super) fn to_header(
        &self,
        arrays: &[(usize, Array)],
        bytes: Option<usize>,
    ) -> Result<Vec<u8>> {
        const LENGTH: usize = LENGTH_BYTES as usize;
        // About what the header takes, with names of letters and digits; three times that while it grows.
        let names = self.tensors.iter().map(|entry| entry.name.len() as u64);
        reserve(names.map(|name| 3 * (1024 + 8 * name)).sum())?;
        let text = serde_json::to_string(self).map_err(internal)?;
        let json = serde_json::to_vec(&ToWrite {
            metadata: Strings {
                mofo_crc32: Some(crc32_of(&text)),
                mofo: Some(text),
            },
            description: self,
            arrays,
        })
        .map_err(internal)?;
        let mut all = vec![0; LENGTH];
        all.extend_from_slice(&json);
        let bytes = bytes.unwrap_or(all.len().next_multiple_of(LENGTH));
        if all.len() > bytes {
            fail!(Internal, "the checkpoint's header has outgrown its place");
        }
        all.resize(bytes, b' ');
        let length = bytes as u64 - LENGTH_BYTES;
        all[..LENGTH].copy_from_slice(&length.to_le_bytes());
        Ok(all)
    }
}

/// A header, always in the same order: the crate would write the metadata in a random one.
struct ToWrite<'a> {
    metadata: Strings,
    description: &'a Description<'a>,
    arrays: &'a [(usize, Array)],
}

impl Serialize for ToWrite<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(METADATA, &self.metadata)?;
        let mut offset = 0;
        for (entry, array) in self.arrays {
            let entry = &self.description.tensors[*entry];
            let end = offset + array.bytes;
            let info = TensorInfo {
                dtype: dtype_of(array.part, self.description.state_dtype),
                shape: vec![entry.numel as usize],
                data_offsets: (offset, end),
            };
            map.serialize_entry(&array.part.key(&entry.name), &info)?;
            offset = end;
        }
        map.end()
    }
}

/// The metadata: the description, and its checksum.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Strings {
    mofo: Option<String>,
    mofo_crc32: Option<String>,
}

/// A header, as it is read. The crate's own reader, which tells metadata and arrays apart by other means, would be 30 KB
/// more of code.
#[derive(Default)]
struct AsRead {
    metadata: Strings,
    arrays: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for AsRead {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = AsRead;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a safetensors header")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<AsRead, A::Error> {
                let mut header = AsRead::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == METADATA {
                        header.metadata = map.next_value()?;
                    } else {
                        header.arrays.push((key, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// A header that was read: what the file holds, and where.
#[derive(Debug)]
pub(super) struct Header {
    metadata: Metadata,
    num_arrays: usize,
    description: Description<'static>,
}

impl Header {
    /// Reads the header, without its length, of a file with `data_bytes` bytes of data.
    pub(super) fn parse(json: &[u8], data_bytes: u64) -> Result<Self> {
        // The least that an array takes in JSON is 50 bytes, and in memory, while lists and tables grow, some 400.
        reserve((json.len() as u64).saturating_mul(16))?;
        let damaged = |error: &dyn fmt::Display| {
            bad(format_args!("the safetensors header is damaged: {error}"))
        };
        let AsRead {
            metadata: strings,
            mut arrays,
        } = serde_json::from_slice(json).map_err(|error| damaged(&error))?;
        arrays.sort_unstable_by_key(|(_, info)| info.data_offsets);
        let num_arrays = arrays.len();
        let metadata = Metadata::new(None, arrays).map_err(|error| damaged(&error))?;
        if metadata.data_len() as u64 != data_bytes {
            fail!(
                Checkpoint,
                "the header describes {} bytes of data, but there are {data_bytes}: cut short, or damaged",
                metadata.data_len()
            );
        }
        let Some(description) = &strings.mofo else {
            fail!(
                Checkpoint,
                "a safetensors file, but not a checkpoint of mofo: its metadata has no \"mofo\""
            );
        };
        let found = crc32_of(description);
        if strings.mofo_crc32.as_ref() != Some(&found) {
            fail!(
                Checkpoint,
                "the description is damaged: its CRC-32 is {found}, and should be what \"mofo_crc32\" says"
            );
        }
        let description = Description::parse(description)?;
        Ok(Self {
            metadata,
            num_arrays,
            description,
        })
    }

    pub(super) fn description(&self) -> &Description<'static> {
        &self.description
    }

    /// How many arrays there are.
    pub(super) fn num_arrays(&self) -> usize {
        self.num_arrays
    }

    /// Where an array of a tensor begins, from the start of the data.
    pub(super) fn offset_of(&self, entry: &Entry<'_>, part: Part) -> Result<u64> {
        let key = part.key(&entry.name);
        let Some(info) = self.metadata.info(&key) else {
            fail!(Checkpoint, "the array \"{key}\" is missing");
        };
        let expected = dtype_of(part, self.description.state_dtype);
        if info.dtype != expected || info.shape != [entry.numel as usize] {
            fail!(
                Checkpoint,
                "the array \"{key}\" is {} of shape {:?}; it must be {expected} of shape [{}]",
                info.dtype,
                info.shape,
                entry.numel
            );
        }
        Ok(info.data_offsets.0 as u64)
    }
}

impl Description<'static> {
    fn parse(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u64,
        }

        let damaged = |error| bad(format_args!("the description is not understood: {error}"));
        let Version { format_version } = serde_json::from_str(json).map_err(damaged)?;
        if format_version != FORMAT_VERSION {
            fail!(
                Checkpoint,
                "the checkpoint's format_version is {format_version}; this library reads {FORMAT_VERSION}"
            );
        }
        serde_json::from_str(json).map_err(damaged)
    }
}

/// In eight digits.
fn crc32_of(description: &str) -> String {
    format!("{:08x}", crc32fast::hash(description.as_bytes()))
}

/// A header of tensors with these names is never longer.
pub(super) fn longest_header<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    const OF_THE_FILE: u64 = 1 << 16;
    const OF_A_TENSOR: u64 = 4096;
    // The name stands there four times, and as JSON in JSON a byte of it takes up to 7.
    const OF_A_BYTE_OF_A_NAME: u64 = 4 * 7;
    let bytes = names.map(|name| OF_A_TENSOR + OF_A_BYTE_OF_A_NAME * name.len() as u64);
    OF_THE_FILE + bytes.sum::<u64>()
}

/// Asks for memory, and gives it back: what writes and reads JSON has no way to report that there is not enough.
fn reserve(bytes: u64) -> Result<()> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let memory: Vec<u8> = try_with_capacity(bytes, "the checkpoint's header")?;
    // Else the compiler may find that nobody needs it.
    std::hint::black_box(&memory);
    Ok(())
}

fn dtype_of(part: Part, state_dtype: StateDtype) -> Dtype {
    match (part, state_dtype) {
        (Part::Master, _) | (_, StateDtype::F32) => Dtype::F32,
        (_, StateDtype::BF16) => Dtype::BF16,
    }
}

fn bad(message: fmt::Arguments<'_>) -> Error {
    Error::new(ErrorKind::Checkpoint, message)
}

fn internal(error: serde_json::Error) -> Error {
    Error::new(
        ErrorKind::Internal,
        format_args!("the checkpoint's header: {error}"),
    )
}
