//! Forces the ways of a step that few gradients take, so that tests can compare all of them with the rule.
//!
//! What is forced changes the time of a step, never its result. Without the feature `forced-paths` nothing is.

/// What the steps of a thread are forced to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forced {
    /// Blocks of more entries than this, at least 64, are stepped by all threads, on an estimated threshold if
    /// possible. `None` is the usual limit.
    pub small_block: Option<u64>,
    /// Where the threshold is said to be.
    pub bracket: ForcedBracket,
    /// There is no room for notes.
    pub no_room: bool,
    /// Half of the room for old values is taken already.
    pub little_room_for_old: bool,
    /// Whether brackets are taken to hold more than there is room for. `None` leaves it to the sample, if the bracket
    /// comes from one.
    pub crowded: Option<bool>,
    /// Every search counts digits.
    pub digits: bool,
}

/// Where an estimate says that the threshold is.
#[cfg_attr(not(feature = "forced-paths"), allow(dead_code))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForcedBracket {
    /// Where the sample says.
    #[default]
    Sampled,
    /// Well below that.
    TooLow,
    /// Well above it.
    TooHigh,
    /// Between the smallest and the largest key.
    Anywhere,
    /// Nowhere: exactly at the sample's estimate, which is wrong nearly always.
    Exactly,
}

impl Forced {
    /// How many old values there is room for.
    pub(crate) fn old_capacity(self, usual: usize) -> usize {
        if self.little_room_for_old {
            usual / 2
        } else {
            usual
        }
    }

    /// Whether a bracket is crowded, given what the sample says.
    pub(crate) fn crowded(self, sampled: bool) -> bool {
        let usual = sampled && self.bracket == ForcedBracket::Sampled && !self.no_room;
        self.crowded.unwrap_or(usual)
    }

    /// The bracket that is used in place of a sampled one.
    pub(crate) fn bracket(self, (low, high): (u32, u32)) -> (u32, u32) {
        const INFINITE: u32 = crate::rule::convert::INFINITE;
        // Floats, as bits, a factor of two apart.
        const OCTAVE: u32 = 1 << 23;
        match self.bracket {
            ForcedBracket::Sampled => (low, high),
            ForcedBracket::TooLow => (low.saturating_sub(2 * OCTAVE), low.saturating_sub(OCTAVE)),
            ForcedBracket::TooHigh => (
                (high + OCTAVE / 8).min(INFINITE - 1),
                (high + OCTAVE / 4).min(INFINITE),
            ),
            ForcedBracket::Anywhere => (0, INFINITE),
            ForcedBracket::Exactly => (low + (high - low) / 2, low + (high - low) / 2),
        }
    }
}

#[cfg(feature = "forced-paths")]
thread_local! {
    static FORCED: std::cell::Cell<Forced> = const { std::cell::Cell::new(Forced {
        small_block: None,
        bracket: ForcedBracket::Sampled,
        no_room: false,
        little_room_for_old: false,
        crowded: None,
        digits: false,
    }) };
}

/// Forces all steps that this thread asks for from now on.
#[cfg(feature = "forced-paths")]
pub fn force(forced: Forced) {
    FORCED.set(forced);
}

/// What the calling thread forces.
pub(crate) fn current() -> Forced {
    #[cfg(feature = "forced-paths")]
    return FORCED.get();
    #[cfg(not(feature = "forced-paths"))]
    Forced::default()
}
