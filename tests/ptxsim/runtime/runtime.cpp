// Launches: one fiber per thread of a block, the blocks one after another.
#include "runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "state.h"

namespace ptxsim {

Thread* current;
unsigned char* shared_memory;
uint32_t shared_bytes;
const unsigned char* parameters;
uint64_t executed;
Machine* machine;

namespace {

constexpr uint32_t kMaxSharedBytes = 227 << 10;
constexpr size_t kSharedAlignment = 1024;
constexpr unsigned kMaxNamed = 4;  // threads that the report of a deadlock names

// The stacks of a block. A page without access lies below each: an overflow stops the process.
class Stacks {
  public:
    explicit Stacks(unsigned count) : bytes_(count * kStackBytes) {
        void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return;
        memory_ = static_cast<char*>(memory);
        guard_ = size_t(sysconf(_SC_PAGESIZE));
        for (unsigned i = 0; i < count; i++) mprotect(memory_ + i * kStackBytes, guard_, PROT_NONE);
    }
    ~Stacks() {
        if (memory_ != nullptr) munmap(memory_, bytes_);
    }
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;
    bool there() const { return memory_ != nullptr; }
    size_t usable() const { return kStackBytes - guard_; }
    char* of(unsigned thread) const { return memory_ + thread * kStackBytes + guard_; }

  private:
    size_t bytes_, guard_ = 0;
    char* memory_ = nullptr;
};

void report(const char* format, ...) __attribute__((format(printf, 1, 2)));
void report(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(machine->spec->message, machine->spec->message_bytes, format, arguments);
    va_end(arguments);
}

// Gives the launch up. The stacks of the fibers are dropped as they are, so they own nothing.
[[noreturn]] void abandon() {
    machine->failed = true;
    Fiber::switch_between(machine->thread().fiber, machine->main);
    abort();
}

[[noreturn]] void deadlock() {
    char named[600];
    size_t length = 0;
    unsigned count = 0;
    for (const ThreadState& thread : machine->threads) {
        if (thread.done || count == kMaxNamed) continue;
        length +=
            snprintf(named + length, sizeof named - length,
                     "%s thread %u in %s at %s (PTX line %d)", count > 0 ? ";" : "", thread.index,
                     thread.waits_in, thread.waits_at->location, thread.waits_at->ptx_line);
        if (length >= sizeof named) break;
        count++;
    }
    report("deadlock in block (%u, %u, %u): %u of %zu threads wait and none can go on:%s",
           current->ctaid.x, current->ctaid.y, current->ctaid.z, machine->live,
           machine->threads.size(), named);
    abandon();
}

// With a seed: the warp of the highest of slowly changing priorities, or any thread at all.
unsigned choose() {
    if (!machine->randomised()) return 0;
    if (machine->spec->seed % 2 == 1) return unsigned(machine->random() % machine->ready_count);
    if (machine->random() % 4096 == 0) {
        machine->priority[machine->random() % kMaxWarps] = machine->random();
    }
    auto priority = [](unsigned i) {
        unsigned thread = machine->ready[(machine->ready_first + i) % kMaxThreads];
        return machine->priority[thread / kWarpSize];
    };
    unsigned best = 0;
    for (unsigned i = 1; i < machine->ready_count; i++) {
        if (priority(i) > priority(best)) best = i;
    }
    return best;
}

ThreadState& take_ready() {
    Machine& m = *machine;
    std::swap(m.ready[m.ready_first], m.ready[(m.ready_first + choose()) % kMaxThreads]);
    ThreadState& thread = m.threads[m.ready[m.ready_first]];
    m.ready_first = (m.ready_first + 1) % kMaxThreads;
    m.ready_count--;
    m.accesses = 0;
    return thread;
}

void leave() {
    ThreadState& me = machine->thread();
    if (machine->ready_count == 0) {
        if (machine->live > 0) deadlock();
        Fiber::switch_between(me.fiber, machine->main);
        return;
    }
    ThreadState& next = take_ready();
    if (&next == &me) return;
    current = &next;
    Fiber::switch_between(me.fiber, next.fiber);
}

void run_thread() {
    machine->kernel->body();
    ThreadState& me = machine->thread();
    if (!me.copies.empty()) fail(me.copies.front().site, "the thread ends with cp.async in flight");
    if (me.index % kWarpSize == 0 && !machine->warp().wgmma_reads.empty()) {
        fail(machine->warp().wgmma_reads.front().site, "the thread ends with wgmma in flight");
    }
    me.done = true;
    machine->live--;
    leave();
    abort();
}

void start_block(Dim3 ctaid, const Stacks& stacks) {
    Machine& m = *machine;
    const LaunchSpec& spec = *m.spec;
    m.block++;
    m.epoch++;
    memset(shared_memory, 0xff, shared_bytes);
    std::fill(m.shared.begin(), m.shared.end(), SharedByte{});
    for (Warp& warp : m.warps) {
        warp.rendezvous.clear();
        warp.wgmma_reads.clear();
        warp.wgmma_groups.clear();
    }
    for (Barrier& barrier : m.barriers) barrier = Barrier{};
    for (uint64_t& priority : m.priority) priority = m.random();
    m.ready_first = m.ready_count = 0;
    m.live = unsigned(m.threads.size());
    for (unsigned i = 0; i < m.threads.size(); i++) {
        ThreadState& thread = m.threads[i];
        const unsigned x = spec.block[0], y = spec.block[1];
        thread.tid = {i % x, i / x % y, i / (x * y)};
        thread.ctaid = ctaid;
        thread.ntid = {x, y, spec.block[2]};
        thread.nctaid = {spec.grid[0], spec.grid[1], spec.grid[2]};
        thread.index = i;
        thread.done = false;
        thread.copies.clear();
        thread.groups.clear();
        thread.fence_epoch = 0;
        thread.stack = stacks.of(i);
        thread.fiber.prepare(thread.stack, stacks.usable(), run_thread);
        make_ready(i);
    }
}

void run_block(Dim3 ctaid, const Stacks& stacks) {
    start_block(ctaid, stacks);
    ThreadState& first = take_ready();
    current = &first;
    Fiber::switch_between(machine->main, first.fiber);
    current = nullptr;
}

bool run_blocks() {
    Stacks stacks(unsigned(machine->threads.size()));
    if (!stacks.there()) {
        report("no memory for the stacks of %zu threads", machine->threads.size());
        return false;
    }
    const unsigned* grid = machine->spec->grid;
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                run_block({x, y, z}, stacks);
                if (machine->failed) return false;
            }
        }
    }
    return true;
}

}  // namespace

uint64_t Machine::random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

void make_ready(unsigned thread) {
    machine->ready[(machine->ready_first + machine->ready_count++) % kMaxThreads] = thread;
}

void wait(const char* instruction, const Site* site) {
    ThreadState& me = machine->thread();
    me.waits_in = instruction;
    me.waits_at = site;
    leave();
}

bool is_local(uint64_t address) {
    return address - reinterpret_cast<uint64_t>(machine->thread().stack) < kStackBytes;
}

void fail(const Site* site, const char* format, ...) {
    char what[700];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    report("%s, at %s (PTX line %d), block (%u, %u, %u), thread %u", what, site->location,
           site->ptx_line, current->ctaid.x, current->ctaid.y, current->ctaid.z, current->index);
    abandon();
}

int launch(const KernelSpec& kernel, const LaunchSpec& spec) {
    Machine m{};
    machine = &m;
    m.kernel = &kernel;
    m.spec = &spec;
    const uint64_t threads = uint64_t(spec.block[0]) * spec.block[1] * spec.block[2];
    const uint64_t bytes = uint64_t(kernel.static_shared_bytes) + spec.dynamic_shared_bytes;
    if (threads == 0 || threads > kMaxThreads || bytes > kMaxSharedBytes) {
        report("a block cannot have %llu threads and %llu bytes of shared memory",
               static_cast<unsigned long long>(threads), static_cast<unsigned long long>(bytes));
        return 1;
    }
    for (unsigned i = 0; i < spec.n_buffers; i++) m.buffers.push_back({spec.buffers[i], {}});
    for (unsigned i = 0; i < kernel.n_variables; i++) {
        m.buffers.push_back({kernel.variables[i], {}});
    }
    m.threads.resize(threads);
    m.warps.resize((threads + kWarpSize - 1) / kWarpSize);
    m.barriers.resize(kBarriers);
    m.shared.resize(bytes);
    m.ready.resize(kMaxThreads);
    m.random_state = spec.seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull;
    shared_bytes = uint32_t(bytes);
    parameters = static_cast<const unsigned char*>(spec.parameters);
    const size_t rounded = (bytes / kSharedAlignment + 1) * kSharedAlignment;
    shared_memory = static_cast<unsigned char*>(aligned_alloc(kSharedAlignment, rounded));
    const bool finished = run_blocks();
    free(shared_memory);
    for (unsigned i = 0; spec.traffic != nullptr && i < spec.n_buffers; i++) {
        spec.traffic[i].read += m.buffers[i].traffic.read;
        spec.traffic[i].written += m.buffers[i].traffic.written;
    }
    current = nullptr;
    machine = nullptr;
    return finished ? 0 : 1;
}

}  // namespace ptxsim
