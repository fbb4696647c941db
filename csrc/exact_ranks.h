// Exact ranks: how many candidates of each level are above each positive of a row.
//
// The positives are sorted. Equal buckets divide the similarities between the lowest and the
// highest one. A candidate whose bucket has no positive is counted there; the few others are
// compared with the positives, and counted in a slot: the number of positives that they are above.
// Candidates are counted whatever their level; sums from the highest bucket on are their number
// above each positive. Those of level 1 and more are the positives themselves, which are compared
// with each other; the rest is level 0. O(M) a row however many positives it has.
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

constexpr int64_t kGroup = 64;      // candidates that are looked up together
constexpr int16_t kFull = -0x8000;  // one more than a bucket holds
// A group is added to the marks too, and taken off again.
constexpr int16_t kFirstMark = -1 - kGroup;
constexpr int64_t kMostBefore = kFirstMark - kFull - kGroup;

// The buckets of a row's similarities: a function that never falls.
template <class T>
struct Buckets {
    int size;
    T lowest;  // of the positives
    T base;    // where the first bucket begins
    T factor;  // buckets per similarity
    // Of each bucket how many candidates were counted, or, where it has positives, kFirstMark minus
    // the number of those in the buckets before, up to kMostBefore. Small, to stay in the cache.
    // Behind them the candidates that are not counted.
    int16_t* count;

    template <class F>
    GRAINRANK_INLINE F position(F s) const {
        const F x = (s - base) * factor;
        const F top = F{} + T(size - 1);
        const F below = x < top ? x : top;  // NaN, where the base is -infinity: the last one
        return below > F{} ? below : F{};
    }
    int of(T s) const { return static_cast<int>(position(s)); }
};

template <class T>
Buckets<T> buckets_of(const ExactArgs<T>& in, int64_t r) {
    const Place<T>* const sorted = in.sorted + in.starts[r];
    const int64_t n = in.starts[r + 1] - in.starts[r];
    const int64_t begin = in.bucket_starts[r];
    const auto size = static_cast<int>(in.bucket_starts[r + 1] - begin) - kNotCounted;
    // Of a single positive, or of equal ones, a thousandth of their size.
    using Limits = std::numeric_limits<T>;
    const T lowest = sorted[0].similarity, range = sorted[n - 1].similarity - lowest;
    const T least = std::abs(lowest) * T(1e-3) + Limits::min();
    T factor = T(size - 3) / (range > least ? range : least);
    // Kept away from 0 and infinity, whose products with the other are NaN.
    factor = factor < Limits::max() ? factor : Limits::max();
    factor = factor > Limits::min() ? factor : Limits::min();
    // The lowest is in the middle of the second bucket, the highest in the last one but one.
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
    Place<T>* sorted = in.sorted + begin;
    for (int64_t i = 0; i < n; ++i) sorted[i] = {s[order[i]], 0};
    const Buckets<T> buckets = buckets_of(in, r);
    memset(buckets.count, 0, sizeof(int16_t) * (buckets.size + kNotCounted));
    for (int64_t i = n - 1; i >= 0; --i)
        buckets.count[buckets.of(sorted[i].similarity)] =
            static_cast<int16_t>(kFirstMark - std::min(i, kMostBefore));
    return true;
}

// How many of the positives of row r a candidate is above, where `below` of them are below it, and
// those of equal similarity follow.
template <class T>
int64_t among_equal(const ExactArgs<T>& in, int64_t r, T s, int64_t column, int64_t below) {
    const int64_t begin = in.starts[r], n = in.starts[r + 1] - begin;
    const Place<T>* sorted = in.sorted + begin;
    int64_t end = below;
    while (end < n && sorted[end].similarity == s) ++end;
    if (end == below || in.ties == Ties::kOptimistic) return below;
    if (in.ties == Ties::kPessimistic) return end;
    const int64_t* order = in.order + begin;
    const bool last = in.ties == Ties::kLast;
    return std::partition_point(
               order + below, order + end,
               [&](int64_t p) { return last ? in.column[p] < column : in.column[p] > column; }) -
           order;
}

// The same where `known` of them are known to be below.
template <class T>
GRAINRANK_INLINE int64_t compared(const ExactArgs<T>& in, int64_t r, T s, int64_t column,
                                  int64_t known) {
    const int64_t begin = in.starts[r], n = in.starts[r + 1] - begin;
    const Place<T>* sorted = in.sorted + begin;
    // Mostly one or two are in reach, and which of them are below is hard to foresee.
    constexpr int64_t kFew = 4;
    int64_t below = known;
    if (known + kFew < n) {
        for (int64_t i = 0; i < kFew; ++i) below += sorted[known + i].similarity < s;
        if (sorted[below].similarity > s) return below;
    }
    const Place<T>* place = std::lower_bound(
        sorted + below, sorted + n, s, [](const Place<T>& a, T b) { return a.similarity < b; });
    return among_equal(in, r, s, column, place - sorted);
}

// Counts n candidates from a column on; those below all positives, and those of level -1, where
// there may be some, are not counted.
template <class T>
void count_row(const ExactArgs<T>& in, int64_t r, int64_t column, int64_t n, const T* s,
               const int32_t* level) {
    const Buckets<T> buckets = buckets_of(in, r);
    int16_t* const count = buckets.count;
    Place<T>* const sorted = in.sorted + in.starts[r];
    for (int64_t g = 0; g < n; g += kGroup, s += kGroup) {
        const int64_t in_group = n - g < kGroup ? n - g : kGroup;
        int32_t bucket[kGroup];
        for (int64_t j = 0; j < in_group; ++j) {
            const auto b = static_cast<int32_t>(buckets.position(s[j]));
            // In turn: an addition that waits for the one before it takes several times as long.
            const int32_t other = buckets.size + static_cast<int32_t>(j) % kNotCounted;
            bucket[j] = s[j] < buckets.lowest ? other : b;
        }
        if (level)
            for (int64_t j = 0; j < in_group; ++j)
                bucket[j] = level[g + j] < 0 ? buckets.size : bucket[j];
        int16_t after[kGroup] = {};
        for (int64_t j = 0; j < in_group; ++j) {
            after[j] = static_cast<int16_t>(count[bucket[j]] + 1);
            count[bucket[j]] = after[j];
        }
        uint8_t marked[kGroup];
        for (int64_t j = 0; j < kGroup; ++j) marked[j] = after[j] < 0;
        int32_t pending[kGroup], size = 0;
        for (int64_t first = 0; first < kGroup; first += 8) {
            uint64_t any;
            memcpy(&any, marked + first, sizeof any);
            if (any == 0) continue;
            for (int64_t j = first; j < first + 8; ++j) {
                pending[size] = static_cast<int32_t>(j);
                size += marked[j];
            }
        }
        for (int32_t i = 0; i < size; ++i) {
            const int64_t j = pending[i];
            int16_t& c = count[bucket[j]];
            if (c >= 0) continue;  // of a bucket that was full
            const bool full = c < kFull + kGroup;
            int32_t add = 1;
            int64_t known = 0;
            if (full) {
                c = static_cast<int16_t>(c - kFull);
                add = -kFull;
                if (bucket[j] >= buckets.size) continue;
            } else {
                --c;
                known = kFirstMark - c;
                known = known > 0 ? known : 0;
            }
            const int64_t above = compared(in, r, s[j], column + g + j, known);
            if (above > 0) sorted[above - 1].count += add;
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

// From the counts to the candidates of each level above each positive.
template <class T>
bool ranks_of_row(const ExactArgs<T>& in, int64_t r) {
    const int64_t begin = in.starts[r], n = in.starts[r + 1] - begin;
    if (n == 0) return true;
    const int size = in.max_level + 1;
    std::vector<int32_t> of_level((n + 1) * size);
    const Place<T>* sorted = in.sorted + begin;
    for (int64_t i = 0, equal = 0; i < n; ++i) {  // `equal`: the first one of the same similarity
        const int64_t p = in.order[begin + i];
        const T s = sorted[i].similarity;
        if (s != sorted[equal].similarity) equal = i;
        ++of_level[among_equal(in, r, s, in.column[p], equal) * size + in.level[p]];
    }
    const Buckets<T> buckets = buckets_of(in, r);
    int64_t above[kMaxLevels] = {};
    int b = buckets.size;
    for (int64_t i = n; i > 0; --i) {
        // The buckets between this positive and the next one.
        const int own = buckets.of(sorted[i - 1].similarity);
        while (--b > own) above[0] += buckets.count[b];
        b = own;
        above[0] += sorted[i - 1].count;
        for (int l = 1; l < size; ++l) {
            above[l] += of_level[i * size + l];
            above[0] -= of_level[i * size + l];
        }
        const int64_t p = in.order[begin + i - 1];
        memcpy(in.above + p * size, above, sizeof *above * size);
        if (in.ties == Ties::kPessimistic) --in.above[p * size + in.level[p]];  // itself
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
