//! Forces the ways of a step that few gradients take, so that tests can compare all of them with the rule.
//!
//! What is forced changes the time of a step, never its result. Without the feature `forced-paths` nothing is.

/// The ways that the steps of a thread are forced to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Blocks of more entries than this, at least 64, are stepped by all threads together. `None` is the usual limit,
    /// which cannot be raised.
    pub small_block: Option<u64>,
    /// Where an estimate says that the threshold is.
    pub bracket: BracketPath,
    /// There is no room to list candidates that are certain to move; on CUDA, none for any note.
    pub no_room: bool,
    /// Where an estimate has failed, the digits of all keys are counted.
    pub digits: bool,
}

/// Where an estimate says that the threshold is.
#[cfg_attr(not(feature = "forced-paths"), allow(dead_code))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BracketPath {
    /// Where the sample says.
    #[default]
    Sampled,
    /// Well below that.
    TooLow,
    /// Well above it.
    TooHigh,
    /// Between the smallest and the largest key.
    Anywhere,
    /// Nowhere: at the middle of the sampled bracket's bits, which is wrong nearly always.
    Exactly,
}

impl Paths {
    /// What is used in place of a sampled bracket: `low <= threshold < high`.
    pub(crate) fn bracket(self, (low, high): (u32, u32)) -> (u32, u32) {
        const INFINITE: u32 = crate::rule::convert::INFINITE;
        // Floats, as bits, a factor of two apart.
        const OCTAVE: u32 = 1 << 23;
        let (low, high) = match self.bracket {
            BracketPath::Sampled => (low, high),
            BracketPath::TooLow => (low.saturating_sub(2 * OCTAVE), low.saturating_sub(OCTAVE)),
            BracketPath::TooHigh => (high + OCTAVE / 8, high + OCTAVE / 4),
            BracketPath::Anywhere => (1, INFINITE),
            BracketPath::Exactly => (low + (high - low) / 2, low + (high - low) / 2),
        };
        (low.clamp(1, INFINITE), high.clamp(1, INFINITE))
    }
}

#[cfg(feature = "forced-paths")]
thread_local! {
    static FORCED: std::cell::Cell<Option<Paths>> = const { std::cell::Cell::new(None) };
}

/// Forces all steps that this thread asks for from now on.
#[cfg(feature = "forced-paths")]
pub fn force(paths: Paths) {
    FORCED.set(Some(paths));
}

/// What the calling thread forces, or else what the environment variable `MOFO_TEST_PATHS` does: words among
/// `bracket=too-low`, `bracket=too-high`, `bracket=anywhere`, `bracket=exactly`, `no-room`, `digits` and
/// `small-block=NUMBER`, with commas between them; others are ignored.
#[cfg(feature = "forced-paths")]
pub(crate) fn current() -> Paths {
    FORCED.get().unwrap_or_else(|| {
        let words = std::env::var("MOFO_TEST_PATHS").unwrap_or_default();
        let mut paths = Paths::default();
        for word in words.split(',') {
            match word.split_once('=').unwrap_or((word, "")) {
                ("bracket", "too-low") => paths.bracket = BracketPath::TooLow,
                ("bracket", "too-high") => paths.bracket = BracketPath::TooHigh,
                ("bracket", "anywhere") => paths.bracket = BracketPath::Anywhere,
                ("bracket", "exactly") => paths.bracket = BracketPath::Exactly,
                ("no-room", _) => paths.no_room = true,
                ("digits", _) => paths.digits = true,
                ("small-block", number) => paths.small_block = number.parse().ok(),
                _ => {}
            }
        }
        paths
    })
}

/// Nothing is forced.
#[cfg(not(feature = "forced-paths"))]
pub(crate) fn current() -> Paths {
    Paths::default()
}
