//! Which CPU tiers a test runs in.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::io::Write;
use std::sync::OnceLock;

use mofo::{CpuTier, ErrorKind, Optimizer, Options};

/// All tiers that this build and this machine have; the others are named out loud. With `MOFO_REQUIRE_TIERS=1` a
/// missing one is a failure.
pub fn tiers() -> &'static [CpuTier] {
    static TIERS: OnceLock<Vec<CpuTier>> = OnceLock::new();
    TIERS.get_or_init(|| {
        let mut tiers = vec![CpuTier::Portable, CpuTier::Avx2, CpuTier::Avx512];
        tiers.retain(|&tier| is_here(tier));
        tiers
    })
}

fn is_here(tier: CpuTier) -> bool {
    let options = Options {
        cpu_tier: Some(tier),
        ..Options::default()
    };
    match Optimizer::new(options) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            say_missing(tier);
            false
        }
    }
}

fn say_missing(tier: CpuTier) {
    let name = format!("{tier:?}").to_lowercase();
    let what = format!("CPU tier {name} is not on this machine");
    let required = std::env::var_os("MOFO_REQUIRE_TIERS").is_some_and(|value| value == "1");
    assert!(!required, "{what}, and MOFO_REQUIRE_TIERS is 1");
    // Not a print macro, whose output the test harness hides.
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}
