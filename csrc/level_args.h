// Where the level of a pair comes from. Letters as in the dimension key: N, M, K, L, R.
#pragma once

#include <cstdint>
#include <vector>

namespace grainrank {

// The value that lse, neg_lse and highest hold for an empty level; lowest holds its negative.
// Finite, so that a difference of two empty levels is 0 and never NaN.
constexpr double kEmpty = -1e30;

constexpr int kMaxLevel = 15;
constexpr int kMaxLevels = kMaxLevel + 1;

enum class LevelKind : int {
    kDiagonal = 0,
    kKeysPrefix = 1,
    kKeysCount = 2,
    kDense = 3,
    kSparse = 4,
    kBands = 5
};

// One source of levels. Pointers belong to the whole batch unless said otherwise; those of other
// kinds are null.
struct LevelLeaf {
    LevelKind kind;
    int max_level;                  // L
    int64_t num_keys;               // K
    const int32_t* query_keys;      // [N, K]
    const int32_t* candidate_keys;  // [K, M]
    // For kKeysPrefix: the candidates by their first key, those of a key in ascending order. Those
    // that share it with row i are order[first[i]] .. order[last[i] - 1].
    const int32_t* order;       // [M]
    const int32_t* first;       // [N]
    const int32_t* last;        // [N]
    const int32_t* finer_keys;  // [K - 1, M], in this order
    const int8_t* dense;        // [N, M]
    const int64_t* ends;        // [N + 1]: the row's entries in indices and levels
    const int32_t* indices;     // [nnz], ascending in a row
    const int8_t* levels;       // [nnz]
    const float* similarities;  // [R, M], of the block's pairs in the reference
    int64_t first_row;          // of that block in the batch
    const float* thresholds;    // [N, L], [1, L] with stride 0, or [L, M] with by_column
    int64_t threshold_stride;
    bool by_column;
};

// Pairs with equal ids are ignored.
struct LevelExclusion {
    const int32_t* query_ids;      // [N]
    const int32_t* candidate_ids;  // [M]
};

// The highest level of all leaves, but -1 where any leaf or exclusion ignores the pair.
struct LevelArgs {
    int max_level;
    std::vector<LevelLeaf> leaves;  // at least one
    std::vector<LevelExclusion> exclusions;
};

}  // namespace grainrank
