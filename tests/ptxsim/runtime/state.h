// The state of one launch, shared by the files of the runtime.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace ptxsim {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxWarps = kMaxThreads / kWarpSize;
constexpr unsigned kBarriers = 16;
constexpr size_t kStackBytes = 512 << 10;
// Accesses of a thread while no other runs. One that has so many waits for what cannot come.
constexpr uint64_t kMaxAccesses = 1 << 24;

struct Copy {
    uint32_t target;
    uint64_t source;
    unsigned bytes, valid;
    bool landed;
    const Site* site;
};

struct ThreadState : Thread {
    Fiber fiber;
    char* stack;
    bool done;
    const char* waits_in;
    const Site* waits_at;
    std::vector<Copy> copies;    // cp.async not yet waited for, oldest first
    std::vector<size_t> groups;  // how many of them each committed group ends at
    uint32_t fences = 0;         // fence.proxy.async executed so far
    uint32_t fence_epoch = 0;    // the epoch of the last one
};

// Threads of one mask on their way into a *.sync instruction.
struct Rendezvous {
    uint32_t mask, arrived;
    const Site* site;
    const char* instruction;
};
struct Lane {
    uint32_t in[4 * 8], out[4];
    uint64_t wide_in[16], wide_out[4];
    uint32_t row;
    uint32_t accumulators[128];
};
struct Range {
    uint32_t address;
    const Site* site;
};
struct Warp {
    std::vector<Rendezvous> rendezvous;
    Lane lanes[kWarpSize];
    uint32_t epoch;                  // grows with each bar.warp.sync
    std::vector<Range> wgmma_reads;  // chunks of 16 bytes read by wgmma not yet waited for
    std::vector<size_t> wgmma_groups;
};
struct Barrier {
    std::vector<unsigned> waiting;
    unsigned arrived, predicates, result;
    const Site* site;
};

enum class Readers : uint8_t { kNone, kOneThread, kOneWarp, kSeveralWarps };
struct SharedByte {
    const Site *written_at, *read_at;
    uint32_t write_epoch, write_warp_epoch, write_fences, read_epoch, read_warp_epoch;
    uint16_t writer, reader, wgmma_reads;
    Access write;
    Readers readers;
    bool initialised, copy_in_flight;
};
struct GlobalByte {
    const Site *written_at, *read_at;
    uint32_t write_block, write_epoch, read_block, read_epoch;
    uint16_t writer, reader;
    Access write;
    bool several_readers, several_blocks;
};
constexpr unsigned kPageBytes = 4096;
struct GlobalPage {
    GlobalByte bytes[kPageBytes];
};

struct LaunchBuffer : BufferSpec {
    Traffic traffic;
};

struct Machine {
    const KernelSpec* kernel;
    const LaunchSpec* spec;
    std::vector<LaunchBuffer> buffers;
    size_t last_buffer = 0;
    std::unordered_map<uint64_t, std::unique_ptr<GlobalPage>> pages;
    uint64_t last_page_number = 0;
    GlobalPage* last_page = nullptr;

    Fiber main;
    std::vector<ThreadState> threads;
    std::vector<Warp> warps;
    std::vector<Barrier> barriers;
    std::vector<SharedByte> shared;
    std::vector<unsigned> ready;  // a ring of thread numbers
    unsigned ready_first, ready_count, live;
    uint64_t accesses;  // since another thread ran
    uint32_t block;     // numbers the blocks from 1
    uint32_t epoch;     // grows with each barrier of a block and with each block
    uint64_t random_state;
    uint64_t priority[kMaxWarps];
    bool failed = false;

    ThreadState& thread() const { return *static_cast<ThreadState*>(current); }
    Warp& warp() { return warps[current->index / kWarpSize]; }
    Lane& lane() { return warp().lanes[current->index % kWarpSize]; }
    bool randomised() const { return spec->seed != 0; }
    uint64_t random();
};
extern Machine* machine;

void make_ready(unsigned thread);
// Runs the other threads until one of them makes this one ready.
void wait(const char* instruction, const Site* site);
// Every lane of the mask comes to the same instruction; the last to come runs `together(warp)`.
void rendezvous_begin(uint32_t mask, const char* instruction, const Site* site, bool& last);
void rendezvous_end(uint32_t mask);
template <class Together>
inline void rendezvous(uint32_t mask, const char* instruction, const Site* site,
                       Together together) {
    bool last;
    rendezvous_begin(mask, instruction, site, last);
    if (!last) return wait(instruction, site);
    together(machine->warp());
    rendezvous_end(mask);
}
template <class Function>
inline void for_lanes(uint32_t mask, Function function) {
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        if (mask >> lane & 1) function(lane);
    }
}

}  // namespace ptxsim
