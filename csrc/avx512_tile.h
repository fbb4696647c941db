// The innermost loop of a product with AVX-512: a tile of kRows x kVectors sums of 16 in
// registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "panels.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Arithmetic::add(sum, row, column): sum + row * column, of 16 words each.
template <class Arithmetic>
struct Avx512Tile {
    static constexpr int kRows = 8, kVectors = 3;
    static constexpr std::ptrdiff_t kWidth = 16;
    static constexpr int kColumns = kVectors * static_cast<int>(kWidth);

    // `rows` x `columns` sums over `depth` words, of one panel of each operand.
    static void multiply(const uint32_t* a, const uint32_t* b, int64_t depth, int rows, int columns,
                         bool add, float* out, int64_t stride) {
        constexpr Sums sums[kVectors] = {of<1>, of<2>, of<3>};
        sums[(columns - 1) / kWidth](a, b, depth, rows, columns, add, out, stride);
    }

  private:
    using Sums = void (*)(const uint32_t*, const uint32_t*, int64_t, int, int, bool, float*,
                          int64_t);

    template <int kVectorsOf>
    static void of(const uint32_t* a, const uint32_t* b, int64_t depth, int rows, int columns,
                   bool add, float* out, int64_t stride) {
        __m512 sums[kRows][kVectorsOf];
        for (auto& row : sums)
            for (auto& sum : row) sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < depth; ++k, a += kRows, b += kColumns) {
            __m512i columns_of_b[kVectorsOf];
            for (int v = 0; v < kVectorsOf; ++v)
                columns_of_b[v] = _mm512_loadu_si512(b + v * kWidth);
            for (int i = 0; i < kRows; ++i) {
                const __m512i row = _mm512_set1_epi32(static_cast<int>(a[i]));
                for (int v = 0; v < kVectorsOf; ++v)
                    sums[i][v] = Arithmetic::add(sums[i][v], row, columns_of_b[v]);
            }
        }
        const int in_last = columns - (kVectorsOf - 1) * static_cast<int>(kWidth);
        const auto last = static_cast<__mmask16>((1u << in_last) - 1);
        for (int i = 0; i < rows; ++i, out += stride) {
            for (int v = 0; v < kVectorsOf; ++v) {
                const __mmask16 mask = v == kVectorsOf - 1 ? last : static_cast<__mmask16>(0xffff);
                float* at = out + v * kWidth;
                const __m512 sum =
                    add ? _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sums[i][v]) : sums[i][v];
                _mm512_mask_storeu_ps(at, mask, sum);
            }
        }
    }
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
