//! Checkpoints: training that was interrupted goes on with the bits of the rule, the file is what docs/checkpoints.md says,
//! and nothing that is wrong with one does any harm.

mod harness;

use std::ffi::c_void;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use harness::case::Case;
use harness::data::{Rng, Tensor};
use harness::places::places;
use mofo::{
    Buffers, Dtype, ErrorKind, Filter, Optimizer, Options, Rounding, StateDtype, StepArgs,
    TensorBinding, TensorSpec,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

#[test]
fn training_goes_on_with_the_same_bits_in_every_combination_of_types_and_from_place_to_place() {
    let mut combinations = 0;
    for param in DTYPES {
        for state_dtype in [StateDtype::F32, StateDtype::BF16] {
            for master_weights in [false, true] {
                for (filter, update_fraction) in [
                    (Filter::Momentum, 0.07),
                    (Filter::Random, 0.07),
                    (Filter::Momentum, 1.0),
                ] {
                    for rounding in [Rounding::Nearest, Rounding::Stochastic] {
                        combinations += 1;
                        let mut stacked =
                            Tensor::random("stacked", 4 * 333, param, Dtype::F32, combinations);
                        stacked.num_blocks = 4;
                        stacked.update_fraction = Some(0.2);
                        let odd = Tensor::random("odd", 4097, param, param, 1000 + combinations);
                        Case {
                            options: Options {
                                state_dtype,
                                master_weights,
                                filter,
                                update_fraction,
                                rounding,
                                weight_decay: 0.1,
                                learning_rate: 0.02,
                                seed: 0xFEDC_BA98_7654_3210,
                                num_threads: 2,
                                ..Options::default()
                            },
                            tensors: vec![stacked, odd],
                            steps: 2 * places().len() + 1,
                            resume_in: places().to_vec(),
                            ..Case::default()
                        }
                        .check();
                    }
                }
            }
        }
    }
    assert_eq!(combinations, 3 * 2 * 2 * 3 * 2);
}

#[test]
fn large_tensors_go_through_in_pieces() {
    for (param, state_dtype) in [
        (Dtype::F32, StateDtype::F32),
        (Dtype::BF16, StateDtype::BF16),
    ] {
        Case {
            options: Options {
                state_dtype,
                master_weights: true,
                max_grad_norm: 1.0,
                ..Options::default()
            },
            // Of moments: more than a piece, and a piece exactly.
            tensors: vec![
                Tensor::random("large", 1_300_001, param, Dtype::BF16, 1),
                Tensor::random(
                    "piece",
                    (1 << 20) / state_dtype.size(),
                    param,
                    Dtype::BF16,
                    2,
                ),
            ],
            steps: places().len() + 1,
            resume_in: places().to_vec(),
            ..Case::default()
        }
        .check();
    }
}

/// An optimizer with three tensors, one of which has seen no step.
struct Small {
    optimizer: Optimizer,
    params: [Vec<half::bf16>; 2],
}

const NAMES: [&str; 3] = [
    "blk.0.attn_q",
    "blk.0 \"ffn\"\n\u{1F33B}",
    "output\\ \u{1} weight",
];
const NUMELS: [usize; 3] = [37, 8, 5];

fn options() -> Options {
    Options {
        state_dtype: StateDtype::BF16,
        master_weights: true,
        seed: u64::MAX - 1,
        learning_rate: 0.1,
        num_threads: 1,
        ..Options::default()
    }
}

fn spec(i: usize) -> TensorSpec<'static> {
    TensorSpec {
        param_dtype: Dtype::BF16,
        num_blocks: if i == 1 { 4 } else { 1 },
        update_fraction: (i == 1).then_some(0.25),
        ..TensorSpec::new(NAMES[i], NUMELS[i] as u64)
    }
}

impl Small {
    fn new() -> Self {
        Self::with(options(), [0, 1, 2])
    }

    /// Tensors are added in this order.
    fn with(options: Options, order: [usize; 3]) -> Self {
        let mut optimizer = Optimizer::new(options).unwrap();
        for i in order {
            optimizer.add_tensor(&spec(i)).unwrap();
        }
        Self {
            optimizer,
            params: [0, 1].map(|i| vec![half::bf16::ONE; NUMELS[i]]),
        }
    }

    fn trained() -> Self {
        let mut small = Self::new();
        small.step(1);
        small.step(2);
        small
    }

    /// Steps the first tensor always, the second every other time, the third never.
    fn step(&mut self, seed: u64) {
        self.try_step(seed).unwrap();
    }

    fn try_step(&mut self, seed: u64) -> mofo::Result<()> {
        let mut rng = Rng::new(seed);
        let grads = [0, 1].map(|i| -> Vec<f32> { (0..NUMELS[i]).map(|_| rng.normal()).collect() });
        let optimizer = &self.optimizer;
        let indices = [0, 1].map(|i| optimizer.find_tensor(NAMES[i]).unwrap());
        let mut bindings = Vec::new();
        for (i, (param, grad)) in self.params.iter_mut().zip(&grads).enumerate() {
            if i == 0 || seed.is_multiple_of(2) {
                bindings.push(TensorBinding::new(indices[i], param, grad));
            }
        }
        self.optimizer
            .step(&StepArgs::default(), &mut bindings)
            .map(drop)
    }

    fn save(&self) -> Vec<u8> {
        let mut checkpoint = Cursor::new(Vec::new());
        self.optimizer.save_to(&mut checkpoint).unwrap();
        checkpoint.into_inner()
    }

    fn load(&mut self, checkpoint: &[u8]) -> mofo::Result<()> {
        self.optimizer.load_from(&mut Cursor::new(checkpoint))
    }
}

/// Splits a checkpoint into its header and its data.
fn split(checkpoint: &[u8]) -> (Value, &[u8]) {
    let (length, rest) = checkpoint.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (header, data) = rest.split_at(length);
    (serde_json::from_slice(header).unwrap(), data)
}

fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    let mut checkpoint = (header.len() as u64).to_le_bytes().to_vec();
    checkpoint.extend_from_slice(&header);
    checkpoint.extend_from_slice(data);
    checkpoint
}

fn description(header: &Value) -> Value {
    serde_json::from_str(header["__metadata__"]["mofo"].as_str().unwrap()).unwrap()
}

/// Puts another description into a header, with its checksum.
fn describe(header: &mut Value, description: &Value) {
    let text = description.to_string();
    let crc32 = format!("{:08x}", crc32fast::hash(text.as_bytes()));
    header["__metadata__"] = json!({ "mofo": text, "mofo_crc32": crc32 });
}

#[test]
fn the_file_is_what_the_documentation_says() {
    let small = Small::trained();
    let checkpoint = small.save();
    assert_eq!(
        checkpoint.len() as u64,
        small.optimizer.save_size().unwrap()
    );
    let (header, data) = split(&checkpoint);
    assert_eq!(
        (checkpoint.len() - data.len()) % 8,
        0,
        "the data is aligned"
    );
    let description = description(&header);
    let mut expected = json!({
        "format_version": 1,
        "library_version": env!("CARGO_PKG_VERSION"),
        "seed": u64::MAX - 1,
        "state_dtype": "BF16",
        "options": {
            "learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0,
            "weight_decay_scope": "selected", "update_fraction": 0.1, "filter": "momentum",
            "master_weights": true, "rounding": "stochastic", "max_grad_norm": 0.0, "skip_nonfinite": false,
        },
        "tensors": [],
    });
    let tensors = SafeTensors::deserialize(&checkpoint).unwrap();
    assert_eq!(tensors.len(), 6);
    for (i, step_count) in [2, 1, 0].into_iter().enumerate() {
        let mut hasher = crc32fast::Hasher::new();
        let state = small.optimizer.tensor_state(i as u64).unwrap();
        for (part, dtype, size, pointer) in [
            ("exp_avg", safetensors::Dtype::BF16, 2, state.exp_avg),
            ("exp_avg_sq", safetensors::Dtype::BF16, 2, state.exp_avg_sq),
            ("master", safetensors::Dtype::F32, 4, state.master.cast()),
        ] {
            let array = tensors.tensor(&format!("{}.{part}", NAMES[i]));
            if step_count == 0 {
                array.unwrap_err();
                continue;
            }
            let array = array.unwrap();
            assert_eq!(array.dtype(), dtype);
            assert_eq!(array.shape(), [NUMELS[i]]);
            // SAFETY: the optimizer's own state, of so many elements of this size.
            let bytes =
                unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), size * NUMELS[i]) };
            assert_eq!(array.data(), bytes);
            let offset = array.data().as_ptr() as usize - checkpoint.as_ptr() as usize;
            assert_eq!(offset % size, 0, "{part} is aligned");
            hasher.update(bytes);
        }
        expected["tensors"].as_array_mut().unwrap().push(json!({
            "name": NAMES[i], "numel": NUMELS[i], "step_count": step_count, "master": step_count > 0,
            "crc32": hasher.finalize(), "num_blocks": if i == 1 { 4 } else { 1 }, "param_dtype": "BF16",
            "update_fraction": if i == 1 { json!(0.25) } else { Value::Null }, "weight_decay": null,
            "learning_rate_scale": 1.0,
        }));
    }
    assert_eq!(description, expected);
    let text = header["__metadata__"]["mofo"].as_str().unwrap();
    assert_eq!(
        header["__metadata__"]["mofo_crc32"],
        format!("{:08x}", crc32fast::hash(text.as_bytes()))
    );
}

#[test]
fn the_same_state_gives_the_same_file_in_whichever_order_it_was_loaded() {
    let mut one = Small::trained();
    let checkpoint = one.save();
    assert_eq!(checkpoint, one.save());
    let other_seed = Options {
        seed: 3,
        ..options()
    };
    let mut other = Small::with(other_seed, [2, 0, 1]);
    other.params = one.params.clone();
    other.load(&checkpoint).unwrap();
    for seed in 3..9 {
        one.step(seed);
        other.step(seed);
        assert_eq!(one.params, other.params, "after step {seed}");
    }
    // Loaded back, it is the same file.
    let mut back = Small::new();
    back.load(&other.save()).unwrap();
    assert_eq!(back.save(), one.save());
}

#[test]
fn arrays_may_be_in_any_order_and_unknown_keys_are_ignored() {
    let trained = Small::trained();
    let checkpoint = trained.save();
    let (header, _) = split(&checkpoint);
    let mut described = description(&header);
    described["future"] = json!([1, 2, {"x": null}]);
    described["tensors"][0]["note"] = json!("more");
    described["options"] = json!(7);
    described["tensors"].as_array_mut().unwrap().reverse();

    let mut reordered = json!({});
    let mut data = Vec::new();
    let tensors = SafeTensors::deserialize(&checkpoint).unwrap();
    let mut names = tensors.names();
    names.sort_unstable_by_key(|name| std::cmp::Reverse(name.len()));
    for name in names {
        let array = tensors.tensor(name).unwrap();
        let start = data.len();
        data.extend_from_slice(array.data());
        reordered[name] = json!({
            "dtype": array.dtype().to_string(), "shape": array.shape(), "data_offsets": [start, data.len()],
        });
    }
    describe(&mut reordered, &described);
    let mut loaded = Small::new();
    loaded.load(&join(&reordered, &data)).unwrap();
    assert_eq!(loaded.save(), checkpoint);
}

/// That loading fails with a text that has this part, and changes nothing.
#[track_caller]
fn refused(checkpoint: &[u8], part: &str) {
    let mut small = Small::trained();
    small.step(7);
    let before = small.save();
    let error = small.load(checkpoint).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    assert!(
        error.message().contains(part),
        "\"{error}\" has no \"{part}\""
    );
    assert_eq!(small.save(), before, "nothing has changed");
    let mut twin = Small::trained();
    twin.step(7);
    twin.step(8);
    small.step(8);
    assert_eq!(small.params, twin.params, "the next step is the same");
}

#[test]
fn every_flipped_bit_is_found() {
    let checkpoint = Small::trained().save();
    let mut small = Small::trained();
    small.step(7);
    let before = small.save();
    for bit in 0..8 * checkpoint.len() {
        let mut damaged = checkpoint.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = small.load(&damaged).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "bit {bit}: {error}");
        assert_eq!(small.save(), before, "bit {bit}");
    }
}

#[test]
fn every_truncation_is_found() {
    let checkpoint = Small::trained().save();
    let mut small = Small::trained();
    for length in 0..checkpoint.len() {
        let error = small.load(&checkpoint[..length]).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Checkpoint,
            "{length} bytes: {error}"
        );
    }
    let mut longer = checkpoint.clone();
    longer.push(0);
    refused(&longer, "bytes of data");
    assert_eq!(small.save(), checkpoint);
}

/// Changes a header, and the description in it.
type Change<'a> = &'a dyn Fn(&mut Value, &mut Value);

#[test]
fn checkpoints_of_other_tensors_are_refused() {
    let checkpoint = Small::trained().save();
    let (header, data) = split(&checkpoint);
    let described = description(&header);
    let with = |change: Change<'_>| {
        let (mut header, mut described) = (header.clone(), described.clone());
        change(&mut header, &mut described);
        describe(&mut header, &described);
        join(&header, data)
    };
    let as_it_is = with(&|_, _| ());
    Small::new().load(&as_it_is).unwrap();

    let second = format!("{}.exp_avg", NAMES[1]);
    let cases: &[(&str, Change<'_>)] = &[
        ("format_version is 2", &|_, d| {
            d["format_version"] = json!(2)
        }),
        ("not understood", &|_, d| d["format_version"] = json!("1")),
        ("not understood", &|_, d| d["seed"] = json!(-1)),
        ("not understood", &|_, d| d["tensors"] = json!({})),
        ("state_dtype", &|_, d| {
            d.as_object_mut().unwrap().remove("state_dtype");
        }),
        ("not understood", &|_, d| {
            d["tensors"][0]["step_count"] = json!(1.5);
        }),
        ("2^63 - 1", &|_, d| {
            d["tensors"][0]["step_count"] = json!(1u64 << 63)
        }),
        ("moments are F32", &|_, d| d["state_dtype"] = json!("F32")),
        ("\"other\", which the optimizer has not", &|_, d| {
            d["tensors"][0]["name"] = json!("other");
        }),
        ("it has no tensor \"output", &|_, d| {
            d["tensors"].as_array_mut().unwrap().pop();
        }),
        ("\"other\", which the optimizer has not", &|_, d| {
            let mut more = d["tensors"][2].clone();
            more["name"] = json!("other");
            d["tensors"].as_array_mut().unwrap().push(more);
        }),
        ("is there twice", &|_, d| {
            let again = d["tensors"][2].clone();
            d["tensors"].as_array_mut().unwrap().push(again);
        }),
        ("38 entries", &|_, d| d["tensors"][0]["numel"] = json!(38)),
        ("has 6 arrays; those of its tensors are 5", &|_, d| {
            d["tensors"][0]["master"] = json!(false)
        }),
        ("\"output\\ \u{1} weight.exp_avg\" is missing", &|_, d| {
            d["tensors"][2]["step_count"] = json!(1)
        }),
        ("before the first step", &|_, d| {
            d["tensors"][0]["step_count"] = json!(0)
        }),
        ("CRC-32", &|_, d| d["tensors"][1]["crc32"] = json!(0)),
        ("it must be BF16 of shape [8]", &|h, _| {
            h[&second]["dtype"] = json!("F16")
        }),
        ("it must be BF16 of shape [8]", &|h, _| {
            h[&second]["shape"] = json!([4, 2])
        }),
    ];
    for &(part, change) in cases {
        refused(&with(change), part);
    }

    refused(&join(&json!({}), b""), "not a checkpoint of mofo");
    let mut undescribed = header.clone();
    undescribed["__metadata__"]
        .as_object_mut()
        .unwrap()
        .remove("mofo_crc32");
    refused(&join(&undescribed, data), "description is damaged");
}

#[test]
fn hostile_headers_are_refused() {
    let checkpoint = Small::trained().save();
    let (header, data) = split(&checkpoint);
    for length in [u64::MAX, 1 << 63, 1 << 40, checkpoint.len() as u64 - 7] {
        let mut longer = checkpoint.clone();
        longer[..8].copy_from_slice(&length.to_le_bytes());
        refused(&longer, "header should be");
    }
    // More than these tensors can have, though it is all there.
    let mut huge = header.clone();
    huge["__metadata__"]["padding"] = json!("x".repeat(2 << 20));
    refused(&join(&huge, data), "header should be");

    let raw = |json: &[u8]| {
        let mut checkpoint = (json.len() as u64).to_le_bytes().to_vec();
        checkpoint.extend_from_slice(json);
        checkpoint
    };
    refused(&raw("[".repeat(50_000).as_bytes()), "header is damaged");
    let deep = format!("{{\"a\":{}", "{\"a\":".repeat(10_000));
    refused(&raw(deep.as_bytes()), "header is damaged");
    refused(&raw(b"{\"\xFF\": 1}"), "header is damaged");
    refused(&raw(b""), "header is damaged");
    for info in [
        json!({"dtype": "BF16", "shape": [u64::MAX, u64::MAX], "data_offsets": [0, 74]}),
        json!({"dtype": "BF16", "shape": [37], "data_offsets": [u64::MAX, 74]}),
        json!({"dtype": "BF16", "shape": [37], "data_offsets": [74, 0]}),
        json!({"dtype": "BF16", "shape": [-37], "data_offsets": [0, 74]}),
        json!({"dtype": "F99", "shape": [37], "data_offsets": [0, 74]}),
        json!(3),
    ] {
        let mut hostile = header.clone();
        hostile[format!("{}.exp_avg", NAMES[0])] = info;
        refused(&join(&hostile, data), "header is damaged");
    }
    // Two arrays in one place.
    let mut overlapping = header.clone();
    overlapping[format!("{}.exp_avg", NAMES[0])] =
        header[format!("{}.exp_avg_sq", NAMES[0])].clone();
    refused(&join(&overlapping, data), "header is damaged");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_gets_through(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let checkpoint = Small::trained().save();
        let mut damaged = checkpoint.clone();
        for (place, byte) in changes {
            let place = place.index(damaged.len());
            damaged[place] = byte;
        }
        if let Some(cut) = cut {
            damaged.truncate(cut.index(damaged.len()));
        }
        let mut small = Small::new();
        let before = small.save();
        match small.load(&damaged) {
            Ok(()) => prop_assert_eq!(small.save(), checkpoint),
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::Checkpoint);
                prop_assert_eq!(small.save(), before);
            }
        }
    }
}

#[test]
fn masters_are_taken_where_both_have_them_and_start_from_the_parameter_where_the_file_has_none() {
    let trained = Small::trained();
    let without = Options {
        master_weights: false,
        ..options()
    };
    let mut bare = Small::with(without.clone(), [0, 1, 2]);
    let error = bare.load(&trained.save()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint);
    assert!(error.message().contains("master"), "{error}");

    bare.step(1);
    let mut small = Small::trained();
    small.params = bare.params.clone();
    small.load(&bare.save()).unwrap();
    let saved = description(&split(&small.save()).0);
    assert_eq!(saved["tensors"][0]["master"], false);
    // The old master would have shown through.
    let params = small.params.clone();
    small.step(3);
    let state = small.optimizer.tensor_state(0).unwrap();
    // SAFETY: the tensor has a master copy of so many elements.
    let master = unsafe { std::slice::from_raw_parts(state.master, NUMELS[0]) };
    let still: Vec<_> = (0..NUMELS[0])
        .filter(|&i| small.params[0][i] == params[0][i])
        .collect();
    assert!(still.len() > NUMELS[0] / 2);
    for i in still {
        assert_eq!(master[i], params[0][i].to_f32());
    }
}

#[test]
fn a_checkpoint_may_be_a_part_of_a_larger_file() {
    let small = Small::trained();
    let mut file = Cursor::new(b"the engine's own header".to_vec());
    let start = file.seek(SeekFrom::End(0)).unwrap();
    let bytes = small.optimizer.save_to(&mut file).unwrap();
    assert_eq!(
        file.position(),
        start + bytes,
        "the sink is behind what was written"
    );
    assert_eq!(file.get_ref().len() as u64, start + bytes);
    file.set_position(start);
    let mut loaded = Small::new();
    loaded.optimizer.load_from(&mut file).unwrap();
    assert_eq!(loaded.save(), small.save());
}

/// A file of which the n-th operation fails.
struct Failing {
    file: Cursor<Vec<u8>>,
    until_failure: usize,
}

impl Failing {
    fn tick(&mut self) -> io::Result<()> {
        if self.until_failure == 0 {
            return Err(io::Error::other("the disk is on fire"));
        }
        self.until_failure -= 1;
        Ok(())
    }
}

impl Read for Failing {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.tick()?;
        self.file.read(bytes)
    }
}

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tick()?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tick()
    }
}

impl Seek for Failing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.tick()?;
        self.file.seek(to)
    }
}

#[test]
fn an_operation_that_fails_is_reported_and_half_a_state_is_never_used() {
    let checkpoint = Small::trained().save();
    let (mut untouched, mut lost) = (0, 0);
    for until_failure in 0.. {
        let mut small = Small::new();
        small.step(2);
        let before = small.save();
        let mut source = Failing {
            file: Cursor::new(checkpoint.clone()),
            until_failure,
        };
        let Err(error) = small.optimizer.load_from(&mut source) else {
            assert_eq!(small.save(), checkpoint);
            break;
        };
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.message().contains("on fire"), "{error}");
        match small.optimizer.save_size() {
            Ok(_) => {
                assert_eq!(small.save(), before);
                untouched += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidState);
                assert_eq!(
                    small.try_step(4).unwrap_err().kind(),
                    ErrorKind::InvalidState
                );
                small.load(&checkpoint[..100]).unwrap_err();
                small.optimizer.save_size().unwrap_err();
                small.load(&checkpoint).unwrap();
                assert_eq!(small.save(), checkpoint);
                small.step(4);
                lost += 1;
            }
        }
    }
    // To find the size; then length, header and six arrays, each a seek and a read; then the arrays again.
    assert_eq!((untouched, lost), (2 + 4 + 12, 12));

    for until_failure in 0.. {
        let small = Small::trained();
        let mut sink = Failing {
            file: Cursor::new(Vec::new()),
            until_failure,
        };
        match small.optimizer.save_to(&mut sink) {
            Ok(_) => {
                assert_eq!(sink.file.get_ref(), &checkpoint);
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Io),
        }
        assert_eq!(small.save(), checkpoint);
    }
}

#[test]
fn a_part_of_a_state_does_not_mend_one_that_was_lost() {
    let whole = Small::trained();
    let mut part = Optimizer::new(options()).unwrap();
    part.add_tensor(&TensorSpec::new(NAMES[2], NUMELS[2] as u64))
        .unwrap();
    let mut of_one = Cursor::new(Vec::new());
    part.save_to(&mut of_one).unwrap();
    of_one.set_position(0);

    let mut small = Small::new();
    let found = small.optimizer.load_partial_from(&mut of_one.clone());
    let found = found.unwrap();
    assert_eq!((found.loaded.len(), found.missing.len()), (1, 2));
    assert!(found.ignored.is_empty());
    let mut all = Cursor::new(whole.save());
    let found = part.load_partial_from(&mut all).unwrap();
    assert_eq!(found.ignored, NAMES[..2]);

    // It breaks off in the second reading.
    let mut source = Failing {
        file: all.clone(),
        until_failure: 2 + 4 + 12 + 3,
    };
    source.file.set_position(0);
    small.optimizer.load_partial_from(&mut source).unwrap_err();
    let error = small.optimizer.load_partial_from(&mut of_one).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
    assert!(error.message().contains(&format!("\"{}\"", NAMES[0])));
    small.optimizer.save_size().unwrap_err();
    all.set_position(0);
    small.optimizer.load_partial_from(&mut all).unwrap();
    assert_eq!(small.save(), whole.save());
}

#[test]
fn what_changes_between_the_two_readings_is_noticed() {
    /// Another disk after the first reading.
    struct Changing {
        file: Cursor<Vec<u8>>,
        reads: usize,
    }
    impl Read for Changing {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.reads += 1;
            let count = self.file.read(bytes)?;
            // Length, header, six arrays; then the first array again.
            if self.reads == 2 + 6 + 1 {
                bytes[0] ^= 1;
            }
            Ok(count)
        }
    }
    impl Seek for Changing {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.file.seek(to)
        }
    }
    let checkpoint = Small::trained().save();
    let mut small = Small::new();
    let mut source = Changing {
        file: Cursor::new(checkpoint.clone()),
        reads: 0,
    };
    let error = small.optimizer.load_from(&mut source).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint);
    assert_eq!(
        small.try_step(1).unwrap_err().kind(),
        ErrorKind::InvalidState
    );
    small.load(&checkpoint).unwrap();
    small.step(1);
}

#[test]
fn state_in_the_callers_memory_is_saved_and_loaded_there() {
    let checkpoint = Small::trained().save();
    let mut optimizer = Optimizer::new(options()).unwrap();
    let mut memory: Vec<[Vec<u32>; 3]> = NUMELS
        .iter()
        .map(|&numel| [vec![7; numel], vec![7; numel], vec![7; numel]])
        .collect();
    for (i, [m, v, master]) in memory.iter_mut().enumerate() {
        let buffers = Buffers {
            exp_avg: m.as_mut_ptr().cast::<c_void>(),
            exp_avg_sq: v.as_mut_ptr().cast(),
            master: master.as_mut_ptr().cast(),
            ..Buffers::default()
        };
        // SAFETY: the buffers are large enough, and live as long as the optimizer.
        unsafe { optimizer.add_tensor_with_buffers(&spec(i), buffers) }.unwrap();
    }
    optimizer.load_from(&mut Cursor::new(&checkpoint)).unwrap();
    let mut saved = Cursor::new(Vec::new());
    optimizer.save_to(&mut saved).unwrap();
    assert_eq!(saved.get_ref(), &checkpoint);
    drop(optimizer);
    assert_eq!(
        memory[2],
        [vec![7; 5], vec![7; 5], vec![7; 5]],
        "a tensor without steps is left alone"
    );
    assert_ne!(memory[0][0][0], 7);
    assert_eq!(
        memory[0][0][19..],
        vec![7; 37 - 19],
        "37 moments of 16 bits"
    );
}

#[test]
fn a_file_replaces_the_old_one_and_nothing_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let mut small = Small::new();
    for seed in 0..3 {
        small.step(seed);
        small.optimizer.save(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), small.save());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    let mut loaded = Small::new();
    loaded.optimizer.load(&path).unwrap();
    assert_eq!(loaded.save(), small.save());

    let missing = folder.path().join("none").join("x");
    for error in [
        small.optimizer.save(&missing).unwrap_err(),
        small.optimizer.load(&missing).unwrap_err(),
        small.optimizer.save(folder.path()).unwrap_err(),
        small.optimizer.load(folder.path()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(
            error.message().contains(folder.path().to_str().unwrap()),
            "{error}"
        );
    }
    std::fs::write(&path, b"not a checkpoint").unwrap();
    let error = loaded.optimizer.load(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint);
    assert!(
        error.message().starts_with(path.to_str().unwrap()),
        "{error}"
    );
}
