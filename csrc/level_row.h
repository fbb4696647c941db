// The levels of one row over a chunk of columns.
#pragma once

#include <algorithm>

#include "epilogue.h"
#include "level_args.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Columns handled at a time: logits and levels of a chunk stay in the first-level cache.
constexpr int64_t kChunk = 1024;
constexpr int64_t kPadding = 64;  // at least the width of a vector
// Where one level in so many is not 0, testing each vector for "all 0" costs more than it saves.
constexpr int64_t kMixed = GRAINRANK_VECTOR_BYTES;

// The levels of a chunk, one a 32-bit lane, then -1 up to the padding.
struct ChunkLevels {
    alignas(64) int32_t level[kChunk + kPadding];
    // So many are not 0 that testing each vector for "all 0" costs more than it saves.
    bool mixed;
};

// The functions fill n levels, and return how many are not 0.

// The first kKeys keys, all matched while the level is in a register.
template <int kKeys>
int64_t match_leading(const LevelLeaf& args, const int32_t* query_keys, int64_t begin, int64_t n,
                      int64_t columns, int32_t* level) {
    const int32_t* keys = args.candidate_keys + begin;
    int32_t not_zero = 0;
    for (int64_t j = 0; j < n; ++j) {
        int32_t match = 1, matched = 0;
        for (int k = 0; k < kKeys; ++k) {
            match &= key_match(keys[k * columns + j], query_keys[k]);
            matched += match;
        }
        level[j] = matched;
        not_zero += matched != 0;
    }
    return not_zero;
}

// A finer key counts where every coarser one has matched.
inline int64_t match_prefix(const LevelLeaf& args, int64_t i, int64_t begin, int64_t n,
                            int64_t columns, int32_t* level) {
    const int32_t* query_keys = args.query_keys + i * args.num_keys;
    int64_t known = 0;  // a key that is not known ends the prefix
    while (known < args.num_keys && query_keys[known] >= 0) ++known;
    if (known == 0) {
        memset(level, 0, n * sizeof *level);
        return 0;
    }
    int64_t not_zero = 0, k = known < 4 ? known : 4;
    switch (k) {
        case 1:
            not_zero = match_leading<1>(args, query_keys, begin, n, columns, level);
            break;
        case 2:
            not_zero = match_leading<2>(args, query_keys, begin, n, columns, level);
            break;
        case 3:
            not_zero = match_leading<3>(args, query_keys, begin, n, columns, level);
            break;
        default:
            not_zero = match_leading<4>(args, query_keys, begin, n, columns, level);
    }
    for (int32_t found = 1; k < known && found != 0; ++k) {
        const int32_t* keys = args.candidate_keys + k * columns + begin;
        found = 0;
        for (int64_t j = 0; j < n; ++j) {
            const int32_t match =
                finer_match(key_match(keys[j], query_keys[k]), level[j], static_cast<int32_t>(k));
            level[j] += match;
            found += match;
        }
    }
    return not_zero;
}

inline int64_t match_count(const LevelLeaf& args, int64_t i, int64_t begin, int64_t n,
                           int64_t columns, int32_t* level) {
    memset(level, 0, n * sizeof *level);
    int64_t matched = 0;
    for (int64_t k = 0; k < args.num_keys; ++k) {
        const int32_t key = args.query_keys[i * args.num_keys + k];
        if (key < 0) continue;  // unknown: equals nothing
        const int32_t* keys = args.candidate_keys + k * columns + begin;
        int32_t found = 0;
        for (int64_t j = 0; j < n; ++j) {
            const int32_t match = key_match(keys[j], key);
            level[j] += match;
            found += match;
        }
        matched += found;
    }
    return matched;
}

inline int64_t copy_dense(const LevelLeaf& args, int64_t i, int64_t begin, int64_t n,
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

inline int64_t scatter_sparse(const LevelLeaf& args, int64_t i, int64_t begin, int64_t n,
                              int32_t* level) {
    memset(level, 0, n * sizeof *level);
    const int32_t* last = args.indices + args.ends[i + 1];
    const int32_t* entry =
        std::lower_bound(args.indices + args.ends[i], last, static_cast<int32_t>(begin));
    int64_t not_zero = 0;
    for (; entry != last && *entry < begin + n; ++entry, ++not_zero)
        level[*entry - begin] = args.levels[entry - args.indices];
    return not_zero;
}

inline int64_t find_bands(const LevelLeaf& args, int64_t i, int64_t begin, int64_t n,
                          int64_t columns, int32_t* level) {
    memset(level, 0, n * sizeof *level);
    if (!args.similarities) return 0;  // only the pairs of level -1 are asked for
    const float* similarity = args.similarities + (i - args.first_row) * columns + begin;
    int32_t found = 0;
    for (int l = 0; l < args.max_level; ++l) {
        if (args.by_column) {
            const float* threshold = args.thresholds + l * args.threshold_stride + begin;
            for (int64_t j = 0; j < n; ++j) {
                const int32_t above = above_threshold(similarity[j], threshold[j]);
                level[j] += above;
                found += above;
            }
        } else {
            const float threshold = args.thresholds[i * args.threshold_stride + l];
            for (int64_t j = 0; j < n; ++j) {
                const int32_t above = above_threshold(similarity[j], threshold);
                level[j] += above;
                found += above;
            }
        }
    }
    return found;
}

inline int64_t leaf_levels(const LevelLeaf& leaf, int64_t i, int64_t begin, int64_t n,
                           int64_t columns, int32_t* level, bool& valid) {
    switch (leaf.kind) {
        case LevelKind::kKeysPrefix:
            return match_prefix(leaf, i, begin, n, columns, level);
        case LevelKind::kKeysCount:
            return match_count(leaf, i, begin, n, columns, level);
        case LevelKind::kDense:
            return copy_dense(leaf, i, begin, n, columns, level, valid);
        case LevelKind::kSparse:
            return scatter_sparse(leaf, i, begin, n, level);
        case LevelKind::kBands:
            return find_bands(leaf, i, begin, n, columns, level);
        case LevelKind::kDiagonal:
            break;
    }
    memset(level, 0, n * sizeof *level);
    if (i >= begin && i < begin + n) level[i - begin] = 1;
    return 0;
}

// Levels of row i, columns begin .. begin + n. False: a level above L or below -1.
inline bool row_levels(const LevelArgs& args, int64_t i, int64_t begin, int64_t n, int64_t columns,
                       ChunkLevels& out) {
    bool valid = true;
    int64_t not_zero = leaf_levels(args.leaves[0], i, begin, n, columns, out.level, valid);
    for (size_t k = 1; k < args.leaves.size(); ++k) {
        int32_t other[kChunk];
        bool other_valid = true;
        not_zero += leaf_levels(args.leaves[k], i, begin, n, columns, other, other_valid);
        valid = valid && other_valid;
        for (int64_t j = 0; j < n; ++j) out.level[j] = united(out.level[j], other[j]);
    }
    for (const LevelExclusion& exclusion : args.exclusions) {
        const int32_t id = exclusion.query_ids[i];
        const int32_t* ids = exclusion.candidate_ids + begin;
        for (int64_t j = 0; j < n; ++j) out.level[j] = excluded(out.level[j], id, ids[j]);
    }
    for (int64_t j = n; j < n + kPadding; ++j) out.level[j] = -1;
    out.mixed = not_zero * kMixed > n;
    return valid;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
