// Arguments of the two fused passes over a row block of similarities, and the table that the
// run-time choice of an instruction set fills. Letters as in the dimension key: N, M, K, L, R.
#pragma once

#include <cstdint>

namespace grainrank {

// The value that lse, neg_lse and highest hold for an empty level; lowest holds its negative.
// Finite, so that a difference of two empty levels is 0 and never NaN.
constexpr double kEmpty = -1e30;
constexpr int kMaxLevel = 15;
constexpr int kMaxLevels = kMaxLevel + 1;

enum class LevelKind : int { kDiagonal = 0, kKeysPrefix = 1, kKeysCount = 2, kDense = 3 };

enum class Status : int { kOk = 0, kLevelOutOfRange = 1 };

// Where the level of a pair comes from. All pointers belong to the whole batch, not to the block.
struct LevelArgs {
    LevelKind kind;
    int max_level;                  // L
    int64_t num_keys;               // K
    const int32_t* query_keys;      // [N, K]
    const int32_t* candidate_keys;  // [K, M]
    const int8_t* dense;            // [N, M]
    const int32_t* query_ids;       // [N] or null: pairs with equal ids are ignored
    const int32_t* candidate_ids;   // [M] or null
};

template <class T>
struct Block {
    T* similarities;  // [R, M], rows `row_stride` apart
    int64_t rows;     // R
    int64_t columns;  // M
    int64_t row_stride;
    int64_t first_row;  // of the batch
    T scale;            // logit = scale * similarity
    int num_threads;
};

// Row tables of the block, [R, L + 1] each. A null pointer: not wanted.
template <class T>
struct Tables {
    T* lse;
    T* neg_lse;  // levels >= 1
    T* total;
    int64_t* count;
    T* highest;
    T* lowest;
    int64_t* highest_at;  // column of the first highest logit, -1 for an empty level
    int64_t* lowest_at;
};

// Row tables and the gradients of them, [R, L + 1] each. A null gradient is zero.
template <class T>
struct TableGradients {
    const T* lse;
    const T* d_lse;
    const T* neg_lse;
    const T* d_neg_lse;
    const T* d_total;
    const T* d_highest;
    const int64_t* highest_at;
    const T* d_lowest;
    const int64_t* lowest_at;
};

template <class T>
struct Passes {
    // One pass over the block: level, logit, tables.
    Status (*tables)(const Block<T>&, const LevelArgs&, const Tables<T>&);
    // One pass over the block: the similarities are replaced by the gradient G of the logits.
    Status (*gradients)(const Block<T>&, const LevelArgs&, const TableGradients<T>&);
    void (*exponential)(const T* x, T* y, int64_t n);
};

struct InstructionSet {
    const char* name;
    Passes<float> f32;
    Passes<double> f64;
};

// Every instruction set of this build, the best that this machine runs first.
int available(const InstructionSet** sets, int capacity);

}  // namespace grainrank
