// The levels of one row over a chunk of columns.
#pragma once

#include "epilogue.h"
#include "passes.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Columns handled at a time: logits and levels of a chunk stay in the first-level cache.
constexpr int64_t kChunk = 1024;
constexpr int64_t kPadding = 64;  // at least the width of a vector

// The levels of a chunk, one a 32-bit lane, then -1 up to the padding.
struct ChunkLevels {
    alignas(64) int32_t level[kChunk + kPadding];
    // So many are not 0 that testing each vector for "all 0" costs more than it saves.
    bool mixed;
};

// Fills n levels; returns how many are not 0, before `exclude`.
inline int64_t match_keys(const LevelArgs& args, int64_t i, int64_t begin, int64_t n,
                          int64_t columns, int32_t* level) {
    const bool prefix = args.kind == LevelKind::kKeysPrefix;
    memset(level, 0, n * sizeof *level);
    int32_t matched = 0;
    for (int64_t k = 0; k < args.num_keys; ++k) {
        const int32_t key = args.query_keys[i * args.num_keys + k];
        if (key < 0) {  // unknown: equals nothing
            if (prefix) break;
            continue;
        }
        const int32_t* keys = args.candidate_keys + k * columns + begin;
        const int32_t index = static_cast<int32_t>(k);
        int32_t found = 0;
        if (prefix) {
            for (int64_t j = 0; j < n; ++j) {
                const int32_t match = prefix_match(level[j], index, keys[j], key);
                level[j] += match;
                found += match;
            }
            if (found == 0) break;  // nobody is left to match a finer key
        } else {
            for (int64_t j = 0; j < n; ++j) {
                const int32_t match = key_match(keys[j], key);
                level[j] += match;
                found += match;
            }
        }
        matched += found;
    }
    return matched;
}

inline int64_t copy_dense(const LevelArgs& args, int64_t i, int64_t begin, int64_t n,
                          int64_t columns, int32_t* level, bool& valid) {
    const int8_t* given = args.dense + i * columns + begin;
    int32_t not_zero = 0, wrong = 0;
    for (int64_t j = 0; j < n; ++j) {
        level[j] = given[j];
        not_zero += given[j] != 0;
        wrong |= (given[j] > args.max_level) | (given[j] < -1);
    }
    valid = wrong == 0;
    return not_zero;
}

// Levels of row i, columns begin .. begin + n. False: a level above L or below -1.
inline bool row_levels(const LevelArgs& args, int64_t i, int64_t begin, int64_t n, int64_t columns,
                       ChunkLevels& out) {
    bool valid = true;
    int64_t not_zero = 0;
    switch (args.kind) {
        case LevelKind::kDiagonal:
            memset(out.level, 0, n * sizeof *out.level);
            if (i >= begin && i < begin + n) out.level[i - begin] = 1;
            break;
        case LevelKind::kKeysPrefix:
        case LevelKind::kKeysCount:
            not_zero = match_keys(args, i, begin, n, columns, out.level);
            break;
        case LevelKind::kDense:
            not_zero = copy_dense(args, i, begin, n, columns, out.level, valid);
            break;
    }
    if (args.query_ids) {
        const int32_t id = args.query_ids[i];
        const int32_t* ids = args.candidate_ids + begin;
        for (int64_t j = 0; j < n; ++j) out.level[j] = ids[j] == id ? -1 : out.level[j];
    }
    for (int64_t j = n; j < n + kPadding; ++j) out.level[j] = -1;
    out.mixed = not_zero * 64 > n;
    return valid;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
