// The gradient of the logits of a block, written over its similarities: one pass, chunk by chunk.
#pragma once

#include "listed_row.h"
#include "logits.h"
#include "shared_exponential.h"
#include "softplus_pass.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// One row's tables and their gradients, and the column tables. kFull: with d_neg_lse and d_total;
// kLevels as in table_pass.h.
template <class T, bool kFull, int kLevels>
class PairGradients {
    static constexpr int kSlots = kLevels > 0 ? kLevels : kMaxLevels;
    using V = Lanes<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;
    // A number of each level: in the lanes of a register, or each repeated in every lane.
    static constexpr bool kLooksUp = V::kLooksUp && kLevels > 0;
    using Numbers = std::conditional_t<kLooksUp, Float, Float[kSlots]>;

  public:
    PairGradients(const Channel<T>& channel, int max_level, int64_t row)
        : columns_(channel.columns), levels_(max_level + 1) {
        const RowGradientArgs<T>& in = channel.rows;
        for (int l = 0; l < size(); ++l) {
            const int64_t at = row * levels_ + l;
            lse_[l] = number(in.lse[at]);
            d_lse_[l] = number(in.d_lse ? in.d_lse[at] : T(0));
            d_total_[l] = number(in.d_total ? in.d_total[at] : T(0));
            // Far away where it is not asked for: 0 * exp(..) must be 0.
            neg_lse_[l] = number(in.d_neg_lse ? in.neg_lse[at] : T(-kEmpty));
            d_neg_lse_[l] = number(in.d_neg_lse ? in.d_neg_lse[at] : T(0));
        }
    }

    // Of level 0.
    GRAINRANK_INLINE Float of_zeros(Float z) const {
        return gradient<T>(z, of_first(lse_), of_first(d_lse_),
                           kFull ? of_first(d_total_) : Float{});
    }
    // The functions z, column -> gradient of level 0, whose numbers are in registers: of the row;
    // of row and column; of both by one exponential, with the row's `factor` and the columns'
    // `weights` (see SharedExponential). With columns: not kFull.
    GRAINRANK_INLINE auto zeros_of_row() const {
        return [lse = of_first(lse_), d_lse = of_first(d_lse_),
                d_total = kFull ? of_first(d_total_) : Float{}](Float z, int64_t)
                   GRAINRANK_INLINE_LAMBDA { return gradient<T>(z, lse, d_lse, d_total); };
    }
    GRAINRANK_INLINE auto zeros_of_both() const {
        return [row = zeros_of_row(), lse = columns_.lse, d_lse = columns_.d_lse](
                   Float z, int64_t j) GRAINRANK_INLINE_LAMBDA {
            return row(z, j) + gradient<T>(z, V::load(lse + j), V::load(d_lse + j), Float{});
        };
    }
    GRAINRANK_INLINE auto zeros_of_both(T factor, const T* weights) const {
        return [lse = of_first(lse_), d_lse = of_first(d_lse_), factor = V::splat(factor), weights](
                   Float z, int64_t j) GRAINRANK_INLINE_LAMBDA {
            return probability<T>(z - lse) * (d_lse + factor * V::load(weights + j));
        };
    }

    GRAINRANK_INLINE Float of_row(Float z, const int32_t* levels, bool mixed) const {
        if (!mixed && V::all_zero(levels)) return of_zeros(z);
        const Integer level = V::load_levels(levels);
        if constexpr (kLooksUp) {
            const auto at = [level](Float numbers)
                                GRAINRANK_INLINE_LAMBDA { return V::look_up(numbers, level); };
            if constexpr (kFull)
                return pair(z, level, at(lse_), at(d_lse_), at(d_total_), at(neg_lse_),
                            at(d_neg_lse_));
            else
                return pair(z, level, at(lse_), at(d_lse_), Float{}, Float{}, Float{});
        } else {
            return of_row_by_level(z, level);
        }
    }

    // z of the columns from `column` on.
    GRAINRANK_INLINE Float of_columns(Float z, const int32_t* levels, bool mixed,
                                      int64_t column) const {
        const ColumnGradientArgs<T>& in = columns_;
        Float lse = V::load(in.lse + column), d_lse = V::load(in.d_lse + column);
        Float d_total = kFull ? V::load(in.d_total + column) : Float{};
        if (!mixed && V::all_zero(levels)) return gradient<T>(z, lse, d_lse, d_total);
        const Integer level = V::load_levels(levels);
        Float neg_lse = Float{}, d_neg_lse = Float{};
        for (int l = 1; l < size(); ++l) {
            const auto here = level == V::splat_integer(l);
            const int64_t at = l * in.stride + column;
            lse = here ? V::load(in.lse + at) : lse;
            d_lse = here ? V::load(in.d_lse + at) : d_lse;
            if constexpr (kFull) {
                d_total = here ? V::load(in.d_total + at) : d_total;
                neg_lse = here ? V::load(in.neg_lse + at) : neg_lse;
                d_neg_lse = here ? V::load(in.d_neg_lse + at) : d_neg_lse;
            }
        }
        return pair(z, level, lse, d_lse, d_total, neg_lse, d_neg_lse);
    }

    // z of single columns, `places` from `column` on. Not kFull.
    GRAINRANK_INLINE Float of_columns(Float z, const int32_t* levels, const int32_t* places,
                                      int64_t column) const {
        T lse[V::kWidth], d_lse[V::kWidth];
        for (int k = 0; k < V::kWidth; ++k) {
            const int level = std::min(entry(levels[k]), size() - 1);  // none is higher
            const int64_t at = level * columns_.stride + column + places[k];
            lse[k] = columns_.lse[at];
            d_lse[k] = columns_.d_lse[at];
        }
        return pair(z, V::load_levels(levels), V::load(lse), V::load(d_lse), Float{}, Float{},
                    Float{});
    }

  private:
    static GRAINRANK_INLINE auto number(T x) {
        if constexpr (kLooksUp)
            return x;
        else
            return V::splat(x);
    }
    static GRAINRANK_INLINE Float of_first(const Numbers& numbers) {
        if constexpr (kLooksUp)
            return V::splat(numbers[0]);
        else
            return numbers[0];
    }

    GRAINRANK_INLINE Float of_row_by_level(Float z, Integer level) const {
        Float lse = lse_[0], d_lse = d_lse_[0], d_total = kFull ? d_total_[0] : Float{};
        Float neg_lse = neg_lse_[0], d_neg_lse = Float{};
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
        return pair(z, level, lse, d_lse, d_total, neg_lse, d_neg_lse);
    }

    static GRAINRANK_INLINE Float pair(Float z, Integer level, Float lse, Float d_lse,
                                       Float d_total, Float neg_lse, Float d_neg_lse) {
        Float g = gradient<T>(z, lse, d_lse, d_total);
        if constexpr (kFull) g += negative_gradient<T>(z, level, neg_lse, d_neg_lse);
        return level < Integer{} ? Float{} : g;
    }

    GRAINRANK_INLINE int size() const { return kLevels > 0 ? kLevels : levels_; }

    const ColumnGradientArgs<T>& columns_;
    int levels_;  // L + 1
    Numbers lse_{}, d_lse_{}, d_total_{}, neg_lse_{}, d_neg_lse_{};
};

// Levels of a chunk as the row and as the columns see them: not the same array under a ceiling.
struct PairLevels {
    const int32_t* row;
    const int32_t* column;
    bool mixed;
};

// g = gradient(x, place) of n numbers; x may be g.
template <class T, class Gradient>
GRAINRANK_INLINE void for_vectors(const T* x, T* g, int64_t n, Gradient gradient) {
    using V = Lanes<T>;
    int64_t j = 0;
    for (; j + V::kWidth <= n; j += V::kWidth) {
        fetch_ahead(x + j + kChunk);  // of the next chunk, as in level_tables.h
        V::store(g + j, gradient(V::load(x + j), j));
    }
    if (j == n) return;
    T tail[V::kWidth] = {};
    memcpy(tail, x + j, (n - j) * sizeof(T));
    V::store(tail, gradient(V::load(tail), j));
    memcpy(g + j, tail, (n - j) * sizeof(T));
}

// g = the gradients for z = scale * x, columns begin .. begin + n; x may be g. Logits are rounded,
// as those were that the tables are of: beside a huge one that is all of its sum, z - lse is 0.
template <class T, bool kFull, int kLevels, bool kColumns>
void gradient_chunk(const PairGradients<T, kFull, kLevels>& pairs, T scale,
                    const PairLevels& levels, const T* x, T* g, int64_t begin, int64_t n) {
    using V = Lanes<T>;
    for_vectors(x, g, n, [&](typename V::Float similarity, int64_t j) GRAINRANK_INLINE_LAMBDA {
        const auto z = V::rounded(logit(similarity, V::splat(scale)));
        auto value = pairs.of_row(z, levels.row + j, levels.mixed);
        if constexpr (kColumns)
            value += pairs.of_columns(z, levels.column + j, levels.mixed, begin + j);
        return value;
    });
}

// The same where the pairs of other levels than 0 are listed. of_zeros(z, column): the gradients
// of a vector of level 0.
template <class T, bool kFull, int kLevels, bool kColumns, class Zeros>
void listed_chunk(const PairGradients<T, kFull, kLevels>& pairs, T scale, ListedPairs& listed,
                  const T* x, T* g, int64_t begin, int64_t n, Zeros of_zeros) {
    using V = Lanes<T>;
    alignas(64) T apart[kChunk + kPadding];
    const int64_t steps = listed.pad(V::kWidth);
    for (int64_t j = 0; j < listed.size; ++j) apart[j] = x[listed.place[j]];
    for (int64_t j = listed.size; j < steps * V::kWidth; ++j) apart[j] = T(0);
    for_vectors(x, g, n, [&](typename V::Float similarity, int64_t j) GRAINRANK_INLINE_LAMBDA {
        return of_zeros(V::rounded(logit(similarity, V::splat(scale))), begin + j);
    });
    for (int64_t j = 0; j < steps * V::kWidth; j += V::kWidth) {
        const auto z = V::rounded(logit(V::load(apart + j), V::splat(scale)));
        auto value = pairs.of_row(z, listed.level + j, true);
        if constexpr (kColumns)
            value += pairs.of_columns(z, listed.level + j, listed.place + j, begin);
        V::store(apart + j, value);
    }
    for (int64_t j = 0; j < listed.size; ++j) g[listed.place[j]] = apart[j];
}

template <class T>
struct GradientPass {
    const Block<T>& block;
    const LevelArgs& levels;
    const GradientArgs<T>& in;
    const SharedExponential<T>& shared;
};

// The similarities are the logits but for the scale, and there is one channel.
template <class T, bool kFull, int kLevels, bool kColumns>
bool plain_gradient_row(const GradientPass<T>& pass, int64_t r) {
    const Block<T>& block = pass.block;
    T scratch[kChunk], apart[kChunk];
    ChunkLevels chunk;
    RowList list;
    ListedPairs listed;
    const int64_t row = block.first_row + r;
    constexpr bool kLists = Lanes<T>::kWidth > 1 && !(kFull && kColumns);
    const bool lists =
        kLists && list.open(pass.levels, row, block.columns) && few(list.left(), block.columns);
    T sum = T(0);
    const Channel<T>& channel = *pass.in.channels;
    const PairGradients<T, kFull, kLevels> pairs(channel, pass.levels.max_level, r);
    const T* weights = pass.shared.weights();
    const T lse = channel.rows.lse[r * (pass.levels.max_level + 1)];
    const T factor = weights ? pass.shared.factor(lse) : T(0);
    const auto run_listed = [&](const T* s, T* g, int64_t begin, int64_t n, auto of_zeros) {
        listed_chunk<T, kFull, kLevels, kColumns>(pairs, block.scale, listed, s, g, begin, n,
                                                  of_zeros);
    };
    T* values = block.similarities + r * block.row_stride;
    for (int64_t begin = 0; begin < block.columns; begin += kChunk) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kChunk ? left : kChunk;
        const T* s = similarities(block, r, begin, n, scratch);
        T* g = block.narrow ? apart : values + begin;
        if constexpr (kLists) {
            if (lists) {
                list.read(begin, n, listed);
                if constexpr (!kColumns)
                    run_listed(s, g, begin, n, pairs.zeros_of_row());
                else if (weights)
                    run_listed(s, g, begin, n, pairs.zeros_of_both(factor, weights));
                else
                    run_listed(s, g, begin, n, pairs.zeros_of_both());
            }
        }
        if (!lists) {
            if (!row_levels(pass.levels, row, begin, n, block.columns, chunk)) return false;
            const PairLevels levels{chunk.level, chunk.level, chunk.mixed};
            gradient_chunk<T, kFull, kLevels, kColumns>(pairs, block.scale, levels, s, g, begin, n);
        }
        if (block.dots) sum += dot(g, s, n);
        write_gradients(block, r, begin, n, g);
    }
    if (block.dots) block.dots[r] = sum;
    return true;
}

// Adds the sums of a * b of each level. An ignored pair adds nothing: its gradient is 0, unless
// only the row's ceiling ignores it, and then its level is 0.
template <class T>
void add_by_level(const T* a, const T* b, const int32_t* level, int64_t n, int levels, T* out) {
    double sums[kMaxLevels] = {};
    for (int64_t j = 0; j < n; ++j)
        sums[entry(level[j])] += static_cast<double>(a[j]) * static_cast<double>(b[j]);
    for (int l = 0; l < levels; ++l) out[l] += static_cast<T>(sums[l]);
}

// Everything else: channels, factors, curves, ceilings, softplus sums, moments.
template <class T, bool kFull, int kLevels, bool kColumns>
bool general_gradient_row(const GradientPass<T>& pass, int64_t r) {
    const Block<T>& block = pass.block;
    const GradientArgs<T>& in = pass.in;
    const int count = pass.levels.max_level + 1;
    T scratch[kChunk], scaled[kChunk], z[kChunk], g[kChunk], sum[kChunk];
    ChunkLevels chunk;
    alignas(64) int32_t column_level[kChunk + kPadding];
    T* column_moments =
        in.column_moments ? in.column_moments + r / kMomentRows * block.columns : nullptr;
    T row_moment = T(0), row_dot = T(0);
    for (int c = 0; c < in.num_channels; ++c)
        if (T* moments = in.channels[c].moments)
            for (int l = 0; l < count; ++l) moments[r * count + l] = T(0);
    for (int64_t begin = 0; begin < block.columns; begin += kChunk) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kChunk ? left : kChunk;
        if (!row_levels(pass.levels, block.first_row + r, begin, n, block.columns, chunk))
            return false;
        const T* s = similarities(block, r, begin, n, scratch);
        for (int64_t j = 0; j < n; ++j) scaled[j] = s[j] * block.scale;
        PairLevels levels{chunk.level, chunk.level, chunk.mixed};
        if (block.ceilings.rows || block.ceilings.columns) {
            memcpy(column_level, chunk.level, sizeof column_level);
            apply_ceiling(block, false, r, begin, n, s, chunk.level);
            apply_ceiling(block, true, r, begin, n, s, column_level);
            levels.column = column_level;
        }
        // A ceiling takes out pairs of level 0 alone, whose factor is that of level -1: either view
        // of the levels serves the logits.
        for (int c = 0; c < in.num_channels; ++c) {
            const Channel<T>& channel = in.channels[c];
            T* out = c == 0 ? sum : g;
            const PairGradients<T, kFull, kLevels> pairs(channel, count - 1, r);
            logits(block, channel.factors, s, chunk.level, n, z);
            gradient_chunk<T, kFull, kLevels, kColumns>(pairs, T(1), levels, z, out, begin, n);
            if (channel.rows.d_softplus)
                add_softplus_gradient(channel.rows, count - 1, r, levels.row, z, n, out);
            through_logits(block, channel.factors, s, chunk.level, n, out);
            if (channel.moments)
                add_by_level(out, scaled, chunk.level, n, count, channel.moments + r * count);
            if (c > 0)
                for (int64_t j = 0; j < n; ++j) sum[j] += g[j];
        }
        if (in.row_moments) row_moment += dot(sum, scaled, n);
        if (block.dots) row_dot += dot(sum, s, n);
        if (column_moments)
            for (int64_t j = 0; j < n; ++j) column_moments[begin + j] += sum[j] * scaled[j];
        write_gradients(block, r, begin, n, sum);
    }
    if (in.row_moments) in.row_moments[r] = row_moment;
    if (block.dots) block.dots[r] = row_dot;
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
