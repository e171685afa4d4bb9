//! Every vector of `tests/reference` through the C API, bit for bit, in every CPU tier.

mod harness;

use std::collections::BTreeSet;

use harness::c_api::{self, CallerState, Elements, Optimizer};
use harness::device;
use harness::places::tiers;
use harness::vectors::{Computed, File, double, dtype, table};
use mofo::CpuTier;
use mofo::ffi::*;
use serde_json::Value;

#[test]
fn one_thread_gives_the_bits_of_the_reference_in_every_tier() {
    run_all(MOFO_DEVICE_CPU, MOFO_CPU_TIER_BEST, 1);
    for tier in tiers() {
        let tier = match tier {
            CpuTier::Portable => MOFO_CPU_TIER_PORTABLE,
            CpuTier::Avx2 => MOFO_CPU_TIER_AVX2,
            CpuTier::Avx512 => MOFO_CPU_TIER_AVX512,
        };
        run_all(MOFO_DEVICE_CPU, tier, 1);
    }
}

#[test]
fn several_threads_give_the_bits_of_the_reference() {
    for num_threads in [0, 2, 5] {
        run_all(MOFO_DEVICE_CPU, MOFO_CPU_TIER_BEST, num_threads);
    }
}

#[test]
fn cuda_gives_the_bits_of_the_reference() {
    if device::is_here() {
        run_all(MOFO_DEVICE_CUDA, MOFO_CPU_TIER_BEST, 0);
    }
}

/// What a set of vectors that lost some of its files would lack.
#[test]
fn the_vectors_cover_every_setting_and_outcome() {
    let mut seen = BTreeSet::new();
    let files = File::all("reference/vectors");
    assert!(files.len() >= 90, "{} cases", files.len());
    for file in &files {
        let options = &file.case["options"];
        for what in ["filter", "state_dtype", "weight_decay_scope", "rounding"] {
            seen.insert(format!("{what} {}", text(&options[what])));
        }
        for tensor in array(&file.case["tensors"]) {
            for what in ["param_dtype", "grad_dtype"] {
                seen.insert(format!("{what} {}", text(&tensor[what])));
            }
        }
        for step in array(&file.case["steps"]) {
            seen.insert(text(&step["expect"]["status"]).to_owned());
        }
    }
    for expected in [
        "filter momentum",
        "filter gradient",
        "filter update",
        "filter random",
        "state_dtype f32",
        "state_dtype bf16",
        "weight_decay_scope selected",
        "weight_decay_scope all",
        "rounding nearest",
        "rounding stochastic",
        "param_dtype f32",
        "param_dtype f16",
        "param_dtype bf16",
        "grad_dtype f32",
        "grad_dtype f16",
        "grad_dtype bf16",
        "MOFO_OK",
        "MOFO_SKIPPED",
        "MOFO_ERROR_NOT_FINITE",
    ] {
        assert!(seen.contains(expected), "no case has {expected}");
    }
}

#[test]
fn gradient_norms_are_those_of_the_reference() {
    for row in table("reference/vectors/norms.tsv") {
        let count: u32 = row[0].parse().unwrap();
        let numel: usize = row[1].parse().unwrap();
        let grad_dtype = dtype(&row[2]);
        let (seed, exponent): (u32, u32) = (row[3].parse().unwrap(), row[4].parse().unwrap());
        let mut args = c_api::step_args();
        args.grad_scale = row[5].parse().unwrap();
        let expected = u64::from_str_radix(&row[6], 16).unwrap();
        let cuda = device::is_here().then_some((MOFO_DEVICE_CUDA, 0));
        let cpu = [1, 3].map(|num_threads| (MOFO_DEVICE_CPU, num_threads));
        for (device, num_threads) in cpu.into_iter().chain(cuda) {
            let mut options = c_api::options();
            options.device = device;
            options.num_threads = num_threads;
            options.state_dtype = MOFO_DTYPE_BF16;
            let mut optimizer = Optimizer::create(&options).unwrap();
            let mut settings = c_api::tensor();
            (settings.param_dtype, settings.grad_dtype) = (MOFO_DTYPE_BF16, grad_dtype);
            let mut grads = Vec::new();
            for i in 0..count {
                let param = Elements::Half(vec![0; numel]);
                optimizer.add(&i.to_string(), &settings, param, CallerState::default());
                grads.push(Some(
                    Computed::new(seed + i, exponent).elements(numel, grad_dtype),
                ));
            }
            let norm = optimizer.grad_norm(&grads, &args);
            assert!(
                norm.to_bits() == expected,
                "{row:?}, device {device}, {num_threads} threads: {norm:e}, expected {:e}",
                f64::from_bits(expected)
            );
        }
    }
}

#[test]
fn random_bits_are_those_of_the_reference() {
    use mofo::rule::random::{Key, Stream, hash_name};
    for row in table("reference/vectors/random_bits.tsv") {
        let [seed, step, entry]: [u64; 3] = [&row[0], &row[2], &row[4]].map(|x| x.parse().unwrap());
        let stream = match row[3].as_str() {
            "0" => Stream::Moments,
            "1" => Stream::Param,
            "2" => Stream::Filter,
            other => panic!("no stream has the number {other}"),
        };
        let expected = u32::from_str_radix(&row[5], 16).unwrap();
        let found = Key::new(seed, hash_name(&row[1]), step, stream).bits(entry);
        assert!(found == expected, "{row:?}: {found:08x}");
    }
}

#[test]
fn conversions_to_16_bits_are_those_of_the_reference() {
    use mofo::rule::convert;
    for row in table("reference/vectors/rounding.tsv") {
        let hex = |column: usize| u32::from_str_radix(&row[column], 16).unwrap();
        let (x, random) = (f32::from_bits(hex(0)), hex(1));
        let bf16 = vec![
            convert::f32_to_bf16_nearest(x),
            convert::f32_to_bf16_stochastic(x, random),
        ];
        let f16 = vec![
            convert::f32_to_f16_nearest(x),
            convert::f32_to_f16_stochastic(x, random),
        ];
        let bf16 = Elements::Half(bf16).canonical_bits(MOFO_DTYPE_BF16);
        let f16 = Elements::Half(f16).canonical_bits(MOFO_DTYPE_F16);
        assert!(
            bf16 == [hex(2), hex(3)] && f16 == [hex(4), hex(5)],
            "{row:?}: bf16 {bf16:x?}, f16 {f16:x?}"
        );
    }
}

/// Runs every case.
fn run_all(device: i32, tier: i32, num_threads: i32) {
    let files = File::all("reference/vectors");
    assert!(!files.is_empty());
    let mut failures = Vec::new();
    for file in &files {
        let mut options = options(&file.case["options"]);
        options.device = device;
        options.cpu_tier = tier;
        options.num_threads = num_threads;
        let optimizer = Optimizer::create(&options).expect("a tier of this machine");
        if let Err(failure) = run(file, optimizer, options.state_dtype) {
            failures.push(format!("{}, {failure}", file.name));
        }
    }
    assert!(
        failures.is_empty(),
        "device {device}, tier {tier}, {num_threads} threads: {} of {} cases differ\n{}",
        failures.len(),
        files.len(),
        failures.join("\n")
    );
}

/// Runs one case up to its first difference.
fn run(file: &File, mut optimizer: Optimizer, state_dtype: i32) -> Result<(), String> {
    let tensors = array(&file.case["tensors"]);
    let steps = array(&file.case["steps"]);
    assert!(!tensors.is_empty() && !steps.is_empty());
    for spec in tensors {
        add(file, &mut optimizer, spec, state_dtype);
    }
    let mut selected = 0;
    for (t, step) in steps.iter().enumerate() {
        let at = |what: &str| format!("step {}, {what}", t + 1);
        let grads: Vec<Option<Elements>> = array(&step["grads"])
            .iter()
            .zip(tensors)
            .map(|(grad, spec)| file.input(grad, numel(spec), dtype(text(&spec["grad_dtype"]))))
            .collect();
        let args = step_args(&step["args"]);
        let listed: Option<Vec<usize>> = step["args"]["tensors"]
            .as_array()
            .map(|list| list.iter().map(|i| i.as_u64().unwrap() as usize).collect());
        let done = optimizer.step(&grads, &args, listed.as_deref());

        let expect = &step["expect"];
        let status = text(&expect["status"]);
        if done.status != status {
            return Err(at(&format!(
                "{} ({}), expected {status}",
                done.status, done.error
            )));
        }
        if let Some(report) = &done.report {
            compare_report(&expect["report"], report).map_err(|text| at(&text))?;
            selected += report.entries_selected;
        }
        for (i, (spec, expect)) in tensors.iter().zip(array(&expect["tensors"])).enumerate() {
            let at = |what: &str, text: String| at(&format!("{what} of {}: {text}", spec["name"]));
            let state = optimizer.state(i);
            if state.step_count != expect["step_count"].as_u64().unwrap() {
                return Err(at("step_count", state.step_count.to_string()));
            }
            let param_dtype = dtype(text(&spec["param_dtype"]));
            let thresholds = Elements::F32(state.thresholds);
            for (what, found, dtype) in [
                ("exp_avg", Some(&state.exp_avg), state_dtype),
                ("exp_avg_sq", Some(&state.exp_avg_sq), state_dtype),
                ("thresholds", Some(&thresholds), MOFO_DTYPE_F32),
                ("master", state.master.as_ref(), MOFO_DTYPE_F32),
                ("param", Some(optimizer.param(i)), param_dtype),
            ] {
                match (found, &expect[what]) {
                    (None, Value::Null) => {}
                    (Some(_), Value::Null) => return Err(at(what, "not expected".into())),
                    (None, _) => return Err(at(what, "missing".into())),
                    (Some(found), expected) => file
                        .compare(expected, found, dtype)
                        .map_err(|text| at(what, text))?,
                }
            }
        }
    }
    assert!(selected > 0, "{}: nothing moved", file.name);
    Ok(())
}

fn add(file: &File, optimizer: &mut Optimizer, spec: &Value, state_dtype: i32) {
    let numel = numel(spec);
    let mut settings = c_api::tensor();
    settings.num_blocks = spec["num_blocks"].as_u64().unwrap();
    settings.param_dtype = dtype(text(&spec["param_dtype"]));
    settings.grad_dtype = dtype(text(&spec["grad_dtype"]));
    settings.step_count = spec["step_count"].as_u64().unwrap();
    for (setting, value) in [
        (&mut settings.update_fraction, "update_fraction"),
        (&mut settings.weight_decay, "weight_decay"),
        (&mut settings.learning_rate_scale, "learning_rate_scale"),
    ] {
        *setting = double(&spec[value]).unwrap_or(*setting);
    }
    let given = |what: &str, dtype: i32| file.input(&spec[what], numel, dtype);
    let mut state = CallerState {
        exp_avg: given("exp_avg", state_dtype),
        exp_avg_sq: given("exp_avg_sq", state_dtype),
        master: given("master", MOFO_DTYPE_F32),
    };
    if spec["caller_state"].as_bool().unwrap() {
        state.exp_avg = Some(Elements::dirty(numel, state_dtype));
        state.exp_avg_sq = Some(Elements::dirty(numel, state_dtype));
        state.master = (settings.param_dtype != MOFO_DTYPE_F32)
            .then(|| Elements::dirty(numel, MOFO_DTYPE_F32));
    }
    let param = given("param", settings.param_dtype).unwrap();
    optimizer.add(text(&spec["name"]), &settings, param, state);
}

fn options(case: &Value) -> mofo_options {
    let mut options = c_api::options();
    for (option, value) in [
        (&mut options.learning_rate, "learning_rate"),
        (&mut options.beta1, "beta1"),
        (&mut options.beta2, "beta2"),
        (&mut options.epsilon, "epsilon"),
        (&mut options.weight_decay, "weight_decay"),
        (&mut options.update_fraction, "update_fraction"),
        (&mut options.max_grad_norm, "max_grad_norm"),
    ] {
        *option = double(&case[value]).unwrap();
    }
    options.weight_decay_scope = match text(&case["weight_decay_scope"]) {
        "selected" => MOFO_WEIGHT_DECAY_SELECTED,
        "all" => MOFO_WEIGHT_DECAY_ALL,
        other => panic!("no scope is called {other}"),
    };
    options.filter = match text(&case["filter"]) {
        "momentum" => MOFO_FILTER_MOMENTUM,
        "gradient" => MOFO_FILTER_GRADIENT,
        "update" => MOFO_FILTER_UPDATE,
        "random" => MOFO_FILTER_RANDOM,
        other => panic!("no filter is called {other}"),
    };
    options.rounding = match text(&case["rounding"]) {
        "nearest" => MOFO_ROUNDING_NEAREST,
        "stochastic" => MOFO_ROUNDING_STOCHASTIC,
        other => panic!("no rounding is called {other}"),
    };
    options.state_dtype = dtype(text(&case["state_dtype"]));
    options.master_weights = i32::from(case["master_weights"].as_bool().unwrap());
    options.skip_nonfinite = i32::from(case["skip_nonfinite"].as_bool().unwrap());
    options.seed = case["seed"].as_u64().unwrap();
    options
}

fn step_args(case: &Value) -> mofo_step_args {
    let mut args = c_api::step_args();
    for (arg, value) in [
        (&mut args.learning_rate, "learning_rate"),
        (&mut args.update_fraction, "update_fraction"),
        (&mut args.grad_scale, "grad_scale"),
        (&mut args.grad_norm, "grad_norm"),
    ] {
        *arg = double(&case[value]).unwrap_or(*arg);
    }
    args
}

fn compare_report(expected: &Value, found: &mofo_step_report) -> Result<(), String> {
    let norm = double(&expected["grad_norm"]).unwrap_or(MOFO_INHERIT);
    let same_norm =
        found.grad_norm.to_bits() == norm.to_bits() || (found.grad_norm.is_nan() && norm.is_nan());
    let same = same_norm
        && found.entries == expected["entries"].as_u64().unwrap()
        && found.entries_selected == expected["entries_selected"].as_u64().unwrap()
        && (found.skipped == 1) == expected["skipped"].as_bool().unwrap()
        && found.status == found.skipped;
    if same {
        Ok(())
    } else {
        Err(format!(
            "report: grad_norm {:e}, entries {}, entries_selected {}, skipped {}, status {}, expected {expected}",
            found.grad_norm, found.entries, found.entries_selected, found.skipped, found.status
        ))
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn numel(spec: &Value) -> usize {
    usize::try_from(spec["numel"].as_u64().unwrap()).unwrap()
}
