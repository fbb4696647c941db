// The innermost loop of a product of bfloat16 with AVX512-BF16, and the panels that it reads.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "bf16_panels.h"

namespace grainrank {

struct Avx512Bf16 {
    // A tile: kRows x kVectors sums of 16 in registers.
    static constexpr int kRows = 8, kVectors = 3;
    static constexpr std::ptrdiff_t kWidth = 16;
    static constexpr int kColumns = kVectors * static_cast<int>(kWidth);
    static constexpr int64_t kWords = 1;  // the depth is laid out in so many
    // At a time: so much depth that a panel of `a` stays in the first cache; so many columns that
    // their panels, and so many rows that their sums, stay in the second.
    static constexpr int64_t kDepth = 1024;
    static constexpr int64_t kGroupBytes = 512 * 1024;
    static constexpr int64_t kGroupRows = 96;

    struct Session {};

    static void pack_rows(const Panels& in, int64_t first, int64_t last) {
        pack<kRows>(in, first, last);
    }
    static void pack_columns(const Panels& in, int64_t first, int64_t last) {
        pack<kColumns>(in, first, last);
    }

    // `rows` x `columns` sums over `depth` words, of one panel of each operand.
    static void multiply(const uint32_t* a, const uint32_t* b, int64_t depth, int rows, int columns,
                         bool add, float* out, int64_t stride) {
        constexpr Tile tiles[kVectors] = {tile<1>, tile<2>, tile<3>};
        tiles[(columns - 1) / kWidth](a, b, depth, rows, columns, add, out, stride);
    }

  private:
    static uint32_t word(uint16_t first, uint16_t second) {
        return first | static_cast<uint32_t>(second) << 16;
    }

    template <int kWide>
    static void pack(const Panels& in, int64_t first, int64_t last) {
        if (in.depth_stride != 1)
            pack_across<kWide>(in, first, last);
        else
            for (; first < last; ++first) pack_along<kWide>(in, first);
    }

    // Neighbours in the depth are neighbours in memory: words as they are.
    template <int kWide>
    static void pack_along(const Panels& in, int64_t panel) {
        uint32_t* out = in.at(panel);
        const int64_t first = panel * kWide, lines = least(kWide, in.lines - first);
        const int64_t whole = in.depth_values / 2;
        if (lines < kWide) std::memset(out, 0, sizeof(uint32_t) * kWide * in.depth);
        const uint16_t* line[kWide];
        for (int i = 0; i < kWide; ++i)
            line[i] = in.values + (first + (i < lines ? i : 0)) * in.line_stride;
        for (int64_t k = 0; k < whole; ++k)
            for (int i = 0; i < (lines < kWide ? static_cast<int>(lines) : kWide); ++i)
                std::memcpy(out + k * kWide + i, line[i] + 2 * k, sizeof(uint32_t));
        if (whole < in.depth)
            for (int i = 0; i < lines; ++i) out[whole * kWide + i] = word(line[i][2 * whole], 0);
    }

    // Lines are neighbours in memory: two rows, interleaved. All panels of a group at once, so that
    // whole cache lines are read.
    template <int kWide>
    static void pack_across(const Panels& in, int64_t first_panel, int64_t last_panel) {
        static_assert(kWide % 8 == 0);
        const uint16_t zeros[kWide] = {};
        for (int64_t k = 0; k < in.depth; ++k) {
            const uint16_t* row = in.values + 2 * k * in.depth_stride;
            const bool pair = 2 * k + 1 < in.depth_values;
            for (int64_t panel = first_panel; panel < last_panel; ++panel) {
                uint32_t* out = in.at(panel) + k * kWide;
                const int64_t first = panel * kWide, lines = in.lines - first;
                const uint16_t* even = row + first;
                const uint16_t* odd = pair ? even + in.depth_stride : zeros;
                if (lines < kWide) {
                    for (int i = 0; i < kWide; ++i) out[i] = i < lines ? word(even[i], odd[i]) : 0;
                    continue;
                }
                for (int i = 0; i < kWide; i += 8) {
                    const auto* a = reinterpret_cast<const __m128i*>(even + i);
                    const auto* b = reinterpret_cast<const __m128i*>(odd + i);
                    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(a));
                    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(b));
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                                        _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
                }
            }
        }
    }

    // 32 numbers as the product of pairs takes them.
    static __m512bh pairs(__m512i words) {
        __m512bh numbers;
        std::memcpy(&numbers, &words, sizeof numbers);
        return numbers;
    }

    using Tile = void (*)(const uint32_t*, const uint32_t*, int64_t, int, int, bool, float*,
                          int64_t);

    template <int kVectorsOf>
    static void tile(const uint32_t* a, const uint32_t* b, int64_t depth, int rows, int columns,
                     bool add, float* out, int64_t stride) {
        __m512 sums[kRows][kVectorsOf];
        for (auto& row : sums)
            for (auto& sum : row) sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < depth; ++k, a += kRows, b += kColumns) {
            __m512bh columns_of_b[kVectorsOf];
            for (int v = 0; v < kVectorsOf; ++v)
                columns_of_b[v] = pairs(_mm512_loadu_si512(b + v * kWidth));
            for (int i = 0; i < kRows; ++i) {
                const __m512bh row = pairs(_mm512_set1_epi32(static_cast<int>(a[i])));
                for (int v = 0; v < kVectorsOf; ++v)
                    sums[i][v] = _mm512_dpbf16_ps(sums[i][v], row, columns_of_b[v]);
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

}  // namespace grainrank
