// The levels of one row over a chunk of columns.
#pragma once

#include "epilogue.h"
#include "passes.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Columns handled at a time: logits and levels of a chunk stay in the first-level cache, and no more than
// kChunk / width numbers are added into one lane before the lanes are added up.
constexpr int64_t kChunk = 1024;
constexpr int64_t kPadding = 64;  // at least the width of a vector

inline void match_keys(const LevelArgs& args, int64_t i, int64_t begin, int64_t n, int64_t columns,
                       int8_t* levels) {
    const bool prefix = args.kind == LevelKind::kKeysPrefix;
    memset(levels, 0, n);
    for (int64_t k = 0; k < args.num_keys; ++k) {
        const int32_t key = args.query_keys[i * args.num_keys + k];
        if (key < 0) {  // unknown: equals nothing
            if (prefix) return;
            continue;
        }
        const int32_t* keys = args.candidate_keys + k * columns + begin;
        const int index = static_cast<int>(k);
        int8_t any = 0;
        for (int64_t j = 0; j < n; ++j) {
            const int8_t level = next_level(levels[j], index, keys[j] == key, prefix);
            levels[j] = level;
            any |= level;
        }
        if (prefix && any <= index) return;  // nobody is left to match a finer key
    }
}

// Levels of row i, columns begin .. begin + n, then -1 up to the padding. False: a level above L or below -1.
inline bool row_levels(const LevelArgs& args, int64_t i, int64_t begin, int64_t n, int64_t columns,
                       int8_t* levels) {
    bool valid = true;
    switch (args.kind) {
        case LevelKind::kDiagonal:
            memset(levels, 0, n);
            if (i >= begin && i < begin + n) levels[i - begin] = 1;
            break;
        case LevelKind::kKeysPrefix:
        case LevelKind::kKeysCount:
            match_keys(args, i, begin, n, columns, levels);
            break;
        case LevelKind::kDense: {
            memcpy(levels, args.dense + i * columns + begin, n);
            int8_t wrong = 0;
            for (int64_t j = 0; j < n; ++j)
                wrong |= static_cast<int8_t>((levels[j] > args.max_level) | (levels[j] < -1));
            valid = wrong == 0;
            break;
        }
    }
    if (args.query_ids) {
        const int32_t id = args.query_ids[i];
        const int32_t* ids = args.candidate_ids + begin;
        for (int64_t j = 0; j < n; ++j) levels[j] = ids[j] == id ? int8_t(-1) : levels[j];
    }
    memset(levels + n, -1, kPadding);
    return valid;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
