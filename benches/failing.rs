//! What a step costs whose estimated threshold turns out to be wrong, or is not even tried, against a step of AdamW: no
//! gradient makes an estimate fail at will, so the feature `forced-paths` does.
//!
//!     cargo bench --features forced-paths --bench failing -- [ENTRIES [ROUNDS]]

use std::time::Instant;

use mofo::forced::{Forced, ForcedBracket, force};
use mofo::{Optimizer, Options, StepArgs, TensorBinding, TensorSpec};

/// Gradients that take turns.
const GRADIENTS: usize = 4;
const WARM_UP: usize = 3;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// About normal: a sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: f32 = (0..4)
            .map(|i| ((bits >> (16 * i)) & 0xFFFF) as f32 / 65536.0 - 0.5)
            .sum();
        sum * 1.732
    }
}

/// An optimizer of one tensor, and what its steps are forced to do.
struct Contender {
    name: &'static str,
    forced: Forced,
    optimizer: Optimizer,
    index: u64,
    param: Values,
    times: Vec<f64>,
    estimated: u64,
    failed: u64,
}

impl Contender {
    fn new(name: &'static str, update_fraction: f64, forced: Forced, param: &[f32]) -> Self {
        let mut optimizer = Optimizer::new(Options {
            update_fraction,
            learning_rate: 1e-4,
            ..Options::default()
        })
        .unwrap();
        let index = optimizer
            .add_tensor(&TensorSpec::new("weight", param.len() as u64))
            .unwrap();
        Self {
            name,
            forced,
            optimizer,
            index,
            param: {
                let mut values = param.iter().copied();
                Values::new(param.len(), || values.next().unwrap_or_default())
            },
            times: Vec::new(),
            estimated: 0,
            failed: 0,
        }
    }

    fn step(&mut self, grad: &[f32]) {
        force(self.forced);
        let binding = TensorBinding::new(self.index, self.param.get_mut(), grad);
        let start = Instant::now();
        let report = self
            .optimizer
            .step(&StepArgs::default(), &mut [binding])
            .unwrap();
        self.times.push(start.elapsed().as_secs_f64());
        self.estimated += report.blocks_estimated;
        self.failed += report.estimates_failed;
        force(Forced::default());
    }
}

/// Values that start on a cache line, on huge pages where the system gives them on advice.
struct Values {
    memory: Vec<f32>,
    first: usize,
}

impl Values {
    fn new(numel: usize, value: impl FnMut() -> f32) -> Self {
        const CACHE_LINE: usize = 64;
        let room = numel + CACHE_LINE / size_of::<f32>();
        let mut memory = Vec::<f32>::with_capacity(room);
        let first = memory.as_ptr().align_offset(CACHE_LINE);
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 4096;
            let start = memory.as_mut_ptr().cast::<u8>();
            let before = start.align_offset(PAGE);
            let bytes = (size_of::<f32>() * room).saturating_sub(before) / PAGE * PAGE;
            // SAFETY: whole pages within the allocation; advice changes nothing that they hold.
            unsafe {
                libc::madvise(
                    start.wrapping_add(before).cast(),
                    bytes,
                    libc::MADV_HUGEPAGE,
                )
            };
        }
        memory.resize(first, 0.0);
        memory.extend(std::iter::repeat_with(value).take(numel));
        Self { memory, first }
    }

    fn get(&self) -> &[f32] {
        &self.memory[self.first..]
    }

    fn get_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.first..]
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let numbers: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let numel = numbers.first().copied().unwrap_or(16_000_000);
    let rounds = numbers.get(1).copied().unwrap_or(15);
    let mut random = Random(1);
    let param = Values::new(numel, || 0.02 * random.normal());
    let grads: Vec<Values> = (0..GRADIENTS)
        .map(|_| Values::new(numel, || 1e-3 * random.normal().powi(3)))
        .collect();

    let usual = Forced::default();
    let bracket = |bracket| Forced { bracket, ..usual };
    let ways = [
        ("AdamW", 1.0, usual),
        ("MoFO", 0.1, usual),
        ("estimate too low", 0.1, bracket(ForcedBracket::TooLow)),
        ("estimate too high", 0.1, bracket(ForcedBracket::TooHigh)),
        (
            "no room for notes",
            0.1,
            Forced {
                no_room: true,
                ..usual
            },
        ),
        (
            "search, no estimate",
            0.1,
            Forced {
                crowded: Some(true),
                ..usual
            },
        ),
    ];
    let mut contenders =
        ways.map(|(name, fraction, forced)| Contender::new(name, fraction, forced, param.get()));
    for round in 0..WARM_UP + rounds {
        let count = contenders.len();
        for i in 0..count {
            // In another order each time.
            contenders[(i + round) % count].step(grads[round % GRADIENTS].get());
        }
    }
    println!("{numel} entries, {rounds} rounds; all MoFO steps with an update fraction of 0.1");
    println!(
        "{:<20} {:>10} {:>10} {:>10}",
        "step", "ms", "x AdamW", "failed"
    );
    let adamw = contenders[0].times[WARM_UP..].to_vec();
    for contender in &mut contenders {
        let times = &mut contender.times[WARM_UP..];
        let mut ratios: Vec<f64> = times.iter().zip(&adamw).map(|(a, b)| a / b).collect();
        let failed = match contender.estimated {
            0 => "-".to_string(),
            n => format!("{:.0} %", 100.0 * contender.failed as f64 / n as f64),
        };
        println!(
            "{:<20} {:>10.2} {:>10.2} {:>10}",
            contender.name,
            1e3 * median(times),
            median(&mut ratios),
            failed
        );
    }
}
