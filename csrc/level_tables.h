// Tables in progress: chunk by chunk, in vectors. In a chunk the extremes of each level come first,
// so that every exponential is taken against the running maximum of its own level.
#pragma once

#include <type_traits>

#include "listed_row.h"
#include "logits.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Logits, as multiples of a number.
template <class T>
struct Logits {
    const T* multiples;
    T scale;

    GRAINRANK_INLINE typename Lanes<T>::Float load(int64_t at) const {
        return Lanes<T>::rounded(logit(Lanes<T>::load(multiples + at), scale));
    }
    // Of the next chunk, while this one is computed with: the machine does not guess across pages.
    GRAINRANK_INLINE void fetch_ahead(int64_t at) const {
        GRAINRANK_ISA::fetch_ahead(multiples + at + kChunk);
    }
    GRAINRANK_INLINE T operator[](int64_t at) const { return logit(multiples[at], scale); }
};

// In the place of a number that was taken out: a NaN that no arithmetic gives, a signalling one.
template <class T>
constexpr auto kTakenOut =
    static_cast<typename Lanes<T>::ScalarInteger>(sizeof(T) == 4 ? 0x7fa5a5a5 : 0x7ff4a5a5a5a5a5a5);

template <class T>
GRAINRANK_INLINE void take_out(T* x) {
    memcpy(x, &kTakenOut<T>, sizeof(T));
}

// An entry of the light tables: the logarithm of exp(shift) * sum.
template <class T>
void write_entry(const Tables<T>& out, int64_t at, int64_t count, T sum, T shift, T total) {
    out.lse[at] = count == 0 ? T(kEmpty) : shifted_log(sum, shift);
    out.total[at] = total;
    out.count[at] = count;
}

// Along a row a vector holds kWidth columns, whose results come together at the end of a chunk.
// Across columns every lane is a column of its own, and a step goes one row down.
enum class Lane { kAlong, kAcross };

// The tables of one row (kAlong) or of kWidth columns (kAcross) in progress. kAll: every table;
// otherwise lse, total and count. kLevels: L + 1 where it is known when compiled, so that the
// accumulators are registers; 0: any.
template <class T, bool kAll, int kLevels, Lane kLane>
class LevelTables {
    static constexpr int kSlots = kLevels > 0 ? kLevels : kMaxLevels;
    static constexpr bool kAcross = kLane == Lane::kAcross;
    using V = Lanes<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;
    using Value = std::conditional_t<kAcross, Float, T>;
    using Count = std::conditional_t<kAcross, Integer, int64_t>;

  public:
    void start(int max_level) {
        levels_ = max_level + 1;
        row_highest_ = constant(T(kEmpty));
        row_lowest_ = constant(T(-kEmpty));
        for (int l = 0; l < size(); ++l) {
            highest_[l] = constant(T(kEmpty));
            lowest_[l] = constant(T(-kEmpty));
            sum_[l] = negative_sum_[l] = total_[l] = Value{};
            count_[l] = Count{};
            highest_at_[l] = lowest_at_[l] = Count{} - 1;
        }
    }

    // z, levels: `steps` vectors of logits and their levels, `stride` apart; pairs of level -1
    // count for nothing. `first` is the column (kAcross: the row) of the first step.
    void add_chunk(const Logits<T>& z, const int32_t* levels, bool mixed, int64_t first,
                   int64_t steps, int64_t stride) {
        if constexpr (!kAll)
            if (add_close(z, levels, mixed, steps, stride)) return;
        add_extremes(z, levels, mixed, first, steps, stride);
        add_exponentials(z, levels, mixed, steps, stride);
    }

    // n logits of level 0, but for those that are taken out, `listed` of them. Each level has its
    // own maximum then. Along a row, not kAll.
    void add_zeros(const Logits<T>& z, int64_t n, int64_t listed) {
        if (count_[0] == 0) raise(0, highest_of_zeros(z, n), {});
        Zeros zeros = sum_of_zeros(z, n);
        if (!(zeros.above <= T(kClose))) {
            raise(0, highest_of_zeros(z, n), {});
            zeros = sum_of_zeros(z, n);
        }
        sum_[0] += zeros.sum;
        total_[0] += zeros.total;
        count_[0] += n - listed;
    }

    // Logits of other levels beside add_zeros.
    void add_listed(const Logits<T>& z, const int32_t* levels, int64_t steps) {
        add_extremes(z, levels, true, 0, steps, V::kWidth);
        add_exponentials(z, levels, true, steps, V::kWidth);
    }

    // Of one row.
    LevelPart<T, false> part(int l) const {
        return {
            {highest_[l], sum_[l]}, total_[l], static_cast<typename V::ScalarInteger>(count_[l])};
    }

    // The row `row`, or the columns row .. row + lanes.
    void write(const Tables<T>& out, int64_t row, int lanes) const {
        for (int lane = 0; lane < lanes; ++lane)
            for (int l = 0; l < size(); ++l) write_level(out, row + lane, lane, l);
    }

  private:
    void write_level(const Tables<T>& out, int64_t row, int lane, int l) const {
        const int64_t at = row * levels_ + l;
        const int64_t count = pick(count_[l], lane);
        const T total = pick(total_[l], lane);
        write_entry(out, at, count, pick(sum_[l], lane), pick(highest_[l], lane), total);
        if constexpr (kAll) {
            const bool empty = count == 0;
            const T highest = pick(highest_[l], lane), lowest = pick(lowest_[l], lane);
            out.neg_lse[at] =
                empty || l == 0 ? T(kEmpty) : shifted_log(pick(negative_sum_[l], lane), -lowest);
            // Comparisons pass NaN over, sums do not.
            const bool nan = total != total;
            out.highest[at] = nan ? total : highest;
            out.lowest[at] = nan ? total : lowest;
            out.highest_at[at] = pick(highest_at_[l], lane);
            out.lowest_at[at] = pick(lowest_at_[l], lane);
        }
    }

    static T highest_of_zeros(const Logits<T>& z, int64_t n) {
        Float high = V::splat(T(kEmpty));
        for (int64_t j = 0; j < n; j += V::kWidth) {
            const Float x = z.load(j);
            high = x > high ? x : high;  // a NaN is passed over
        }
        return V::max(high);
    }

    struct Zeros {
        T sum, total;
        T above;  // the highest logit above the shift
    };

    Zeros sum_of_zeros(const Logits<T>& z, int64_t n) const {
        const Float shift = V::splat(highest_[0]);
        const Integer out = Integer{} + kTakenOut<T>;
        Float above = V::splat(T(kEmpty)), sum{}, total{};
        for (int64_t j = 0; j < n; j += V::kWidth) {
            z.fetch_ahead(j);
            const Float x = V::load(z.multiples + j);
            const Float logits = V::rounded(logit(x, z.scale)), from_shift = logits - shift;
            above = from_shift > above ? from_shift : above;
            const auto taken_out = V::bits(x) == out;
            sum += taken_out ? Float{} : probability<T>(from_shift);
            total += taken_out ? Float{} : logits;
        }
        return {V::sum(sum), V::sum(total), V::max(above)};
    }

    // The usual case, where all logits so far lie close together: one shift serves every level, and
    // the extremes of the levels are not looked for. False: they do not, nothing is done.
    bool add_close(const Logits<T>& z, const int32_t* levels, bool mixed, int64_t steps,
                   int64_t stride) {
        Float high = spread(row_highest_), low = spread(row_lowest_);
        for (int64_t s = 0; s < steps; ++s) {
            const Float x = z.load(s * stride);
            high = x > high ? x : high;
            low = x < low ? x : low;
        }
        row_lowest_ = lowest(low);
        const Value shift = highest(high);
        if (!(V::max(spread(shift - row_lowest_)) <= T(kClose))) {
            row_lowest_ = constant(T(kEmpty));  // the range only grows: not close from here on
            return false;
        }
        rescale(row_highest_, shift);
        Float sum[kSlots], total[kSlots];
        Integer count[kSlots];
        int64_t zero_vectors = 0;
        for (int l = 0; l < size(); ++l) {
            sum[l] = total[l] = Float{};
            count[l] = Integer{};
        }
        const Float shifts = spread(shift);
        for (int64_t s = 0; s < steps; ++s) {
            if constexpr (!kAcross) z.fetch_ahead(s * stride);
            const Float x = z.load(s * stride);
            const Float e = probability<T>(x - shifts);
            if (!mixed && V::all_zero(levels + s * stride)) {
                sum[0] += e;
                total[0] += x;
                ++zero_vectors;
                continue;
            }
            const Integer level = V::load_levels(levels + s * stride);
            for (int l = 0; l < size(); ++l) {
                const auto here = level == V::splat_integer(l);
                sum[l] = here ? sum[l] + e : sum[l];
                total[l] = here ? total[l] + x : total[l];
                count[l] = here ? count[l] + 1 : count[l];
            }
        }
        for (int l = 0; l < size(); ++l) {
            sum_[l] += added(sum[l]);
            total_[l] += added(total[l]);
            count_[l] += counted(count[l], l == 0 ? zero_vectors : 0);
            highest_[l] = count_[l] > Count{} ? shift : highest_[l];
        }
        return true;
    }

    // Every sum from the shift `old` to the shift `shift`, which is not lower.
    void rescale(Value& old, Value shift) {
        if constexpr (!kAcross)
            if (!(shift > old)) return;
        const Value factor = shifted_exp(old - shift);
        for (int l = 0; l < size(); ++l) sum_[l] *= factor;
        old = shift;
    }

    void add_extremes(const Logits<T>& z, const int32_t* levels, bool mixed, int64_t first,
                      int64_t steps, int64_t stride) {
        Float high[kSlots], low[kSlots], total[kSlots];
        Integer count[kSlots];
        int64_t zero_vectors = 0;
        for (int l = 0; l < size(); ++l) {
            high[l] = V::splat(T(kEmpty));
            low[l] = V::splat(T(-kEmpty));
            total[l] = Float{};
            count[l] = Integer{};
        }
        for (int64_t s = 0; s < steps; ++s) {
            const Float x = z.load(s * stride);
            if (!mixed && V::all_zero(levels + s * stride)) {
                high[0] = x > high[0] ? x : high[0];
                total[0] += x;
                if constexpr (kAll) low[0] = x < low[0] ? x : low[0];
                ++zero_vectors;
                continue;
            }
            const Integer level = V::load_levels(levels + s * stride);
            for (int l = 0; l < size(); ++l) {
                const auto here = level == V::splat_integer(l);
                count[l] = here ? count[l] + 1 : count[l];
                total[l] = here ? total[l] + x : total[l];
                const Float x_high = here ? x : high[l];
                high[l] = x_high > high[l] ? x_high : high[l];
                if constexpr (kAll) {
                    const Float x_low = here ? x : low[l];
                    low[l] = x_low < low[l] ? x_low : low[l];
                }
            }
        }
        const Chunk chunk{z, levels, first, steps, stride};
        for (int l = 0; l < size(); ++l) {
            count_[l] += counted(count[l], l == 0 ? zero_vectors : 0);
            total_[l] += added(total[l]);
            raise(l, highest(high[l]), chunk);
            if constexpr (kAll) lower(l, lowest(low[l]), chunk);
        }
    }

    struct Chunk {
        Logits<T> z;
        const int32_t* levels;
        int64_t first, steps, stride;
    };

    void raise(int l, Value high, const Chunk& chunk) {
        if constexpr (kAcross) {
            const Value higher = high > highest_[l] ? high : highest_[l];
            if constexpr (kAll) find(l, higher, highest_[l], chunk, highest_at_[l]);
            sum_[l] *= shifted_exp(highest_[l] - higher);
            highest_[l] = higher;
        } else {
            if (!(high > highest_[l])) return;
            sum_[l] *= shifted_exp(highest_[l] - high);
            highest_[l] = high;
            if constexpr (kAll) highest_at_[l] = chunk.first + position(l, high, chunk);
        }
    }

    void lower(int l, Value low, const Chunk& chunk) {
        if constexpr (kAcross) {
            const Value lower = low < lowest_[l] ? low : lowest_[l];
            find(l, lower, lowest_[l], chunk, lowest_at_[l]);
            negative_sum_[l] *= shifted_exp(lower - lowest_[l]);
            lowest_[l] = lower;
        } else {
            if (!(low < lowest_[l])) return;
            negative_sum_[l] *= shifted_exp(low - lowest_[l]);
            lowest_[l] = low;
            lowest_at_[l] = chunk.first + position(l, low, chunk);
        }
    }

    // Along a row: where in the chunk the level first has the value.
    static int64_t position(int l, T value, const Chunk& chunk) {
        const int64_t n = chunk.steps * V::kWidth;
        int64_t j = 0;
        while (j < n && !(chunk.levels[j] == l && chunk.z[j] == value)) ++j;
        return j;
    }

    // Across columns: in the lanes where `value` is not `old`, the first row that has it.
    static void find(int l, Value value, Value old, const Chunk& chunk, Count& at) {
        T values[V::kWidth], olds[V::kWidth];
        typename V::ScalarInteger rows[V::kWidth];
        memcpy(values, &value, sizeof values);
        memcpy(olds, &old, sizeof olds);
        memcpy(rows, &at, sizeof rows);
        for (int lane = 0; lane < V::kWidth; ++lane) {
            if (values[lane] == olds[lane]) continue;
            int64_t s = 0;
            while (s < chunk.steps && !(chunk.levels[s * chunk.stride + lane] == l &&
                                        chunk.z[s * chunk.stride + lane] == values[lane]))
                ++s;
            rows[lane] = static_cast<typename V::ScalarInteger>(chunk.first + s);
        }
        memcpy(&at, rows, sizeof rows);
    }

    void add_exponentials(const Logits<T>& z, const int32_t* levels, bool mixed, int64_t steps,
                          int64_t stride) {
        Float sum[kSlots], negative_sum[kSlots], high[kSlots], low[kSlots];
        for (int l = 0; l < size(); ++l) {
            sum[l] = negative_sum[l] = Float{};
            high[l] = spread(highest_[l]);
            low[l] = spread(lowest_[l]);
        }
        for (int64_t s = 0; s < steps; ++s) {
            if constexpr (!kAcross) z.fetch_ahead(s * stride);
            const Float x = z.load(s * stride);
            if (!mixed && V::all_zero(levels + s * stride)) {
                sum[0] += exponential<T>(x - high[0]);
                continue;
            }
            const Integer level = V::load_levels(levels + s * stride);
            Float x_high = high[0], x_low = low[0];
            for (int l = 1; l < size(); ++l) {
                const auto here = level == V::splat_integer(l);
                x_high = here ? high[l] : x_high;
                if constexpr (kAll) x_low = here ? low[l] : x_low;
            }
            const Float e = exponential<T>(x - x_high);
            for (int l = 0; l < size(); ++l)
                sum[l] = level == V::splat_integer(l) ? sum[l] + e : sum[l];
            if constexpr (kAll) {
                const Float negative = exponential<T>(x_low - x);
                for (int l = 1; l < size(); ++l)
                    negative_sum[l] += level == V::splat_integer(l) ? negative : Float{};
            }
        }
        for (int l = 0; l < size(); ++l) {
            sum_[l] += added(sum[l]);
            if constexpr (kAll) negative_sum_[l] += added(negative_sum[l]);
        }
    }

    // What a chunk's lanes come to: one number along a row, themselves across columns.
    static GRAINRANK_INLINE Value added(Float v) {
        if constexpr (kAcross)
            return v;
        else
            return V::sum(v);
    }
    static GRAINRANK_INLINE Value highest(Float v) {
        if constexpr (kAcross)
            return v;
        else
            return V::max(v);
    }
    static GRAINRANK_INLINE Value lowest(Float v) {
        if constexpr (kAcross)
            return v;
        else
            return V::min(v);
    }
    static GRAINRANK_INLINE Count counted(Integer v, int64_t zero_vectors) {
        if constexpr (kAcross)
            return v + static_cast<typename V::ScalarInteger>(zero_vectors);
        else
            return V::sum_integer(v) + zero_vectors * V::kWidth;
    }
    static GRAINRANK_INLINE Float spread(Value v) {
        if constexpr (kAcross)
            return v;
        else
            return V::splat(v);
    }
    static GRAINRANK_INLINE Value constant(T x) {
        if constexpr (kAcross)
            return V::splat(x);
        else
            return x;
    }
    static GRAINRANK_INLINE Value shifted_exp(Value x) {
        if constexpr (kAcross)
            return exponential<T>(x);
        else
            return scalar_exp(x);
    }
    template <class W>
    static GRAINRANK_INLINE auto pick(const W& value, int lane) {
        if constexpr (sizeof(W) == sizeof(T) * V::kWidth && kAcross) {
            std::conditional_t<std::is_same_v<W, Float>, T, typename V::ScalarInteger>
                lanes[V::kWidth];
            memcpy(lanes, &value, sizeof lanes);
            return lanes[lane];
        } else {
            return value;
        }
    }

    GRAINRANK_INLINE int size() const { return kLevels > 0 ? kLevels : levels_; }

    int levels_;                      // L + 1
    Value row_highest_, row_lowest_;  // over the levels, while close
    // highest_ is what sum_ is taken against; after close chunks it is not below the highest logit.
    Value highest_[kSlots], lowest_[kSlots];
    Value sum_[kSlots];           // of exp(z - highest)
    Value negative_sum_[kSlots];  // of exp(lowest - z)
    Value total_[kSlots];
    Count count_[kSlots], highest_at_[kSlots], lowest_at_[kSlots];
};

// The same without vectors: pair by pair.
template <class T, bool kAll, int kLevels>
class ScalarTables {
    static constexpr int kSlots = kLevels > 0 ? kLevels : kMaxLevels;

  public:
    void start(int max_level) {
        levels_ = max_level + 1;
        tables_ = {};
    }

    void add_chunk(const Logits<T>& z, const int32_t* levels, bool, int64_t first, int64_t steps,
                   int64_t stride) {
        PairTables<T, kAll, kSlots> chunk;
        for (int64_t s = 0; s < steps; ++s)
            chunk.add(z[s * stride], levels[s * stride], static_cast<int32_t>(first + s));
        tables_.merge(chunk);
    }

    void write(const Tables<T>& out, int64_t row, int) const {
        for (int l = 0; l < levels_; ++l) {
            const LevelPart<T, kAll>& part = tables_.parts[l];
            const int64_t at = row * levels_ + l;
            out.lse[at] = lse_of<T>(part);
            out.total[at] = part.total;
            out.count[at] = part.count;
            if constexpr (kAll) {
                const LevelEntry<T> entry = entry_of<T>(part, l);
                out.neg_lse[at] = entry.neg_lse;
                out.highest[at] = entry.highest;
                out.lowest[at] = entry.lowest;
                out.highest_at[at] = part.highest.at;
                out.lowest_at[at] = part.lowest.at;
            }
        }
    }

  private:
    int levels_;  // L + 1
    PairTables<T, kAll, kSlots> tables_;
};

template <class T, bool kAll, int kLevels, Lane kLane>
using TablesOf = std::conditional_t<Lanes<T>::kWidth == 1, ScalarTables<T, kAll, kLevels>,
                                    LevelTables<T, kAll, kLevels, kLane>>;

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
