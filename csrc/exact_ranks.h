// Exact ranks: how many candidates of each level are above each positive of a row.
//
// The positives are sorted, and cut the similarities into slots. A candidate's slot, the number of
// positives that it is above, comes from a table of equal buckets, and where a positive lies in the
// same bucket from comparisons. Candidates are counted there whatever their level; sums over the
// slots from above are their number above each positive. Those of level 1 and more are the
// positives themselves, which are compared with each other; the rest is level 0. O(M) a row
// however many positives it has.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "level_row.h"
#include "tile_product.h"

namespace grainrank {
namespace GRAINRANK_ISA {

constexpr int64_t kGroup = 64;  // candidates that are passed over together if all are below

// The buckets of a row's similarities: a function that never falls.
template <class T>
struct Buckets {
    int size;
    T lowest;  // of the positives
    T base;    // where the first bucket begins
    T factor;  // buckets per similarity
    // The positives in the buckets before, or, where the bucket has some itself, -1 minus these.
    const int32_t* slot;

    template <class F>
    GRAINRANK_INLINE F position(F s) const {
        const F x = (s - base) * factor;
        const F top = F{} + T(size - 1);
        const F below = x < top ? x : top;  // NaN, where the base is -infinity: the last one
        return below > F{} ? below : F{};
    }
};

template <class T>
Buckets<T> buckets_of(const ExactArgs<T>& in, int64_t r) {
    const T* const sorted = in.sorted + in.starts[r];
    const int64_t n = in.starts[r + 1] - in.starts[r];
    const int64_t begin = in.bucket_starts[r];
    const auto size = static_cast<int>(in.bucket_starts[r + 1] - begin);
    // Of a single positive, or of equal ones, a thousandth of their size.
    using Limits = std::numeric_limits<T>;
    const T lowest = sorted[0], range = sorted[n - 1] - lowest;
    const T least = std::abs(lowest) * T(1e-3) + Limits::min();
    T factor = T(size - 3) / (range > least ? range : least);
    // Kept away from 0 and infinity, whose products with the other are NaN.
    factor = factor < Limits::max() ? factor : Limits::max();
    factor = factor > Limits::min() ? factor : Limits::min();
    // The lowest is in the middle of the second bucket: candidates below seldom meet it.
    return {size, lowest, lowest - T(1.5) / factor, factor, in.buckets + begin};
}

// The positives of a row in ascending order, those of a lower rank first, and their buckets.
template <class T>
bool sort_row(const ExactArgs<T>& in, int64_t r) {
    const int64_t begin = in.starts[r], n = in.starts[r + 1] - begin;
    if (n == 0) return true;
    const T* s = in.similarity;
    const bool last = in.ties == Ties::kLast;
    int64_t* order = in.order + begin;
    for (int64_t i = 0; i < n; ++i) order[i] = begin + i;
    // They are listed in the order of their columns.
    std::sort(order, order + n, [s, last](int64_t a, int64_t b) {
        if (s[a] != s[b]) return s[a] < s[b];
        return last ? a < b : b < a;
    });
    T* sorted = in.sorted + begin;
    for (int64_t i = 0; i < n; ++i) sorted[i] = s[order[i]];
    const Buckets<T> buckets = buckets_of(in, r);
    int32_t* slot = in.buckets + in.bucket_starts[r];
    int64_t i = 0;
    for (int b = 0; b < buckets.size; ++b) {
        const auto before = static_cast<int32_t>(i);
        while (i < n && static_cast<int>(buckets.position(sorted[i])) == b) ++i;
        slot[b] = i == before ? before : -1 - before;
    }
    memset(in.counts + (begin + 2 * r) * kRankCounters, 0,
           sizeof(int32_t) * (n + 2) * kRankCounters);
    return true;
}

// How many of the positives of row r, of which `slot` are known to be below, a candidate is above.
template <class T>
int64_t compared(const ExactArgs<T>& in, int64_t r, T s, int64_t column, int64_t slot) {
    const int64_t begin = in.starts[r], n = in.starts[r + 1] - begin;
    const T* sorted = in.sorted + begin;
    constexpr int64_t kFew = 8;
    int64_t step = 0;
    while (step < kFew && slot < n && sorted[slot] < s) ++slot, ++step;
    if (step == kFew) slot = std::lower_bound(sorted + slot, sorted + n, s) - sorted;
    if (slot == n || sorted[slot] != s || in.ties == Ties::kOptimistic) return slot;
    const int64_t end = std::upper_bound(sorted + slot, sorted + n, s) - sorted;
    if (in.ties == Ties::kPessimistic) return end;
    const int64_t* order = in.order + begin;
    const bool last = in.ties == Ties::kLast;
    return std::partition_point(
               order + slot, order + end,
               [&](int64_t p) { return last ? in.column[p] < column : in.column[p] > column; }) -
           order;
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

// Counts n candidates from a column on by their slots; those of level -1, where there may be some,
// in a slot of their own behind the others.
template <class T>
void count_row(const ExactArgs<T>& in, int64_t r, int64_t column, int64_t n, const T* s,
               const int32_t* level) {
    const int64_t begin = in.starts[r], positives = in.starts[r + 1] - begin;
    const Buckets<T> buckets = buckets_of(in, r);
    int32_t* counts = in.counts + (begin + 2 * r) * kRankCounters;
    for (int64_t g = 0; g < n; g += kGroup) {
        const int64_t in_group = n - g < kGroup ? n - g : kGroup;
        if (highest(s + g, in_group) < buckets.lowest) continue;
        int32_t bucket[kGroup];
        for (int64_t j = 0; j < in_group; ++j)
            bucket[j] = static_cast<int32_t>(buckets.position(s[g + j]));
        for (int64_t j = 0; j < in_group; ++j) {
            int64_t slot = buckets.slot[bucket[j]];
            if (slot < 0) slot = compared(in, r, s[g + j], column + g + j, -1 - slot);
            if (level && level[g + j] < 0) slot = positives + 1;
            ++counts[slot * kRankCounters + j % kRankCounters];
        }
    }
}

// The queries that a thread multiplies with the candidates of a chunk at a time.
constexpr int64_t kItemRows = 6 * kTileRows;
// Columns whose similarities stay in the second-level cache with these rows.
constexpr int64_t kStripColumns = 1008;

template <class T>
struct ChunkPass {
    const ExactArgs<T>& in;
    const LevelArgs& levels;
    const ChunkArgs<T>& chunk;
};

template <class T>
bool pack_panel(const ChunkArgs<T>& chunk, int64_t panel) {
    constexpr int wide = kTileColumns<T>;
    const int64_t begin = panel * wide, left = chunk.candidates.rows - begin;
    pack(chunk.candidates, chunk.features, begin, static_cast<int>(left < wide ? left : wide), wide,
         chunk.packed + begin * chunk.features);
    return true;
}

// Fills the similarities of up to kItemRows rows and kStripColumns columns of a chunk.
template <class T>
void strip_product(const ChunkArgs<T>& chunk, const T* queries, const T* query_factors,
                   int64_t rows, int64_t begin, int64_t n, T* s) {
    constexpr int wide = kTileColumns<T>;
    static_assert(kStripColumns % wide == 0 && kStripColumns <= kChunk);
    for (int64_t j = 0; j < n; j += wide) {
        T factors[wide];
        for (int i = 0; i < wide; ++i)
            factors[i] = j + i < n ? factor(chunk.candidates, begin + j + i) : T(0);
        const T* candidates = chunk.packed + (begin + j) * chunk.features;
        for (int64_t i = 0; i < rows; i += kTileRows)
            tile(queries + i * chunk.features, candidates, chunk.features, query_factors + i,
                 factors, s + i * kStripColumns + j, kStripColumns);
    }
}

// Counts the candidates of a chunk for kItemRows rows.
template <class T>
bool count_item(const ChunkPass<T>& pass, int64_t item) {
    const ChunkArgs<T>& chunk = pass.chunk;
    const int64_t first = item * kItemRows, left = chunk.queries.rows - first;
    const int64_t rows = left < kItemRows ? left : kItemRows;
    const std::unique_ptr<T[]> queries(new T[kItemRows * chunk.features]);
    const std::unique_ptr<T[]> similarities(new T[kItemRows * kStripColumns]);
    T factors[kItemRows] = {};
    for (int64_t i = 0; i < rows; ++i) factors[i] = factor(chunk.queries, first + i);
    for (int64_t i = 0; i < rows; i += kTileRows) {
        const int64_t n = rows - i < kTileRows ? rows - i : kTileRows;
        pack(chunk.queries, chunk.features, first + i, static_cast<int>(n), kTileRows,
             queries.get() + i * chunk.features);
    }
    ChunkLevels levels;
    for (int64_t begin = 0; begin < chunk.candidates.rows; begin += kStripColumns) {
        const int64_t n = std::min(kStripColumns, chunk.candidates.rows - begin);
        strip_product(chunk, queries.get(), factors, rows, begin, n, similarities.get());
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t r = first + i;
            if (pass.in.starts[r] == pass.in.starts[r + 1]) continue;
            const int64_t column = chunk.first_column + begin;
            if (chunk.some_ignored &&
                !row_levels(pass.levels, chunk.first_row + r, column, n, chunk.all_columns, levels))
                return false;
            count_row(pass.in, r, column, n, similarities.get() + i * kStripColumns,
                      chunk.some_ignored ? levels.level : nullptr);
        }
    }
    return true;
}

// From the slots to the candidates of each level above each positive.
template <class T>
bool ranks_of_row(const ExactArgs<T>& in, int64_t r) {
    const int64_t begin = in.starts[r], n = in.starts[r + 1] - begin;
    const int size = in.max_level + 1;
    std::vector<int32_t> of_level((n + 1) * size);
    for (int64_t i = 0, equal = 0; i < n; ++i) {  // `equal`: the first one of the same similarity
        const int64_t p = in.order[begin + i];
        if (in.sorted[begin + i] != in.sorted[begin + equal]) equal = i;
        const int64_t slot = compared(in, r, in.sorted[begin + i], in.column[p], equal);
        ++of_level[slot * size + in.level[p]];
    }
    const int32_t* counts = in.counts + (begin + 2 * r) * kRankCounters;
    int64_t above[kMaxLevels] = {};
    for (int64_t i = n; i > 0; --i) {
        const int64_t p = in.order[begin + i - 1];
        for (int k = 0; k < kRankCounters; ++k) above[0] += counts[i * kRankCounters + k];
        for (int l = 1; l < size; ++l) {
            above[l] += of_level[i * size + l];
            above[0] -= of_level[i * size + l];
        }
        memcpy(in.above + p * size, above, sizeof *above * size);
        if (in.ties == Ties::kPessimistic) --in.above[p * size + in.level[p]];  // itself
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
