//! The compiled CUDA kernels are those of the sources beside them. `make kernels-check` compiles them anew to see whether
//! they are; this compares what `make kernels` has noted down, and needs no compiler.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/kernels")
}

/// Files with these endings, by name.
fn read(folder: &Path, endings: &[&str]) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|ending| endings.iter().any(|known| ending == *known))
        })
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect()
}

fn hexadecimal(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn manifest() -> Value {
    let text = fs::read_to_string(folder().join("compiled/manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_kernels_were_compiled_from_these_sources() {
    let mut hasher = Sha256::new();
    // As `hash_of_sources` in compile.py.
    for (name, content) in read(&folder(), &["cu", "cuh"]) {
        hasher.update(format!("{name}\0{}\0", content.len()));
        hasher.update(content);
    }
    assert_eq!(
        manifest()["sources_sha256"],
        hexadecimal(hasher),
        "the sources have changed since they were compiled: make kernels"
    );
}

#[test]
fn the_compiled_kernels_are_those_of_the_manifest() {
    let mut files = read(&folder().join("compiled"), &["gz"]);
    for image in manifest()["images"].as_object().unwrap().values() {
        let file = &image["file"];
        let name = file["name"].as_str().unwrap();
        let content = files
            .remove(name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(file["size"], content.len(), "{name}");
        assert_eq!(
            file["sha256"],
            hexadecimal(Sha256::new_with_prefix(content)),
            "{name}"
        );
    }
    assert!(files.is_empty(), "not in the manifest: {:?}", files.keys());
}
