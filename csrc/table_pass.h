// Row tables of a block: one pass, chunk by chunk. In a chunk the extremes of each level come first, so that
// every exponential is taken against the running maximum of its own level.
#pragma once

#include <math.h>

#include "level_row.h"

namespace grainrank {
namespace GRAINRANK_ISA {

GRAINRANK_INLINE float scalar_exp(float x) { return expf(x); }
GRAINRANK_INLINE double scalar_exp(double x) { return ::exp(x); }
GRAINRANK_INLINE float scalar_log(float x) { return logf(x); }
GRAINRANK_INLINE double scalar_log(double x) { return ::log(x); }

// One row in progress. kFull: every table; otherwise lse and count alone.
template <class T, bool kFull>
class RowTables {
    using V = Lanes<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;

  public:
    explicit RowTables(int max_level) : levels_(max_level + 1) {
        for (int l = 0; l < levels_; ++l) {
            highest_[l] = T(kEmpty);
            lowest_[l] = T(-kEmpty);
            sum_[l] = negative_sum_[l] = total_[l] = T(0);
            count_[l] = 0;
            highest_at_[l] = lowest_at_[l] = -1;
        }
    }

    // z, levels: n logits and their levels, padded with level -1 to a whole number of vectors.
    void add_chunk(const T* z, const int8_t* levels, int64_t first_column, int64_t n) {
        add_extremes(z, levels, first_column, n);
        add_exponentials(z, levels, n);
    }

    void write(const Tables<T>& out, int64_t row) const {
        for (int l = 0; l < levels_; ++l) {
            const int64_t at = row * levels_ + l;
            const bool empty = count_[l] == 0;
            out.lse[at] = empty ? T(kEmpty) : highest_[l] + scalar_log(sum_[l]);
            out.count[at] = count_[l];
            if constexpr (kFull) {
                const bool no_negative = empty || l == 0;
                out.neg_lse[at] =
                    no_negative ? T(kEmpty) : scalar_log(negative_sum_[l]) - lowest_[l];
                out.total[at] = total_[l];
                out.highest[at] = highest_[l];
                out.lowest[at] = lowest_[l];
                out.highest_at[at] = highest_at_[l];
                out.lowest_at[at] = lowest_at_[l];
            }
        }
    }

  private:
    void add_extremes(const T* z, const int8_t* levels, int64_t first_column, int64_t n) {
        Float high[kMaxLevels], low[kMaxLevels], total[kMaxLevels];
        Integer count[kMaxLevels];
        for (int l = 0; l < levels_; ++l) {
            high[l] = V::splat(T(kEmpty));
            low[l] = V::splat(T(-kEmpty));
            total[l] = Float{};
            count[l] = Integer{};
        }
        Float high_zero = high[0], low_zero = low[0], total_zero = Float{};
        int64_t zero_vectors = 0;
        for (int64_t j = 0; j < n; j += V::kWidth) {
            const Float x = V::load(z + j);
            if (V::all_zero(levels + j)) {
                high_zero = x > high_zero ? x : high_zero;
                if constexpr (kFull) {
                    low_zero = x < low_zero ? x : low_zero;
                    total_zero += x;
                }
                ++zero_vectors;
                continue;
            }
            const Integer level = V::load_levels(levels + j);
            for (int l = 0; l < levels_; ++l) {
                const auto here = level == V::splat_integer(l);
                const Float x_high = here ? x : high[l];
                high[l] = x_high > high[l] ? x_high : high[l];
                count[l] += here ? V::splat_integer(1) : Integer{};
                if constexpr (kFull) {
                    const Float x_low = here ? x : low[l];
                    low[l] = x_low < low[l] ? x_low : low[l];
                    total[l] += here ? x : Float{};
                }
            }
        }
        high[0] = high_zero > high[0] ? high_zero : high[0];
        for (int l = 0; l < levels_; ++l) {
            const int64_t found = V::sum_integer(count[l]) + (l == 0 ? zero_vectors * V::kWidth : 0);
            if (found == 0) continue;
            count_[l] += found;
            raise(l, V::max(high[l]), z, levels, first_column, n);
            if constexpr (kFull) {
                if (l == 0) {
                    low[0] = low_zero < low[0] ? low_zero : low[0];
                    total[0] += total_zero;
                }
                lower(l, V::min(low[l]), z, levels, first_column, n);
                total_[l] += V::sum(total[l]);
            }
        }
    }

    void raise(int l, T high, const T* z, const int8_t* levels, int64_t first_column, int64_t n) {
        if (!(high > highest_[l])) return;
        sum_[l] *= scalar_exp(highest_[l] - high);
        highest_[l] = high;
        if constexpr (kFull) highest_at_[l] = first_column + find(l, high, z, levels, n);
    }

    void lower(int l, T low, const T* z, const int8_t* levels, int64_t first_column, int64_t n) {
        if (!(low < lowest_[l])) return;
        negative_sum_[l] *= scalar_exp(low - lowest_[l]);
        lowest_[l] = low;
        lowest_at_[l] = first_column + find(l, low, z, levels, n);
    }

    static int64_t find(int l, T value, const T* z, const int8_t* levels, int64_t n) {
        int64_t j = 0;
        while (j < n && !(levels[j] == l && z[j] == value)) ++j;
        return j;
    }

    void add_exponentials(const T* z, const int8_t* levels, int64_t n) {
        Float sum[kMaxLevels], negative_sum[kMaxLevels], high[kMaxLevels], low[kMaxLevels];
        for (int l = 0; l < levels_; ++l) {
            sum[l] = negative_sum[l] = Float{};
            high[l] = V::splat(highest_[l]);
            low[l] = V::splat(lowest_[l]);
        }
        const Float high_zero = high[0];
        Float sum_zero = Float{};
        for (int64_t j = 0; j < n; j += V::kWidth) {
            const Float x = V::load(z + j);
            if (V::all_zero(levels + j)) {
                sum_zero += exponential<T>(x - high_zero);
                continue;
            }
            const Integer level = V::load_levels(levels + j);
            Float x_high = high_zero, x_low = low[0];
            for (int l = 1; l < levels_; ++l) {
                const auto here = level == V::splat_integer(l);
                x_high = here ? high[l] : x_high;
                if constexpr (kFull) x_low = here ? low[l] : x_low;
            }
            const Float e = exponential<T>(x - x_high);
            sum[0] += level == Integer{} ? e : Float{};
            for (int l = 1; l < levels_; ++l)
                sum[l] += level == V::splat_integer(l) ? e : Float{};
            if constexpr (kFull) {
                const Float negative = exponential<T>(x_low - x);
                for (int l = 1; l < levels_; ++l)
                    negative_sum[l] += level == V::splat_integer(l) ? negative : Float{};
            }
        }
        sum[0] += sum_zero;
        for (int l = 0; l < levels_; ++l) {
            sum_[l] += V::sum(sum[l]);
            if constexpr (kFull) negative_sum_[l] += V::sum(negative_sum[l]);
        }
    }

    int levels_;  // L + 1
    T highest_[kMaxLevels], lowest_[kMaxLevels];
    T sum_[kMaxLevels];           // of exp(z - highest)
    T negative_sum_[kMaxLevels];  // of exp(lowest - z)
    T total_[kMaxLevels];
    int64_t count_[kMaxLevels], highest_at_[kMaxLevels], lowest_at_[kMaxLevels];
};

template <class T, bool kFull>
bool table_row(const Block<T>& block, const LevelArgs& levels, const Tables<T>& out, int64_t row) {
    alignas(64) T z[kChunk + kPadding];
    alignas(64) int8_t level[kChunk + kPadding];
    RowTables<T, kFull> tables(levels.max_level);
    const T* similarity = block.similarities + row * block.row_stride;
    for (int64_t begin = 0; begin < block.columns; begin += kChunk) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kChunk ? left : kChunk;
        if (!row_levels(levels, block.first_row + row, begin, n, block.columns, level)) return false;
        for (int64_t j = 0; j < n; ++j) z[j] = logit(similarity[begin + j], block.scale);
        for (int64_t j = n; j < n + kPadding; ++j) z[j] = T(0);
        tables.add_chunk(z, level, begin, n);
    }
    tables.write(out, row);
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
