// Arguments of the fused passes over a row block of similarities, and the table that the
// run-time choice of an instruction set fills. Letters as in the dimension key: N, M, K, L, R.
#pragma once

#include <cstdint>

#include "level_args.h"
#include "product.h"
#include "rank_args.h"

namespace grainrank {

enum class Status : int { kOk = 0, kLevelOutOfRange = 1 };

// Pairs of level 0 whose similarity is above the ceiling of their row are ignored: they are likely
// to be positives that nobody labelled. Seen from a column (its own tables), above the ceiling of
// the column.
template <class T>
struct CeilingArgs {
    const T* rows;     // [N], or null: nothing is ignored
    const T* columns;  // [M], or null
    // [R, M]: of the block's pairs in another embedding space, or null: the similarities
    // themselves.
    const float* reference;
    const int32_t* query_ids;      // [N] or null: pairs with equal ids are never ignored
    const int32_t* candidate_ids;  // [M] or null
};

// A row block of similarities, and how they become logits: s = similarity * row_factor *
// column_factor, z = scale * factor[level] * s (the factors of the levels belong to a channel), or
// the curve of the circle loss, z = scale * max(s + m, 0) * (s - m) at level 0 and
// scale * max(1 + m - s, 0) * (s - (1 - m)) above.
template <class T>
struct Block {
    T* similarities;  // [R, M], rows `row_stride` apart
    int64_t rows;     // R
    int64_t columns;  // M
    int64_t row_stride;
    int64_t first_row;  // of the batch
    T scale;
    const T* row_factors;     // [R], or null: 1
    const T* column_factors;  // [M], or null: 1
    bool circle;
    T circle_margin;  // m
    CeilingArgs<T> ceilings;
    // Gradients are written as bfloat16, from the beginning of the row's memory on; `dots` [R] are
    // the sums of G * s before, which is the gradient of the scale.
    bool narrow;
    T* dots;  // or null
    int num_threads;
};

// Tables of the rows of a block [R, L + 1], or of its columns [M, L + 1]. neg_lse to lowest_at are
// null together: not wanted.
template <class T>
struct Tables {
    T* lse;
    T* total;
    int64_t* count;
    T* neg_lse;  // levels >= 1
    T* highest;
    T* lowest;
    int64_t* highest_at;  // column (row) of the first highest logit, -1 for an empty level
    int64_t* lowest_at;
};

// Row tables and the gradients of them, [R, L + 1] each. A null gradient is zero.
template <class T>
struct RowGradientArgs {
    const T* lse;
    const T* d_lse;
    const T* neg_lse;
    const T* d_neg_lse;
    const T* d_total;
    const T* thresholds;  // of the softplus sums of the positives (see SoftplusArgs)
    const T* d_softplus;
};

// The same of the columns, level by level: [L + 1, stride], stride a vector longer than M at least.
template <class T>
struct ColumnGradientArgs {
    const T* lse;  // null: no column tables
    const T* d_lse;
    const T* neg_lse;
    const T* d_neg_lse;
    const T* d_total;
    int64_t stride;
};

// One way of reading the similarities as logits, with its own tables.
template <class T>
struct Channel {
    const T* factors;  // [L + 1], or null: 1
    RowGradientArgs<T> rows;
    ColumnGradientArgs<T> columns;
    T* moments;  // [R, L + 1] or null: sums over the level of G * scale * s
};

template <class T>
struct GradientArgs {
    const Channel<T>* channels;
    int num_channels;
    T* row_moments;     // [R] or null: sums over the row of G * scale * s
    T* column_moments;  // [ceil(R / kMomentRows), M] or null: over kMomentRows rows of the column
};
constexpr int64_t kMomentRows = 64;

// Sums over the pairs of a level of softplus(x), x = z - threshold at level 0, threshold - z above.
template <class T>
struct SoftplusArgs {
    const T* factors;     // [L + 1], or null: 1
    const T* thresholds;  // [R, L + 1], or [L + 1] with stride 0
    int64_t threshold_stride;
    const T*
        weights;     // [L + 1]: the similarities are replaced by weight * d softplus / dz; or null
    bool positives;  // levels >= 1 alone
    T* value;        // [R, L + 1]
    T* slope;        // [R, L + 1]: sums of the derivatives sigmoid(x)
};

// A norm below this counts as this, as in torch.nn.functional.normalize.
constexpr double kNormEps = 1e-12;

// Norms of the prefixes of embeddings.
template <class T>
struct NormArgs {
    const T* x;  // [R, D], rows `row_stride` apart
    int64_t row_stride;
    int64_t rows;
    const int64_t* prefixes;  // lengths, ascending
    int num_prefixes;         // P
    T* norms;                 // [P, R]
    T* unit;                  // [R, D] or null: x over the norm of the last prefix; may be x
    int num_threads;
};

// From the gradient of rows as the products took them, per unit of scale, to that of the rows as
// they were given: times the scale, and back through the normalisation. In place.
template <class T>
struct FinishArgs {
    T* d;  // [R, D], rows `d_stride` apart
    int64_t d_stride;
    const T* values;  // [R, D], what the products took
    int64_t value_stride;
    int64_t rows;
    const int64_t* prefixes;
    int num_prefixes;
    T scale;
    const T* norms;  // [R]: the values are rows over these norms; or null
    const T* along;  // [P, R]: d loses `values * along` in the features that prefix p adds; or null
    T* dots;         // [R] or null: <values, d> as it came
    int num_threads;
};

template <class T>
struct Passes {
    // Level, logit, tables of the rows and, where `columns` is not null, of the first
    // `table_columns` columns.
    Status (*tables)(const Block<T>&, const LevelArgs&, const T* factors, const Tables<T>& rows,
                     const Tables<T>* columns, int64_t table_columns);
    // The similarities are replaced by G, the gradient of `scale * s`, times the block's factors.
    Status (*gradients)(const Block<T>&, const LevelArgs&, const GradientArgs<T>&);
    Status (*softplus)(const Block<T>&, const LevelArgs&, const SoftplusArgs<T>&);
    // Levels int8 [R, M] as the rows see them, and the pairs of each level [R, L + 1].
    Status (*block_levels)(const Block<T>&, const LevelArgs&, int8_t* levels, int64_t* count);
    void (*positives)(const Block<T>&, const PositiveArgs<T>&);
    void (*pair_similarities)(const PairArgs<T>&);
    // Exact ranks: sort_positives, count_chunk for all candidates, finish_ranks.
    void (*sort_positives)(const ExactArgs<T>&);
    Status (*count_chunk)(const ExactArgs<T>&, const LevelArgs&, const ChunkArgs<T>&);
    void (*finish_ranks)(const ExactArgs<T>&);
    // All of it where there is one chunk, with the similarities of the positives. A row with a NaN
    // among these is left out.
    Status (*rank_rows)(const ExactArgs<T>&, const LevelArgs&, const ChunkArgs<T>&);
    void (*smooth_ranks)(const Block<T>&, const RankArgs<T>&, const SmoothArgs<T>&);
    void (*rank_gradient)(const Block<T>&, const RankArgs<T>&, const RankGradientArgs<T>&);
    void (*norms)(const NormArgs<T>&);
    void (*finish)(const FinishArgs<T>&);
    void (*exponential)(const T* x, T* y, int64_t n);
    void (*log1p)(const T* x, T* y, int64_t n);  // 0 <= x <= 1
};

struct InstructionSet {
    const char* name;
    Passes<float> f32;
    Passes<double> f64;
    Product<uint16_t> bf16_product = nullptr;
    Product<float> float32_product = nullptr;
    // Than torch's of float32, as far as is known.
    bool bf16_is_faster = false;
    bool float32_is_faster = false;
};

constexpr int kMostSets = 5;

// Every instruction set of this build, the best that this machine runs first.
int available(const InstructionSet** sets, int capacity);

}  // namespace grainrank
