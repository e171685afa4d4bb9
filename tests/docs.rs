//! The code in the documentation is compiled and run, block by block, against the library of this very build.
//!
//! The info string of a fenced block is its language and, after commas, attributes:
//!
//! - `in=NAME`: the block is a fragment, and takes the place of the line "the block" of `tests/docs/NAME.*`;
//! - `no_run=reason`: it is compiled, not run;
//! - `ignore=reason`: it is neither;
//! - `run` (`sh` only): it is run, in the repository; without it the shell only parses the block, and what it makes or
//!   runs of the repository must be there.
//!
//! A block without `in` is a whole program. C and C++ are compiled with all warnings as errors. Python blocks run where
//! `python3` has the modules that they import; `MOFO_REQUIRE_PYTHON=1` makes it a failure if it has not.

#![cfg(unix)]

mod harness;
mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::toolchain::{self, Language, WARNINGS, compiler, root, say_skipped};
use markdown::{Block, documents};

/// Languages whose blocks are programs, with the extension of their files.
const PROGRAMS: [(&str, &str); 4] = [("c", "c"), ("cpp", "cpp"), ("rust", "rs"), ("python", "py")];
/// What is shown, not executed.
const SHOWN: [&str; 5] = ["text", "console", "json", "toml", "cmake"];
const ATTRIBUTES: [&str; 4] = ["in", "no_run", "ignore", "run"];

/// What is no document: notes beside test data, and templates of files that are made when packaging.
const NO_DOCUMENTS: [&str; 2] = ["tests", "packaging"];

/// The blocks of the project's documents.
fn blocks() -> Vec<Block> {
    documents(root())
        .iter()
        .filter(|document| {
            !NO_DOCUMENTS
                .iter()
                .any(|folder| document.path.starts_with(folder))
        })
        .flat_map(|document| document.blocks())
        .collect()
}

fn blocks_of(language: &str) -> Vec<Block> {
    let mut blocks = blocks();
    blocks.retain(|block| block.language == language);
    blocks
}

/// Even where the test harness hides the output of tests that pass.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// What became of the blocks of a language.
#[derive(Default)]
struct Tally {
    ran: usize,
    compiled: usize,
    left_out: usize,
}

impl Tally {
    fn say(&self, language: &str) {
        let Self {
            ran,
            compiled,
            left_out,
        } = self;
        say(&format!(
            "docs: {language}: {ran} blocks ran, {compiled} only compiled, {left_out} left out"
        ));
    }
}

/// A folder for what a block is made into.
fn folder(block: &Block) -> PathBuf {
    let name: String = block
        .place()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("docs")
        .join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The block as a whole program: itself, or inside what `in` names.
fn program(block: &Block, extension: &str) -> String {
    let Some(name) = block.attribute("in") else {
        return block.code.clone();
    };
    let path = root()
        .join("tests/docs")
        .join(name)
        .with_extension(extension);
    let around = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: in={name}: {}: {error}", block.place(), path.display())
    });
    let (mut program, mut places) = (String::new(), 0);
    // So that a compiler's message names the right file.
    let numbered = ["c", "cpp"].contains(&extension);
    for (number, line) in around.lines().enumerate() {
        if ["/* the block */", "// the block", "# the block"].contains(&line.trim()) {
            places += 1;
            if numbered {
                program += &format!("#line {} \"{}\"\n", block.line, block.path.display());
            }
            program += &block.code;
            if numbered {
                program += &format!("#line {} \"{}\"\n", number + 2, path.display());
            }
        } else {
            program += line;
            program.push('\n');
        }
    }
    assert_eq!(places, 1, "{}: lines \"the block\"", path.display());
    program
}

/// Runs a command to its end, in `folder`; what it says is returned, and shown if it fails.
fn run(block: &Block, command: &mut Command, log: &Path, limit: Duration) -> String {
    let output = File::create(log).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {command:?}: {error}", block.place()));
    let line: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > limit {
            let _ = child.kill();
            break child.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    assert!(
        status.success(),
        "{}: {}\nended with {status} after {:?}:\n{text}",
        block.place(),
        line.join(" "),
        started.elapsed()
    );
    text
}

/// Compiles a block, or leaves it out if it says so.
fn each_program(
    language: &str,
    blocks: Vec<Block>,
    mut compile: impl FnMut(&Block, &Path, &Path) -> Command,
) -> Tally {
    let (_, extension) = PROGRAMS.iter().find(|(name, _)| *name == language).unwrap();
    let mut tally = Tally::default();
    for block in blocks {
        if let Some(reason) = block.attribute("ignore") {
            assert!(
                !reason.is_empty(),
                "{}: ignored without a reason",
                block.place()
            );
            say_skipped(&format!("{}: {reason}", block.place()));
            tally.left_out += 1;
            continue;
        }
        let folder = folder(&block);
        let source = folder.join("block").with_extension(extension);
        std::fs::write(&source, program(&block, extension)).unwrap();
        let mut command = compile(&block, &source, &folder.join("block"));
        if let Some(reason) = block.attribute("no_run") {
            assert!(
                !reason.is_empty(),
                "{}: not run without a reason",
                block.place()
            );
            say_skipped(&format!(
                "{} was compiled, not run: {reason}",
                block.place()
            ));
            tally.compiled += 1;
            continue;
        }
        command.current_dir(&folder);
        run(
            &block,
            &mut command,
            &folder.join("run.log"),
            Duration::from_secs(120),
        );
        tally.ran += 1;
    }
    tally
}

fn compile_natively(
    language: Language,
    standard: &str,
) -> impl FnMut(&Block, &Path, &Path) -> Command {
    let library = toolchain::shared_library();
    move |block, source, program| {
        let mut command = compiler(language);
        command
            .arg(standard)
            .args(WARNINGS)
            .arg("-I")
            .arg(root().join("include"))
            .arg(source)
            .arg(&library)
            .args(["-lpthread", "-lm", "-o"])
            .arg(program);
        run(
            block,
            &mut command,
            &program.with_extension("log"),
            Duration::from_secs(300),
        );
        Command::new(program)
    }
}

#[test]
fn c_blocks_compile_and_run() {
    let tally = each_program(
        "c",
        blocks_of("c"),
        compile_natively(Language::C, "-std=c99"),
    );
    tally.say("c");
    assert!(tally.ran > 0);
}

#[test]
fn cpp_blocks_compile_and_run() {
    let tally = each_program(
        "cpp",
        blocks_of("cpp"),
        compile_natively(Language::Cpp, "-std=c++17"),
    );
    tally.say("cpp");
    assert!(tally.ran > 0);
}

#[test]
fn rust_blocks_compile_and_run() {
    let library = toolchain::rust_library();
    let tally = each_program("rust", blocks_of("rust"), |block, source, program| {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(rustc);
        command
            .args(["--edition", "2024", "-D", "warnings", "-L"])
            .arg(format!(
                "dependency={}",
                library.parent().unwrap().display()
            ))
            .arg("--extern")
            .arg(format!("mofo={}", library.display()))
            .arg("-o")
            .args([program, source]);
        run(
            block,
            &mut command,
            &program.with_extension("log"),
            Duration::from_secs(300),
        );
        Command::new(program)
    });
    tally.say("rust");
    assert!(tally.ran > 0);
}

/// The modules that a Python program imports at the beginning of a line.
fn imports(code: &str) -> BTreeSet<&str> {
    code.lines()
        .filter_map(|line| line.strip_prefix("import ").or(line.strip_prefix("from ")))
        .flat_map(|rest| rest.split(" import ").next().unwrap().split(','))
        .filter_map(|module| module.split_whitespace().next()?.split('.').next())
        .collect()
}

fn requires_python() -> bool {
    std::env::var_os("MOFO_REQUIRE_PYTHON").is_some_and(|value| value == "1")
}

/// Python, with the project's own package.
fn python() -> Command {
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", root().join("bindings/python/src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("MOFO_LIBRARY", toolchain::shared_library());
    command
}

/// What keeps `module` from being imported: itself, or one that it imports, where that is not installed. Other reasons
/// are left to the block to fail of.
fn missing_for(module: &str) -> Option<String> {
    let output = python().args(["-c", &format!("import {module}")]).output();
    let error = String::from_utf8_lossy(&output.unwrap().stderr).into_owned();
    let (_, name) = error.rsplit_once("No module named '")?;
    let name = name.split(['\'', '.']).next().unwrap().to_owned();
    // The project's own is never just not installed.
    let own = root().join("bindings/python/src").join(&name).exists();
    (!own).then_some(name)
}

#[test]
fn python_blocks_run() {
    let mut lacking = BTreeMap::new();
    for block in blocks_of("python") {
        if block.attribute("ignore").is_some() {
            continue;
        }
        let missing = if toolchain::exists("python3") {
            imports(&program(&block, "py"))
                .into_iter()
                .find_map(missing_for)
        } else {
            Some("python3".to_owned())
        };
        if let Some(missing) = missing {
            assert!(
                !requires_python(),
                "{}: MOFO_REQUIRE_PYTHON is 1, and there is no {missing}",
                block.place()
            );
            lacking.insert(block.place(), missing);
        }
    }
    let mut blocks = blocks_of("python");
    blocks.retain(|block| match lacking.get(&block.place()) {
        Some(missing) => {
            say_skipped(&format!("{}: there is no {missing}", block.place()));
            false
        }
        None => true,
    });
    let mut tally = each_program("python", blocks, |_, source, _| {
        let mut command = python();
        command.arg(source);
        command
    });
    tally.left_out += lacking.len();
    tally.say("python");
}

/// What a line of a shell block asks of the repository: targets of make, and scripts and programs of its own.
fn unknown_in(line: &str, targets: &BTreeSet<String>) -> Option<String> {
    let words: Vec<&str> = line
        .split('#')
        .next()
        .unwrap()
        .split_whitespace()
        .skip_while(|word| word.contains('=') && !word.starts_with('-'))
        .collect();
    match *words.first()? {
        "make" => words[1..]
            .iter()
            // The rest of a quoted value is none.
            .take_while(|word| !word.contains('"'))
            .filter(|word| !word.contains('=') && !word.starts_with('-'))
            .find(|word| !targets.contains(**word))
            .map(|word| format!("the Makefile has no target {word}")),
        "python3" => words[1..]
            .iter()
            .find(|word| word.ends_with(".py"))
            .filter(|script| !root().join(script).exists())
            .map(|script| format!("there is no {script}")),
        _ => None,
    }
}

#[test]
fn shell_blocks_parse_and_name_what_is_there() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<String> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', ' ', '.']))
        .filter_map(|line| line.split_once(':'))
        .filter(|(_, rest)| !rest.starts_with('='))
        .flat_map(|(names, _)| names.split_whitespace().map(str::to_owned))
        .collect();
    let (mut ran, mut parsed) = (0, 0);
    for block in blocks_of("sh") {
        let folder = folder(&block);
        let script = folder.join("block.sh");
        std::fs::write(&script, &block.code).unwrap();
        let mut command = Command::new("sh");
        command.arg("-n").arg(&script);
        run(
            &block,
            &mut command,
            &folder.join("parse.log"),
            Duration::from_secs(10),
        );
        for line in block.code.lines() {
            if let Some(what) = unknown_in(line, &targets) {
                panic!("{}: {what}: {line}", block.place());
            }
        }
        if block.attribute("run").is_none() {
            parsed += 1;
        } else if block.code.contains("python3") && !toolchain::exists("python3") {
            assert!(
                !requires_python(),
                "{}: MOFO_REQUIRE_PYTHON is 1, and there is no python3",
                block.place()
            );
            say_skipped(&format!("{}: there is no python3", block.place()));
        } else {
            let mut command = Command::new("sh");
            command.arg("-eu").arg(&script).current_dir(root());
            run(
                &block,
                &mut command,
                &folder.join("run.log"),
                Duration::from_secs(300),
            );
            ran += 1;
        }
    }
    say(&format!("docs: sh: {ran} blocks ran, {parsed} only parsed"));
    assert!(parsed > 0);
}

#[test]
fn every_block_says_what_it_is() {
    let mut shown: BTreeMap<String, usize> = BTreeMap::new();
    for block in blocks() {
        let place = block.place();
        for attribute in block.attributes.keys() {
            assert!(
                ATTRIBUTES.contains(&attribute.as_str()),
                "{place}: {attribute}?"
            );
        }
        let language = block.language.as_str();
        let is_program = PROGRAMS.iter().any(|(name, _)| *name == language);
        if SHOWN.contains(&language) {
            assert!(
                block.attributes.is_empty(),
                "{place}: {language} is only shown"
            );
            *shown.entry(block.language).or_default() += 1;
        } else {
            assert!(
                is_program || language == "sh",
                "{place}: what is {language:?}?"
            );
            let runnable = block.attribute("run").is_some();
            assert!(!(is_program && runnable), "{place}: programs run anyway");
        }
    }
    for (language, count) in shown {
        say(&format!("docs: {language}: {count} blocks, shown only"));
    }
}

#[test]
fn what_surrounds_fragments_is_used() {
    let used: BTreeSet<String> = blocks()
        .iter()
        .filter_map(|block| {
            let (_, extension) = PROGRAMS.iter().find(|(name, _)| *name == block.language)?;
            Some(format!("{}.{extension}", block.attribute("in")?))
        })
        .collect();
    let there: BTreeSet<String> = std::fs::read_dir(root().join("tests/docs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(used, there);
}
