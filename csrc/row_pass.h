// Rows of embeddings: their norms, and gradients back through the normalisation. Memory-bound: one
// pass over each row. Derived in python/grainrank/reference.py.
#pragma once

#include <math.h>

#include "passes.h"
#include "vector.h"

namespace grainrank {
namespace GRAINRANK_ISA {

GRAINRANK_INLINE float square_root(float x) { return sqrtf(x); }
GRAINRANK_INLINE double square_root(double x) { return ::sqrt(x); }

template <class T>
bool norm_row(const NormArgs<T>& in, int64_t r) {
    const T* x = in.x + r * in.row_stride;
    T squares = T(0);
    int64_t first = 0;
    for (int p = 0; p < in.num_prefixes; ++p) {
        squares += dot(x + first, x + first, in.prefixes[p] - first);
        first = in.prefixes[p];
        in.norms[p * in.rows + r] = square_root(squares);
    }
    if (!in.unit) return true;
    const T norm = in.norms[(in.num_prefixes - 1) * in.rows + r];
    const T divisor = norm < T(kNormEps) ? T(kNormEps) : norm;
    T* unit = in.unit + r * first;
    for (int64_t k = 0; k < first; ++k) unit[k] = x[k] / divisor;
    return true;
}

template <class T>
bool finish_row(const FinishArgs<T>& in, int64_t r) {
    const int64_t features = in.prefixes[in.num_prefixes - 1];
    const T* values = in.values + r * in.value_stride;
    T* d = in.d + r * in.d_stride;
    const T product = dot(values, d, features);
    if (in.dots) in.dots[r] = product;
    if (in.norms) {
        const T norm = in.norms[r];
        const bool tiny = norm < T(kNormEps);
        const T divisor = tiny ? T(kNormEps) : norm;
        const T along = tiny ? T(0) : product;
        // Scaled last: what cancels cancels exactly, as it does all of it with a single feature.
        for (int64_t k = 0; k < features; ++k)
            d[k] = in.scale * (d[k] - values[k] * along) / divisor;
        return true;
    }
    int64_t first = 0;
    for (int p = 0; p < in.num_prefixes; ++p) {
        const T along = in.along ? in.along[p * in.rows + r] : T(0);
        for (int64_t k = first; k < in.prefixes[p]; ++k) d[k] = in.scale * d[k] - values[k] * along;
        first = in.prefixes[p];
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
