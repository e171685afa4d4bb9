//! The counter-based random bits: a function of seed, tensor name, step, stream and entry alone.

/// What a draw is for. Draws of different streams are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Rounding of the first moment.
    ExpAvg = 0,
    /// Rounding of the second moment.
    ExpAvgSq = 1,
    /// Rounding of the parameter.
    Param = 2,
    /// The random filter.
    Filter = 3,
}

/// The part of the key that is common to all entries of a tensor in one step and stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// What all streams of the step share.
    step: u64,
    stream: u64,
}

/// The key of 2^32 consecutive entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanKey {
    /// Mixed in before the first round: the same for all streams, so that they can share that round.
    pub first: u32,
    /// Mixed in before the second round.
    pub second: u32,
}

impl Key {
    /// The key of one stream of a tensor's step; `name_hash` is [`hash_name`]'s.
    #[must_use]
    pub fn new(seed: u64, name_hash: u64, step: u64, stream: Stream) -> Self {
        let z = mix64(seed);
        let z = mix64(z ^ name_hash);
        Self {
            step: mix64(z ^ step),
            stream: stream as u64,
        }
    }

    /// The key for the entries whose upper 32 index bits are `high`.
    #[must_use]
    pub fn span(self, high: u32) -> SpanKey {
        let z = mix64(self.step ^ u64::from(high));
        SpanKey {
            first: z as u32,
            second: (mix64(z ^ self.stream) >> 32) as u32,
        }
    }

    /// The 32 bits of one entry.
    #[must_use]
    pub fn bits(self, entry: u64) -> u32 {
        let span = self.span((entry >> 32) as u32);
        mix32(mix32(entry as u32 ^ span.first) ^ span.second)
    }
}

/// 64-bit FNV-1a.
#[must_use]
pub fn hash_name(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// The output function of SplitMix64.
#[must_use]
pub fn mix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Multipliers of [`mix32`].
pub const MIX32: [u32; 2] = [0x7FEB_352D, 0x846C_A68B];

/// `lowbias32`.
#[must_use]
pub fn mix32(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(MIX32[0]);
    let x = (x ^ (x >> 15)).wrapping_mul(MIX32[1]);
    x ^ (x >> 16)
}

/// A uniform draw in [0, 1) with 24 bits, for the random filter.
#[must_use]
pub fn uniform(bits: u32) -> f32 {
    (bits >> 8) as f32 * f32::from_bits(0x3380_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First outputs of the published SplitMix64 for seed 0, and FNV-1a's published test values.
    #[test]
    fn known_answers_of_the_published_parts() {
        assert_eq!(mix64(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(mix64(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
        assert_eq!(hash_name(""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(hash_name("a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(hash_name("foobar"), 0x8594_4171_F739_67E8);
    }

    fn key(step: u64, stream: Stream) -> Key {
        Key::new(42, hash_name("weight"), step, stream)
    }

    /// Number of set bits among `n` draws of 32 bits, in standard deviations from the expectation.
    fn deviation(n: u64, draw: impl Fn(u64) -> u32) -> f64 {
        let ones: u64 = (0..n)
            .map(|entry| u64::from(draw(entry).count_ones()))
            .sum();
        let bits = n as f64 * 32.0;
        (ones as f64 - bits / 2.0) / (bits / 4.0).sqrt()
    }

    #[test]
    fn every_bit_is_set_half_of_the_time() {
        for bit in 0..32 {
            let n = 1 << 16;
            let key = key(1, Stream::ExpAvg);
            let ones = (0..n)
                .filter(|&entry| key.bits(entry) >> bit & 1 == 1)
                .count();
            let sigma = (n as f64 / 4.0).sqrt();
            assert!(
                (ones as f64 - n as f64 / 2.0).abs() < 5.0 * sigma,
                "bit {bit}: {ones}"
            );
        }
    }

    #[test]
    fn streams_steps_names_and_seeds_are_uncorrelated() {
        let base = key(7, Stream::ExpAvg);
        let others = [
            key(7, Stream::ExpAvgSq),
            key(7, Stream::Param),
            key(7, Stream::Filter),
            key(8, Stream::ExpAvg),
            Key::new(43, hash_name("weight"), 7, Stream::ExpAvg),
            Key::new(42, hash_name("weighs"), 7, Stream::ExpAvg),
        ];
        for other in others {
            for lag in [0, 1, 2, 64] {
                let sigmas = deviation(1 << 15, |i| base.bits(i) ^ other.bits(i + lag));
                assert!(
                    sigmas.abs() < 5.0,
                    "lag {lag}: {sigmas} standard deviations"
                );
            }
        }
        for lag in [1u64, 2, 16, 4096, 1 << 32] {
            let sigmas = deviation(1 << 15, |i| base.bits(i) ^ base.bits(i + lag));
            assert!(
                sigmas.abs() < 5.0,
                "lag {lag}: {sigmas} standard deviations"
            );
        }
    }
}
