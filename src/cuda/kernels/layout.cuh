// What the host and the kernels share. src/cuda/layout.rs has the same structs, and the same sizes.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum Dtype : u32 { F32 = 0, F16 = 1, BF16 = 2 };
enum Filter : u32 { MOMENTUM = 0, GRADIENT = 1, UPDATE = 2, RANDOM = 3 };
enum Scope : u32 { SCOPE_SELECTED = 0, SCOPE_ALL = 1 };
enum Rounding : u32 { NEAREST = 0, STOCHASTIC = 1 };
// As in include/mofo.h.
enum Status : int { OK = 0, SKIPPED = 1, INVALID_ARGUMENT = -1, NOT_FINITE = -7 };

// Threads of a block of most kernels, of the pass, and of kernels of one block.
constexpr u32 THREADS = 512;
constexpr u32 THREADS_OF_PASS = 256;
constexpr u32 THREADS_OF_ONE = 1024;
// Consecutive entries that a thread deals with at a time.
constexpr u32 GROUP = 4;
// Entries that a warp deals with at a time: the unit of the pass.
constexpr u32 STRIP = 32 * GROUP;
// Entries that a block of threads deals with at a time: the unit of searches through a whole block.
constexpr u32 TILE = THREADS * GROUP;
// Notes of a slice, the unit in which thresholds are searched and settled where there are notes.
constexpr u32 SLICE = 4096;
// Entries of a run: whole blocks that are stepped together by one block of threads, or one larger block.
constexpr u32 RUN = 4096;
// Blocks up to this size are given to one warp.
constexpr u32 WARP_BLOCK = 512;
// Keys of a line, the grain of a sample, and lines that are sampled together.
constexpr u32 LINE = 16;
constexpr u32 GATHER = 128;
// Gradients of a chunk of the norm, and the accumulators of its sum.
constexpr u32 CHUNK = 4096;
constexpr u32 LANES = 64;
// Bins of a histogram of keys; keys have 31 bits, which are looked at in three digits.
constexpr u32 BINS = 2048;
constexpr u32 DIGITS = 3;
// What one launch carries: pointers that were bound, and which tensors take part.
constexpr u32 BOUND_AT_ONCE = 500;
constexpr u32 LISTED_AT_ONCE = 480 * 32;

struct Block;

// A tensor as the host describes it; only step_count and master_started change on the device.
struct Tensor {
    void *param;
    const void *grad;
    void *exp_avg;
    void *exp_avg_sq;
    float *master;
    u32 *thresholds;
    u64 numel;
    u64 block_numel;
    u64 name_hash;
    u64 step_count;
    // Negative where it is the optimizer's.
    double update_fraction;
    double weight_decay;
    double learning_rate_scale;
    // A record for every block if they are large, else null.
    Block *blocks;
    // Room for the sums of its chunks.
    double *sums;
    u32 exists;
    u32 is_large;
    u32 param_dtype;
    u32 grad_dtype;
    u32 state_dtype;
    u32 master_started;
};

// The arithmetic's scalars, as in docs/numerics.md.
struct Scalars {
    float s, b1, c1, b2, c2, r, e, a, decay;
};

// The keys of the random streams for 2^32 consecutive entries.
struct Keys {
    u32 first, moments, param, filter;
};

// Where tests say that a threshold is, as src/test_paths.rs names it.
enum ForcedBracket : u32 { SAMPLED = 0, TOO_LOW = 1, TOO_HIGH = 2, ANYWHERE = 3, EXACTLY = 4 };

// How a tensor's blocks are stepped.
enum Mode : u32 {
    // α is 1: at once.
    EVERYTHING = 0,
    // A block of threads finds the thresholds of whole blocks.
    WHOLE = 1,
    // On an estimated threshold, settled later.
    ESTIMATED = 2,
    // Nothing moves before the threshold is known.
    SEARCHED = 3,
};

// A tensor in one step.
struct Work {
    // Of all tensors before it: its first strip, run, gather of a sample, and chunk of the norm.
    u64 first_strip;
    u64 first_run;
    u64 first_gather;
    u64 first_chunk;
    // Among the tensors that take part.
    u64 position;
    u64 rank;
    // The random bits' state of this tensor's step.
    u64 random;
    u32 participates;
    u32 mode;
    u32 starts_moments;
    u32 starts_master;
    // All its buffers are aligned for vectors.
    u32 aligned;
    // Chunks whose sums are there.
    u32 chunks_done;
    Scalars scalars;
    Keys keys;
    u32 reserved;
    u32 reserved_too;
};

// A large block.
struct Block {
    u64 tensor;
    u64 index;
    // Room for its sample and then its notes: the keys of all, then their entries.
    u32 *notes;
    // For each strip whether nothing of it has moved, for want of room for notes.
    u8 *held;
    // Notes that there is room for.
    u32 capacity;
    // Lines of its sample; 0 if it cannot be estimated.
    u32 lines;

    // Of this step.
    u32 active;
    u32 failed;
    u32 low;
    u32 high;
    // Places taken for notes: in the lower half for open ones, from the start, in the upper half for lost ones, from
    // the end.
    u64 taken;
    // Keys above `high`, and in the bracket, those of 0 aside.
    u64 above;
    u64 open;
    u32 strips_held;
    u32 gathers_done;
    u64 first_slice;
    u64 slices;
    u64 slices_done;
    // What is left to find: the key's upper digits, and the rank among those that share them.
    u64 rank;
    u32 prefix;
    // The threshold is 0: fewer keys than should move are above it.
    u32 is_zero;
    u64 histogram[BINS];
};

// What the kernels of a step tell each other.
struct Control {
    u64 strips;
    u64 runs;
    u64 gathers;
    u64 chunks;
    u64 slices;
    u64 participants;
    // Of those that have entries.
    u64 num_sums;
    u64 entries;
    u64 selected;
    u64 nonfinite;
    u64 estimated;
    u64 failed;
    double grad_norm;
    // A value that stands for "none" is -1, as in the C API.
    u32 stop;
    int status;
};

// As mofo_step_report.
struct Report {
    double grad_norm;
    u64 entries;
    u64 entries_selected;
    int skipped;
    int status;
    u64 blocks_estimated;
    u64 estimates_failed;
    u64 tensors;
    u64 entries_nonfinite;
};

// What every kernel is given.
struct Step {
    Tensor *tensors;
    Work *works;
    Block *const *blocks;
    Control *control;
    // Room for the sums of the tensors that take part.
    double *sums;
    // In place of the values below; each may be null.
    const double *device_learning_rate;
    const double *device_beta1;
    const double *device_beta2;
    const double *device_epsilon;
    const double *device_weight_decay;
    u8 *report;
    u64 report_size;
    u64 num_tensors;
    u64 num_blocks;
    u64 seed;
    double learning_rate;
    double beta1;
    double beta2;
    double epsilon;
    double weight_decay;
    double update_fraction;
    double grad_scale;
    // -1 if it is not known.
    double grad_norm;
    double max_grad_norm;
    u32 filter;
    u32 scope;
    u32 rounding;
    u32 skip_nonfinite;
    // The gradients are summed; or only that is wanted.
    u32 needs_sum;
    u32 only_norm;
    // For tests: brackets that are wrong on purpose, and no room for notes.
    u32 forced_bracket;
    u32 no_room;
    // Which digit a selection looks at.
    u32 digit;
    u32 reserved;
};

// Buffers that were bound: of consecutive tensors, parameter and gradient in turn.
struct Bind {
    Tensor *tensors;
    u64 first;
    u64 count;
    u64 pointers[BOUND_AT_ONCE];
};

// Which of LISTED_AT_ONCE tensors from `first` on take part, if they are listed.
struct Begin {
    Step step;
    u64 first;
    u32 listed;
    u32 is_last;
    u32 mask[LISTED_AT_ONCE / 32];
};

static_assert(sizeof(Tensor) == 144, "as in layout.rs");
static_assert(sizeof(Work) == 144, "as in layout.rs");
static_assert(sizeof(Block) == 128 + 8 * BINS, "as in layout.rs");
static_assert(sizeof(Control) == 112, "as in layout.rs");
static_assert(sizeof(Report) == 64, "as in mofo.h");
static_assert(sizeof(Step) == 232, "as in layout.rs");
static_assert(sizeof(Bind) <= 4096 && sizeof(Begin) <= 4096, "what a launch can carry");
