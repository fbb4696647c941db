// exp of a vector, at most 2 ulp from the exact value over the whole range, denormal results
// included (tests/test_exponential.py). NaN stays NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, exp(x) = 2^n exp(r). n comes from adding a constant that
// pushes the fraction out of the mantissa; ln 2 is split so that n * high is exact; 2^n is applied
// in two halves, so that neither overflows or underflows before the product does.
#pragma once

#include <math.h>

#include "vector.h"

namespace grainrank {
namespace GRAINRANK_ISA {

#if defined(__CUDACC__)

// A GPU has instructions of its own for these.
template <class T>
GRAINRANK_INLINE T exponential(T x) {
    return ::exp(x);
}
// Relative error about |x| * 1e-7, where it counts: x is never far above 0, and far below it the
// result is as good as 0.
GRAINRANK_INLINE float fast_exponential(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504088896340736f));
    return y;
}
GRAINRANK_INLINE double fast_exponential(double x) { return ::exp(x); }
template <class T>
GRAINRANK_INLINE T probability(T x) {
    return fast_exponential(x);
}
template <class T>
GRAINRANK_INLINE T log1p_unit(T u) {
    return ::log1p(u);
}

#else

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    static constexpr float kLowest = -104.0f;  // exp is 0 from here on
    static constexpr float kLowestNormal = -87.0f;
    static constexpr float kHighest = 89.0f;               // and infinite from here on
    static constexpr float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23 + kBias
    static constexpr float kLn2High = 0.693359375f;
    static constexpr float kLn2Low = -2.12194440e-4f;
    static constexpr float kLn2 = 0.693147180559945309417f;
    static constexpr int kBias = 127;
    static constexpr int kMantissaBits = 23;
    // Minimax polynomial of (exp(r) - 1 - r) / r^2, highest power first (Cephes, expf).
    static constexpr int kTerms = 6;
    static constexpr float kPolynomial[kTerms] = {1.9875691500e-4f, 1.3981999507e-3f,
                                                  8.3334519073e-3f, 4.1665795894e-2f,
                                                  1.6666665459e-1f, 5.0000001201e-1f};
};

template <>
struct ExpConstants<double> {
    static constexpr double kLowest = -746.0;
    static constexpr double kLowestNormal = -708.0;
    static constexpr double kHighest = 710.0;
    static constexpr double kRound = 6755399441055744.0 + 1023.0;  // 1.5 * 2^52 + kBias
    static constexpr double kLn2High = 6.93147180369123816490e-01;
    static constexpr double kLn2Low = 1.90821492927058770002e-10;
    static constexpr double kLn2 = 0.693147180559945309417;
    static constexpr int kBias = 1023;
    static constexpr int kMantissaBits = 52;
    // Taylor coefficients 1/13! .. 1/2!: the first term left out is below 1e-17 for |r| <= ln 2
    // / 2.
    static constexpr int kTerms = 12;
    static constexpr double kPolynomial[kTerms] = {
        1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0,
        1.0 / 362880.0,     1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,
        1.0 / 120.0,        1.0 / 24.0,        1.0 / 6.0,        1.0 / 2.0};
};

// The polynomial, in pairs of terms: half the additions wait for one another.
template <class T>
GRAINRANK_INLINE typename Lanes<T>::Float polynomial(typename Lanes<T>::Float r,
                                                     typename Lanes<T>::Float square) {
    using C = ExpConstants<T>;
    auto p = r * C::kPolynomial[0] + C::kPolynomial[1];
    for (int i = 2; i < C::kTerms; i += 2)
        p = p * square + (r * C::kPolynomial[i] + C::kPolynomial[i + 1]);
    return p;
}

// Of a number.
GRAINRANK_INLINE float scalar_exp(float x) { return expf(x); }
GRAINRANK_INLINE double scalar_exp(double x) { return ::exp(x); }

// exp(r), and n + kBias in the low bits of `shifted`. kNear: in one step, off by n 2e-9 besides
// (float), where products are not rounded before they are subtracted.
template <class T, bool kNear>
GRAINRANK_INLINE typename Lanes<T>::Float reduced_exponential(typename Lanes<T>::Float x,
                                                              typename Lanes<T>::Float& shifted) {
    using C = ExpConstants<T>;
    using Float = typename Lanes<T>::Float;
    shifted = x * T(1.44269504088896340736) + C::kRound;
    const Float n = shifted - C::kRound;
    Float r;
    if constexpr (kNear && Lanes<T>::kFuses) {
        r = x - n * C::kLn2;
    } else {
        r = x - n * C::kLn2High;
        r = r - n * C::kLn2Low;
    }
    const Float square = r * r;
    return polynomial<T>(r, square) * square + r + T(1);
}

template <class T>
GRAINRANK_INLINE typename Lanes<T>::Float exponential(typename Lanes<T>::Float x) {
    using V = Lanes<T>;
    using C = ExpConstants<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;
    const Float lowest = V::splat(C::kLowest);
    const Float highest = V::splat(C::kHighest);
    x = V::at_least(x, lowest);
    x = x > highest ? highest : x;
    Float shifted;
    const Float p = reduced_exponential<T, false>(x, shifted);
    const Integer power = V::bits(shifted) - V::bits(V::splat(C::kRound));
    const Integer half = power >> 1;
    const Float first = V::from_shifted_bits(half + C::kBias, C::kMantissaBits);
    const Float second = V::from_shifted_bits(power - half + C::kBias, C::kMantissaBits);
    return p * first * second;
}

// The same for x <= 1, with the smallest normal number (about) for everything below its logarithm:
// for probabilities, where that is as good as 0, and a third of the work is saved.
template <class T>
GRAINRANK_INLINE typename Lanes<T>::Float probability(typename Lanes<T>::Float x) {
    using V = Lanes<T>;
    using C = ExpConstants<T>;
    using Float = typename V::Float;
    const Float lowest = V::splat(C::kLowestNormal);
    x = V::at_least(x, lowest);
    Float shifted;
    const Float p = reduced_exponential<T, true>(x, shifted);
    // The bits of 1.5 * 2^23 leave on the left.
    return p * V::from_shifted_bits(V::bits(shifted), C::kMantissaBits);
}

// log(1 + u) for 0 <= u <= 1: 2 atanh(w) with w = u / (2 + u) <= 1/3, whose series needs one term
// for each digit.
template <class T>
GRAINRANK_INLINE typename Lanes<T>::Float log1p_unit(typename Lanes<T>::Float u) {
    using Float = typename Lanes<T>::Float;
    constexpr int kLast = sizeof(T) == 4 ? 7 : 17;
    const Float w = u / (u + T(2));
    const Float square = w * w;
    Float p = Lanes<T>::splat(T(1) / T(2 * kLast + 1));
    for (int i = kLast - 1; i > 0; --i) p = p * square + T(1) / T(2 * i + 1);
    return (w + w) * (p * square) + (w + w);
}

#endif  // __CUDACC__

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
