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
    T* similarity;
};

// Candidates that follow each other are counted in turn in so many counters: an addition that waits
// for the one before it takes several times as long.
constexpr int kRankCounters = 4;

// Which of equal similarities is above: the one of the lower column, of the higher column, none of
// them, each of all others.
enum class Ties : int { kFirst = 0, kLast = 1, kOptimistic = 2, kPessimistic = 3 };

template <class T>
struct ExactArgs {
    Ties ties;
    int64_t* above;  // [P, L + 1], out
    // Scratch: the positives of each row in ascending order, and how many candidates are above so
    // many of them.
    int64_t* order;   // [P]
    T* sorted;        // [P]
    int32_t* counts;  // [P + R, L + 2, kRankCounters]
};

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
