// How the panels of a product of float32 are laid out: word k * kWide + i of a panel is line i at
// depth k.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "panels.h"

namespace grainrank {
namespace GRAINRANK_ISA {

template <int kWide>
class Float32Packing {
  public:
    static void pack(const Panels<float>& in, int64_t first, int64_t last) {
        if (in.depth_stride != 1) {
            across(in, first, last);
            return;
        }
        for (int64_t panel = first; panel < last; ++panel)
            for (int i = 0; i < kWide; i += kLines)
                for (int64_t k = 0; k < in.depth; k += kSquare)
                    turn(in, panel * kWide + i, k, in.at(panel) + k * kWide + i);
    }

  private:
    static constexpr int kSquare = 8;
    static constexpr int kLines = kWide % kSquare == 0 ? kSquare : 4;  // turned at a time
    static_assert(kWide % kLines == 0);

    // The first `count` of 8 lanes.
    static __m256i first8(int64_t count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(least(count, kSquare))),
                                  _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }

    // Neighbours in the depth are neighbours in memory: lines and depth are transposed.
    static void turn(const Panels<float>& in, int64_t line, int64_t k, uint32_t* out) {
        const __m256i mask = first8(in.depth - k);
        const float* from = in.values + line * in.line_stride + k;
        __m256 rows[kLines], pairs[kLines], quads[kLines];
        for (int i = 0; i < kLines; ++i)
            rows[i] = line + i < in.lines ? _mm256_maskload_ps(from + i * in.line_stride, mask)
                                          : _mm256_setzero_ps();
        for (int i = 0; i < kLines; i += 2) {
            pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        }
        // quads[4 g + c]: in half h, the depth 4 h + c of the lines 4 g to 4 g + 3.
        for (int i = 0; i < kLines; i += 4) {
            quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
            quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
            quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
            quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
        }
        for (int i = 0; i < kSquare; ++i, out += kWide) {
            if (k + i >= in.depth) return;
            const __m256 low = quads[i % 4];
            if constexpr (kLines == kSquare) {
                const __m256 high = quads[4 + i % 4];
                const __m256 lines = i < 4 ? _mm256_permute2f128_ps(low, high, 0x20)
                                           : _mm256_permute2f128_ps(low, high, 0x31);
                std::memcpy(out, &lines, sizeof lines);
            } else {
                const __m128 lines =
                    i < 4 ? _mm256_castps256_ps128(low) : _mm256_extractf128_ps(low, 1);
                std::memcpy(out, &lines, sizeof lines);
            }
        }
    }

    // Lines are neighbours in memory. All panels of a group at once, so that whole cache lines are
    // read.
    static void across(const Panels<float>& in, int64_t first_panel, int64_t last_panel) {
        for (int64_t first = 0; first < in.depth; first += kSquare)
            for (int64_t panel = first_panel; panel < last_panel; ++panel)
                for (int64_t k = first; k < least(first + kSquare, in.depth); ++k) {
                    const int64_t line = panel * kWide, lines = in.lines - line;
                    const float* from = in.values + k * in.depth_stride + line;
                    uint32_t* out = in.at(panel) + k * kWide;
                    if (lines >= kWide) {
                        std::memcpy(out, from, sizeof(float) * kWide);
                    } else {
                        std::memset(out, 0, sizeof(float) * kWide);
                        std::memcpy(out, from, sizeof(float) * static_cast<size_t>(lines));
                    }
                }
    }
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
