//! `include/mofo.h` is what cbindgen makes of `src/ffi`.

use std::path::Path;

fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut header = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/ffi/mod.rs"))
        .generate()
        .unwrap()
        .write(&mut header);
    String::from_utf8(header)
        .unwrap()
        // What rustdoc heads "Safety" is, for a C reader, what the call requires.
        .replace(" * # Safety\n *\n", " * Requires:\n")
        // C89 has no such comments.
        .replace("#endif // __cplusplus", "#endif  /* __cplusplus */")
        .replace("// extern \"C\"", "/* extern \"C\" */")
        .replace("#endif  // __cplusplus", "#endif  /* __cplusplus */")
}

/// `MOFO_WRITE_HEADER=1` (that is `make header`) writes the file instead of comparing.
#[test]
fn the_committed_header_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/mofo.h");
    let generated = generate();
    if std::env::var_os("MOFO_WRITE_HEADER").is_some() {
        std::fs::write(&path, generated).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "include/mofo.h is stale: run `make header` and commit it"
    );
}
