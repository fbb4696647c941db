// The levels of a row block, a byte each, and the list of its positives.
#pragma once

#include "logits.h"
#include "rank_args.h"

namespace grainrank {
namespace GRAINRANK_ISA {

template <class T>
struct LevelPass {
    const Block<T>& block;
    const LevelArgs& levels;
    int8_t* out;     // [R, M]
    int64_t* count;  // [R, L + 1]
};

// Adds how many of n levels are each of 0 .. L; behind them are -1.
inline void count_levels(const int32_t* level, int64_t n, int size, int64_t* count) {
    constexpr int64_t kTogether = 64;
    static_assert(kPadding >= kTogether, "the last ones are read whole");
    for (int64_t j = 0; j < n; j += kTogether) {
        int32_t any = 0;
        for (int64_t i = j; i < j + kTogether; ++i) any |= level[i];
        if (any == 0) {  // most of them, where positives are few
            count[0] += kTogether;
            continue;
        }
        for (int l = 0; l < size; ++l) {
            int32_t here = 0;
            for (int64_t i = j; i < j + kTogether; ++i) here += level[i] == l;
            count[l] += here;
        }
    }
}

template <class T>
bool level_row(const LevelPass<T>& pass, int64_t r) {
    const Block<T>& block = pass.block;
    const int size = pass.levels.max_level + 1;
    int64_t count[kMaxLevels] = {};
    T scratch[kChunk];
    ChunkLevels chunk;
    for (int64_t begin = 0; begin < block.columns; begin += kChunk) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kChunk ? left : kChunk;
        if (!row_levels(pass.levels, block.first_row + r, begin, n, block.columns, chunk))
            return false;
        if (block.ceilings.rows) {
            const T* s = similarities(block, r, begin, n, scratch);
            apply_ceiling(block, false, r, begin, n, s, chunk.level);
        }
        int8_t* out = pass.out + r * block.columns + begin;
        for (int64_t j = 0; j < n; ++j) out[j] = static_cast<int8_t>(chunk.level[j]);
        count_levels(chunk.level, n, size, count);
    }
    memcpy(pass.count + r * size, count, size * sizeof *count);
    return true;
}

template <class T>
struct PositivePass {
    const Block<T>& block;
    const PositiveArgs<T>& out;
};

template <class T>
bool positive_row(const PositivePass<T>& pass, int64_t r) {
    const Block<T>& block = pass.block;
    const PositiveArgs<T>& out = pass.out;
    const int8_t* level = out.levels + r * block.columns;
    const T* s = block.similarities + r * block.row_stride;
    int64_t p = out.starts[r];
    const int64_t end = out.starts[r + 1];
    for (int64_t j = 0; j < block.columns && p < end;) {
        uint64_t word = 0;
        if (j + 8 <= block.columns) memcpy(&word, level + j, 8);
        const bool none = j + 8 <= block.columns && word == 0;
        const int64_t stop = j + 8 < block.columns ? j + 8 : block.columns;
        if (none) j = stop;
        for (; j < stop; ++j) {
            if (level[j] <= 0) continue;
            out.row[p] = r;
            out.column[p] = j;
            out.level[p] = level[j];
            if (out.similarity)
                out.similarity[p] = block.row_factors
                                        ? s[j] * (block.row_factors[r] * block.column_factors[j])
                                        : s[j];
            ++p;
        }
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
