//! Where a test runs: in each CPU tier, and on CUDA.

use std::io::Write;
use std::sync::OnceLock;

use mofo::{CpuTier, Device, ErrorKind, Optimizer, Options};

/// A way of running steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Tier(CpuTier),
    /// The first device.
    Cuda,
}

impl Place {
    pub fn enter_into(self, options: &mut Options) {
        match self {
            Self::Tier(tier) => options.cpu_tier = Some(tier),
            Self::Cuda => options.device = Device::Cuda { index: 0 },
        }
    }
}

/// All tiers, and CUDA: a real device, or the emulated one.
pub fn places() -> &'static [Place] {
    static PLACES: OnceLock<Vec<Place>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let mut places: Vec<Place> = tiers().iter().map(|&tier| Place::Tier(tier)).collect();
        if super::device::is_here() {
            places.push(Place::Cuda);
        }
        places
    })
}

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
