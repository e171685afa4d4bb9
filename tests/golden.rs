//! The golden vectors of `tests/golden`, made with the MoFO authors' code and PyTorch's AdamW, through the C API:
//! nearly the same values, and exactly the same entries move in every step.

mod harness;

use harness::c_api::{self, CallerState, Elements, Optimizer};
use harness::device;
use harness::vectors::File;
use mofo::ffi::*;
use serde_json::Value;

#[test]
fn adamw_is_that_of_pytorch() {
    run("adamw");
}

#[test]
fn weight_decay_of_all_entries_is_that_of_the_authors() {
    run("decay_all");
}

#[test]
fn tensors_with_few_gradients_are_those_of_the_authors() {
    run("mostly_zero");
}

#[test]
fn three_percent_are_those_of_the_authors() {
    run("plain_f03");
}

#[test]
fn ten_percent_are_those_of_the_authors() {
    run("plain_f10");
}

#[test]
fn a_schedule_and_other_betas_are_those_of_the_authors() {
    run("schedule");
}

#[test]
fn ties_are_those_of_the_authors() {
    run("ties");
}

#[test]
fn every_golden_case_is_run() {
    let names: Vec<String> = File::all("golden")
        .into_iter()
        .map(|file| file.name)
        .collect();
    assert_eq!(
        names,
        [
            "adamw",
            "decay_all",
            "mostly_zero",
            "plain_f03",
            "plain_f10",
            "schedule",
            "ties"
        ]
    );
}

fn run(name: &str) {
    run_on(MOFO_DEVICE_CPU, name);
    if device::is_here() {
        run_on(MOFO_DEVICE_CUDA, name);
    }
}

fn run_on(device: i32, name: &str) {
    let file = File::all("golden")
        .into_iter()
        .find(|file| file.name == name)
        .unwrap();
    let case = &file.case;
    let mut options = c_api::options();
    options.device = device;
    options.beta1 = number(&case["beta1"]);
    options.beta2 = number(&case["beta2"]);
    options.epsilon = number(&case["epsilon"]);
    assert_eq!(case["weight_decay_scope"], "all");
    options.weight_decay_scope = MOFO_WEIGHT_DECAY_ALL;
    let mut optimizer = Optimizer::create(&options).unwrap();

    let names = case["names"].as_array().unwrap();
    let fractions: Vec<f64> = numbers(&case["update_fraction"]);
    let weight_decays: Vec<f64> = numbers(&case["weight_decay"]);
    assert!(!names.is_empty());
    for (i, name) in names.iter().enumerate() {
        let mut settings = c_api::tensor();
        settings.update_fraction = fractions[i];
        settings.weight_decay = weight_decays[i];
        let param = file.tensor(&format!("param.{i}.0"));
        optimizer.add(
            name.as_str().unwrap(),
            &settings,
            param,
            CallerState::default(),
        );
    }

    let learning_rates = numbers(&case["learning_rate"]);
    assert_eq!(learning_rates.len() as u64, case["steps"].as_u64().unwrap());
    let mut moved_in_all = 0;
    for (t, &learning_rate) in (1..).zip(&learning_rates) {
        let before: Vec<Elements> = (0..names.len())
            .map(|i| optimizer.param(i).clone())
            .collect();
        let grads: Vec<Option<Elements>> = (0..names.len())
            .map(|i| Some(file.tensor(&format!("grad.{t}.{i}"))))
            .collect();
        let mut args = c_api::step_args();
        args.learning_rate = learning_rate;
        let step = optimizer.step(&grads, &args, None);
        assert!(
            step.status == "MOFO_OK",
            "step {t}: {}: {}",
            step.status,
            step.error
        );

        let mut selected = 0;
        for i in 0..names.len() {
            let at = format!("{name}, step {t}, tensor {i}");
            let state = optimizer.state(i);
            let param = optimizer.param(i).f32();
            let expected = file.tensor(&format!("param.{i}.{t}"));
            assert_near(&format!("{at}, param"), param, expected.f32(), 1e-7);
            // Second moments are sums of squares, which never cancel, and often below 1e-7.
            for (what, found, atol) in [
                ("exp_avg", &state.exp_avg, 1e-7),
                ("exp_avg_sq", &state.exp_avg_sq, 0.0),
            ] {
                let expected = file.tensor(&format!("{what}.{i}.{t}"));
                assert_near(&format!("{at}, {what}"), found.f32(), expected.f32(), atol);
            }

            let decay = (1.0 - learning_rate * weight_decays[i]) as f32;
            let expected_before = file.tensor(&format!("param.{i}.{}", t - 1));
            let expected_moved = moved(expected_before.f32(), expected.f32(), decay);
            assert!(
                moved(before[i].f32(), param, decay) == expected_moved,
                "{at}: other entries moved"
            );
            let count = expected_moved.iter().filter(|&&moved| moved).count();
            moved_in_all += count;
            selected += if fractions[i] == 1.0 {
                param.len()
            } else {
                count
            };
        }
        // Without a learning rate nothing is seen to move.
        if learning_rate > 0.0 {
            assert_eq!(
                step.report.unwrap().entries_selected,
                selected as u64,
                "{name}, step {t}"
            );
        }
    }
    assert!(moved_in_all > 0);
}

/// Which entries did more than decay. Those that do not move have the same bits in PyTorch.
fn moved(before: &[f32], after: &[f32], decay: f32) -> Vec<bool> {
    before
        .iter()
        .zip(after)
        .map(|(before, after)| before * decay != *after)
        .collect()
}

#[track_caller]
fn assert_near(what: &str, found: &[f32], expected: &[f32], atol: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (entry, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let tolerance = atol + 1e-5 * f64::from(expected.abs());
        assert!(
            (f64::from(found) - f64::from(expected)).abs() <= tolerance,
            "{what}, entry {entry}: {found:e}, expected {expected:e}"
        );
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}
