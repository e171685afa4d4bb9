//! The loader of checkpoints, given files whose checksums are right.
//!
//! An input is a byte of settings and then the parts of a file, with a zero byte between them: the description (the JSON that
//! stands as a string in the metadata, here as it is), the JSON of the arrays, the data. Or, as the settings say, a whole file.
//! So the fuzzer works on plain JSON, and gets past the checksums.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use mofo::{Dtype, ErrorKind, Optimizer, Options, StateDtype, StepArgs, TensorBinding, TensorSpec};
use serde_json::{Map, Value, json};

/// The tensors of the optimizer that loads.
const TENSORS: [(&str, u64, Dtype); 4] = [
    ("a", 8, Dtype::F32),
    ("b", 5, Dtype::BF16),
    ("empty", 0, Dtype::F32),
    ("never", 3, Dtype::F16),
];

/// What the first byte says.
struct Settings {
    whole_file: bool,
    partial: bool,
    options: Options,
    mends_data: bool,
}

impl Settings {
    fn new(byte: u8) -> Self {
        let is_set = |bit: u8| byte >> bit & 1 == 1;
        Self {
            whole_file: is_set(0),
            partial: is_set(1),
            options: Options {
                state_dtype: if is_set(2) {
                    StateDtype::BF16
                } else {
                    StateDtype::F32
                },
                master_weights: is_set(3),
                num_threads: 1,
                ..Options::default()
            },
            mends_data: !is_set(4),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&byte, rest)) = input.split_first() else {
        return;
    };
    let settings = Settings::new(byte);
    let file = if settings.whole_file {
        rest.to_vec()
    } else {
        assemble(rest, settings.mends_data)
    };

    let mut optimizer = stepped(&settings.options);
    let before = saved(&optimizer);
    let mut source = Cursor::new(&file);
    let loaded = if settings.partial {
        optimizer.load_partial_from(&mut source).map(|report| {
            assert_eq!(report.loaded.len() + report.missing.len(), TENSORS.len());
        })
    } else {
        optimizer.load_from(&mut source)
    };
    match loaded {
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Internal, "{error}");
            // Not `assert_eq!`, which would print both.
            assert!(saved(&optimizer) == before, "changed by: {error}");
        }
        Ok(()) => {
            // What was taken is whole: it is saved, loaded again, and stepped.
            let after = saved(&optimizer);
            let mut second = empty(&settings.options);
            second.load_from(&mut Cursor::new(&after)).unwrap();
            assert!(saved(&second) == after);
            // A counter at its end is an error.
            let _ = step(&mut optimizer);
        }
    }
});

fn empty(options: &Options) -> Optimizer {
    let mut optimizer = Optimizer::new(options.clone()).unwrap();
    for (name, numel, param_dtype) in TENSORS {
        let spec = TensorSpec {
            param_dtype,
            ..TensorSpec::new(name, numel)
        };
        optimizer.add_tensor(&spec).unwrap();
    }
    optimizer
}

/// With a state that a load may not change unless it succeeds.
fn stepped(options: &Options) -> Optimizer {
    let mut optimizer = empty(options);
    step(&mut optimizer).unwrap();
    optimizer
}

/// Steps all but the last tensor.
fn step(optimizer: &mut Optimizer) -> mofo::Result<()> {
    let mut a = [1.0f32; 8];
    let mut b = [half::bf16::ONE; 5];
    let grads = [0.5f32; 8];
    let mut bindings = [
        TensorBinding::new(0, &mut a[..], &grads[..]),
        TensorBinding::new(1, &mut b[..], &grads[..5]),
        TensorBinding::new(2, &mut [0.0f32; 0][..], &grads[..0]),
    ];
    optimizer
        .step(&StepArgs::default(), &mut bindings)
        .map(drop)
}

fn saved(optimizer: &Optimizer) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    optimizer.save_to(&mut file).unwrap();
    file.into_inner()
}

/// A file of these parts.
fn assemble(parts: &[u8], mends_data: bool) -> Vec<u8> {
    let mut parts = parts.splitn(3, |&byte| byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (description, arrays, data) = (part(), part(), part());
    let description = String::from_utf8_lossy(description);
    let arrays: Map<String, Value> = serde_json::from_slice(arrays).unwrap_or_default();
    let description = match serde_json::from_str(&description) {
        Ok(mut value) if mends_data => {
            mend(&mut value, &arrays, data);
            value.to_string()
        }
        _ => description.into_owned(),
    };

    let mut header = Map::new();
    let crc32 = format!("{:08x}", crc32fast::hash(description.as_bytes()));
    header.insert(
        "__metadata__".into(),
        json!({"mofo": description, "mofo_crc32": crc32}),
    );
    header.extend(arrays);
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// Sets the checksums of the tensors to those of their data, as far as it is there.
fn mend(description: &mut Value, arrays: &Map<String, Value>, data: &[u8]) {
    let Some(tensors) = description.get_mut("tensors").and_then(Value::as_array_mut) else {
        return;
    };
    for tensor in tensors {
        let Some(name) = tensor.get("name").and_then(Value::as_str) else {
            continue;
        };
        let mut hasher = crc32fast::Hasher::new();
        for part in ["exp_avg", "exp_avg_sq", "master"] {
            let offsets = arrays
                .get(&format!("{name}.{part}"))
                .and_then(|array| array.get("data_offsets"));
            let offset = |i: usize| offsets?.get(i)?.as_u64();
            if let (Some(start), Some(end)) = (offset(0), offset(1)) {
                hasher.update(data.get(start as usize..end as usize).unwrap_or_default());
            }
        }
        if let Some(tensor) = tensor.as_object_mut() {
            tensor.insert("crc32".into(), hasher.finalize().into());
        }
    }
}
