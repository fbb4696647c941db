// The innermost loop of a product of float32 with AVX-512.
#pragma once

#include <immintrin.h>

#include "avx512_tile.h"
#include "float32_panels.h"

namespace grainrank {
namespace GRAINRANK_ISA {

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
    static constexpr int64_t kSlabDepth = 2048;
    static constexpr int64_t kBuffers = 1;
    static constexpr int64_t kGroupBytes = 256 * 1024;
    static constexpr int64_t kGroupRows = 96;
    static constexpr bool kReadsRows = false, kStaysWithColumns = false;

    struct Session {};

    static void pack_rows(const Panels<float>& in, int64_t first, int64_t last) {
        Float32Packing<kRows>::pack(in, first, last);
    }
    static void pack_columns(const Panels<float>& in, int64_t first, int64_t last) {
        Float32Packing<kColumns>::pack(in, first, last);
    }
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
