// Exact ranks: how many candidates of each level are above each positive of a row.
//
// The positives are sorted, and cut the similarities into slots. A candidate's slot, the number of
// positives that it is above, comes from a table of equal buckets, and where a positive lies in the
// same bucket from comparisons. It is counted there by its level; sums over the slots from above
// are the result. O(M) a row however many positives it has.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "logits.h"
#include "rank_args.h"

namespace grainrank {
namespace GRAINRANK_ISA {

template <class T>
struct ExactPass {
    const Block<T>& block;
    const RankArgs<T>& in;
    const ExactArgs<T>& out;
};

constexpr int kMaxBuckets = 1 << 14;
constexpr int64_t kGroup = 64;  // candidates that are passed over together if all are below

// The buckets of a row's similarities: a function that never falls.
template <class T>
struct Buckets {
    int size;
    T lowest;  // of the positives
    T base;    // where the first bucket begins
    T factor;  // buckets per similarity
    // The positives in the buckets before, or, where the bucket has some itself, -1 minus these.
    int32_t slot[kMaxBuckets];

    template <class F>
    GRAINRANK_INLINE F position(F s) const {
        const F x = (s - base) * factor;
        const F top = F{} + T(size - 1);
        const F below = x < top ? x : top;  // NaN, where the base is -infinity: the last one
        return below > F{} ? below : F{};
    }

    // Few buckets hold a positive, and few comparisons go astray.
    void fill(const T* sorted, int64_t n, int64_t candidates) {
        size = 64;
        while (size < kMaxBuckets && size < 32 * n && size < candidates) size *= 2;
        lowest = sorted[0];
        // Of a single positive, or of equal ones, a thousandth of their size.
        using Limits = std::numeric_limits<T>;
        const T least = std::abs(lowest) * T(1e-3) + Limits::min();
        const T range = sorted[n - 1] - lowest;
        factor = T(size - 3) / (range > least ? range : least);
        // Kept away from 0 and infinity, whose products with the other are NaN.
        factor = factor < Limits::max() ? factor : Limits::max();
        factor = factor > Limits::min() ? factor : Limits::min();
        // The lowest is in the middle of the second bucket: candidates below seldom meet it.
        base = lowest - T(1.5) / factor;
        int64_t i = 0;
        for (int b = 0; b < size; ++b) {
            const auto before = static_cast<int32_t>(i);
            while (i < n && static_cast<int>(position(sorted[i])) == b) ++i;
            slot[b] = i == before ? before : -1 - before;
        }
    }
};

// Moves `slot` behind the positives that are equal to candidate j and that it is above.
template <class T>
int64_t above_equal(const ExactPass<T>& pass, int64_t begin, int64_t n, T s, int64_t j,
                    int64_t slot) {
    const T* sorted = pass.out.sorted + begin;
    const int64_t* order = pass.out.order + begin;
    const int64_t* column = pass.in.column;
    for (; slot < n && sorted[slot] == s; ++slot) {
        switch (pass.out.ties) {
            case Ties::kFirst:
                if (column[order[slot]] <= j) return slot;
                break;
            case Ties::kLast:
                if (column[order[slot]] >= j) return slot;
                break;
            case Ties::kOptimistic:
                return slot;
            case Ties::kPessimistic:
                break;
        }
    }
    return slot;
}

// The slot of a candidate, from that of the first positive in its bucket on.
template <class T>
int64_t compared(const ExactPass<T>& pass, int64_t begin, int64_t n, T s, int64_t j, int64_t slot) {
    const T* sorted = pass.out.sorted + begin;
    constexpr int64_t kFew = 8;
    int64_t step = 0;
    while (step < kFew && slot < n && sorted[slot] < s) ++slot, ++step;
    if (step == kFew) slot = std::lower_bound(sorted + slot, sorted + n, s) - sorted;
    if (slot < n && sorted[slot] == s) slot = above_equal(pass, begin, n, s, j, slot);
    return slot;
}

template <class T>
void sort_positives(const ExactPass<T>& pass, int64_t begin, int64_t n) {
    const T* s = pass.in.similarity;
    const bool last = pass.out.ties == Ties::kLast;
    int64_t* order = pass.out.order + begin;
    for (int64_t i = 0; i < n; ++i) order[i] = begin + i;
    // Positives are listed in the order of their columns; the lowest rank comes first.
    std::sort(order, order + n, [s, last](int64_t a, int64_t b) {
        if (s[a] != s[b]) return s[a] < s[b];
        return last ? a < b : b < a;
    });
    for (int64_t i = 0; i < n; ++i) pass.out.sorted[begin + i] = s[order[i]];
}

// Counts the candidates of a group by slot and level.
template <class T>
GRAINRANK_INLINE void count_group(const ExactPass<T>& pass, const Buckets<T>& buckets,
                                  int64_t begin, int64_t positives, const T* s, const int8_t* level,
                                  int64_t column, int64_t n, int width, int32_t* counts) {
    int32_t bucket[kGroup];
    for (int64_t j = 0; j < n; ++j) bucket[j] = static_cast<int32_t>(buckets.position(s[j]));
    for (int64_t j = 0; j < n; ++j) {
        int64_t slot = buckets.slot[bucket[j]];
        if (slot < 0) slot = compared(pass, begin, positives, s[j], column + j, -1 - slot);
        ++counts[(slot * width + level[j] + 1) * kRankCounters + j % kRankCounters];
    }
}

template <class T>
GRAINRANK_INLINE T highest(const T* s, int64_t n) {
    using V = Lanes<T>;
    T result = s[0];
    int64_t j = 0;
    if (n >= V::kWidth) {
        typename V::Float most = V::load(s);
        for (; j + V::kWidth <= n; j += V::kWidth) {
            const typename V::Float x = V::load(s + j);
            most = x > most ? x : most;
        }
        result = V::max(most);
    }
    for (; j < n; ++j) result = s[j] > result ? s[j] : result;
    return result;
}

template <class T>
bool exact_row(const ExactPass<T>& pass, int64_t r) {
    const Block<T>& block = pass.block;
    const int64_t begin = pass.in.starts[r], n = pass.in.starts[r + 1] - begin;
    if (n == 0) return true;
    const int size = pass.in.max_level + 1, width = size + 1;
    sort_positives(pass, begin, n);
    Buckets<T> buckets;
    buckets.fill(pass.out.sorted + begin, n, block.columns);
    int32_t* counts = pass.out.counts + (begin + r) * width * kRankCounters;
    memset(counts, 0, sizeof *counts * (n + 1) * width * kRankCounters);
    const int8_t* level = pass.in.levels + r * block.columns;
    T scratch[kChunk];
    for (int64_t chunk = 0; chunk < block.columns; chunk += kChunk) {
        const int64_t left = block.columns - chunk;
        const int64_t in_chunk = left < kChunk ? left : kChunk;
        const T* s = similarities(block, r, chunk, in_chunk, scratch);
        for (int64_t g = 0; g < in_chunk; g += kGroup) {
            const int64_t in_group = in_chunk - g < kGroup ? in_chunk - g : kGroup;
            if (highest(s + g, in_group) < buckets.lowest) continue;
            count_group(pass, buckets, begin, n, s + g, level + chunk + g, chunk + g, in_group,
                        width, counts);
        }
    }
    // Slots above a positive, from the highest on.
    int64_t above[kMaxLevels] = {};
    for (int64_t i = n; i > 0; --i) {
        const int64_t p = pass.out.order[begin + i - 1];
        for (int l = 0; l < size; ++l) {
            for (int k = 0; k < kRankCounters; ++k)
                above[l] += counts[(i * width + l + 1) * kRankCounters + k];
            pass.out.above[p * size + l] = above[l];
        }
        if (pass.out.ties == Ties::kPessimistic) --pass.out.above[p * size + pass.in.level[p]];
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
