// The gradient of the logits of a block, written over its similarities: one pass, chunk by chunk.
#pragma once

#include "level_row.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// One row's tables and their gradients, each repeated in every lane. kFull: with d_neg_lse and
// d_total; kLevels as in table_pass.h.
template <class T, bool kFull, int kLevels>
class RowGradients {
    static constexpr int kSlots = kLevels > 0 ? kLevels : kMaxLevels;
    using V = Lanes<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;

  public:
    RowGradients(const TableGradients<T>& in, int max_level, int64_t row) : levels_(max_level + 1) {
        for (int l = 0; l < size(); ++l) {
            const int64_t at = row * levels_ + l;
            lse_[l] = V::splat(in.lse[at]);
            d_lse_[l] = V::splat(in.d_lse[at]);
            d_total_[l] = in.d_total ? V::splat(in.d_total[at]) : Float{};
            neg_lse_[l] = in.d_neg_lse ? V::splat(in.neg_lse[at]) : Float{};
            d_neg_lse_[l] = in.d_neg_lse ? V::splat(in.d_neg_lse[at]) : Float{};
        }
    }

    GRAINRANK_INLINE Float at(Float similarity, Float scale, const int32_t* levels,
                              bool mixed) const {
        const Float z = logit(similarity, scale);
        if (!mixed && V::all_zero(levels)) return gradient<T>(z, lse_[0], d_lse_[0], d_total_[0]);
        const Integer level = V::load_levels(levels);
        Float lse = lse_[0], d_lse = d_lse_[0], d_total = d_total_[0];
        Float neg_lse = Float{}, d_neg_lse = Float{};
        for (int l = 1; l < size(); ++l) {
            const auto here = level == V::splat_integer(l);
            lse = here ? lse_[l] : lse;
            d_lse = here ? d_lse_[l] : d_lse;
            if constexpr (kFull) {
                d_total = here ? d_total_[l] : d_total;
                neg_lse = here ? neg_lse_[l] : neg_lse;
                d_neg_lse = here ? d_neg_lse_[l] : d_neg_lse;
            }
        }
        Float g = gradient<T>(z, lse, d_lse, d_total);
        if constexpr (kFull) {
            // Level 0 has no negative part, and exp(-z) of it may be infinite.
            const Float negative = negative_gradient<T>(z, neg_lse, d_neg_lse);
            g += level > Integer{} ? negative : Float{};
        }
        return level < Integer{} ? Float{} : g;
    }

  private:
    GRAINRANK_INLINE int size() const { return kLevels > 0 ? kLevels : levels_; }

    int levels_;  // L + 1
    Float lse_[kSlots], d_lse_[kSlots], d_total_[kSlots];
    Float neg_lse_[kSlots], d_neg_lse_[kSlots];
};

template <class T, bool kFull, int kLevels>
void gradient_chunk(const RowGradients<T, kFull, kLevels>& gradients, T scale,
                    const ChunkLevels& levels, T* values, int64_t n) {
    using V = Lanes<T>;
    const auto scales = V::splat(scale);
    int64_t j = 0;
    for (; j + V::kWidth <= n; j += V::kWidth)
        V::store(values + j,
                 gradients.at(V::load(values + j), scales, levels.level + j, levels.mixed));
    if (j == n) return;
    T tail[V::kWidth] = {};
    memcpy(tail, values + j, (n - j) * sizeof(T));
    V::store(tail, gradients.at(V::load(tail), scales, levels.level + j, levels.mixed));
    memcpy(values + j, tail, (n - j) * sizeof(T));
}

// The highest and the lowest logit of a level are single pairs: their gradients go to these alone.
template <class T>
void add_at(T* row, const T* gradient, const int64_t* column, int64_t first, int levels) {
    if (!gradient) return;
    for (int l = 0; l < levels; ++l)
        if (column[first + l] >= 0) row[column[first + l]] += gradient[first + l];
}

template <class T, bool kFull, int kLevels>
bool gradient_row(const Block<T>& block, const LevelArgs& levels, const TableGradients<T>& in,
                  int64_t row) {
    ChunkLevels chunk;
    const RowGradients<T, kFull, kLevels> gradients(in, levels.max_level, row);
    T* values = block.similarities + row * block.row_stride;
    for (int64_t begin = 0; begin < block.columns; begin += kChunk) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kChunk ? left : kChunk;
        if (!row_levels(levels, block.first_row + row, begin, n, block.columns, chunk))
            return false;
        gradient_chunk(gradients, block.scale, chunk, values + begin, n);
    }
    const int tables = levels.max_level + 1;
    add_at(values, in.d_highest, in.highest_at, row * tables, tables);
    add_at(values, in.d_lowest, in.lowest_at, row * tables, tables);
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
