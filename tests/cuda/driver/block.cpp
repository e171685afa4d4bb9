#include "block.hpp"

#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "fiber.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

// The linker's names for the ends of the section that holds every __shared__ variable (see device.hpp).
extern "C" {
extern unsigned char __start_mofo_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_mofo_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulation {

const uint3 *thread_index;
uint3 block_index;
dim3 block_size;
dim3 grid_size;
bool any_order;

namespace {

enum class State : std::uint8_t { unstarted, runs, waits, ended };

struct Thread {
    uint3 index;
    unsigned number;
    State state;
    Wait wait;
    unsigned mask;
    unsigned source;
    std::uint64_t value;
    std::uint64_t result;
    Place place;
    Fiber *fiber;
};

struct Warp {
    // Lanes that wait at an operation of the warp.
    unsigned waiting;
    // Lanes that have ended, or that the block has no threads for.
    unsigned ended;
};

const char *kernel_name;
void (*kernel)(const void *);
const void *parameter;
bool reversed;

// Of the random order: its seed, how many grids the calling thread has run in it, and the generator's state. A grid's
// order depends on the first two and on the kernel, not on what other threads do at the same time.
std::uint64_t seed;
thread_local std::uint64_t grids;
std::uint64_t random_state;
// Of 16 times that a thread waits, how often one goes on that could go on only just now: mostly of the same warp. Drawn
// for each block, so that in some the warps go side by side, and in others one gets far while another has not begun.
unsigned eager;
// How many others go on, on average, before one that was interrupted; drawn for each block.
unsigned patience;
// The threads in the order in which they begin, if that is random.
unsigned beginning[MAX_THREADS];

Thread threads[MAX_THREADS];
Warp warps[MAX_THREADS / WARP];
unsigned total;
unsigned started;
unsigned live;
Thread *current;

// Threads that can go on, in the order in which they will.
Thread *ready[MAX_THREADS];
unsigned ready_first;
unsigned ready_end;

// Threads that were interrupted.
Thread *interrupted[MAX_THREADS];
unsigned interruptions;

// Threads at the block's barrier, the first of them, and how many of their predicates hold.
unsigned arrived;
Thread *first_arrived;
unsigned predicates;

// Of the thread that called run_grid.
Fiber *caller;
// Fibers are kept between blocks. A free one begins with the next thread that has not started. The lists are never
// destroyed: kernels may run in one thread while another ends the process.
auto &fibers = *new std::vector<std::unique_ptr<Fiber>>;
auto &free_fibers = *new std::vector<Fiber *>;

const char *name_of(Wait wait) {
    static const char *const NAMES[] = {
        "nothing",         "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count",
        "__syncwarp",      "__ballot_sync", "__any_sync",       "__all_sync",        "__shfl_sync",
        "__shfl_up_sync",  "__shfl_down_sync", "__shfl_xor_sync", "__match_any_sync",
    };
    return NAMES[static_cast<unsigned>(wait)];
}

bool at_barrier(const Thread &thread) { return thread.state == State::waits && thread.wait < Wait::warp; }

bool same_place(Place a, Place b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void say_where(Place place) {
    std::fprintf(stderr, "emulated CUDA: kernel %s, block (%u, %u, %u)", kernel_name, block_index.x, block_index.y,
                 block_index.z);
    if (place.file != nullptr) {
        std::fprintf(stderr, ", %s:%d", place.file, place.line);
    }
    std::fputs(": ", stderr);
}

bool described_alike(const Thread &a, const Thread &b) {
    return a.state == b.state && (a.state != State::waits || (a.wait == b.wait && a.mask == b.mask &&
                                                              same_place(a.place, b.place)));
}

// Where all threads of the block are, in runs of equal ones.
void describe_threads() {
    for (unsigned first = 0; first < total;) {
        const Thread &thread = threads[first];
        unsigned end = first + 1;
        while (end < total && described_alike(thread, threads[end])) {
            end++;
        }
        std::fprintf(stderr, "    threads %u to %u: ", first, end - 1);
        switch (thread.state) {
        case State::unstarted:
            std::fputs("not started\n", stderr);
            break;
        case State::runs:
            std::fputs("running\n", stderr);
            break;
        case State::ended:
            std::fputs("ended\n", stderr);
            break;
        case State::waits:
            std::fprintf(stderr, "at %s, %s:%d", name_of(thread.wait), thread.place.file, thread.place.line);
            if (thread.wait >= Wait::warp) {
                std::fprintf(stderr, ", mask 0x%08x", thread.mask);
            }
            std::fputc('\n', stderr);
            break;
        }
        first = end;
    }
}

[[noreturn]] void deadlock() {
    say_where({nullptr, 0});
    std::fputs("no thread can go on; some wait for others that have ended or wait elsewhere\n", stderr);
    describe_threads();
    std::abort();
}

// SplitMix64.
std::uint64_t random_bits() {
    random_state += 0x9E3779B97F4A7C15u;
    std::uint64_t x = random_state;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

unsigned random_below(unsigned count) { return static_cast<unsigned>((random_bits() >> 32) * count >> 32); }

template <class T> void shuffle(T *values, std::size_t count) {
    for (std::size_t i = count; i > 1; i--) {
        std::swap(values[i - 1], values[random_below(static_cast<unsigned>(i))]);
    }
}

// Begins the random order of a grid.
void begin_random(const char *name) {
    random_state = seed;
    for (; *name != '\0'; name++) {
        random_state = random_bits() ^ static_cast<unsigned char>(*name);
    }
    random_state = random_bits() ^ grids++;
}

// Warp after warp, or any thread after any other.
void shuffle_threads() {
    static constexpr unsigned EAGER[] = {0, 8, 15}, PATIENCE[] = {1, 100, 1000, 10000};
    eager = EAGER[random_below(3)];
    patience = PATIENCE[random_below(4)];
    unsigned order[MAX_THREADS / WARP];
    const unsigned count = (total + WARP - 1) / WARP;
    for (unsigned i = 0; i < count; i++) {
        order[i] = i;
    }
    shuffle(order, count);
    unsigned at = 0;
    for (unsigned i = 0; i < count; i++) {
        const unsigned first = at;
        for (unsigned number = order[i] * WARP; number < total && number < (order[i] + 1) * WARP; number++) {
            beginning[at++] = number;
        }
        shuffle(&beginning[first], at - first);
    }
    if (random_below(2) == 0) {
        shuffle(beginning, total);
    }
}

void make_ready(Thread &thread) {
    thread.state = State::runs;
    ready[ready_end++ % MAX_THREADS] = &thread;
}

void set_current(Thread &thread) {
    current = &thread;
    thread_index = &thread.index;
}

void run_threads(Fiber &self);

Fiber &free_fiber() {
    if (free_fibers.empty()) {
        fibers.push_back(std::make_unique<Fiber>(run_threads, static_cast<unsigned>(fibers.size())));
        return *fibers.back();
    }
    Fiber *fiber = free_fibers.back();
    free_fibers.pop_back();
    return *fiber;
}

bool others_can_go_on() { return ready_first != ready_end || started < total; }

// Chooses what goes on next: true for a thread that has not started, or if there is none at all.
bool is_next_new() {
    if (interruptions != 0 && (!others_can_go_on() || random_below(patience) == 0)) {
        std::swap(interrupted[random_below(interruptions)], interrupted[interruptions - 1]);
        make_ready(*interrupted[--interruptions]);
    }
    const unsigned waiting = ready_end - ready_first;
    if (waiting == 0 || started == total || !any_order) {
        return waiting == 0;
    }
    return random_below(16) >= eager && random_below(waiting + total - started) >= waiting;
}

Fiber &next_ready() {
    if (any_order) {
        const unsigned count = ready_end - ready_first;
        const unsigned i = random_below(16) < eager ? count - 1 : random_below(count);
        std::swap(ready[ready_first % MAX_THREADS], ready[(ready_first + i) % MAX_THREADS]);
    }
    Thread &thread = *ready[ready_first++ % MAX_THREADS];
    set_current(thread);
    return *thread.fiber;
}

// Leaves the running thread until another one makes it ready. Unless the order is random, threads that can go on come
// before those that have not started: a warp gets far while its stacks are in the cache, and few stacks are needed.
void wait() {
    Thread &self = *current;
    if (!is_next_new()) {
        next_ready().resume(*self.fiber);
    } else if (started < total) {
        free_fiber().resume(*self.fiber);
    } else {
        deadlock();
    }
}

// Lets all go on that wait at the barrier, but for the thread that runs.
void open_barrier() {
    unsigned result = 0;
    switch (first_arrived->wait) {
    case Wait::barrier_or:
        result = predicates != 0;
        break;
    case Wait::barrier_and:
        result = predicates == arrived;
        break;
    case Wait::barrier_count:
        result = predicates;
        break;
    default:
        break;
    }
    for (unsigned i = 0; i < total; i++) {
        Thread &thread = threads[i];
        if (at_barrier(thread)) {
            thread.result = result;
            if (&thread == current) {
                thread.state = State::runs;
            } else {
                make_ready(thread);
            }
        }
    }
    arrived = 0;
    predicates = 0;
}

void end_thread(Thread &thread) {
    thread.state = State::ended;
    warps[thread.number / WARP].ended |= 1u << thread.number % WARP;
    live--;
    if (live != 0 && arrived == live) {
        open_barrier();
    }
}

void start_thread(Fiber &fiber) {
    const unsigned number = any_order ? beginning[started] : reversed ? total - 1 - started : started;
    started++;
    Thread &thread = threads[number];
    thread.state = State::runs;
    thread.fiber = &fiber;
    set_current(thread);
}

// What a fiber does: threads that do not wait follow each other on one stack.
void run_threads(Fiber &self) {
    for (;;) {
        start_thread(self);
        kernel(parameter);
        end_thread(*current);
        if (!is_next_new()) {
            free_fibers.push_back(&self);
            next_ready().resume(self);
        } else if (live == 0) {
            free_fibers.push_back(&self);
            caller->resume(self);
        } else if (started == total) {
            deadlock();
        }
    }
}

// What a lane gets when all lanes of its mask are there.
std::uint64_t result_of(const Thread &thread, const Thread *lanes) {
    std::uint64_t result = 0;
    switch (thread.wait) {
    case Wait::shuffle:
    case Wait::shuffle_up:
    case Wait::shuffle_down:
    case Wait::shuffle_xor:
        if ((thread.mask >> thread.source & 1) == 0) {
            mistake(thread.place, "%s: lane %u reads lane %u, which the mask 0x%08x does not name",
                    name_of(thread.wait), thread.number % WARP, thread.source, thread.mask);
        }
        return lanes[thread.source].value;
    case Wait::any:
    case Wait::all:
    case Wait::ballot:
        for (unsigned i = 0; i < WARP; i++) {
            if (thread.mask >> i & 1) {
                result |= static_cast<std::uint64_t>(lanes[i].value != 0) << i;
            }
        }
        return thread.wait == Wait::any ? result != 0 : thread.wait == Wait::all ? result == thread.mask : result;
    case Wait::match_any:
        for (unsigned i = 0; i < WARP; i++) {
            if (thread.mask >> i & 1) {
                result |= static_cast<std::uint64_t>(lanes[i].value == thread.value) << i;
            }
        }
        return result;
    default:
        return 0;
    }
}

bool all_at_same(const Thread &self, const Thread *lanes) {
    for (unsigned i = 0; i < WARP; i++) {
        if ((self.mask >> i & 1) && (lanes[i].wait != self.wait || lanes[i].mask != self.mask)) {
            return false;
        }
    }
    return true;
}

// All lanes of a warp operation get the same from these.
bool is_uniform(Wait wait) {
    return wait == Wait::warp || wait == Wait::any || wait == Wait::all || wait == Wait::ballot;
}

// Shared memory holds anything when a block begins. Its variables may lie between red zones of AddressSanitizer,
// which are written over as well, so memset would be refused; volatile keeps the loop from becoming one.
__attribute__((no_sanitize("address"))) void spoil_shared_memory() {
    volatile unsigned char *byte = __start_mofo_shared;
    volatile unsigned char *end = __stop_mofo_shared;
    while (byte != end && reinterpret_cast<std::uintptr_t>(byte) % 8 != 0) {
        *byte++ = 0xCD;
    }
    for (; end - byte >= 8; byte += 8) {
        *reinterpret_cast<volatile std::uint64_t *>(byte) = 0xCDCDCDCDCDCDCDCDu;
    }
    while (byte != end) {
        *byte++ = 0xCD;
    }
}

void run_block() {
    for (unsigned i = 0; i < total; i++) {
        threads[i].state = State::unstarted;
    }
    for (unsigned i = 0; i * WARP < total; i++) {
        const unsigned lanes = total - i * WARP;
        warps[i].waiting = 0;
        warps[i].ended = lanes < WARP ? ~0u << lanes : 0;
    }
    started = 0;
    live = total;
    if (any_order) {
        shuffle_threads();
    }
    spoil_shared_memory();
    free_fiber().resume(*caller);
}

// Kernels compute in the default floating-point mode, whatever mode the calling thread is in.
class DefaultMode {
  public:
#if defined(__x86_64__)
    DefaultMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
    ~DefaultMode() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#else
    DefaultMode() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultMode() { std::fesetenv(&saved_); }

  private:
    std::fenv_t saved_;
#endif
};

} // namespace

int wait_for_block(Wait kind, bool predicate, Place place) {
    Thread &self = *current;
    self.state = State::waits;
    self.wait = kind;
    self.place = place;
    if (arrived == 0) {
        first_arrived = &self;
    } else if (first_arrived->wait != kind || !same_place(first_arrived->place, place)) {
        mistake(place, "thread %u is at %s, thread %u at %s, %s:%d", self.number, name_of(kind),
                first_arrived->number, name_of(first_arrived->wait), first_arrived->place.file,
                first_arrived->place.line);
    }
    arrived++;
    predicates += predicate;
    if (arrived == live) {
        open_barrier();
    } else {
        wait();
    }
    return static_cast<int>(self.result);
}

std::uint64_t wait_for_lanes(Wait kind, unsigned mask, std::uint64_t value, unsigned source, Place place) {
    Thread &self = *current;
    Warp &warp = warps[self.number / WARP];
    Thread *lanes = &threads[self.number / WARP * WARP];
    const unsigned bit = 1u << self.number % WARP;
    if ((mask & bit) == 0) {
        mistake(place, "%s: lane %u is not in its mask 0x%08x", name_of(kind), self.number % WARP, mask);
    }
    if ((mask & warp.ended) != 0) {
        mistake(place, "%s: the mask 0x%08x names lanes 0x%08x, which have ended or do not exist", name_of(kind),
                mask, mask & warp.ended);
    }
    self.state = State::waits;
    self.wait = kind;
    self.mask = mask;
    self.value = value;
    self.source = source;
    self.place = place;
    warp.waiting |= bit;
    if ((warp.waiting & mask) != mask || !all_at_same(self, lanes)) {
        wait();
        return self.result;
    }
    const std::uint64_t uniform = result_of(self, lanes);
    self.result = uniform;
    for (unsigned i = 0; i < WARP; i++) {
        if ((mask & ~bit) >> i & 1) {
            lanes[i].result = is_uniform(kind) ? uniform : result_of(lanes[i], lanes);
            make_ready(lanes[i]);
        }
    }
    self.state = State::runs;
    warp.waiting &= ~mask;
    return self.result;
}

void interrupt() {
    if (!others_can_go_on() || random_below(4) != 0) {
        return;
    }
    Thread &self = *current;
    Fiber &next = is_next_new() ? free_fiber() : next_ready();
    interrupted[interruptions++] = &self;
    next.resume(*self.fiber);
}

unsigned lane() { return current->number % WARP; }

void mistake(Place place, const char *format, ...) {
    say_where(place);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::abort();
}

void run_grid(const char *name, void (*function)(const void *), const void *argument, dim3 grid, dim3 block) {
    const DefaultMode mode;
    Fiber here;
    caller = &here;
    kernel_name = name;
    kernel = function;
    parameter = argument;
    grid_size = grid;
    block_size = block;
    total = block.x * block.y * block.z;
    for (unsigned i = 0; i < total; i++) {
        threads[i].number = i;
        threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    }
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    std::vector<std::uint64_t> order;
    if (any_order) {
        begin_random(name);
        order.resize(blocks);
        std::iota(order.begin(), order.end(), 0);
        shuffle(order.data(), order.size());
    }
    for (std::uint64_t i = 0; i < blocks; i++) {
        const std::uint64_t number = any_order ? order[i] : reversed ? blocks - 1 - i : i;
        block_index.x = static_cast<unsigned>(number % grid.x);
        block_index.y = static_cast<unsigned>(number / grid.x % grid.y);
        block_index.z = static_cast<unsigned>(number / grid.x / grid.y);
        run_block();
    }
}

void reverse_order(bool reverse) { reversed = reverse; }

std::uint64_t randomize_order(std::uint64_t new_seed) {
    grids = 0;
    any_order = new_seed != 0;
    return std::exchange(seed, new_seed);
}

} // namespace emulation
