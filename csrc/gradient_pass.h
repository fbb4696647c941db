// The gradient of the logits of a block, written over its similarities: one pass, chunk by chunk.
#pragma once

#include "level_row.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// One row's tables and their gradients, each repeated in every lane.
template <class T, bool kNegative, bool kTotal>
class RowGradients {
    using V = Lanes<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;

  public:
    RowGradients(const TableGradients<T>& in, int max_level, int64_t row) : levels_(max_level + 1) {
        for (int l = 0; l < levels_; ++l) {
            const int64_t at = row * levels_ + l;
            lse_[l] = V::splat(in.lse[at]);
            d_lse_[l] = V::splat(in.d_lse[at]);
            d_total_[l] = kTotal ? V::splat(in.d_total[at]) : Float{};
            neg_lse_[l] = kNegative ? V::splat(in.neg_lse[at]) : Float{};
            d_neg_lse_[l] = kNegative ? V::splat(in.d_neg_lse[at]) : Float{};
        }
    }

    GRAINRANK_INLINE Float at(Float similarity, Float scale, const int8_t* levels) const {
        const Float z = logit(similarity, scale);
        if (V::all_zero(levels)) return gradient<T>(z, lse_[0], d_lse_[0], d_total_[0]);
        const Integer level = V::load_levels(levels);
        Float lse = lse_[0], d_lse = d_lse_[0], d_total = d_total_[0];
        Float neg_lse = Float{}, d_neg_lse = Float{};
        for (int l = 1; l < levels_; ++l) {
            const auto here = level == V::splat_integer(l);
            lse = here ? lse_[l] : lse;
            d_lse = here ? d_lse_[l] : d_lse;
            if constexpr (kTotal) d_total = here ? d_total_[l] : d_total;
            if constexpr (kNegative) {
                neg_lse = here ? neg_lse_[l] : neg_lse;
                d_neg_lse = here ? d_neg_lse_[l] : d_neg_lse;
            }
        }
        Float g = gradient<T>(z, lse, d_lse, d_total);
        if constexpr (kNegative) {
            // Level 0 has no negative part, and exp(-z) of it may be infinite.
            const Float negative = negative_gradient<T>(z, neg_lse, d_neg_lse);
            g += level > Integer{} ? negative : Float{};
        }
        return level < Integer{} ? Float{} : g;
    }

  private:
    int levels_;  // L + 1
    Float lse_[kMaxLevels], d_lse_[kMaxLevels], d_total_[kMaxLevels];
    Float neg_lse_[kMaxLevels], d_neg_lse_[kMaxLevels];
};

template <class T, bool kNegative, bool kTotal>
void gradient_chunk(const RowGradients<T, kNegative, kTotal>& gradients, T scale, const int8_t* levels,
                    T* values, int64_t n) {
    using V = Lanes<T>;
    const auto scales = V::splat(scale);
    int64_t j = 0;
    for (; j + V::kWidth <= n; j += V::kWidth)
        V::store(values + j, gradients.at(V::load(values + j), scales, levels + j));
    if (j == n) return;
    T tail[V::kWidth] = {};
    memcpy(tail, values + j, (n - j) * sizeof(T));
    V::store(tail, gradients.at(V::load(tail), scales, levels + j));
    memcpy(values + j, tail, (n - j) * sizeof(T));
}

// The highest and the lowest logit of a level are single pairs: their gradients go to these alone.
template <class T>
void add_at(T* row, const T* gradient, const int64_t* column, int64_t first, int levels) {
    if (!gradient) return;
    for (int l = 0; l < levels; ++l)
        if (column[first + l] >= 0) row[column[first + l]] += gradient[first + l];
}

template <class T, bool kNegative, bool kTotal>
bool gradient_row(const Block<T>& block, const LevelArgs& levels, const TableGradients<T>& in,
                  int64_t row) {
    alignas(64) int8_t level[kChunk + kPadding];
    const RowGradients<T, kNegative, kTotal> gradients(in, levels.max_level, row);
    T* values = block.similarities + row * block.row_stride;
    for (int64_t begin = 0; begin < block.columns; begin += kChunk) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kChunk ? left : kChunk;
        if (!row_levels(levels, block.first_row + row, begin, n, block.columns, level)) return false;
        gradient_chunk(gradients, block.scale, level, values + begin, n);
    }
    const int tables = levels.max_level + 1;
    add_at(values, in.d_highest, in.highest_at, row * tables, tables);
    add_at(values, in.d_lowest, in.lowest_at, row * tables, tables);
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
