// Arguments of the passes over ranks of the positives. Letters as in the dimension key; P positives
// in the rows of a block.
#pragma once

#include <cstdint>

namespace grainrank {

// The levels of a row block as its rows see them, and its positives, row by row.
template <class T>
struct RankArgs {
    const int8_t* levels;   // [R, M]
    int max_level;          // L
    const int64_t* starts;  // [R + 1]: row r has the positives starts[r] .. starts[r + 1]
    const int64_t* column;  // [P], ascending in a row
    const int64_t* level;   // [P]
    const T* similarity;    // [P], with the block's factors
};

// Where the positives of a block go, which RankArgs describes.
template <class T>
struct PositiveArgs {
    const int8_t* levels;   // [R, M]
    const int64_t* starts;  // [R + 1]
    int64_t* row;
    int64_t* column;
    int64_t* level;
    T* similarity;  // or null: not wanted
};

// Buckets behind those of a row, for candidates that are not counted.
constexpr int kNotCounted = 16;

// Which of equal similarities is above: the one of the lower column, of the higher column, none of
// them, each of all others.
enum class Ties : int { kFirst = 0, kLast = 1, kOptimistic = 2, kPessimistic = 3 };

// A positive, and how many of the compared candidates are above it and not above the next one.
template <class T>
struct Place {
    T similarity;
    int32_t count;
};

// The positives of some rows, row by row, and what is counted for them.
template <class T>
struct ExactArgs {
    Ties ties;
    int max_level;          // L
    int64_t rows;           // R
    const int64_t* starts;  // [R + 1]
    const int64_t* column;  // [P], ascending in a row
    const int64_t* level;   // [P]
    T* similarity;          // [P]; rank_rows fills it
    // What sort_positives fills: the positives of each row in ascending order, and where the
    // candidates are counted.
    int64_t* order;                // [P]
    Place<T>* sorted;              // [P]
    const int64_t* bucket_starts;  // [R + 1]; kNotCounted and 3 or more in a row with positives
    int16_t* buckets;
    int64_t* above;  // [P, L + 1], out
    int num_threads;
};

// Embeddings, and what the products with them are multiplied by.
template <class T>
struct EmbeddingRows {
    const T* values;  // [rows, D], `stride` apart
    int64_t stride;
    int64_t rows;
    const T* factors;  // [rows], or null: 1
};

// Single pairs. Their similarities have the bits of those that count_chunk compares them with.
template <class T>
struct PairArgs {
    EmbeddingRows<T> queries;
    EmbeddingRows<T> candidates;
    int64_t features;    // D
    int64_t pairs;       // P
    const int64_t* row;  // [P], of the queries
    const int64_t* column;
    T* similarity;  // [P], out
    int num_threads;
};

// Some of the candidates, and the queries of the rows.
template <class T>
struct ChunkArgs {
    EmbeddingRows<T> queries;
    EmbeddingRows<T> candidates;
    int64_t features;      // D
    int64_t first_row;     // of the batch
    int64_t first_column;  // of the batch
    int64_t all_columns;   // M
    bool some_ignored;     // whether levels of -1 have to be looked for
    T* packed;             // scratch: [candidates and kPackedPadding, D]
};
constexpr int64_t kPackedPadding = 48;  // at least the columns of a tile

// python/grainrank/ranks/surrogates.py.
template <class T>
struct StepArgs {
    bool upper_bound;  // else the sigmoid
    T temperature;
    T rho, delta, offset;  // of the upper bound
};

// Sums over the other candidates of each level, [P, L + 1].
template <class T>
struct SmoothArgs {
    StepArgs<T> step;
    double* above;
    double* slope;
    int64_t* at_least;
};

// The similarities are replaced by the gradient of the product.
template <class T>
struct RankGradientArgs {
    StepArgs<T> step;
    const T* d_above;  // [P, L + 1]
    const T* own;      // [P]: what a positive's own similarity loses
};

}  // namespace grainrank
