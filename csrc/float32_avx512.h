// The innermost loop of a product of float32 with AVX-512, and the panels that it reads.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "avx512_tile.h"

namespace grainrank {

struct Floats {
    static __m512 add(__m512 sum, __m512i row, __m512i column) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(row), _mm512_castsi512_ps(column), sum);
    }
};

struct Avx512Float32 : Avx512Tile<Floats> {
    using Value = float;
    static constexpr int64_t kValues = 1, kWords = 1;
    // As in bf16_avx512.h, but for the depth: so short that sums are as accurate as those of MKL.
    static constexpr int64_t kDepth = 128;
    static constexpr int64_t kGroupBytes = 256 * 1024;
    static constexpr int64_t kGroupRows = 96;

    struct Session {};

    static void pack_rows(const Panels<float>& in, int64_t first, int64_t last) {
        pack<kRows>(in, first, last);
    }
    static void pack_columns(const Panels<float>& in, int64_t first, int64_t last) {
        pack<kColumns>(in, first, last);
    }

  private:
    static constexpr int kSquare = 8;

    template <int kWide>
    static void pack(const Panels<float>& in, int64_t first, int64_t last) {
        static_assert(kWide % kSquare == 0);
        if (in.depth_stride != 1) {
            pack_across<kWide>(in, first, last);
            return;
        }
        for (int64_t panel = first; panel < last; ++panel)
            for (int i = 0; i < kWide; i += kSquare)
                for (int64_t k = 0; k < in.depth; k += kSquare)
                    turn(in, panel * kWide + i, k, in.at(panel) + k * kWide + i, kWide);
    }

    // The first `count` of 8 lanes.
    static __mmask8 first8(int64_t count) {
        return static_cast<__mmask8>(count >= 8 ? 0xff : count <= 0 ? 0 : (1 << count) - 1);
    }

    // Neighbours in the depth are neighbours in memory: a square of lines and depth is transposed.
    static void turn(const Panels<float>& in, int64_t line, int64_t k, uint32_t* out,
                     int64_t wide) {
        const __mmask8 mask = first8(in.depth - k);
        const float* from = in.values + line * in.line_stride + k;
        __m256 rows[kSquare], pairs[kSquare], quads[kSquare];
        for (int i = 0; i < kSquare; ++i)
            rows[i] = line + i < in.lines ? _mm256_maskz_loadu_ps(mask, from + i * in.line_stride)
                                          : _mm256_setzero_ps();
        for (int i = 0; i < kSquare; i += 2) {
            pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        }
        // quads[4 g + c]: in half h, the depth 4 h + c of the lines 4 g to 4 g + 3.
        for (int i = 0; i < kSquare; i += 4) {
            quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
            quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
            quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
            quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
        }
        for (int i = 0; i < kSquare; ++i) {
            if (k + i >= in.depth) return;
            const __m256 low = quads[i % 4], high = quads[4 + i % 4];
            const __m256 lines = i < 4 ? _mm256_permute2f128_ps(low, high, 0x20)
                                       : _mm256_permute2f128_ps(low, high, 0x31);
            std::memcpy(out + i * wide, &lines, sizeof lines);
        }
    }

    // Lines are neighbours in memory. All panels of a group at once, so that whole cache lines are
    // read.
    template <int kWide>
    static void pack_across(const Panels<float>& in, int64_t first_panel, int64_t last_panel) {
        for (int64_t first = 0; first < in.depth; first += kSquare)
            for (int64_t panel = first_panel; panel < last_panel; ++panel)
                for (int64_t k = first; k < least(first + kSquare, in.depth); ++k) {
                    const float* row = in.values + k * in.depth_stride;
                    uint32_t* out = in.at(panel) + k * kWide;
                    for (int i = 0; i < kWide; i += kSquare) {
                        const int64_t line = panel * kWide + i;
                        const __m256 lines =
                            _mm256_maskz_loadu_ps(first8(in.lines - line), row + line);
                        std::memcpy(out + i, &lines, sizeof lines);
                    }
                }
    }
};

}  // namespace grainrank
