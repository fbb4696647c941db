// Row tables of a block: one pass, chunk by chunk. In a chunk the extremes of each level come
// first, so that every exponential is taken against the running maximum of its own level.
#pragma once

#include <math.h>

#include "level_row.h"

namespace grainrank {
namespace GRAINRANK_ISA {

GRAINRANK_INLINE float scalar_exp(float x) { return expf(x); }
GRAINRANK_INLINE double scalar_exp(double x) { return ::exp(x); }

// log(factor * sum) for factor = exp(shift), rounded once.
template <class T>
GRAINRANK_INLINE T shifted_log(T sum, T shift) {
    return static_cast<T>(::log(static_cast<double>(sum)) + static_cast<double>(shift));
}

// Logits of a row are close when they differ by at most this: exp of the difference is far from
// underflow, and the logarithm of a sum of such exponentials is no larger than the logits
// themselves may be.
constexpr double kClose = 32.0;

// One row in progress. kFull: every table; otherwise lse and count alone. kLevels: L + 1 where it
// is known when compiled, so that the accumulators are registers; 0: any.
template <class T, bool kFull, int kLevels>
class RowTables {
    static constexpr int kSlots = kLevels > 0 ? kLevels : kMaxLevels;
    using V = Lanes<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;

  public:
    explicit RowTables(int max_level) : levels_(max_level + 1) {
        for (int l = 0; l < size(); ++l) {
            highest_[l] = T(kEmpty);
            lowest_[l] = T(-kEmpty);
            sum_[l] = negative_sum_[l] = total_[l] = T(0);
            count_[l] = 0;
            highest_at_[l] = lowest_at_[l] = -1;
        }
    }

    // z, levels: n logits and their levels, padded with level -1 to a whole number of vectors.
    void add_chunk(const T* z, const ChunkLevels& levels, int64_t first_column, int64_t n) {
        if constexpr (!kFull)
            if (add_close(z, levels.level, levels.mixed, n)) return;
        add_extremes(z, levels.level, levels.mixed, first_column, n);
        add_exponentials(z, levels.level, levels.mixed, n);
    }

    void write(const Tables<T>& out, int64_t row) const {
        for (int l = 0; l < size(); ++l) {
            const int64_t at = row * levels_ + l;
            const bool empty = count_[l] == 0;
            out.lse[at] = empty ? T(kEmpty) : shifted_log(sum_[l], highest_[l]);
            out.count[at] = count_[l];
            if constexpr (kFull) {
                const bool no_negative = empty || l == 0;
                out.neg_lse[at] =
                    no_negative ? T(kEmpty) : shifted_log(negative_sum_[l], -lowest_[l]);
                out.total[at] = total_[l];
                // Comparisons pass NaN over, sums do not.
                const bool nan = total_[l] != total_[l];
                out.highest[at] = nan ? total_[l] : highest_[l];
                out.lowest[at] = nan ? total_[l] : lowest_[l];
                out.highest_at[at] = highest_at_[l];
                out.lowest_at[at] = lowest_at_[l];
            }
        }
    }

  private:
    // The usual case, where all logits of the row so far lie close together: one shift serves every
    // level, and the extremes of the levels are not looked for. False: they do not, nothing is
    // done.
    bool add_close(const T* z, const int32_t* levels, bool mixed, int64_t n) {
        Float high = V::splat(row_highest_), low = V::splat(row_lowest_);
        for (int64_t j = 0; j < n; j += V::kWidth) {
            const Float x = V::load(z + j);
            high = x > high ? x : high;
            low = x < low ? x : low;
        }
        row_lowest_ = V::min(low);
        const T shift = V::max(high);
        if (!(shift - row_lowest_ <= T(kClose))) {
            row_lowest_ = T(kEmpty);  // the range only grows: not close for the rest of the row
            return false;
        }
        if (shift > row_highest_) {
            const T factor = scalar_exp(row_highest_ - shift);
            for (int l = 0; l < size(); ++l) sum_[l] *= factor;
            row_highest_ = shift;
        }
        Float sum[kSlots];
        Integer count[kSlots];
        int64_t zero_vectors = 0;
        for (int l = 0; l < size(); ++l) {
            sum[l] = Float{};
            count[l] = Integer{};
        }
        const Float shifts = V::splat(shift);
        for (int64_t j = 0; j < n; j += V::kWidth) {
            const Float e = probability<T>(V::load(z + j) - shifts);
            if (!mixed && V::all_zero(levels + j)) {
                sum[0] += e;
                ++zero_vectors;
                continue;
            }
            const Integer level = V::load_levels(levels + j);
            for (int l = 0; l < size(); ++l) {
                const auto here = level == V::splat_integer(l);
                sum[l] += here ? e : Float{};
                count[l] += here ? V::splat_integer(1) : Integer{};
            }
        }
        for (int l = 0; l < size(); ++l) {
            sum_[l] += V::sum(sum[l]);
            count_[l] += V::sum_integer(count[l]) + (l == 0 ? zero_vectors * V::kWidth : 0);
            if (count_[l] > 0) highest_[l] = shift;
        }
        return true;
    }

    void add_extremes(const T* z, const int32_t* levels, bool mixed, int64_t first_column,
                      int64_t n) {
        Float high[kSlots], low[kSlots], total[kSlots];
        Integer count[kSlots];
        int64_t zero_vectors = 0;
        for (int l = 0; l < size(); ++l) {
            high[l] = V::splat(T(kEmpty));
            low[l] = V::splat(T(-kEmpty));
            total[l] = Float{};
            count[l] = Integer{};
        }
        for (int64_t j = 0; j < n; j += V::kWidth) {
            const Float x = V::load(z + j);
            if (!mixed && V::all_zero(levels + j)) {
                high[0] = x > high[0] ? x : high[0];
                if constexpr (kFull) {
                    low[0] = x < low[0] ? x : low[0];
                    total[0] += x;
                }
                ++zero_vectors;
                continue;
            }
            const Integer level = V::load_levels(levels + j);
            for (int l = 0; l < size(); ++l) {
                const auto here = level == V::splat_integer(l);
                count[l] += here ? V::splat_integer(1) : Integer{};
                const Float x_high = here ? x : high[l];
                high[l] = x_high > high[l] ? x_high : high[l];
                if constexpr (kFull) {
                    const Float x_low = here ? x : low[l];
                    low[l] = x_low < low[l] ? x_low : low[l];
                    total[l] += here ? x : Float{};
                }
            }
        }
        for (int l = 0; l < size(); ++l) {
            const int64_t found =
                V::sum_integer(count[l]) + (l == 0 ? zero_vectors * V::kWidth : 0);
            if (found == 0) continue;
            count_[l] += found;
            raise(l, V::max(high[l]), z, levels, first_column, n);
            if constexpr (kFull) {
                lower(l, V::min(low[l]), z, levels, first_column, n);
                total_[l] += V::sum(total[l]);
            }
        }
    }

    void raise(int l, T high, const T* z, const int32_t* levels, int64_t first_column, int64_t n) {
        if (!(high > highest_[l])) return;
        sum_[l] *= scalar_exp(highest_[l] - high);
        highest_[l] = high;
        if constexpr (kFull) highest_at_[l] = first_column + find(l, high, z, levels, n);
    }

    void lower(int l, T low, const T* z, const int32_t* levels, int64_t first_column, int64_t n) {
        if (!(low < lowest_[l])) return;
        negative_sum_[l] *= scalar_exp(low - lowest_[l]);
        lowest_[l] = low;
        lowest_at_[l] = first_column + find(l, low, z, levels, n);
    }

    static int64_t find(int l, T value, const T* z, const int32_t* levels, int64_t n) {
        int64_t j = 0;
        while (j < n && !(levels[j] == l && z[j] == value)) ++j;
        return j;
    }

    void add_exponentials(const T* z, const int32_t* levels, bool mixed, int64_t n) {
        Float sum[kSlots], negative_sum[kSlots], high[kSlots], low[kSlots];
        for (int l = 0; l < size(); ++l) {
            sum[l] = negative_sum[l] = Float{};
            high[l] = V::splat(highest_[l]);
            low[l] = V::splat(lowest_[l]);
        }
        for (int64_t j = 0; j < n; j += V::kWidth) {
            const Float x = V::load(z + j);
            if (!mixed && V::all_zero(levels + j)) {
                sum[0] += exponential<T>(x - high[0]);
                continue;
            }
            const Integer level = V::load_levels(levels + j);
            Float x_high = high[0], x_low = low[0];
            for (int l = 1; l < size(); ++l) {
                const auto here = level == V::splat_integer(l);
                x_high = here ? high[l] : x_high;
                if constexpr (kFull) x_low = here ? low[l] : x_low;
            }
            const Float e = exponential<T>(x - x_high);
            for (int l = 0; l < size(); ++l) sum[l] += level == V::splat_integer(l) ? e : Float{};
            if constexpr (kFull) {
                const Float negative = exponential<T>(x_low - x);
                for (int l = 1; l < size(); ++l)
                    negative_sum[l] += level == V::splat_integer(l) ? negative : Float{};
            }
        }
        for (int l = 0; l < size(); ++l) {
            sum_[l] += V::sum(sum[l]);
            if constexpr (kFull) negative_sum_[l] += V::sum(negative_sum[l]);
        }
    }

    GRAINRANK_INLINE int size() const { return kLevels > 0 ? kLevels : levels_; }

    int levels_;                                           // L + 1
    T row_highest_ = T(kEmpty), row_lowest_ = T(-kEmpty);  // over the levels, while close
    // highest_ is what sum_ is taken against; after close chunks it is not below the highest logit.
    T highest_[kSlots], lowest_[kSlots];
    T sum_[kSlots];           // of exp(z - highest)
    T negative_sum_[kSlots];  // of exp(lowest - z)
    T total_[kSlots];
    int64_t count_[kSlots], highest_at_[kSlots], lowest_at_[kSlots];
};

// Columns of a chunk: no more than 64 numbers (32 without vectors) are added into one lane before
// the lanes are added up, as pairwise summation would; long sums in one lane lose the accuracy of
// short ones.
template <class T>
constexpr int64_t kLaneSums = Lanes<T>::kWidth == 1 ? 32 : 64 * Lanes<T>::kWidth;
template <class T>
constexpr int64_t kTableChunk = kLaneSums<T> < kChunk ? kLaneSums<T> : kChunk;

template <class T, bool kFull, int kLevels>
bool table_row(const Block<T>& block, const LevelArgs& levels, const Tables<T>& out, int64_t row) {
    alignas(64) T z[kTableChunk<T> + kPadding];
    ChunkLevels chunk;
    RowTables<T, kFull, kLevels> tables(levels.max_level);
    const T* similarity = block.similarities + row * block.row_stride;
    for (int64_t begin = 0; begin < block.columns; begin += kTableChunk<T>) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kTableChunk<T> ? left : kTableChunk<T>;
        if (!row_levels(levels, block.first_row + row, begin, n, block.columns, chunk))
            return false;
        for (int64_t j = 0; j < n; ++j) z[j] = logit(similarity[begin + j], block.scale);
        for (int64_t j = n; j < n + kPadding; ++j) z[j] = z[n - 1];
        tables.add_chunk(z, chunk, begin, n);
    }
    tables.write(out, row);
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
