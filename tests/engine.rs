//! The engine of `examples/engine`, run as its users run it: its gradients, that a run taken up again is the run that
//! never stopped, and what it says to bad input.
//!
//! It needs a Unix: POSIX files and threads.

#![cfg(unix)]

mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use harness::toolchain::{self, Language, WARNINGS, compiler, root};

fn directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// The program, compiled once for all tests.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = directory().join("engine");
        let mut sources: Vec<PathBuf> = std::fs::read_dir(root().join("examples/engine"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "cpp"))
            .collect();
        sources.sort();
        let mut command = compiler(Language::Cpp);
        command
            .args(["-std=c++17", "-ffp-contract=off", "-I"])
            .arg(root().join("include"))
            .args(WARNINGS)
            .args(sources)
            .arg(toolchain::static_library())
            .args(["-lpthread", "-ldl", "-lm", "-o"])
            .arg(&program);
        toolchain::run(&mut command);
        program
    })
}

fn engine(arguments: &[&str]) -> Output {
    Command::new(program())
        .args(arguments)
        .current_dir(directory())
        .output()
        .unwrap()
}

/// What a run with these arguments prints.
fn printed(arguments: &[&str]) -> String {
    let output = engine(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Its error message; the exit status is 1, and nothing else is printed.
fn refused(arguments: &[&str]) -> String {
    let output = engine(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{arguments:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("engine: "), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

/// The lines with numbers: losses, norms, hashes of the parameters, and the results.
fn numbers(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| line.starts_with("  ") || line.contains("loss") || line.contains("  "))
        .collect()
}

/// A name of this test's own in `directory()`, with no file of an earlier test run.
fn fresh(name: &str) -> String {
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with(name)
        {
            std::fs::remove_file(path).unwrap();
        }
    }
    name.to_owned()
}

/// The files that a checkpoint of this name consists of.
fn files(name: &str) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|file| file.starts_with(name))
        .collect();
    found.sort();
    found
}

#[test]
fn gradients_are_those_of_the_loss() {
    let text = printed(&["--check-gradients"]);
    assert_eq!(
        text.lines().filter(|line| line.ends_with(" ok")).count(),
        16,
        "{text}"
    );
}

#[test]
fn the_loss_falls() {
    let text = printed(&["--smoke", "--steps", "30"]);
    let losses: Vec<f64> = text
        .lines()
        .take_while(|line| !line.starts_with("AdamW"))
        .filter_map(|line| line.split("loss ").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(losses.len(), 30, "{text}");
    assert!(losses[29] < losses[0] - 1.0, "{losses:?}");
}

#[test]
fn threads_change_no_number() {
    for more in [&[][..], &["--bf16"]] {
        let run = |threads| printed(&[&["--smoke", "--threads", threads], more].concat());
        let one = run("1");
        for threads in ["2", "5"] {
            assert_eq!(
                numbers(&run(threads)),
                numbers(&one),
                "{threads} threads, {more:?}"
            );
        }
    }
}

/// A run of 4 steps of pre-training and twice 16 of fine-tuning, in processes of 7 steps: some end in the middle of a
/// phase.
fn taken_up_again(name: &str, more: &[&str]) {
    let whole = printed(&[&["--smoke"], more].concat());
    let path = fresh(name);
    let mut text = printed(&[&["--smoke", "--save", &path, "--stop-after", "7"], more].concat());
    let mut processes = 1;
    while text.contains("stopped after") {
        let without_the_end = text.rsplit_once("stopped after").unwrap().0.to_owned();
        let again = [
            "--smoke",
            "--resume",
            &path,
            "--save",
            &path,
            "--stop-after",
            "7",
        ];
        text = without_the_end + &printed(&[&again, more].concat());
        processes += 1;
    }
    assert_eq!(processes, 6);
    let heads = |line: &&str| !line.contains("threads") && !line.contains("from step");
    let expected: Vec<&str> = numbers(&whole).into_iter().filter(heads).collect();
    let found: Vec<&str> = numbers(&text).into_iter().filter(heads).collect();
    // Losses, a hash for each phase, the table, and two lines that say that no loss was reached.
    assert_eq!(expected.len(), 4 + 16 + 16 + 3 + 4 + 2, "{whole}");
    assert_eq!(found, expected);
    // Only the last checkpoint is left, and no optimizer: the run is over.
    assert_eq!(files(name), [name]);
    let results = printed(&[&["--smoke", "--resume", &path], more].concat());
    assert!(
        whole.ends_with(results.split_once('\n').unwrap().1),
        "{results}"
    );
}

#[test]
fn a_run_taken_up_again_is_the_run_that_never_stopped() {
    taken_up_again("again-f32", &[]);
}

#[test]
fn so_it_is_in_bf16() {
    taken_up_again("again-bf16", &["--bf16"]);
}

/// The optimizer's file is needed: the run that goes on without it is another one.
#[test]
fn a_checkpoint_is_two_files() {
    let path = fresh("two-files");
    printed(&["--smoke", "--save", &path, "--stop-after", "2"]);
    let optimizer = format!("{path}.optimizer-0-2");
    assert_eq!(files(&path), [path.clone(), optimizer.clone()]);

    // Of another step.
    let other = fresh("other-step");
    printed(&["--smoke", "--save", &other, "--stop-after", "3"]);
    std::fs::copy(
        directory().join(format!("{other}.optimizer-0-3")),
        directory().join(&optimizer),
    )
    .unwrap();
    let message = fails_to_resume(&path, &[]);
    assert!(
        message.contains("is at step 3, the parameters are at step 2"),
        "{message}"
    );

    // Damaged.
    let mut bytes = std::fs::read(directory().join(&optimizer)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(directory().join(&optimizer), bytes).unwrap();
    let message = fails_to_resume(&path, &[]);
    assert!(message.contains("MOFO_ERROR_CHECKPOINT"), "{message}");

    std::fs::remove_file(directory().join(&optimizer)).unwrap();
    let message = fails_to_resume(&path, &[]);
    assert!(message.contains("MOFO_ERROR_IO"), "{message}");
}

fn fails_to_resume(path: &str, more: &[&str]) -> String {
    let output = engine(&[&["--smoke", "--resume", path], more].concat());
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_damaged_or_foreign_file_is_refused() {
    let path = fresh("damaged");
    printed(&["--smoke", "--save", &path, "--stop-after", "1"]);
    let whole = std::fs::read(directory().join(&path)).unwrap();
    for length in [0, 10, 300, whole.len() - 1] {
        std::fs::write(directory().join(&path), &whole[..length]).unwrap();
        let message = fails_to_resume(&path, &[]);
        assert!(message.contains("too short"), "{length} bytes: {message}");
    }
    for (place, what) in [(0, "no file of this engine"), (whole.len() / 2, "damaged")] {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        std::fs::write(directory().join(&path), bytes).unwrap();
        let message = fails_to_resume(&path, &[]);
        assert!(message.contains(what), "{message}");
    }
    std::fs::write(directory().join(&path), [&whole[..], &[0]].concat()).unwrap();
    assert!(fails_to_resume(&path, &[]).contains("damaged"));

    std::fs::write(directory().join(&path), whole).unwrap();
    for more in [
        &["--bf16"][..],
        &["--seed", "2"],
        &["--steps", "5"],
        &["--text", "capitals"],
        &["--update-fraction", "0.1"],
    ] {
        let message = fails_to_resume(&path, more);
        assert!(message.contains("other options"), "{more:?}: {message}");
    }
}

#[test]
fn bad_arguments_are_refused() {
    for (arguments, reason) in [
        (&["--no-such-option"][..], "no option '--no-such-option'"),
        (&["--steps"], "--steps: a value is missing"),
        (&["--steps", "0"], "'0' is not an integer from 1 to 1000000"),
        (&["--steps", "-1"], "'-1' is not an integer"),
        (&["--steps", "1x"], "'1x' is not an integer"),
        (
            &["--threads", "257"],
            "'257' is not an integer from 1 to 256",
        ),
        (&["--threads", "99999999999999999999"], "is not an integer"),
        (&["--learning-rate", "0"], "'0' is not a number above 0"),
        (
            &["--update-fraction", "nan"],
            "'nan' is not a number above 0",
        ),
        (
            &["--text", "prose"],
            "--text: 'prose' is neither code nor capitals",
        ),
        (&["--save", ""], "--save: the path is empty"),
        (
            &["--resume", "no-such-file"],
            "no-such-file: No such file or directory",
        ),
    ] {
        let message = refused(arguments);
        assert!(message.contains(reason), "{arguments:?}: {message}");
    }
}

#[test]
fn a_path_that_cannot_be_written_is_found_out_at_once() {
    let message = refused(&["--save", "no-such-folder/run"]);
    assert!(message.contains("no-such-folder/run"), "{message}");
}
