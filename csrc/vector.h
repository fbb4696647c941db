// Vectors of one instruction set, on the compiler's vector extensions: the arithmetic operators,
// comparisons and `mask ? a : b` mean the same for a vector and for a plain number, so the passes
// are written once. Everything is inlined into the namespace of its instruction set; that of CUDA
// has plain numbers (kernels/cuda/pairs.cuh).
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__CUDACC__)
#define GRAINRANK_INLINE inline __device__
#elif defined(__GNUC__)
#define GRAINRANK_INLINE inline __attribute__((always_inline))
#define GRAINRANK_INLINE_LAMBDA __attribute__((always_inline))
#else
#define GRAINRANK_INLINE inline
#endif
#if !defined(GRAINRANK_INLINE_LAMBDA)
#define GRAINRANK_INLINE_LAMBDA
#endif
#if defined(__CUDA_ARCH__)
#define GRAINRANK_UNROLL _Pragma("unroll")
#else
#define GRAINRANK_UNROLL
#endif

namespace grainrank {
namespace GRAINRANK_ISA {

// a * b + c, rounded as in the vectors, whose sums of products the compiler contracts; of plain
// numbers it may choose not to.
template <class T>
GRAINRANK_INLINE T multiply_add(T a, T b, T c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
    if constexpr (sizeof(T) == 4)
        return __builtin_fmaf(a, b, c);
    else
        return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

// Asks for the cache line, where there is a way to.
GRAINRANK_INLINE void fetch_ahead(const void* address) {
#if defined(__GNUC__) && !defined(__CUDACC__)
    __builtin_prefetch(address);
#else
    (void)address;
#endif
}

// Into the second-level cache.
GRAINRANK_INLINE void fetch_far_ahead(const void* address) {
#if defined(__GNUC__) && !defined(__CUDACC__)
    __builtin_prefetch(address, 0, 2);
#else
    (void)address;
#endif
}

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
    using type = int32_t;
};
template <>
struct IntegerOf<double> {
    using type = int64_t;
};

// Float: kWidth numbers of type T. Integer: as many integers of the same size, also the type of a
// mask.
template <class T>
struct Lanes {
    using Scalar = T;
    using ScalarInteger = typename IntegerOf<T>::type;
    using ScalarUnsigned = std::make_unsigned_t<ScalarInteger>;
#if GRAINRANK_VECTOR_BYTES
    static constexpr int kWidth = GRAINRANK_VECTOR_BYTES / static_cast<int>(sizeof(T));
    typedef T Float __attribute__((vector_size(GRAINRANK_VECTOR_BYTES)));
    typedef ScalarInteger Integer __attribute__((vector_size(GRAINRANK_VECTOR_BYTES)));
    typedef ScalarUnsigned Unsigned __attribute__((vector_size(GRAINRANK_VECTOR_BYTES)));
#else
    static constexpr int kWidth = 1;
    using Float = T;
    using Integer = ScalarInteger;
    using Unsigned = ScalarUnsigned;
#endif

    static GRAINRANK_INLINE Float load(const T* p) {
        Float v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    static GRAINRANK_INLINE void store(T* p, Float v) { memcpy(p, &v, sizeof v); }
    // A product that is not contracted with what it is added to.
    static GRAINRANK_INLINE Float rounded(Float product) {
#if GRAINRANK_VECTOR_BYTES && defined(__AVX2__) && \
    (GRAINRANK_VECTOR_BYTES <= 32 || defined(__AVX512F__))
        asm("" : "+v"(product));
#elif GRAINRANK_VECTOR_BYTES && defined(__ARM_NEON)
        asm("" : "+w"(product));
#elif GRAINRANK_VECTOR_BYTES
        asm("" : "+m"(product));
#endif
        return product;
    }

    // Whether the compiler contracts a * b + c.
#if GRAINRANK_VECTOR_BYTES && (defined(__FMA__) || defined(__ARM_FEATURE_FMA))
    static constexpr bool kFuses = true;
#else
    static constexpr bool kFuses = false;
#endif
    // 0 + x would be an addition, for the sake of -0.
    static GRAINRANK_INLINE Float splat(T x) { return x - Float{}; }
    static GRAINRANK_INLINE Integer splat_integer(int x) {
        return Integer{} + static_cast<ScalarInteger>(x);
    }
    static GRAINRANK_INLINE Integer bits(Float v) {
        Integer b;
        memcpy(&b, &v, sizeof b);
        return b;
    }
    // The number of the bits b << n. Of signed integers it would be undefined to lose some of them.
    static GRAINRANK_INLINE Float from_shifted_bits(Integer b, int n) {
        Unsigned u;
        memcpy(&u, &b, sizeof u);
        u <<= n;
        Float v;
        memcpy(&v, &u, sizeof v);
        return v;
    }

    // Of floats: as bfloat16, to the nearest, ties to even.
    static GRAINRANK_INLINE void store_bf16(uint16_t* p, Float v) {
        const Integer exact = v == v ? bits(v) : splat_integer(0x7fc00000);
        const Integer word = ((exact + 0x7fff + ((exact >> 16) & 1)) >> 16) & 0xffff;
#if GRAINRANK_VECTOR_BYTES
        typedef uint16_t Words __attribute__((vector_size(kWidth * 2)));
        const Words words = __builtin_convertvector(word, Words);
        memcpy(p, &words, sizeof words);
#else
        const uint16_t words = static_cast<uint16_t>(word);
        memcpy(p, &words, sizeof words);
#endif
    }

    static GRAINRANK_INLINE Float multiply_add(Float a, Float b, Float c) {
        if constexpr (kWidth == 1)
            return GRAINRANK_ISA::multiply_add(a, b, c);
        else
            return a * b + c;
    }

    // kWidth levels are all 0.
    static GRAINRANK_INLINE bool all_zero(const int32_t* levels) {
        if constexpr (kWidth == 1) return *levels == 0;
#if defined(__AVX512F__)
        if constexpr (kWidth == 16) {
            const __m512i words = _mm512_loadu_si512(levels);
            return _mm512_test_epi32_mask(words, words) == 0;
        }
#endif
        uint64_t any = 0;
        for (int i = 0; i < kWidth; i += 2) {
            uint64_t word;
            memcpy(&word, levels + i, 8);
            any |= word;
        }
        return any == 0;
    }
    static GRAINRANK_INLINE Integer load_levels(const int32_t* levels) {
#if GRAINRANK_VECTOR_BYTES
        typedef int32_t Words __attribute__((vector_size(kWidth * 4)));
        Words words;
        memcpy(&words, levels, sizeof words);
        return __builtin_convertvector(words, Integer);
#else
        return *levels;
#endif
    }

    // The larger one, but NaN where x is.
    static GRAINRANK_INLINE Float at_least(Float x, Float least) {
#if defined(__AVX512F__)
        if constexpr (sizeof(Float) == 64 && sizeof(T) == 4) return _mm512_max_ps(least, x);
        if constexpr (sizeof(Float) == 64 && sizeof(T) == 8) return _mm512_max_pd(least, x);
#endif
#if defined(__AVX2__)
        if constexpr (sizeof(Float) == 32 && sizeof(T) == 4) return _mm256_max_ps(least, x);
        if constexpr (sizeof(Float) == 32 && sizeof(T) == 8) return _mm256_max_pd(least, x);
#endif
        return x < least ? least : x;
    }

    // Whether `look_up` is there: each lane's entry of a table in a register, one for each lane.
#if defined(__AVX512F__)
    static constexpr bool kLooksUp = kWidth == 16;
    static GRAINRANK_INLINE Float look_up(Float table, Integer entry) {  // of its low four bits
        __m512i entries;
        __m512 numbers;
        memcpy(&entries, &entry, sizeof entries);
        memcpy(&numbers, &table, sizeof numbers);
        numbers = _mm512_permutexvar_ps(entries, numbers);
        memcpy(&table, &numbers, sizeof table);
        return table;
    }
#else
    static constexpr bool kLooksUp = false;
#endif

    // 1 where the mask holds.
    template <class Mask>
    static GRAINRANK_INLINE Integer ones(Mask mask) {
#if GRAINRANK_VECTOR_BYTES
        return -mask;
#else
        return mask;
#endif
    }

    // Over the lanes, in a fixed tree order: the upper half on the lower one.
    static GRAINRANK_INLINE T sum(Float v) {
        return folded(v, [](Float low, Float high) { return low + high; });
    }
    static GRAINRANK_INLINE int64_t sum_integer(Integer v) {
        return folded(v, [](Integer low, Integer high) { return low + high; });
    }
    // NaN is passed over.
    static GRAINRANK_INLINE T max(Float v) {
        return folded(v, [](Float low, Float high) {
            const Float larger = high > low ? high : low;
            return low == low ? larger : high;
        });
    }
    static GRAINRANK_INLINE T min(Float v) { return -max(-v); }

  private:
#if GRAINRANK_VECTOR_BYTES
    template <int kHalf = kWidth / 2, class Vector, class Fold>
    static GRAINRANK_INLINE auto folded(Vector v, Fold fold) {
        const Vector all = fold(v, moved_down<kHalf>(v, std::make_index_sequence<kWidth>()));
        if constexpr (kHalf > 1)
            return folded<kHalf / 2>(all, fold);
        else
            return all[0];
    }
    // Lane i + kBy in lane i.
    template <int kBy, class Vector, size_t... kLane>
    static GRAINRANK_INLINE Vector moved_down(Vector v, std::index_sequence<kLane...>) {
#if defined(__clang__)
        return __builtin_shufflevector(v, v, ((kLane + kBy) % kWidth)...);
#else
        return __builtin_shuffle(v, Integer{((kLane + kBy) % kWidth)...});
#endif
    }
#else
    template <class Vector, class Fold>
    static GRAINRANK_INLINE auto folded(Vector v, Fold) {
        return v;
    }
#endif
};

// Sum of a[k] * b[k]; four sums side by side hide the latency of the addition.
template <class T>
T dot(const T* a, const T* b, int64_t n) {
    using V = Lanes<T>;
    typename V::Float sums[4] = {};
    int64_t k = 0;
    for (; k + 4 * V::kWidth <= n; k += 4 * V::kWidth)
        for (int i = 0; i < 4; ++i)
            sums[i] += V::load(a + k + i * V::kWidth) * V::load(b + k + i * V::kWidth);
    for (; k + V::kWidth <= n; k += V::kWidth) sums[0] += V::load(a + k) * V::load(b + k);
    T total = V::sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; k < n; ++k) total += a[k] * b[k];
    return total;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
