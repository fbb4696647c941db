// Smooth ranks: sums of a smooth step over the candidates of each level, for every positive of a
// row, and the gradient of the similarities.
//
// A chunk of the row is first put in the order of its levels, so that the loops over pairs, many
// for each candidate, know nothing of levels.
#pragma once

#include <algorithm>
#include <limits>

#include "logits.h"
#include "rank_args.h"
#include "rank_step.h"

namespace grainrank {
namespace GRAINRANK_ISA {

template <class T>
struct SmoothPass {
    const Block<T>& block;
    const RankArgs<T>& in;
    const SmoothArgs<T>& out;
};

template <class T>
struct RankGradientPass {
    const Block<T>& block;
    const RankArgs<T>& in;
    const RankGradientArgs<T>& gradient;
};

constexpr int64_t kSegments = kChunk + kMaxLevels * kPadding;

// The candidates of a chunk, level by level; each level begins at a multiple of the vector's width,
// and similarities so low that no step sees them fill the gaps.
template <class T>
struct Segments {
    alignas(64) T s[kSegments];
    int16_t column[kSegments];  // in the chunk
    int64_t begin[kMaxLevels];
    int64_t length[kMaxLevels];
    int64_t padded[kMaxLevels];  // to whole vectors

    static constexpr T kNowhere = std::numeric_limits<T>::lowest();

    void fill(const T* given, const int8_t* level, int64_t n, int size) {
        using V = Lanes<T>;
        for (int l = 0; l < size; ++l) {
            int64_t here = 0;
            for (int64_t j = 0; j < n; ++j) here += level[j] == l;
            length[l] = here;
        }
        int64_t next[kMaxLevels + 1], at = 0;
        for (int l = 0; l < size; ++l) {
            begin[l] = next[l] = at;
            padded[l] = (length[l] + V::kWidth - 1) / V::kWidth * V::kWidth;
            at += padded[l];
            for (int64_t j = begin[l] + length[l]; j < at; ++j) s[j] = kNowhere;
        }
        for (int64_t j = 0; j < n; ++j) {
            if (level[j] < 0) continue;
            const int64_t to = next[level[j]]++;
            s[to] = given[j];
            column[to] = static_cast<int16_t>(j);
        }
    }

    // Where the candidate of a column of the chunk is.
    int64_t find(int64_t wanted, int64_t level) const {
        const int16_t* first = column + begin[level];
        return std::lower_bound(first, first + length[level], static_cast<int16_t>(wanted)) -
               column;
    }
};

template <class T, bool kBound>
GRAINRANK_INLINE StepOf<typename Lanes<T>::Float> step_of(typename Lanes<T>::Float x,
                                                          const StepArgs<T>& step) {
    const auto sigmoid = sigmoid_step<T>(x / step.temperature);
    if constexpr (!kBound) return sigmoid;
    return bound_step<T>(sigmoid, x, step.rho, step.delta, step.offset,
                         step.rho * step.temperature);
}

struct StepSums {
    double value = 0, slope = 0;
    int64_t at_least = 0;
};

// Over n similarities, a multiple of the vector's width.
template <class T, bool kBound>
StepSums sum_steps(const T* s, int64_t n, T positive, const StepArgs<T>& step) {
    using V = Lanes<T>;
    using Float = typename V::Float;
    constexpr int64_t kPiece = 64 * V::kWidth;  // 64 numbers a lane, as in table_pass.h
    StepSums sums;
    for (int64_t first = 0; first < n; first += kPiece) {
        const int64_t last = first + kPiece < n ? first + kPiece : n;
        Float value{}, slope{};
        typename V::Integer there{};
        for (int64_t j = first; j < last; j += V::kWidth) {
            const Float x = V::load(s + j) - positive;
            const StepOf<Float> h = step_of<T, kBound>(x, step);
            value += h.value;
            slope += h.slope;
            there += V::ones(x >= Float{});
        }
        sums.value += V::sum(value);
        sums.slope += V::sum(slope);
        sums.at_least += V::sum_integer(there);
    }
    sums.slope /= step.temperature;
    return sums;
}

template <class T>
int64_t count_at_least(const T* s, int64_t n, T positive) {
    using V = Lanes<T>;
    typename V::Integer there{};
    for (int64_t j = 0; j < n; j += V::kWidth)
        there += V::ones(V::load(s + j) - positive >= typename V::Float{});
    return V::sum_integer(there);
}

template <class T>
StepSums level_sums(const T* s, int64_t n, T positive, bool below, const StepArgs<T>& step) {
    if (!step.upper_bound) return sum_steps<T, false>(s, n, positive, step);
    if (below) return sum_steps<T, true>(s, n, positive, step);
    StepSums sums;
    sums.at_least = count_at_least(s, n, positive);
    sums.value = static_cast<double>(sums.at_least);
    return sums;
}

template <class T>
bool smooth_row(const SmoothPass<T>& pass, int64_t r) {
    const Block<T>& block = pass.block;
    const RankArgs<T>& in = pass.in;
    const SmoothArgs<T>& out = pass.out;
    const int size = in.max_level + 1;
    const int64_t first = in.starts[r], last = in.starts[r + 1];
    if (first == last) return true;
    const int64_t entries = (last - first) * size;
    for (double* sums : {out.above, out.slope}) memset(sums + first * size, 0, entries * 8);
    memset(out.at_least + first * size, 0, entries * 8);
    T scratch[kChunk];
    Segments<T> chunk;
    for (int64_t begin = 0; begin < block.columns; begin += kChunk) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kChunk ? left : kChunk;
        chunk.fill(similarities(block, r, begin, n, scratch), in.levels + r * block.columns + begin,
                   n, size);
        for (int64_t p = first; p < last; ++p) {
            const bool here = in.column[p] >= begin && in.column[p] < begin + n;
            const int64_t own = here ? chunk.find(in.column[p] - begin, in.level[p]) : 0;
            if (here) chunk.s[own] = Segments<T>::kNowhere;
            for (int l = 0; l < size; ++l) {
                if (chunk.length[l] == 0) continue;
                const StepSums sums = level_sums(chunk.s + chunk.begin[l], chunk.padded[l],
                                                 in.similarity[p], l < in.level[p], out.step);
                out.above[p * size + l] += sums.value;
                out.slope[p * size + l] += sums.slope;
                out.at_least[p * size + l] += sums.at_least;
            }
            if (here) chunk.s[own] = in.similarity[p];
        }
    }
    return true;
}

// Adds weight * slope, per temperature, to the gradients of n similarities.
template <class T, bool kBound>
void add_slopes(const T* s, int64_t n, T positive, T weight, const StepArgs<T>& step, T* g) {
    using V = Lanes<T>;
    for (int64_t j = 0; j < n; j += V::kWidth) {
        const typename V::Float x = V::load(s + j) - positive;
        const auto h = step_of<T, kBound>(x, step);
        V::store(g + j, V::load(g + j) + h.slope * weight);
    }
}

template <class T>
bool rank_gradient_row(const RankGradientPass<T>& pass, int64_t r) {
    const Block<T>& block = pass.block;
    const RankArgs<T>& in = pass.in;
    const RankGradientArgs<T>& gradient = pass.gradient;
    const StepArgs<T>& step = gradient.step;
    const int size = in.max_level + 1;
    const int64_t first = in.starts[r], last = in.starts[r + 1];
    T* row = block.similarities + r * block.row_stride;
    if (first == last) {
        memset(row, 0, block.columns * sizeof(T));
        return true;
    }
    T scratch[kChunk];
    alignas(64) T g[kSegments];
    Segments<T> chunk;
    for (int64_t begin = 0; begin < block.columns; begin += kChunk) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kChunk ? left : kChunk;
        chunk.fill(similarities(block, r, begin, n, scratch), in.levels + r * block.columns + begin,
                   n, size);
        memset(g, 0, sizeof g);
        for (int64_t p = first; p < last; ++p) {
            const bool here = in.column[p] >= begin && in.column[p] < begin + n;
            const int64_t own = here ? chunk.find(in.column[p] - begin, in.level[p]) : 0;
            if (here) chunk.s[own] = Segments<T>::kNowhere;
            for (int l = 0; l < size; ++l) {
                const T weight = gradient.d_above[p * size + l] / step.temperature;
                if (chunk.length[l] == 0 || weight == T(0)) continue;
                const T *s = chunk.s + chunk.begin[l], positive = in.similarity[p];
                T* to = g + chunk.begin[l];
                if (!step.upper_bound)
                    add_slopes<T, false>(s, chunk.padded[l], positive, weight, step, to);
                else if (l < in.level[p])
                    add_slopes<T, true>(s, chunk.padded[l], positive, weight, step, to);
            }
            if (here) chunk.s[own] = in.similarity[p];
        }
        // Last: a large number would round what is added to it.
        for (int64_t p = first; p < last; ++p)
            if (in.column[p] >= begin && in.column[p] < begin + n)
                g[chunk.find(in.column[p] - begin, in.level[p])] -= gradient.own[p];
        memset(row + begin, 0, n * sizeof(T));
        for (int l = 0; l < size; ++l) {
            for (int64_t j = chunk.begin[l]; j < chunk.begin[l] + chunk.length[l]; ++j) {
                const int64_t column = begin + chunk.column[j];
                row[column] = block.row_factors
                                  ? g[j] * (block.row_factors[r] * block.column_factors[column])
                                  : g[j];
            }
        }
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
