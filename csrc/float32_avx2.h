// The innermost loop of a product of float32 with AVX2.
#pragma once

#include <immintrin.h>

#include <utility>

#include "float32_panels.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Where the sums are in an array, compilers keep them in registers only if nothing indexes it by
// a variable.
template <int... kIndices, class Body>
void each(std::integer_sequence<int, kIndices...>, Body body) {
    (body(kIndices), ...);
}
template <int kCount, class Body>
void each(Body body) {
    each(std::make_integer_sequence<int, kCount>{}, body);
}

struct Avx2Float32 {
    using Value = float;
    static constexpr int kRows = 4, kVectors = 3;
    static constexpr std::ptrdiff_t kWidth = 8;
    static constexpr int kColumns = kVectors * static_cast<int>(kWidth);
    static constexpr int64_t kValues = 1, kWords = 1;
    // So much that a panel of `b`, 24 KiB, stays in the first cache beside four rows of `a`.
    static constexpr int64_t kDepth = 256;
    static constexpr int64_t kSlabDepth = 1024;
    static constexpr int64_t kBuffers = 2;
    static constexpr int64_t kGroupBytes = 512 * 1024;
    static constexpr int64_t kGroupRows = 96;  // in the second cache
    static constexpr bool kReadsRows = true, kStaysWithColumns = true;

    struct Session {};

    static void pack_rows(const Panels<float>& in, int64_t first, int64_t last) {
        Float32Packing<kRows>::pack(in, first, last);
    }
    static void pack_columns(const Panels<float>& in, int64_t first, int64_t last) {
        Float32Packing<kColumns>::pack(in, first, last);
    }

    // `rows` x `columns` sums over `depth`, of one panel of each operand.
    static void multiply(const uint32_t* a, const uint32_t* b, int64_t depth, int rows, int columns,
                         bool add, float* out, int64_t stride) {
        const float* first = reinterpret_cast<const float*>(a);
        const Rows of_a{first, first + 1, first + 2, first + 3};
        multiply<kRows>(of_a, b, depth, rows, columns, add, out, stride);
    }

    // The same of rows of `a` as they lie in memory.
    static void multiply_rows(const float* a, int64_t row_stride, const uint32_t* b, int64_t depth,
                              int rows, int columns, bool add, float* out, int64_t stride) {
        const auto row = [=](int i) { return a + (i < rows ? i : 0) * row_stride; };
        const Rows of_a{row(0), row(1), row(2), row(3)};
        multiply<1>(of_a, b, depth, rows, columns, add, out, stride);
    }

  private:
    using Rows = const float* [kRows];
    using Sums = void (*)(const Rows&, const float*, int64_t, bool, float*, int64_t);
    static constexpr int kUnrolled = 4;  // so that few instructions are not those of the sums

    // kStep: how far apart the depth of a row lies.
    template <int kStep>
    static void multiply(const Rows& a, const uint32_t* b, int64_t depth, int rows, int columns,
                         bool add, float* out, int64_t stride) {
        constexpr Sums sums[kVectors] = {of<kStep, 1>, of<kStep, 2>, of<kStep, 3>};
        const int vectors = static_cast<int>(pieces(columns, kWidth));
        const Sums run = sums[vectors - 1];
        const float* values = reinterpret_cast<const float*>(b);
        if (rows == kRows && columns == vectors * kWidth) {
            run(a, values, depth, add, out, stride);
            return;
        }
        float aside[kRows * kColumns];
        run(a, values, depth, false, aside, kColumns);
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < columns; ++j) {
                float& sum = out[i * stride + j];
                sum = add ? sum + aside[i * kColumns + j] : aside[i * kColumns + j];
            }
    }

    template <int kStep, int kVectorsOf>
    static void of(const Rows& rows, const float* b, int64_t depth, bool add, float* out,
                   int64_t stride) {
        const float* a[kRows];
        __m256 sums[kRows][kVectorsOf];
        each<kRows>([&](int i) {
            a[i] = rows[i];
            each<kVectorsOf>([&](int v) { sums[i][v] = _mm256_setzero_ps(); });
            _mm_prefetch(reinterpret_cast<const char*>(out + i * stride), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(out + i * stride + kColumns - 1),
                         _MM_HINT_T0);
        });
        const auto step = [&](int64_t k) {
            __m256 column[kVectorsOf];
            each<kVectorsOf>(
                [&](int v) { column[v] = _mm256_loadu_ps(b + k * kColumns + v * kWidth); });
            each<kRows>([&](int i) {
                const __m256 row = _mm256_broadcast_ss(a[i] + k * kStep);
                each<kVectorsOf>(
                    [&](int v) { sums[i][v] = _mm256_fmadd_ps(row, column[v], sums[i][v]); });
            });
        };
        int64_t k = 0;
        for (; k + kUnrolled <= depth; k += kUnrolled)
            each<kUnrolled>([&](int ahead) { step(k + ahead); });
        for (; k < depth; ++k) step(k);
        each<kRows>([&](int i) {
            each<kVectorsOf>([&](int v) {
                float* at = out + i * stride + v * kWidth;
                _mm256_storeu_ps(at,
                                 add ? _mm256_add_ps(_mm256_loadu_ps(at), sums[i][v]) : sums[i][v]);
            });
        });
    }
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
