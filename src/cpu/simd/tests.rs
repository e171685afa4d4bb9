//! Every operation of a vector against the scalar rule.

use super::vector::*;
use crate::rule::convert::{self, INFINITE, MAGNITUDE, SMALLEST_NORMAL};
use crate::rule::entry;
use crate::rule::random::{Key, Stream, mix32 as mix, uniform as uniform_draw};

/// Compares every operation of a vector with the scalar rule. Called by each tier, because the operations may only
/// run where the processor has its instructions.
#[inline(always)]
pub(in crate::cpu) fn check<V: Vector>() {
    integers::<V>();
    floats::<V>();
    masks::<V>();
    memory::<V>();
    random_bits::<V>();
    widening::<V>();
    rounding::<V>();
}

/// The lanes of `x`; those that the vector does not have are 0.
#[inline(always)]
fn lanes<V: Vector>(x: V::U) -> [u32; MAX_LANES] {
    let mut lanes = [0; MAX_LANES];
    // SAFETY: no vector has more lanes.
    unsafe { V::store_u32(lanes.as_mut_ptr(), x) };
    lanes
}

#[inline(always)]
fn load<V: Vector>(lanes: &[u32]) -> V::U {
    assert!(lanes.len() >= V::LANES);
    // SAFETY: there are as many as the vector has.
    V::bits(unsafe { V::load_f32(lanes.as_ptr().cast()) })
}

/// The mask of these bits.
#[inline(always)]
fn mask_of<V: Vector>(bits: u32) -> V::Mask {
    let set: [u32; MAX_LANES] = std::array::from_fn(|i| bits >> i & 1);
    V::equal(load::<V>(&set), V::uint(1))
}

/// All exponents and signs with mantissas around the places where a rounding turns, and numbers around powers
/// of two.
fn patterns() -> Vec<u32> {
    let mut patterns: Vec<u32> = (0..=u16::MAX)
        .step_by(13)
        .chain((0..512).map(|exponent| exponent << 7))
        .chain((1..512).map(|exponent| (exponent << 7) - 1))
        .flat_map(|high| {
            [
                0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF,
            ]
            .map(|low| u32::from(high) << 16 | low)
        })
        .collect();
    // Subnormal f16, and the midpoints between them.
    patterns.extend((0..4096).map(|i| (i as f32 * 2f32.powi(-26)).to_bits()));
    patterns.extend((0..512).map(mix));
    // A multiple of all lanes.
    patterns.resize(patterns.len().next_multiple_of(MAX_LANES), 0x7FC0_0000);
    patterns
}

/// Checks a function of one vector against one of a number; which NaN it is does not matter.
#[inline(always)]
fn map<V: Vector>(
    what: &str,
    inputs: &[u32],
    vector: impl Fn(V::U) -> V::U,
    scalar: impl Fn(u32) -> u32,
    same: impl Fn(u32, u32) -> bool,
) {
    for group in inputs.chunks_exact(V::LANES) {
        let found = lanes::<V>(vector(load::<V>(group)));
        for (&x, &found) in group.iter().zip(&found) {
            let expected = scalar(x);
            assert!(
                same(found, expected),
                "{what} of {x:#010x}: {found:#010x}, not {expected:#010x}"
            );
        }
    }
}

fn exactly(a: u32, b: u32) -> bool {
    a == b
}

fn same_float(a: u32, b: u32) -> bool {
    a == b || f32::from_bits(a).is_nan() && f32::from_bits(b).is_nan()
}

fn same_f16(a: u32, b: u32) -> bool {
    let is_nan = |x: u32| x & 0x7FFF > 0x7C00;
    a as u16 == b as u16 || is_nan(a) && is_nan(b)
}

fn same_bf16(a: u32, b: u32) -> bool {
    same_float(a << 16, b << 16)
}

#[inline(always)]
fn integers<V: Vector>() {
    let inputs = patterns();
    let y = 0x9E37_79B9;
    map::<V>(
        "sum",
        &inputs,
        |x| x + V::uint(y),
        |x| x.wrapping_add(y),
        exactly,
    );
    map::<V>(
        "difference",
        &inputs,
        |x| x - V::uint(y),
        |x| x.wrapping_sub(y),
        exactly,
    );
    map::<V>(
        "product",
        &inputs,
        |x| x * V::uint(y),
        |x| x.wrapping_mul(y),
        exactly,
    );
    map::<V>("and", &inputs, |x| x & V::uint(y), |x| x & y, exactly);
    map::<V>("or", &inputs, |x| x | V::uint(y), |x| x | y, exactly);
    map::<V>(
        "max",
        &inputs,
        |x| V::max(x, V::uint(y)),
        |x| x.max(y),
        exactly,
    );
    map::<V>("xor", &inputs, |x| x ^ V::uint(y), |x| x ^ y, exactly);
    map::<V>(
        "x >> 13",
        &inputs,
        |x| V::shift_right::<13>(x),
        |x| x >> 13,
        exactly,
    );
    map::<V>(
        "x >> 19",
        &inputs,
        |x| V::shift_right::<19>(x),
        |x| x >> 19,
        exactly,
    );
    map::<V>(
        "x << 16",
        &inputs,
        |x| V::shift_left::<16>(x),
        |x| x << 16,
        exactly,
    );
    map::<V>(
        "x << 13",
        &inputs,
        |x| V::shift_left::<13>(x),
        |x| x << 13,
        exactly,
    );

    // Compared are numbers below 2^31 only.
    let inputs: Vec<u32> = inputs.iter().map(|x| x & MAGNITUDE).collect();
    let one = V::uint(1);
    let number = |mask: V::Mask| V::select(mask, one, V::uint(0));
    for y in [0, 1, SMALLEST_NORMAL, 0x3F80_0000, INFINITE, MAGNITUDE] {
        let v = V::uint(y);
        map::<V>(
            "<",
            &inputs,
            |x| number(V::less(x, v)),
            |x| u32::from(x < y),
            exactly,
        );
        map::<V>(
            ">=",
            &inputs,
            |x| number(V::at_least(x, v)),
            |x| u32::from(x >= y),
            exactly,
        );
        map::<V>(
            "==",
            &inputs,
            |x| number(V::equal(x, v)),
            |x| u32::from(x == y),
            exactly,
        );
        for low in [0, 1, SMALLEST_NORMAL, 0x3F80_0000, INFINITE, MAGNITUDE] {
            if low > y {
                continue;
            }
            map::<V>(
                "within",
                &inputs,
                |x| number(V::within(x, V::uint(low), v)),
                |x| u32::from(low <= x && x < y),
                exactly,
            );
        }
    }
}

#[inline(always)]
fn floats<V: Vector>() {
    let inputs = patterns();
    let f = f32::from_bits;
    for y in [
        1.0f32,
        -3.3,
        1e-38,
        1e38,
        f32::INFINITY,
        f32::NAN,
        0.0,
        1e-45,
    ] {
        let v = V::float(y);
        let b = |x| V::from_bits(x);
        map::<V>(
            "x + y",
            &inputs,
            |x| V::bits(b(x) + v),
            |x| (f(x) + y).to_bits(),
            same_float,
        );
        map::<V>(
            "x - y",
            &inputs,
            |x| V::bits(b(x) - v),
            |x| (f(x) - y).to_bits(),
            same_float,
        );
        map::<V>(
            "x * y",
            &inputs,
            |x| V::bits(b(x) * v),
            |x| (f(x) * y).to_bits(),
            same_float,
        );
        map::<V>(
            "x / y",
            &inputs,
            |x| V::bits(b(x) / v),
            |x| (f(x) / y).to_bits(),
            same_float,
        );
        map::<V>(
            "y / x",
            &inputs,
            |x| V::bits(v / b(x)),
            |x| (y / f(x)).to_bits(),
            same_float,
        );
    }
    let sqrt = |x| V::bits(V::sqrt(V::from_bits(x)));
    map::<V>("sqrt", &inputs, sqrt, |x| f(x).sqrt().to_bits(), same_float);
    let flushed = |x| V::bits(V::flush(V::from_bits(x)));
    map::<V>(
        "flush",
        &inputs,
        flushed,
        |x| entry::flush(f(x)).to_bits(),
        exactly,
    );
    let finite = |x| V::keep(V::finite(V::from_bits(x)), V::uint(1));
    let is_finite = |x| u32::from(f(x).is_finite());
    map::<V>("finite", &inputs, finite, is_finite, exactly);
    let number = |x| V::keep(V::number(V::from_bits(x)), V::uint(1));
    map::<V>(
        "number",
        &inputs,
        number,
        |x| (!f(x).is_nan()).into(),
        exactly,
    );
    let size = |x| magnitude::<V>(V::from_bits(x));
    map::<V>(
        "magnitude",
        &inputs,
        size,
        |x| entry::magnitude(f(x)),
        exactly,
    );

    let small: Vec<u32> = inputs.iter().map(|x| x & 0x00FF_FFFF).collect();
    let to_float = |x| V::bits(V::to_float(x));
    map::<V>(
        "to_float",
        &small,
        to_float,
        |x| (x as f32).to_bits(),
        exactly,
    );
    let mut truncated = inputs.clone();
    truncated.retain(|&x| f(x) >= 0.0 && f(x) < 2f32.powi(31));
    let truncate = |x| V::truncate(V::from_bits(x));
    map::<V>("truncate", &truncated, truncate, |x| f(x) as u32, exactly);
}

#[inline(always)]
fn masks<V: Vector>() {
    let numbers = lanes::<V>(V::lane_numbers());
    for (i, &number) in numbers[..V::LANES].iter().enumerate() {
        assert_eq!(number as usize, i);
    }
    for bits in 0..1u32 << V::LANES {
        let mask = mask_of::<V>(bits);
        assert_eq!(V::mask_bits(mask), bits);
        assert_eq!(V::any(mask), bits != 0);
        assert_eq!(V::count(mask), bits.count_ones() as usize);
        let chosen = lanes::<V>(V::select(mask, V::uint(7), V::lane_numbers()));
        let tallied = lanes::<V>(V::tally(V::lane_numbers(), mask));
        for i in 0..V::LANES {
            let set = bits >> i & 1;
            assert_eq!(chosen[i], if set == 1 { 7 } else { i as u32 });
            assert_eq!(tallied[i], i as u32 + set);
        }
        let other = mask_of::<V>(mix(bits) & ((1 << V::LANES) - 1));
        assert_eq!(V::mask_bits(mask & other), bits & V::mask_bits(other));
        assert_eq!(V::mask_bits(mask | other), bits | V::mask_bits(other));
        // A mask comes from any comparison.
        let compared = V::less(V::uint(0), V::select(mask, V::uint(1), V::uint(0)));
        assert_eq!(V::mask_bits(compared), bits);
    }
    let sum = V::sum(V::uint((1 << 28) - 1) - V::lane_numbers());
    let n = V::LANES as u32;
    assert_eq!(sum, n * ((1 << 28) - 1) - n * (n - 1) / 2);
}

#[inline(always)]
fn memory<V: Vector>() {
    const GUARD: u32 = 0xDEAD_BEEF;
    let x = V::lane_numbers() * V::uint(0x0001_0003) + V::uint(0xFFF0);
    let all = lanes::<V>(x);
    for bits in 0..1u32 << V::LANES {
        let mask = mask_of::<V>(bits);
        let expected: Vec<u32> = (0..V::LANES)
            .filter(|i| bits >> i & 1 == 1)
            .map(|i| all[i])
            .collect();
        let mut room = [GUARD; MAX_LANES + 1];
        // SAFETY: there is room for a group.
        unsafe { V::store_compressed(room.as_mut_ptr(), mask, x) };
        assert_eq!(room[..expected.len()], expected, "compressed by {bits:#b}");
        assert_eq!(room[V::LANES], GUARD);

        let mut room = [0xDEADu16; MAX_LANES + 1];
        // SAFETY: as above.
        unsafe { V::store_compressed_u16(room.as_mut_ptr(), mask, x) };
        let low_halves: Vec<u16> = expected.iter().map(|&x| x as u16).collect();
        assert_eq!(room[..expected.len()], low_halves, "halves by {bits:#b}");
        assert_eq!(room[V::LANES], 0xDEAD);
    }
    // At any alignment of the element.
    let halves: [u16; MAX_LANES + 1] = std::array::from_fn(|i| mix(i as u32) as u16);
    let mut stored = [0u16; MAX_LANES + 2];
    // SAFETY: there are as many elements, and room for them.
    unsafe {
        let loaded = V::load_u16(halves.as_ptr().add(1));
        for (i, &found) in lanes::<V>(loaded)[..V::LANES].iter().enumerate() {
            assert_eq!(found, u32::from(halves[i + 1]));
        }
        V::store_u16(stored.as_mut_ptr().add(1), loaded | V::uint(0xABCD_0000));
    }
    assert_eq!(stored[1..=V::LANES], halves[1..=V::LANES]);
    assert_eq!((stored[0], stored[V::LANES + 1]), (0, 0));
    let mut floats = [0f32; MAX_LANES + 2];
    // SAFETY: as above.
    unsafe {
        V::store_f32(
            floats.as_mut_ptr().add(1),
            V::to_float(V::lane_numbers() + V::uint(1)),
        )
    };
    for (i, &float) in floats.iter().enumerate() {
        assert_eq!(float, if i <= V::LANES { i as f32 } else { 0.0 });
    }
}

#[inline(always)]
fn random_bits<V: Vector>() {
    let inputs = patterns();
    for high in [0, 1] {
        let key = Key::new(5, 7, 11, Stream::Param);
        let span = key.span(high);
        let bits = |low: u32| key.bits(u64::from(high) << 32 | u64::from(low));
        let second = |x| first_round::<V>(x ^ V::uint(span.first)) ^ V::uint(span.second);
        map::<V>(
            "random",
            &inputs,
            |x| other_rounds::<V>(second(x)),
            bits,
            exactly,
        );
        map::<V>(
            "upper half of random",
            &inputs,
            |x| V::shift_right::<16>(other_rounds_high::<V>(second(x))),
            |x| bits(x) >> 16,
            exactly,
        );
    }
    let uniform = |x| V::bits(uniform::<V>(x));
    map::<V>(
        "uniform",
        &inputs,
        uniform,
        |x| uniform_draw(x).to_bits(),
        exactly,
    );
}

#[inline(always)]
fn widening<V: Vector>() {
    let all: Vec<u32> = (0..=u32::from(u16::MAX)).collect();
    let bits = f32::to_bits;
    let f16 = |x| bits(convert::f16_to_f32(x as u16));
    let bf16 = |x| bits(convert::bf16_to_f32(x as u16));
    for high in [0, 0xFFFF_0000, 0x1234_0000] {
        let dirty = |x| x | V::uint(high);
        let widen = |x| V::bits(<F16 as Format<V>>::widen(dirty(x)));
        map::<V>("f16 widened", &all, widen, f16, same_float);
        let widen = |x| V::bits(<Bf16 as Format<V>>::widen(dirty(x)));
        map::<V>("bf16 widened", &all, widen, bf16, same_float);
    }
}

#[inline(always)]
fn rounding<V: Vector>() {
    let inputs = patterns();
    let f = f32::from_bits;
    let b = |x| V::from_bits(x);
    map::<V>(
        "nearest f16",
        &inputs,
        |x| <F16 as Format<V>>::nearest(b(x)),
        |x| convert::f32_to_f16_nearest(f(x)).into(),
        same_f16,
    );
    map::<V>(
        "nearest bf16",
        &inputs,
        |x| <Bf16 as Format<V>>::nearest(b(x)),
        |x| convert::f32_to_bf16_nearest(f(x)).into(),
        same_bf16,
    );
    // No operation has a signalling NaN as its result.
    let is_signalling = |x: u32| f32::from_bits(x).is_nan() && x & 0x0040_0000 == 0;
    let results: Vec<u32> = inputs
        .iter()
        .map(|&x| if is_signalling(x) { x | 0x0040_0000 } else { x })
        .collect();
    for random in [
        0,
        1,
        0x0007_FFFF,
        0x0008_0000,
        0x0000_FFFF,
        0x1_0000,
        0x8000_0000,
        u32::MAX,
    ]
    .into_iter()
    .chain((0..8).map(mix))
    {
        map::<V>(
            "stochastic f16",
            &results,
            |x| <F16 as Format<V>>::stochastic(b(x), V::uint(random)),
            |x| convert::f32_to_f16_stochastic(f(x), random).into(),
            same_f16,
        );
        map::<V>(
            "stochastic bf16",
            &results,
            |x| <Bf16 as Format<V>>::stochastic(b(x), V::uint(random)),
            |x| convert::f32_to_bf16_stochastic(f(x), random).into(),
            same_bf16,
        );
    }
}
