// The multi-level NCE of each row and its gradient in closed form, from light tables: as
// python/grainrank/heads/nce.py has it. A row has a handful of numbers, so one thread does all of
// them, in double precision, without one wait for another.
#pragma once

#include <cmath>
#include <cstdint>

#include "level_args.h"

namespace grainrank {

template <class T>
struct NceArgs {
    const T* lse;          // [V, R, L + 1], views `view_stride` apart
    const int64_t* count;  // likewise
    int64_t view_stride;
    int64_t views, rows;
    int levels;        // L + 1
    const T* weights;  // [V, L]
    bool exact;        // P_k is {k}; else {k..L}
    bool lower;        // N_k is {0..k - 1}; else {0}
    T* losses;         // [R], summed over the views
    T* d_lse;          // [V, R, L + 1]
};

// Log-sum-exp of first .. last, exactly the number where it is one. NaN stays.
inline double log_sum_exp(const double* x, int first, int last) {
    if (last - first == 1) return x[first];
    double highest = x[first];
    for (int l = first + 1; l < last; ++l)
        if (!(x[l] <= highest)) highest = x[l];
    double sum = 0.0;
    for (int l = first; l < last; ++l) sum += std::exp(x[l] - highest);
    return highest + std::log(sum);
}

// The loss of a row in one view.
template <class T>
double nce_row(const NceArgs<T>& in, const T* lse, const int64_t* count, const T* weights,
               T* d_lse) {
    double x[kMaxLevels], d[kMaxLevels] = {};
    for (int l = 0; l < in.levels; ++l) x[l] = static_cast<double>(lse[l]);
    double loss = 0.0;
    for (int k = 1; k < in.levels; ++k) {
        const int last_positive = in.exact ? k + 1 : in.levels, last_negative = in.lower ? k : 1;
        bool has_positive = false;
        for (int l = k; l < last_positive; ++l) has_positive = has_positive || count[l] > 0;
        if (!has_positive) continue;
        const double positives = log_sum_exp(x, k, last_positive);
        const double negatives = log_sum_exp(x, 0, last_negative);
        const double margin = positives - negatives, weight = static_cast<double>(weights[k - 1]);
        const double small = std::exp(-std::fabs(margin));
        loss += weight * (std::log1p(small) + (margin < 0.0 ? -margin : 0.0));
        const double slope = weight * (margin < 0.0 ? 1.0 : small) / (1.0 + small);
        for (int l = 0; l < last_negative; ++l) d[l] += slope * std::exp(x[l] - negatives);
        for (int l = k; l < last_positive; ++l) d[l] -= slope * std::exp(x[l] - positives);
    }
    for (int l = 0; l < in.levels; ++l) d_lse[l] = static_cast<T>(d[l]);
    return loss;
}

template <class T>
void nce_head(const NceArgs<T>& in) {
    for (int64_t r = 0; r < in.rows; ++r) {
        double loss = 0.0;
        for (int64_t v = 0; v < in.views; ++v) {
            const int64_t at = v * in.view_stride + r * in.levels;
            T* d_lse = in.d_lse + (v * in.rows + r) * in.levels;
            loss +=
                nce_row(in, in.lse + at, in.count + at, in.weights + v * (in.levels - 1), d_lse);
        }
        in.losses[r] = static_cast<T>(loss);
    }
}

}  // namespace grainrank
