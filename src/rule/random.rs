//! The counter-based random bits: a function of seed, tensor name, step, stream and entry alone.

/// What a draw is for. Draws of different streams are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Rounding of the moments: [`for_exp_avg`] and [`for_exp_avg_sq`] share the bits of a draw.
    Moments = 0,
    /// Rounding of the parameter.
    Param = 1,
    /// The random filter.
    Filter = 2,
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
    /// Mixed in before the other rounds.
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
            // Keys that differ in some upper bits alone would give streams that are alike: the stream's number in the lowest
            // two sees to it that no two do.
            second: (mix64(z ^ self.stream) << 2 | self.stream) as u32,
        }
    }

    /// The 32 bits of one entry.
    #[must_use]
    pub fn bits(self, entry: u64) -> u32 {
        let span = self.span((entry >> 32) as u32);
        other_rounds(first_round(entry as u32 ^ span.first) ^ span.second)
    }
}

/// The bits of [`Stream::Moments`] as those that round the first moment: their upper half does.
#[must_use]
pub fn for_exp_avg(moments: u32) -> u32 {
    moments
}

/// The bits of [`Stream::Moments`] as those that round the second moment, whose upper half is the lower one here.
#[must_use]
pub fn for_exp_avg_sq(moments: u32) -> u32 {
    moments << 16
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

/// Multipliers of the rounds, which are those of `triple32`. Its last shift is 14; here it is 16, so that the upper half
/// is already right before it.
pub const MULTIPLIERS: [u32; 3] = [0xED5A_D4BB, 0xAC4C_1B51, 0x3184_8BAB];

/// What all streams of an entry share.
#[must_use]
pub fn first_round(x: u32) -> u32 {
    let x = (x ^ (x >> 17)).wrapping_mul(MULTIPLIERS[0]);
    x ^ (x >> 11)
}

/// What is a stream's own. Two rounds, not one: after one, some pairs of keys give streams that are visibly alike.
#[must_use]
pub fn other_rounds(x: u32) -> u32 {
    let x = x.wrapping_mul(MULTIPLIERS[1]);
    let x = (x ^ (x >> 15)).wrapping_mul(MULTIPLIERS[2]);
    x ^ (x >> 16)
}

/// `lowbias32`: for the places of samples, on which no result depends.
#[must_use]
pub fn mix32(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
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

    /// As the code of `docs/numerics.md` has them.
    #[test]
    fn known_answers_of_the_whole() {
        for (stream, entry, bits) in [
            (Stream::Moments, 5, 0x37A1_F328),
            (Stream::Param, 5, 0xAB81_E3C5),
            (Stream::Filter, 1 << 32 | 5, 0x2AFA_1617),
        ] {
            assert_eq!(key(7, stream).bits(entry), bits);
        }
        assert_eq!(for_exp_avg(0x1234_5678) >> 16, 0x1234);
        assert_eq!(for_exp_avg_sq(0x1234_5678) >> 16, 0x5678);
    }

    const STREAMS: [Stream; 3] = [Stream::Moments, Stream::Param, Stream::Filter];

    /// Bit `i` of word `j` becomes bit `j` of word `i`.
    fn transpose(words: &mut [u32; 32]) {
        let mut mask = 0x0000_FFFF;
        let mut width = 16;
        while width > 0 {
            for i in (0..32).filter(|i| i & width == 0) {
                let swapped = (words[i] >> width ^ words[i + width]) & mask;
                words[i] ^= swapped << width;
                words[i + width] ^= swapped;
            }
            width /= 2;
            mask ^= mask << width;
        }
    }

    /// For each pair of a bit of one draw and a bit of the other, how often they differ among 32 · `n` pairs of
    /// draws: in standard deviations from half of the time.
    fn deviations(n: u64, draws: impl Fn(u64) -> (u32, u32)) -> [[f64; 32]; 32] {
        let mut differing = [[0u32; 32]; 32];
        for group in 0..n {
            let (mut a, mut b) = ([0; 32], [0; 32]);
            for i in 0..32 {
                (a[i], b[i]) = draws(group * 32 + i as u64);
            }
            transpose(&mut a);
            transpose(&mut b);
            for (row, a) in differing.iter_mut().zip(a) {
                for (count, b) in row.iter_mut().zip(b) {
                    *count += (a ^ b).count_ones();
                }
            }
        }
        let half = n as f64 * 16.0;
        differing.map(|row| row.map(|count| (f64::from(count) - half) / (half / 2.0).sqrt()))
    }

    /// The largest of these, as a magnitude.
    fn largest(deviations: [[f64; 32]; 32]) -> f64 {
        let all = deviations.iter().flatten();
        all.fold(0.0, |largest, sigmas| largest.max(sigmas.abs()))
    }

    #[test]
    fn transposed_bits_are_where_they_belong() {
        let words: [u32; 32] = std::array::from_fn(|i| mix32(i as u32));
        let mut transposed = words;
        transpose(&mut transposed);
        for (i, row) in transposed.iter().enumerate() {
            for (j, word) in words.iter().enumerate() {
                assert_eq!(row >> j & 1, word >> i & 1);
            }
        }
    }

    #[test]
    fn every_bit_is_set_half_of_the_time() {
        for stream in STREAMS {
            let key = key(1, stream);
            let sigmas = largest(deviations(1 << 11, |i| (key.bits(i), 0)));
            assert!(sigmas < 5.0, "{stream:?}: {sigmas} standard deviations");
        }
    }

    /// All pairs of bits; of a thousand such, five standard deviations are exceeded once in two thousand tests.
    #[test]
    fn streams_steps_names_and_seeds_are_uncorrelated() {
        let base = key(7, Stream::Moments);
        let others = [
            key(7, Stream::Param),
            key(7, Stream::Filter),
            key(8, Stream::Moments),
            key(8, Stream::Param),
            Key::new(43, hash_name("weight"), 7, Stream::Moments),
            Key::new(42, hash_name("weighs"), 7, Stream::Moments),
            Key::new(42, hash_name("weight") + 1, 7, Stream::Moments),
        ];
        for other in others {
            for lag in [0, 1, 2, 64] {
                let sigmas = largest(deviations(1 << 10, |i| (base.bits(i), other.bits(i + lag))));
                assert!(sigmas < 5.0, "lag {lag}: {sigmas} standard deviations");
            }
        }
        for lag in [1u64, 2, 16, 4096, 1 << 32] {
            let sigmas = largest(deviations(1 << 10, |i| (base.bits(i), base.bits(i + lag))));
            assert!(sigmas < 5.0, "lag {lag}: {sigmas} standard deviations");
        }
    }

    /// The moments share a draw: its upper half says nothing about its lower one.
    #[test]
    fn the_moments_are_uncorrelated() {
        for step in 1..=8 {
            let key = key(step, Stream::Moments);
            let mut found = deviations(1 << 10, |i| {
                let bits = key.bits(i);
                (for_exp_avg(bits), for_exp_avg_sq(bits))
            });
            // Both rounds use the upper half alone.
            found[..16].fill([0.0; 32]);
            for row in &mut found {
                row[..16].fill(0.0);
            }
            let sigmas = largest(found);
            assert!(sigmas < 5.0, "step {step}: {sigmas} standard deviations");
        }
    }

    /// Two streams of one step differ in a key alone. With a single multiplication after it, some pairs of keys give
    /// streams that are alike, so that a test of one pair would not tell.
    #[test]
    fn streams_are_uncorrelated_whatever_the_keys() {
        const STEPS: u64 = 200;
        let mut squares = 0.0;
        for step in 1..=STEPS {
            let [moments, param] = [Stream::Moments, Stream::Param].map(|stream| key(step, stream));
            let found = deviations(1 << 8, |i| (moments.bits(i), param.bits(i)));
            // Of 200,000 pairs of bits.
            let sigmas = largest(found);
            assert!(sigmas < 6.5, "step {step}: {sigmas} standard deviations");
            squares += found.iter().flatten().map(|x| x * x).sum::<f64>();
        }
        let pairs = STEPS as f64 * 1024.0;
        let sigmas = (squares / pairs - 1.0) / (2.0 / pairs).sqrt();
        assert!(sigmas.abs() < 5.0, "{sigmas} standard deviations");
    }

    /// What a draw depends on: seed, name, step and entry. If one bit of these is another, so is each bit of the draw half
    /// of the time.
    #[test]
    fn every_bit_of_the_input_changes_every_bit_of_a_draw() {
        for stream in STREAMS {
            let bits = |[seed, name, step, entry]: [u64; 4]| {
                Key::new(seed, name, step, stream).bits(entry)
            };
            for bit in 0..4 * 64 {
                let sigmas = largest(deviations(1 << 5, |i| {
                    let input = [0, 1, 2, 3].map(|part| mix64(i << 2 | part));
                    let mut other = input;
                    other[bit / 64] ^= 1 << (bit % 64);
                    (bits(input) ^ bits(other), 0)
                }));
                assert!(
                    sigmas < 6.0,
                    "{stream:?}, bit {bit}: {sigmas} standard deviations"
                );
            }
        }
    }
}
