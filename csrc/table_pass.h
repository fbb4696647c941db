// Row and column tables of a block: one pass each, chunk by chunk.
#pragma once

#include "level_tables.h"
#include "logits.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// No more than 64 numbers (32 without vectors) are added into one lane before the lanes are added
// up, as pairwise summation would; long sums in one lane lose the accuracy of short ones.
template <class T>
constexpr int64_t kLaneTerms = Lanes<T>::kWidth == 1 ? 32 : 64;
template <class T>
constexpr int64_t kTableChunk =
    kLaneTerms<T> * Lanes<T>::kWidth < kChunk ? kLaneTerms<T> * Lanes<T>::kWidth : kChunk;

template <class T>
struct TablePass {
    const Block<T>& block;
    const LevelArgs& levels;
    const T* factors;
    const Tables<T>& rows;
    const Tables<T>* columns;
    int64_t table_columns;
};

// The logits are the similarities but for the scale, and those of other levels than 0 are listed:
// they are taken out of their chunk, collected, and put back.
template <class T, int kLevels>
void listed_table_row(const TablePass<T>& pass, int64_t r, RowList& list) {
    constexpr int kWidth = Lanes<T>::kWidth;
    const Block<T>& block = pass.block;
    T scratch[kTableChunk<T> + kPadding];
    alignas(64) T apart[kTableChunk<T> + kPadding] = {};
    ListedPairs listed, collected;
    collected.size = 0;
    LevelTables<T, false, kLevels, Lane::kAlong> tables;
    tables.start(pass.levels.max_level);
    const auto add_collected = [&] {
        tables.add_listed({apart, block.scale}, collected.level, collected.pad(kWidth));
        collected.size = 0;
    };
    for (int64_t begin = 0; begin < block.columns; begin += kTableChunk<T>) {
        const int64_t left = block.columns - begin;
        int64_t n = left < kTableChunk<T> ? left : kTableChunk<T>;
        list.read(begin, n, listed);
        T* s = similarities(block, r, begin, n, scratch);
        if (n % kWidth != 0) {
            if (s != scratch) memcpy(scratch, s, n * sizeof(T));
            s = scratch;
        }
        if (collected.size + listed.size > kTableChunk<T>) add_collected();
        T* of_chunk = apart + collected.size;
        for (int64_t j = 0; j < listed.size; ++j) {
            collected.level[collected.size++] = listed.level[j];
            of_chunk[j] = s[listed.place[j]];
            take_out(s + listed.place[j]);
        }
        int64_t out = listed.size;
        for (; n % kWidth != 0; ++n, ++out) take_out(s + n);
        tables.add_zeros({s, block.scale}, n, out);
        for (int64_t j = 0; j < listed.size; ++j) s[listed.place[j]] = of_chunk[j];
    }
    add_collected();
    tables.write(pass.rows, r, 1);
}

template <class T, bool kAll, int kLevels>
bool table_row(const TablePass<T>& pass, int64_t r) {
    const Block<T>& block = pass.block;
    const bool only_scaled = !block.circle && !pass.factors;
    if constexpr (!kAll && Lanes<T>::kWidth > 1) {
        RowList list;
        if (only_scaled && !block.ceilings.rows &&
            list.open(pass.levels, block.first_row + r, block.columns) &&
            few(list.left(), block.columns)) {
            listed_table_row<T, kLevels>(pass, r, list);
            return true;
        }
    }
    alignas(64) T z[kTableChunk<T> + kPadding];
    T scratch[kTableChunk<T>];
    ChunkLevels chunk;
    TablesOf<T, kAll, kLevels, Lane::kAlong> tables;
    tables.start(pass.levels.max_level);
    for (int64_t begin = 0; begin < block.columns; begin += kTableChunk<T>) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kTableChunk<T> ? left : kTableChunk<T>;
        if (!row_levels(pass.levels, block.first_row + r, begin, n, block.columns, chunk))
            return false;
        const T* s = similarities(block, r, begin, n, scratch);
        apply_ceiling(block, false, r, begin, n, s, chunk.level);
        const int64_t steps = (n + Lanes<T>::kWidth - 1) / Lanes<T>::kWidth;
        Logits<T> of_chunk{s, block.scale};
        if (!only_scaled || n < steps * Lanes<T>::kWidth) {
            logits(block, pass.factors, s, chunk.level, n, z);
            for (int64_t j = n; j < n + kPadding; ++j) z[j] = z[n - 1];
            of_chunk = {z, T(1)};
        }
        tables.add_chunk(of_chunk, chunk.level, chunk.mixed, begin, steps, Lanes<T>::kWidth);
    }
    tables.write(pass.rows, r, 1);
    return true;
}

// Columns handled together: enough that a row of the strip fills cache lines, few enough that the
// logits and levels of kLaneTerms rows stay in the first-level cache.
constexpr int64_t kStrip = 64;

// A strip's rows lie too far apart for the machine to guess the next ones.
constexpr int64_t kAhead = 16;

template <class T>
GRAINRANK_INLINE void prefetch(const Block<T>& block, int64_t r, int64_t begin) {
    if (r >= block.rows) return;
    const T* row = block.similarities + r * block.row_stride + begin;
    for (int64_t j = 0; j < kStrip; j += 64 / static_cast<int64_t>(sizeof(T))) fetch_ahead(row + j);
}

template <class T, bool kAll, int kLevels>
bool table_strip(const TablePass<T>& pass, int64_t strip) {
    const Block<T>& block = pass.block;
    constexpr int kWidth = Lanes<T>::kWidth;
    constexpr int kVectors = static_cast<int>(kStrip) / kWidth;
    alignas(64) T z[kLaneTerms<T> * kStrip];
    alignas(64) int32_t levels[kLaneTerms<T> * kStrip];
    T scratch[kStrip];
    ChunkLevels row;
    TablesOf<T, kAll, kLevels, Lane::kAcross> tables[kVectors];
    for (auto& t : tables) t.start(pass.levels.max_level);
    const int64_t begin = strip * kStrip, left = pass.table_columns - begin;
    const int64_t n = left < kStrip ? left : kStrip;
    for (int64_t first = 0; first < block.rows; first += kLaneTerms<T>) {
        const int64_t rest = block.rows - first;
        const int64_t steps = rest < kLaneTerms<T> ? rest : kLaneTerms<T>;
        int64_t mixed = 0;
        for (int64_t i = 0; i < steps; ++i) {
            const int64_t r = first + i;
            prefetch(block, r + kAhead, begin);
            if (!row_levels(pass.levels, block.first_row + r, begin, n, block.columns, row))
                return false;
            const T* s = similarities(block, r, begin, n, scratch);
            apply_ceiling(block, true, r, begin, n, s, row.level);
            logits(block, pass.factors, s, row.level, n, z + i * kStrip);
            for (int64_t j = n; j < kStrip; ++j) z[i * kStrip + j] = T(0);
            memcpy(levels + i * kStrip, row.level, sizeof(int32_t) * kStrip);
            mixed += row.mixed;
        }
        for (int64_t v = 0; v < kVectors && v * kWidth < n; ++v)
            tables[v].add_chunk({z + v * kWidth, T(1)}, levels + v * kWidth, mixed * 2 > steps,
                                block.first_row + first, steps, kStrip);
    }
    for (int64_t v = 0; v < kVectors && v * kWidth < n; ++v) {
        const int64_t lanes = n - v * kWidth;
        tables[v].write(*pass.columns, begin + v * kWidth,
                        static_cast<int>(lanes < kWidth ? lanes : kWidth));
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
