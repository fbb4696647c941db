// The innermost loop of a product of bfloat16 with AVX512-BF16, and the panels that it reads.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "avx512_tile.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Of 16 words, each of two numbers.
struct Bf16Pairs {
    static __m512 add(__m512 sum, __m512i row, __m512i column) {
        return _mm512_dpbf16_ps(sum, numbers(row), numbers(column));
    }

  private:
    static __m512bh numbers(__m512i words) {
        __m512bh out;
        std::memcpy(&out, &words, sizeof out);
        return out;
    }
};

struct Avx512Bf16 : Avx512Tile<Bf16Pairs> {
    using Value = uint16_t;
    static constexpr int64_t kValues = 2, kWords = 1;  // the depth is laid out in so many
    // At a time: so much depth that a panel of `a` stays in the first cache; so many columns that
    // their panels, and so many rows that their sums, stay in the second.
    static constexpr int64_t kDepth = 1024;
    static constexpr int64_t kSlabDepth = 2048;
    static constexpr int64_t kBuffers = 1;
    static constexpr int64_t kGroupBytes = 512 * 1024;
    static constexpr int64_t kGroupRows = 96;
    static constexpr bool kReadsRows = false, kStaysWithColumns = false;

    struct Session {};

    static void pack_rows(const Panels<uint16_t>& in, int64_t first, int64_t last) {
        pack<kRows>(in, first, last);
    }
    static void pack_columns(const Panels<uint16_t>& in, int64_t first, int64_t last) {
        pack<kColumns>(in, first, last);
    }

  private:
    static uint32_t word(uint16_t first, uint16_t second) {
        return first | static_cast<uint32_t>(second) << 16;
    }

    template <int kWide>
    static void pack(const Panels<uint16_t>& in, int64_t first, int64_t last) {
        if (in.depth_stride != 1)
            pack_across<kWide>(in, first, last);
        else
            for (; first < last; ++first) pack_along<kWide>(in, first);
    }

    // Neighbours in the depth are neighbours in memory: words as they are.
    template <int kWide>
    static void pack_along(const Panels<uint16_t>& in, int64_t panel) {
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
    static void pack_across(const Panels<uint16_t>& in, int64_t first_panel, int64_t last_panel) {
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
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
