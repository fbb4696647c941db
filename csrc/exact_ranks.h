// Exact ranks: how many candidates of each level are above each positive of a row.
//
// The positives are sorted. Equal buckets divide the similarities between the lowest and the
// highest one. A candidate whose bucket has no positive is counted there; the few others are
// compared with the positives, and counted at the highest one that they are above.
// Candidates are counted whatever their level; sums from the highest bucket on are their number
// above each positive. Those of level 1 and more are the positives themselves, which are compared
// with each other; the rest is level 0. O(M) a row however many positives it has.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

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

// The same where buckets have few positives each; else false, and nothing is sorted.
template <class T>
bool sort_by_buckets(const ExactArgs<T>& in, int64_t r, const Buckets<T>& buckets, int64_t* order) {
    constexpr int16_t kFew = 16;
    const int64_t begin = in.starts[r], n = in.starts[r + 1] - begin;
    if (n > kMostBefore) return false;
    const T* const s = in.similarity + begin;
    for (int64_t i = 0; i < n; ++i) ++buckets.count[buckets.of(s[i])];
    int16_t first = 0, most = 0;
    for (int b = 0; b < buckets.size; ++b) {
        const int16_t here = buckets.count[b];
        buckets.count[b] = first;
        first = static_cast<int16_t>(first + here);
        most = std::max(most, here);
    }
    if (most > kFew) return false;
    const bool last = in.ties == Ties::kLast;
    for (int64_t k = 0; k < n; ++k) {
        const int64_t i = last ? k : n - 1 - k;
        order[buckets.count[buckets.of(s[i])]++] = begin + i;
    }
    for (int64_t k = 1; k < n; ++k) {
        const int64_t p = order[k];
        int64_t to = k;
        for (; to > 0 && in.similarity[order[to - 1]] > in.similarity[p]; --to)
            order[to] = order[to - 1];
        order[to] = p;
    }
    return true;
}

// The positives of a row in ascending order, those of a lower rank first, and their buckets.
template <class T>
bool sort_row(const ExactArgs<T>& in, int64_t r) {
    const int64_t begin = in.starts[r], n = in.starts[r + 1] - begin;
    if (n == 0) return true;
    const T* const s = in.similarity;
    Place<T>* const sorted = in.sorted + begin;
    // The buckets are those between the first and the last place.
    const auto range = std::minmax_element(s + begin, s + begin + n);
    sorted[0].similarity = *range.first;
    sorted[n - 1].similarity = *range.second;
    const Buckets<T> buckets = buckets_of(in, r);
    const size_t bytes = sizeof(int16_t) * (buckets.size + kNotCounted);
    memset(buckets.count, 0, bytes);
    int64_t* const order = in.order + begin;
    if (!sort_by_buckets(in, r, buckets, order)) {
        const bool last = in.ties == Ties::kLast;
        for (int64_t i = 0; i < n; ++i) order[i] = begin + i;
        // They are listed in the order of their columns.
        std::sort(order, order + n, [s, last](int64_t a, int64_t b) {
            if (s[a] != s[b]) return s[a] < s[b];
            return last ? a < b : b < a;
        });
    }
    for (int64_t i = 0; i < n; ++i) sorted[i] = {s[order[i]], 0};
    memset(buckets.count, 0, bytes);
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

// Some packed queries.
template <class T>
struct ItemQueries {
    int64_t first, rows;
    std::unique_ptr<T[]> packed;
    T factors[kItemRows] = {};

    ItemQueries(const ChunkArgs<T>& chunk, int64_t item)
        : first(item * kItemRows),
          rows(std::min(kItemRows, chunk.queries.rows - first)),
          packed(new T[kItemRows * chunk.features]) {
        for (int64_t i = 0; i < rows; ++i) factors[i] = factor(chunk.queries, first + i);
        for (int64_t i = 0; i < rows; i += kTileRows)
            pack(chunk.queries, chunk.features, first + i,
                 static_cast<int>(std::min<int64_t>(kTileRows, rows - i)), kTileRows,
                 packed.get() + i * chunk.features);
    }
};

// Fills the similarities with n columns of a chunk, up to kStripColumns, whole tiles; rows `stride`
// apart.
template <class T>
void strip_product(const ChunkArgs<T>& chunk, const ItemQueries<T>& queries, int64_t begin,
                   int64_t n, T* s, int64_t stride) {
    constexpr int wide = kTileColumns<T>;
    static_assert(kStripColumns % wide == 0 && kStripColumns <= kChunk);
    for (int64_t j = 0; j < n; j += wide) {
        T factors[wide];
        for (int i = 0; i < wide; ++i)
            factors[i] = j + i < n ? factor(chunk.candidates, begin + j + i) : T(0);
        const T* candidates = chunk.packed + (begin + j) * chunk.features;
        for (int64_t i = 0; i < queries.rows; i += kTileRows)
            tile(queries.packed.get() + i * chunk.features, candidates, chunk.features,
                 queries.factors + i, factors, s + i * stride + j, stride);
    }
}

// Counts n columns of a chunk for row r.
template <class T>
bool count_columns(const ChunkPass<T>& pass, int64_t r, int64_t begin, int64_t n, const T* s,
                   ChunkLevels& levels) {
    const ChunkArgs<T>& chunk = pass.chunk;
    const int64_t column = chunk.first_column + begin;
    if (chunk.some_ignored &&
        !row_levels(pass.levels, chunk.first_row + r, column, n, chunk.all_columns, levels))
        return false;
    count_row(pass.in, r, column, n, s, chunk.some_ignored ? levels.level : nullptr);
    return true;
}

// Counts the candidates of a chunk for kItemRows rows.
template <class T>
bool count_item(const ChunkPass<T>& pass, int64_t item) {
    const ItemQueries<T> queries(pass.chunk, item);
    const std::unique_ptr<T[]> s(new T[kItemRows * kStripColumns]);
    ChunkLevels levels;
    for (int64_t begin = 0; begin < pass.chunk.candidates.rows; begin += kStripColumns) {
        const int64_t n = std::min(kStripColumns, pass.chunk.candidates.rows - begin);
        strip_product(pass.chunk, queries, begin, n, s.get(), kStripColumns);
        for (int64_t i = 0; i < queries.rows; ++i) {
            const int64_t r = queries.first + i;
            if (pass.in.starts[r] == pass.in.starts[r + 1]) continue;
            if (!count_columns(pass, r, begin, n, s.get() + i * kStripColumns, levels))
                return false;
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
    const Place<T>* const sorted = in.sorted + begin;
    const int64_t* const order = in.order + begin;
    const Buckets<T> buckets = buckets_of(in, r);
    const bool pessimistic = in.ties == Ties::kPessimistic;
    const bool together = pessimistic || in.ties == Ties::kOptimistic;  // else equals have an order
    int64_t total = 0, of_level[kMaxLevels] = {};                       // above, so far
    const auto add_levels = [&](int64_t first, int64_t end) {
        for (int64_t i = first; i < end; ++i) ++of_level[in.level[order[i]]];
    };
    int b = buckets.size - 1;
    for (int64_t end = n, first; end > 0; end = first) {
        const T s = sorted[end - 1].similarity;
        first = end - 1;
        while (together && first > 0 && sorted[first - 1].similarity == s) --first;
        // The buckets between these positives and those above.
        for (const int own = buckets.of(s); b > own; --b)
            if (buckets.count[b] > 0) total += buckets.count[b];
        if (pessimistic) add_levels(first, end);
        for (int64_t i = end - 1; i >= first; --i) {
            total += sorted[i].count;
            const int64_t p = order[i];
            int64_t* const above = in.above + p * size;
            above[0] = total;
            for (int l = 1; l < size; ++l) {
                above[l] = of_level[l];
                above[0] -= of_level[l];
            }
            if (pessimistic) --above[in.level[p]];  // itself
        }
        if (!pessimistic) add_levels(first, end);
    }
    return true;
}

// All of it for kItemRows rows, whose similarities with all candidates, a single chunk, are kept.
template <class T>
bool rank_item(const ChunkPass<T>& pass, int64_t item) {
    constexpr int64_t wide = kTileColumns<T>;
    const ExactArgs<T>& in = pass.in;
    const ItemQueries<T> queries(pass.chunk, item);
    const int64_t columns = pass.chunk.candidates.rows;
    const int64_t stride = (columns + wide - 1) / wide * wide;
    const std::unique_ptr<T[]> similarities(new T[kItemRows * stride]);
    for (int64_t begin = 0; begin < columns; begin += kStripColumns)
        strip_product(pass.chunk, queries, begin, std::min(kStripColumns, columns - begin),
                      similarities.get() + begin, stride);
    ChunkLevels levels;
    for (int64_t i = 0; i < queries.rows; ++i) {
        const int64_t r = queries.first + i;
        const T* const s = similarities.get() + i * stride;
        bool ordered = true;
        for (int64_t p = in.starts[r]; p < in.starts[r + 1]; ++p) {
            in.similarity[p] = s[in.column[p]];
            ordered = ordered && in.similarity[p] == in.similarity[p];
        }
        if (!ordered || in.starts[r] == in.starts[r + 1]) continue;
        sort_row(in, r);
        for (int64_t begin = 0; begin < columns; begin += kStripColumns)
            if (!count_columns(pass, r, begin, std::min(kStripColumns, columns - begin), s + begin,
                               levels))
                return false;
        ranks_of_row(in, r);
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
