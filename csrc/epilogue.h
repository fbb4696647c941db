// The mathematics of one pair (i, j): its level, its logit, its gradient, and what it adds to the
// tables. Written once: F is a number or a vector of numbers, I and masks go with it; the CPU's
// passes and kernels/cuda/ include this. Derived in python/grainrank/reference.py.
#pragma once

#include <math.h>

#include "exponential.h"
#include "level_args.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// ---- The level of a pair, from one source after another; -1: ignored.

// 1 where the key matches. match="count" adds it up over the keys.
template <class Key>
GRAINRANK_INLINE int32_t key_match(Key candidate_key, Key query_key) {
    return candidate_key == query_key;
}

// For match="prefix", 1 where key k matches and the k coarser ones, which gave `level`, have too.
GRAINRANK_INLINE int32_t finer_match(int32_t match, int32_t level, int32_t k) {
    return match & static_cast<int32_t>(level == k);
}

GRAINRANK_INLINE int32_t above_threshold(float similarity, float threshold) {
    return similarity >= threshold;
}

// Of two sources: the higher level, but ignored where either ignores the pair.
GRAINRANK_INLINE int32_t united(int32_t a, int32_t b) {
    const int32_t higher = a > b ? a : b;
    return (a | b) < 0 ? -1 : higher;
}

// Pairs of the same item.
template <class Id>
GRAINRANK_INLINE int32_t excluded(int32_t level, Id query_id, Id candidate_id) {
    return query_id == candidate_id ? -1 : level;
}

// Negatives above the ceiling, unless `kept`.
template <class T>
GRAINRANK_INLINE int32_t under_ceiling(int32_t level, T similarity, T ceiling, bool kept) {
    return level == 0 && similarity > ceiling && !kept ? -1 : level;
}

// ---- Its logit.

// Tables by level have no entry for ignored pairs: these take that of level 0.
GRAINRANK_INLINE int32_t entry(int32_t level) { return level > 0 ? level : 0; }

template <class F, class S>
GRAINRANK_INLINE F logit(F similarity, S scale) {
    return similarity * scale;
}

// The detached weight of the circle loss.
template <class T>
GRAINRANK_INLINE T circle_weight(T s, T margin, bool positive) {
    const T weight = positive ? T(1) + margin - s : s + margin;
    return weight > T(0) ? weight : T(0);
}

template <class T>
GRAINRANK_INLINE T circle_logit(T s, T scale, T margin, bool positive) {
    return scale * (circle_weight(s, margin, positive) * (s - (positive ? T(1) - margin : margin)));
}

// ---- The gradient of its logit.

// G_ij without the negative part: d_lse[y] * exp(z - lse[y]) + d_total[y].
template <class T, class F>
GRAINRANK_INLINE F gradient(F z, F lse, F d_lse, F d_total) {
    return d_lse * probability<T>(z - lse) + d_total;
}

// The part of neg_lse: -d_neg_lse[y] * exp(-z - neg_lse[y]). Level 0 has none, and exp(-z) of it
// may be infinite.
template <class T, class F, class I>
GRAINRANK_INLINE F negative_gradient(F z, I level, F neg_lse, F d_neg_lse) {
    const F part = -d_neg_lse * probability<T>(-z - neg_lse);
    return level > I{} ? part : F{};
}

template <class F>
struct Softplus {
    F value;  // log(1 + exp(x))
    F slope;  // its derivative, sigmoid(x)
};

template <class T, class F>
GRAINRANK_INLINE Softplus<F> softplus(F x) {
    const F zero = F{};
    const auto positive = x > zero;
    const F u = exponential<T>(positive ? -x : x);  // of -|x|: never overflows
    const F one = zero + T(1);
    return {(positive ? x : zero) + log1p_unit<T>(u), (positive ? one : u) / (u + T(1))};
}

// ---- What it adds to the tables: for numbers. (table_pass.h does so for vectors, chunk by chunk.)

// log(factor * sum) for factor = exp(shift), rounded once.
template <class T>
GRAINRANK_INLINE T shifted_log(T sum, T shift) {
    return static_cast<T>(::log(static_cast<double>(sum)) + static_cast<double>(shift));
}

// A sum of exponentials relative to a reference, which is raised once a term is far above it: so a
// term is at most exp(kFar), and the first one 1. Far: so near that a term is exact to the last
// digits, so far that few terms are.
template <class T>
struct ExponentialSum {
    static constexpr T kFar = T(2);

    T reference = T(kEmpty);
    T sum = T(0);

    GRAINRANK_INLINE void merge(const ExponentialSum& other) {
        const T top = other.reference > reference ? other.reference : reference;
        sum = sum * probability<T>(reference - top) +
              other.sum * probability<T>(other.reference - top);
        reference = top;
    }

    GRAINRANK_INLINE T log() const { return shifted_log(sum, reference); }
};

// The extreme of a level, and where it lies first.
template <class T>
struct Extreme {
    T value;
    typename Lanes<T>::ScalarInteger at = -1;

    GRAINRANK_INLINE void merge_higher(const Extreme& other) { merge(other, other.value > value); }
    GRAINRANK_INLINE void merge_lower(const Extreme& other) { merge(other, other.value < value); }

  private:
    GRAINRANK_INLINE void merge(const Extreme& other, bool beyond) {
        const bool first = other.value == value && other.at >= 0 && (other.at < at || at < 0);
        if (beyond || first) *this = other;
    }
};

// The entries of one level of a table, over some of its pairs. kAll: of every table; otherwise of
// lse, total and count.
template <class T, bool kAll>
struct LevelPart {
    ExponentialSum<T> exponentials;
    T total = T(0);
    typename Lanes<T>::ScalarInteger count = 0;  // as wide as T: no padding between

    GRAINRANK_INLINE void merge(const LevelPart& other) {
        exponentials.merge(other.exponentials);
        total += other.total;
        count += other.count;
    }
};

template <class T>
struct LevelPart<T, true> : LevelPart<T, false> {
    ExponentialSum<T> negative;  // of the negated logits
    Extreme<T> highest{T(kEmpty)}, lowest{T(-kEmpty)};

    GRAINRANK_INLINE void merge(const LevelPart& other) {
        LevelPart<T, false>::merge(other);
        negative.merge(other.negative);
        highest.merge_higher(other.highest);
        lowest.merge_lower(other.lowest);
    }
};

// The entry of a table from its part.
template <class T>
struct LevelEntry {
    T lse, neg_lse, highest, lowest;
};

template <class T>
GRAINRANK_INLINE T lse_of(const LevelPart<T, false>& part) {
    return part.count == 0 ? T(kEmpty) : part.exponentials.log();
}

template <class T>
GRAINRANK_INLINE LevelEntry<T> entry_of(const LevelPart<T, true>& part, int level) {
    // Comparisons pass NaN over, sums do not.
    const T total = part.total;
    const bool nan = total != total;
    return {lse_of<T>(part), part.count == 0 || level == 0 ? T(kEmpty) : part.negative.log(),
            nan ? total : part.highest.value, nan ? total : part.lowest.value};
}

// All levels of a row (column), pair by pair. kSlots: L + 1 or more; constant, so that the parts
// are registers on a GPU.
template <class T, bool kAll, int kSlots>
struct PairTables {
    LevelPart<T, kAll> parts[kSlots];

    // Sums from now on are taken against the references of `other`, but nothing is in them.
    GRAINRANK_INLINE void start_from(int l, const LevelPart<T, kAll>& other) {
        parts[l].exponentials.reference = other.exponentials.reference;
        if constexpr (kAll) parts[l].negative.reference = other.negative.reference;
    }

    // `at`: the pair's column (row). Pairs of other levels than 0 .. kSlots - 1 count for nothing.
    GRAINRANK_INLINE void add(T z, int32_t level, int32_t at) {
        T reference = z, negative_reference = -z;
        GRAINRANK_UNROLL
        for (int l = 0; l < kSlots; ++l) {
            reference = level == l ? parts[l].exponentials.reference : reference;
            if constexpr (kAll)
                negative_reference = level == l ? parts[l].negative.reference : negative_reference;
        }
        const T far = ExponentialSum<T>::kFar;
        bool raised = z - reference > far;
        if constexpr (kAll) raised |= -z - negative_reference > far;
        if (raised) raise(z, level, reference, negative_reference);
        const T exponential_ = probability<T>(z - reference);
        T negative = T(0);
        if constexpr (kAll) negative = probability<T>(-z - negative_reference);
        GRAINRANK_UNROLL
        for (int l = 0; l < kSlots; ++l) {
            LevelPart<T, kAll>& part = parts[l];
            if (level == l) {
                part.exponentials.sum += exponential_;
                part.total += z;
                part.count += 1;
            }
            if constexpr (kAll) {
                if (level == l) part.negative.sum += negative;
                if (level == l && z > part.highest.value) part.highest = {z, at};
                if (level == l && z < part.lowest.value) part.lowest = {z, at};
            }
        }
    }

    GRAINRANK_INLINE void merge(const PairTables& other) {
        GRAINRANK_UNROLL
        for (int l = 0; l < kSlots; ++l) parts[l].merge(other.parts[l]);
    }

  private:
    // The references of the level that are far from the logit z.
    GRAINRANK_INLINE void raise(T z, int32_t level, T& reference, T& negative_reference) {
        const T factor = raised(reference, z);
        const T negative_factor = kAll ? raised(negative_reference, -z) : T(1);
        GRAINRANK_UNROLL
        for (int l = 0; l < kSlots; ++l) {
            if (level != l) continue;
            parts[l].exponentials.reference = reference;
            parts[l].exponentials.sum *= factor;
            if constexpr (kAll) {
                parts[l].negative.reference = negative_reference;
                parts[l].negative.sum *= negative_factor;
            }
        }
    }

    // Raises the reference to z where it is far below, and gives the factor of its sum.
    static GRAINRANK_INLINE T raised(T& reference, T z) {
        if (!(z - reference > ExponentialSum<T>::kFar)) return T(1);
        const T factor = probability<T>(reference - z);
        reference = z;
        return factor;
    }
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
