// The mathematics of one pair (i, j): its level, its logit, its gradient. Written once for numbers
// and for vectors of numbers: F is a number or a vector, I and masks go with it. Derived
// in python/grainrank/reference.py.
#pragma once

#include "exponential.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// 1 where the key matches. match="count" adds it up over the keys; for match="prefix" it counts
// where every coarser key has matched too.
GRAINRANK_INLINE int32_t key_match(int32_t candidate_key, int32_t query_key) {
    return candidate_key == query_key;
}

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

// G_ij without the negative part: d_lse[y] * exp(z - lse[y]) + d_total[y].
template <class T, class F>
GRAINRANK_INLINE F gradient(F z, F lse, F d_lse, F d_total) {
    return d_lse * probability<T>(z - lse) + d_total;
}

// The part of neg_lse, levels >= 1: -d_neg_lse[y] * exp(-z - neg_lse[y]).
template <class T, class F>
GRAINRANK_INLINE F negative_gradient(F z, F neg_lse, F d_neg_lse) {
    return -d_neg_lse * probability<T>(-z - neg_lse);
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
