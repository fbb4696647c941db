// Barriers of a block, and the *.sync instructions of a warp.
#include "state.h"

namespace ptxsim {

namespace {

int lane_index() { return int(current->index % kWarpSize); }

// Which lane a shuffle reads, and whether that lane is in range.
unsigned shuffle_source(Shuffle mode, unsigned lane, uint32_t operand, uint32_t clamp,
                        bool& in_range) {
    const unsigned segment = clamp >> 8 & 31, limit = clamp & 31, step = operand & 31;
    const unsigned highest = (lane & segment) | (limit & ~segment);
    const unsigned lowest = lane & segment;
    int source = 0;
    switch (mode) {
        case Shuffle::kUp:
            source = int(lane) - int(step);
            in_range = source >= int(highest);
            break;
        case Shuffle::kDown:
            source = int(lane + step);
            in_range = source <= int(highest);
            break;
        case Shuffle::kButterfly:
            source = int(lane ^ step);
            in_range = source <= int(highest);
            break;
        case Shuffle::kIndex:
            source = int(lowest | (step & ~segment));
            in_range = source <= int(highest);
            break;
    }
    return in_range ? unsigned(source) : lane;
}

uint32_t combine(Reduction operation, uint32_t a, uint32_t b) {
    switch (operation) {
        case Reduction::kAdd:
            return a + b;
        case Reduction::kMinSigned:
            return uint32_t(std::min(int32_t(a), int32_t(b)));
        case Reduction::kMaxSigned:
            return uint32_t(std::max(int32_t(a), int32_t(b)));
        case Reduction::kMin:
            return std::min(a, b);
        case Reduction::kMax:
            return std::max(a, b);
        case Reduction::kAnd:
            return a & b;
        case Reduction::kOr:
            return a | b;
        case Reduction::kXor:
            return a ^ b;
    }
    return 0;
}

// A barrier that only part of the block comes to may have several places; one of all may not.
void check_barrier(const Barrier& barrier, unsigned id, unsigned count, const Site* site) {
    const auto threads = unsigned(machine->threads.size());
    if (id >= kBarriers) fail(site, "barrier %u; there are only %u", id, kBarriers);
    if (count % kWarpSize != 0 && count != threads) {
        fail(site, "barrier %u of %u threads, which are not whole warps", id, count);
    }
    if (count > threads) {
        fail(site, "barrier %u of %u threads in a block of %u", id, count, threads);
    }
    if (count == threads && barrier.arrived > 0 && barrier.site != site) {
        fail(site, "divergent barrier %u: other threads wait at %s (PTX line %d)", id,
             barrier.site->location, barrier.site->ptx_line);
    }
    if (count == threads && machine->live < threads) {
        fail(site, "barrier of the whole block after %u of its threads ended",
             threads - machine->live);
    }
}

// Returns whether this thread was the last.
bool arrive(unsigned id, unsigned& count, bool predicate, const Site* site) {
    if (count == 0) count = unsigned(machine->threads.size());
    check_barrier(machine->barriers[id % kBarriers], id, count, site);
    Barrier& barrier = machine->barriers[id];
    barrier.site = site;
    barrier.predicates += predicate;
    if (++barrier.arrived < count) return false;
    barrier.result = barrier.predicates;
    barrier.predicates = barrier.arrived = 0;
    machine->epoch++;  // a barrier of some warps orders all: races across it can stay unseen
    for (unsigned thread : barrier.waiting) make_ready(thread);
    barrier.waiting.clear();
    return true;
}

}  // namespace

void rendezvous_begin(uint32_t mask, const char* instruction, const Site* site, bool& last) {
    auto& open = machine->warp().rendezvous;
    const uint32_t me = 1u << lane_index();
    if ((mask & me) == 0) fail(site, "%s whose mask 0x%08x lacks its own lane", instruction, mask);
    Rendezvous* found = nullptr;
    // Masks may overlap: lanes that are ahead wait for those that still exchange among themselves.
    for (Rendezvous& other : open) {
        if (other.mask == mask) found = &other;
    }
    if (found == nullptr) {
        open.push_back({mask, 0, site, instruction});
        found = &open.back();
    }
    if (found->site != site) {
        fail(site, "divergent warp: this lane is in %s, other lanes wait in %s at %s (PTX line %d)",
             instruction, found->instruction, found->site->location, found->site->ptx_line);
    }
    found->arrived |= me;
    last = found->arrived == mask;
}

void rendezvous_end(uint32_t mask) {
    auto& open = machine->warp().rendezvous;
    for (size_t i = 0; i < open.size(); i++) {
        if (open[i].mask == mask) {
            open.erase(open.begin() + std::ptrdiff_t(i));
            break;
        }
    }
    const unsigned first = current->index - unsigned(lane_index());
    for_lanes(mask & ~(1u << lane_index()), [&](unsigned lane) { make_ready(first + lane); });
}

uint32_t shuffle(Shuffle mode, uint32_t value, uint32_t operand, uint32_t clamp, uint32_t mask,
                 bool& in_range, const Site* site) {
    Lane& mine = machine->lane();
    mine.in[0] = value, mine.in[1] = operand, mine.in[2] = clamp;
    rendezvous(mask, "shfl.sync", site, [&](Warp& warp) {
        for_lanes(mask, [&](unsigned lane) {
            Lane& to = warp.lanes[lane];
            bool inside;
            const unsigned from = shuffle_source(mode, lane, to.in[1], to.in[2], inside);
            if ((mask >> from & 1) == 0) {
                fail(site, "shfl.sync of lane %u reads lane %u, which the mask lacks", lane, from);
            }
            to.out[0] = warp.lanes[from].in[0];
            to.out[1] = inside;
        });
    });
    in_range = mine.out[1] != 0;
    return mine.out[0];
}

uint32_t vote(Vote mode, bool predicate, uint32_t mask, const Site* site) {
    Lane& mine = machine->lane();
    mine.in[0] = predicate;
    rendezvous(mask, "vote.sync", site, [&](Warp& warp) {
        uint32_t ballot = 0;
        for_lanes(mask, [&](unsigned lane) { ballot |= warp.lanes[lane].in[0] << lane; });
        const uint32_t result = mode == Vote::kBallot ? ballot
                                : mode == Vote::kAny  ? ballot != 0
                                : mode == Vote::kAll  ? ballot == mask
                                                      : ballot == mask || ballot == 0;
        for_lanes(mask, [&](unsigned lane) { warp.lanes[lane].out[0] = result; });
    });
    return mine.out[0];
}

uint32_t reduce(Reduction operation, uint32_t value, uint32_t mask, const Site* site) {
    Lane& mine = machine->lane();
    mine.in[0] = value;
    rendezvous(mask, "redux.sync", site, [&](Warp& warp) {
        const auto first = unsigned(__builtin_ctz(mask));
        uint32_t result = warp.lanes[first].in[0];
        for_lanes(mask & ~(1u << first), [&](unsigned lane) {
            result = combine(operation, result, warp.lanes[lane].in[0]);
        });
        for_lanes(mask, [&](unsigned lane) { warp.lanes[lane].out[0] = result; });
    });
    return mine.out[0];
}

uint32_t match_any(uint64_t value, uint32_t mask, const Site* site) {
    Lane& mine = machine->lane();
    mine.wide_in[0] = value;
    rendezvous(mask, "match.sync", site, [&](Warp& warp) {
        for_lanes(mask, [&](unsigned lane) {
            uint32_t same = 0;
            for_lanes(mask, [&](unsigned other) {
                if (warp.lanes[other].wide_in[0] == warp.lanes[lane].wide_in[0]) {
                    same |= 1u << other;
                }
            });
            warp.lanes[lane].out[0] = same;
        });
    });
    return mine.out[0];
}

bool elect(uint32_t mask, uint32_t& leader, const Site* site) {
    rendezvous(mask, "elect.sync", site, [](Warp&) {});
    leader = uint32_t(__builtin_ctz(mask));
    return leader == unsigned(lane_index());
}

void warp_barrier(uint32_t mask, const Site* site) {
    rendezvous(mask, "bar.warp.sync", site, [](Warp& warp) { warp.epoch++; });
}

unsigned barrier(unsigned id, unsigned count, bool predicate, const Site* site) {
    if (!arrive(id, count, predicate, site)) {
        machine->barriers[id].waiting.push_back(current->index);
        wait("bar.sync", site);
    }
    return machine->barriers[id].result;
}

void barrier_arrive(unsigned id, unsigned count, const Site* site) {
    arrive(id, count, false, site);
}

}  // namespace ptxsim
