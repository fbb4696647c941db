// The smooth steps of ranks, for a number or a vector of numbers; the formulas are those of
// python/grainrank/ranks/surrogates.py.
#pragma once

#include "exponential.h"

namespace grainrank {
namespace GRAINRANK_ISA {

template <class F>
struct StepOf {
    F value;
    F slope;  // by z = x / temperature
};

// exp(x) for x <= 0, and 0 where it would be denormal. NaN stays NaN.
template <class T, class F>
GRAINRANK_INLINE F vanishing(F x) {
#if defined(__CUDACC__)
    return probability<T>(x);
#else
    return x <= F{} + ExpConstants<T>::kLowestNormal ? F{} : probability<T>(x);
#endif
}

// sigmoid(z), z = x / temperature.
template <class T, class F>
GRAINRANK_INLINE StepOf<F> sigmoid_step(F z) {
    const F zero = F{};
    const auto positive = z > zero;
    const F u = vanishing<T>(positive ? -z : z);  // never overflows
    const F share = T(1) / (u + T(1));
    const F small = u * share;
    return {positive ? share : small, small * share};
}

// The upper bound of lower levels, from the sigmoid at x. steep: rho times the temperature.
template <class T, class F>
GRAINRANK_INLINE StepOf<F> bound_step(const StepOf<F>& sigmoid, F x, T rho, T delta, T offset,
                                      T steep) {
    const F zero = F{}, edge = zero + delta;
    const F value = x > zero ? sigmoid.value + T(0.5) : sigmoid.value;
    return {x > edge ? (x - edge) * rho + offset : value, x > edge ? zero + steep : sigmoid.slope};
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
