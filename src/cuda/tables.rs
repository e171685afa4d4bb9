//! What lies on the device between steps: the tensors' records, and the work space of their steps.
//!
//! Everything is allocated when a tensor is added, so that a step allocates nothing.

use std::sync::Arc;

use super::driver::{Context, Memory};
use super::layout::{self, BLOCK_BYTES, Block, CONTROL_BYTES, CONTROL_GRAD_NORM, LINE, WORK_BYTES};
use crate::error::Result;
use crate::job::Progress;
use crate::memory::{try_reserve, try_with_capacity};
use crate::test_paths;

/// Blocks up to this size are stepped by one block of threads, threshold and all.
const WHOLE_BLOCK: u64 = 1 << 15;
/// So are those whose buffers take up to so many bytes, where there are very many of them,
const MANY_WHOLE_BLOCKS: u64 = 1 << 22;
/// that is when all work space would be more than this: each of them would take more than its share.
const FREE_SPACE: u64 = 2 << 20;
/// Keys of the largest sample.
const MOST_SAMPLED: u64 = 1 << 17;
/// Half the width of a bracket, in standard deviations of the estimate, as in `kernels/sample.cu`.
const SIGMAS: f64 = 3.5;
/// How many more entries may be open than a good estimate leaves open.
const OPEN_RESERVE: f64 = 1.5;
/// Besides, one of this many may be noted because its old value would be lost.
const LOST_SHARE: u64 = 256;
/// And one of so many places may be taken by a warp, and not used.
const UNUSED_SHARE: u64 = 256;
/// The share of a tensor's buffers that its notes may take; all of the work space is to stay below 3 %, or 16 MiB.
const MOST_NOTES: f64 = 0.021;
/// Of tensors that take from `FREE_SPACE`.
const MOST_FREE_NOTES: f64 = 0.06;

/// A tensor, as the tables are told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Description {
    pub record: Record,
    /// α as it is known now; steps may have another one.
    pub update_fraction: f64,
    /// Everything moves in every step.
    pub always_everything: bool,
    /// Bytes of an entry in parameter, gradient, moments and master copy.
    pub entry_bytes: u64,
}

pub(super) type Record = layout::Tensor;

/// Units of work of a tensor in a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Units {
    /// If everything moves.
    pub all_strips: u64,
    /// Else, of large blocks.
    pub strips: u64,
    pub tiles: u64,
    /// Or of others.
    pub runs: u64,
    pub gathers: u64,
    pub chunks: u64,
}

/// How a tensor's work space is laid out.
#[derive(Clone, Copy, Debug)]
struct Space {
    blocks: u64,
    lines: u64,
    capacity: u64,
    strips_of_block: u64,
    /// Where the sums, the notes and the marks of held strips begin; the blocks are first.
    sums: u64,
    notes: u64,
    held: u64,
    bytes: u64,
}

impl Space {
    /// The space of a tensor, where the work space of all others leaves so much of `FREE_SPACE`.
    fn choose(description: &Description, free: u64) -> Self {
        let small = Self::lay_out(description, false);
        if description.always_everything {
            return small;
        }
        let numel = description.record.block_numel;
        let large = Self::lay_out(description, true);
        let is_large = match test_paths::current().small_block {
            Some(most) => numel > most,
            None if is_many(description) => true,
            None => numel > WHOLE_BLOCK && large.bytes <= free,
        };
        if is_large { large } else { small }
    }

    fn lay_out(description: &Description, is_large: bool) -> Self {
        let Record {
            numel, block_numel, ..
        } = description.record;
        let blocks = if is_large { numel / block_numel } else { 0 };
        let lines = lines(description);
        let capacity = capacity(description, lines);
        let strips_of_block = layout::strips_of(block_numel);
        let sums = blocks * BLOCK_BYTES as u64;
        let notes = sums + layout::chunks_of(numel) * size_of::<f64>() as u64;
        let held = notes + blocks * 2 * capacity * size_of::<u32>() as u64;
        Self {
            blocks,
            lines,
            capacity,
            strips_of_block,
            sums,
            notes,
            held,
            bytes: held + blocks * strips_of_block,
        }
    }
}

/// How many bytes of work space a tensor takes, if there are few others.
pub(super) fn space_bytes(description: &Description) -> u64 {
    Space::choose(description, FREE_SPACE).bytes
}

/// True if a block's buffers take so many bytes that its share of the work space is enough.
fn is_many(description: &Description) -> bool {
    description.record.block_numel > MANY_WHOLE_BLOCKS / description.entry_bytes
}

/// How many notes about a block its share of the work space has room for.
fn affordable(description: &Description) -> u64 {
    let bytes = description.record.block_numel * description.entry_bytes;
    let share = if is_many(description) {
        MOST_NOTES
    } else {
        MOST_FREE_NOTES
    };
    ((bytes as f64 * share) as u64 / 8).max(256)
}

/// Lines of the sample of a block. With it, keys are in proportion to n^(2/3): then the sample and the entries that it
/// leaves open, in proportion to n / sqrt(keys), cost about the same.
fn lines(description: &Description) -> u64 {
    let block_numel = description.record.block_numel;
    // Entries of a block are noted in 32 bits.
    if block_numel > u64::from(u32::MAX) {
        return 0;
    }
    let keys = (4.0 * (block_numel as f64).powf(2.0 / 3.0)) as u64;
    let most = MOST_SAMPLED.min(2 * affordable(description));
    2 * (keys.min(most) / (2 * LINE)).max(1)
}

/// How many notes of a block there is room for. The sample lies where the notes will.
fn capacity(description: &Description, lines: u64) -> u64 {
    if lines == 0 {
        return 0;
    }
    let numel = description.record.block_numel;
    let keys = lines * LINE;
    let share = description.update_fraction.clamp(0.1, 0.9);
    let open = numel as f64 * 2.0 * SIGMAS * (share * (1.0 - share)).sqrt() / (keys as f64).sqrt();
    let wanted = (OPEN_RESERVE * open) as u64 + numel / LOST_SHARE + numel / UNUSED_SHARE + 256;
    // Notes are counted in 31 bits.
    wanted
        .min(affordable(description))
        .max(keys / 2)
        .min(1 << 30)
}

/// Everything on the device but the tensors' buffers and state.
#[derive(Debug)]
pub(super) struct Tables {
    context: Arc<Context>,
    /// What the device was told, or will be told when it is next bound.
    records: Vec<Record>,
    units: Vec<Units>,
    spaces: Vec<Option<(Memory, Space)>>,
    unbound: Vec<bool>,
    pub(super) any_unbound: bool,
    tensors: Memory,
    works: Memory,
    sums: Memory,
    blocks: Memory,
    num_blocks: u64,
    control: Memory,
    /// Bytes of all spaces.
    taken: u64,
}

const FIRST_TENSORS: usize = 256;
const FIRST_BLOCKS: usize = 256;
const WORD: usize = size_of::<u64>();

impl Tables {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let memory = |bytes| Memory::zeroed(context, bytes, "the tables");
        Ok(Self {
            context: context.clone(),
            records: Vec::new(),
            units: Vec::new(),
            spaces: Vec::new(),
            unbound: Vec::new(),
            any_unbound: false,
            tensors: memory(FIRST_TENSORS * size_of::<Record>())?,
            works: memory(FIRST_TENSORS * WORK_BYTES)?,
            sums: memory(FIRST_TENSORS * WORD)?,
            blocks: memory(FIRST_BLOCKS * WORD)?,
            num_blocks: 0,
            control: memory(CONTROL_BYTES)?,
            taken: 0,
        })
    }

    /// Adds a tensor at the next index. The device is idle.
    pub(super) fn add(&mut self, description: &Description) -> Result<()> {
        let index = self.records.len();
        let space = Space::choose(description, FREE_SPACE.saturating_sub(self.taken));
        self.reserve(index + 1, self.num_blocks + space.blocks)?;
        let memory = Memory::zeroed(&self.context, space.bytes.max(1) as usize, "the work space")?;
        let start = memory.start();

        let mut record = description.record;
        record.exists = 1;
        record.is_large = u32::from(space.blocks > 0);
        record.blocks = if space.blocks > 0 { start } else { 0 };
        record.sums = start + space.sums;
        for block in 0..space.blocks {
            let notes = block * 2 * space.capacity * size_of::<u32>() as u64;
            let head = Block {
                tensor: index as u64,
                index: block,
                notes: start + space.notes + notes,
                held: start + space.held + block * space.strips_of_block,
                capacity: space.capacity as u32,
                lines: space.lines as u32,
            };
            memory.write(block as usize * BLOCK_BYTES, &[head])?;
        }
        self.tensors.write(index * size_of::<Record>(), &[record])?;
        let pointers = pointers_to(start, space.blocks)?;
        self.blocks
            .write(self.num_blocks as usize * WORD, &pointers)?;

        let Record {
            numel, block_numel, ..
        } = record;
        let is_large = space.blocks > 0;
        self.units.push(Units {
            all_strips: if numel > 0 {
                layout::strips_of(numel)
            } else {
                0
            },
            strips: space.blocks * space.strips_of_block,
            tiles: space.blocks * layout::tiles_of(block_numel),
            runs: if is_large {
                0
            } else {
                layout::runs_of(numel, block_numel)
            },
            gathers: space.blocks * layout::gathers_of(space.lines),
            chunks: layout::chunks_of(numel),
        });
        self.records.push(record);
        self.taken += space.bytes;
        self.spaces.push(Some((memory, space)));
        self.unbound.push(false);
        self.num_blocks += space.blocks;
        Ok(())
    }

    /// Removes a tensor. The device is idle.
    pub(super) fn remove(&mut self, index: usize) -> Result<()> {
        let others = || self.spaces.iter().enumerate().filter(|(i, _)| *i != index);
        let mut pointers = try_with_capacity(self.num_blocks as usize, "the tables")?;
        for (_, space) in others() {
            if let Some((memory, space)) = space {
                pointers.extend_from_slice(&pointers_to(memory.start(), space.blocks)?);
            }
        }
        self.tensors
            .write(index * size_of::<Record>(), &[Record::default()])?;
        self.blocks.write(0, &pointers)?;
        self.num_blocks = pointers.len() as u64;
        self.records[index] = Record::default();
        self.units[index] = Units::default();
        if let Some((_, space)) = self.spaces[index].take() {
            self.taken -= space.bytes;
        }
        self.unbound[index] = false;
        Ok(())
    }

    /// Makes room for that many tensors and blocks.
    fn reserve(&mut self, tensors: usize, blocks: u64) -> Result<()> {
        try_reserve(&mut self.records, 1, "the tables")?;
        try_reserve(&mut self.units, 1, "the tables")?;
        try_reserve(&mut self.spaces, 1, "the tables")?;
        try_reserve(&mut self.unbound, 1, "the tables")?;
        let context = &self.context;
        let grown = |memory: &Memory, element: usize, wanted: usize| -> Result<Option<Memory>> {
            let have = memory.bytes() / element;
            if wanted <= have {
                return Ok(None);
            }
            let larger = Memory::zeroed(context, wanted.max(2 * have) * element, "the tables")?;
            larger.copy_from(memory)?;
            Ok(Some(larger))
        };
        if let Some(memory) = grown(&self.tensors, size_of::<Record>(), tensors)? {
            self.tensors = memory;
        }
        if let Some(memory) = grown(&self.works, WORK_BYTES, tensors)? {
            self.works = memory;
        }
        if let Some(memory) = grown(&self.sums, WORD, tensors)? {
            self.sums = memory;
        }
        if let Some(memory) = grown(&self.blocks, WORD, blocks as usize)? {
            self.blocks = memory;
        }
        Ok(())
    }

    /// Notes that a tensor is bound to other buffers; the device learns of it in the next step.
    pub(super) fn bind(&mut self, index: usize, param: u64, grad: u64) {
        let record = &mut self.records[index];
        if (record.param, record.grad) != (param, grad) {
            (record.param, record.grad) = (param, grad);
            self.unbound[index] = true;
            self.any_unbound = true;
        }
    }

    /// The launches that tell the device of new buffers.
    pub(super) fn binds(&self) -> impl Iterator<Item = layout::Bind> + '_ {
        let all = layout::TENSORS_BOUND_AT_ONCE;
        (0..self.records.len())
            .step_by(all)
            .filter_map(move |first| {
                let last = self.records.len().min(first + all);
                self.unbound[first..last].contains(&true).then(|| {
                    let mut bind = layout::Bind {
                        tensors: self.tensors.start(),
                        first: first as u64,
                        count: 2 * (last - first) as u64,
                        pointers: [0; 2 * layout::TENSORS_BOUND_AT_ONCE],
                    };
                    let pairs = bind.pointers.chunks_exact_mut(2);
                    for (pair, record) in pairs.zip(&self.records[first..last]) {
                        pair[0] = record.param;
                        pair[1] = record.grad;
                    }
                    bind
                })
            })
    }

    /// The device knows all buffers.
    pub(super) fn all_bound(&mut self) {
        self.unbound.fill(false);
        self.any_unbound = false;
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn units(&self, index: usize) -> Units {
        self.units[index]
    }

    /// Points a step at the tables.
    pub(super) fn enter_into(&self, step: &mut layout::Step) {
        step.tensors = self.tensors.start();
        step.works = self.works.start();
        step.blocks = self.blocks.start();
        step.control = self.control.start();
        step.sums = self.sums.start();
        step.num_tensors = self.records.len() as u64;
        step.num_blocks = self.num_blocks;
    }

    /// How far a tensor has come, as the device has it. The device is idle.
    pub(super) fn progress(&self, index: usize) -> Result<Progress> {
        let record = index * size_of::<Record>();
        let step_count = record + std::mem::offset_of!(Record, step_count);
        let master_started = record + std::mem::offset_of!(Record, master_started);
        Ok(Progress {
            step_count: self.tensors.read(step_count)?,
            master_started: self.tensors.read::<u32>(master_started)? != 0,
        })
    }

    /// Sets how far a tensor has come. The device is idle.
    pub(super) fn set_progress(&mut self, index: usize, progress: Progress) -> Result<()> {
        let record = &mut self.records[index];
        record.step_count = progress.step_count;
        record.master_started = u32::from(progress.master_started);
        self.tensors.write(index * size_of::<Record>(), &[*record])
    }

    /// The gradient norm of the last step. The device is idle.
    pub(super) fn grad_norm(&self) -> Result<f64> {
        self.control.read(CONTROL_GRAD_NORM)
    }

    /// Device memory that is not tensors' state.
    pub(super) fn scratch_bytes(&self) -> u64 {
        let tables = [
            &self.tensors,
            &self.works,
            &self.sums,
            &self.blocks,
            &self.control,
        ];
        let spaces = self.spaces.iter().flatten().map(|(memory, _)| memory);
        tables
            .into_iter()
            .chain(spaces)
            .map(|memory| memory.bytes() as u64)
            .sum()
    }
}

/// The addresses of a tensor's block records.
fn pointers_to(start: u64, blocks: u64) -> Result<Vec<u64>> {
    let mut pointers = try_with_capacity(blocks as usize, "the tables")?;
    pointers.extend((0..blocks).map(|block| start + block * BLOCK_BYTES as u64));
    Ok(pointers)
}
