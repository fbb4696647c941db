// The innermost loop of a product of bfloat16 with AMX, and the panels that it reads: for 16 words
// of the depth, two tiles of 16 x 16 words. A tile of `a` has a line in a row, one of `b` in a
// column.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "panels.h"

namespace grainrank {
namespace GRAINRANK_ISA {

struct AmxBf16 {
    using Value = uint16_t;
    static constexpr int64_t kValues = 2;
    static constexpr int kTile = 16;  // rows of a tile register, and 32-bit words in a row
    static constexpr int kRows = 2 * kTile, kColumns = 2 * kTile;
    static constexpr int64_t kWords = kTile;
    // At a time: all depth that is laid out, as both panels come from the second cache; so many
    // columns and rows that these stay there.
    static constexpr int64_t kDepth = 2048;
    static constexpr int64_t kSlabDepth = 2048;
    static constexpr int64_t kBuffers = 1;
    static constexpr int64_t kGroupBytes = 512 * 1024;
    static constexpr int64_t kGroupRows = 256;
    static constexpr bool kReadsRows = false, kStaysWithColumns = false;

    // While it lasts this thread's eight tile registers are 16 rows of 64 bytes.
    struct Session {
        Session() {
            struct alignas(64) {
                uint8_t palette = 1, start_row = 0, reserved[14] = {};
                uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
                uint8_t rows[16] = {kTile, kTile, kTile, kTile, kTile, kTile, kTile, kTile};
            } const config;
            static_assert(sizeof config == 64);
            _tile_loadconfig(&config);
        }
        ~Session() { _tile_release(); }
        Session(const Session&) = delete;
        Session& operator=(const Session&) = delete;
    };

    static void pack_rows(const Panels<uint16_t>& in, int64_t first, int64_t last) {
        pack<true>(in, first, last);
    }
    static void pack_columns(const Panels<uint16_t>& in, int64_t first, int64_t last) {
        pack<false>(in, first, last);
    }

    // `rows` x `columns` sums over `depth` words, of one panel of each operand.
    static void multiply(const uint32_t* a, const uint32_t* b, int64_t depth, int rows, int columns,
                         bool add, float* out, int64_t stride) {
        const bool whole = rows == kRows && columns == kColumns && !add;
        alignas(64) float aside[kRows * kColumns];
        float* sums = whole ? out : aside;
        const int64_t sums_stride = whole ? stride : kColumns;
        // Half of the tiles where the rest is padding.
        if (rows > kTile && columns > kTile)
            tiles<2, 2>(a, b, depth, sums, sums_stride);
        else if (rows > kTile)
            tiles<2, 1>(a, b, depth, sums, sums_stride);
        else if (columns > kTile)
            tiles<1, 2>(a, b, depth, sums, sums_stride);
        else
            tiles<1, 1>(a, b, depth, sums, sums_stride);
        if (!whole) put(aside, rows, columns, add, out, stride);
    }

  private:
    static constexpr int64_t kTileWords = int64_t{kTile} * kTile;
    static constexpr int64_t kStepWords = 2 * kTileWords;  // of a panel

    template <int kRowTiles, int kColumnTiles>
    static void tiles(const uint32_t* a, const uint32_t* b, int64_t depth, float* out,
                      int64_t stride) {
        constexpr int row_bytes = kTile * sizeof(uint32_t);
        constexpr bool below = kRowTiles == 2, beside = kColumnTiles == 2;
        _tile_zero(0);
        if constexpr (beside) _tile_zero(1);
        if constexpr (below) _tile_zero(2);
        if constexpr (below && beside) _tile_zero(3);
        for (int64_t k = 0; k < depth; k += kWords, a += kStepWords, b += kStepWords) {
            _tile_loadd(6, b, row_bytes);
            _tile_loadd(4, a, row_bytes);
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (beside) {
                _tile_loadd(7, b + kTileWords, row_bytes);
                _tile_dpbf16ps(1, 4, 7);
            }
            if constexpr (below) {
                _tile_loadd(5, a + kTileWords, row_bytes);
                _tile_dpbf16ps(2, 5, 6);
            }
            if constexpr (below && beside) _tile_dpbf16ps(3, 5, 7);
        }
        const auto out_bytes = static_cast<std::size_t>(stride) * sizeof(float);
        _tile_stored(0, out, out_bytes);
        if constexpr (beside) _tile_stored(1, out + kTile, out_bytes);
        if constexpr (below) _tile_stored(2, out + kTile * stride, out_bytes);
        if constexpr (below && beside) _tile_stored(3, out + kTile * stride + kTile, out_bytes);
    }

    // The first `count` of 32 or 16 lanes.
    static __mmask32 first32(int64_t count) {
        return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
    }
    static __mmask16 first16(int64_t count) {
        return static_cast<__mmask16>(first32(least(count, 16)));
    }

    static void put(const float* sums, int rows, int columns, bool add, float* out,
                    int64_t stride) {
        for (int i = 0; i < rows; ++i, out += stride, sums += kColumns)
            for (int j = 0; j < columns; j += kTile) {
                const __mmask16 mask = first16(columns - j);
                __m512 sum = _mm512_load_ps(sums + j);
                if (add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out + j), sum);
                _mm512_mask_storeu_ps(out + j, mask, sum);
            }
    }

    using Block = __m512i[kTile];

    // kByLine: a line is a row of a tile, else a column.
    template <bool kByLine>
    static void pack(const Panels<uint16_t>& in, int64_t first, int64_t last) {
        const int64_t steps = in.depth / kWords;
        if (in.depth_stride != 1) {  // all panels at once, so that whole cache lines are read
            for (int64_t step = 0; step < steps; ++step)
                for (int64_t panel = first; panel < last; ++panel)
                    for (int64_t half = 0; half < 2; ++half)
                        pack_tile<kByLine, false>(in, panel, step, half);
            return;
        }
        for (int64_t panel = first; panel < last; ++panel)
            for (int64_t half = 0; half < 2; ++half)
                for (int64_t step = 0; step < steps; ++step)
                    pack_tile<kByLine, true>(in, panel, step, half);
    }

    template <bool kByLine, bool kAlong>
    static void pack_tile(const Panels<uint16_t>& in, int64_t panel, int64_t step, int64_t half) {
        const int64_t line = panel * kRows + half * kTile;
        const int64_t lines = in.lines - line, depth = step * 2 * kTile;
        const uint16_t* from = in.values + line * in.line_stride + depth * in.depth_stride;
        Block block;
        if constexpr (kAlong)
            read_lines(from, in.line_stride, lines, in.depth_values - depth, block);
        else
            read_pairs(from, in.depth_stride, lines, in.depth_values - depth, block);
        if constexpr (kByLine != kAlong) transpose(block);
        uint32_t* out = in.at(panel) + step * kStepWords + half * kTileWords;
        for (int64_t i = 0; i < kTile; ++i) _mm512_store_si512(out + i * kTile, block[i]);
    }

    // Neighbours in the depth are neighbours in memory: a row of the block is a line.
    static void read_lines(const uint16_t* from, int64_t stride, int64_t lines, int64_t depth,
                           Block& block) {
        const __mmask32 mask = first32(depth);
        for (int i = 0; i < kTile; ++i)
            block[i] = i < lines ? _mm512_maskz_loadu_epi16(mask, from + i * stride)
                                 : _mm512_setzero_si512();
    }

    // Lines are neighbours in memory: a row of the block is a word of each, of two rows
    // interleaved.
    static void read_pairs(const uint16_t* from, int64_t stride, int64_t lines, int64_t depth,
                           Block& block) {
        const __mmask16 mask = first16(lines < 0 ? 0 : lines);
        const auto row = [&](int64_t k) {
            return k < depth
                       ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + k * stride))
                       : _mm512_setzero_si512();
        };
        for (int64_t i = 0; i < kTile; ++i)
            block[i] = _mm512_or_si512(row(2 * i), _mm512_slli_epi32(row(2 * i + 1), 16));
    }

    static void transpose(Block& block) {
        Block pairs, quads;
        for (int i = 0; i < kTile; i += 2) {
            pairs[i] = _mm512_unpacklo_epi32(block[i], block[i + 1]);
            pairs[i + 1] = _mm512_unpackhi_epi32(block[i], block[i + 1]);
        }
        // quads[4 g + c]: in lane l, column 4 l + c of the rows 4 g to 4 g + 3.
        for (int i = 0; i < kTile; i += 4) {
            quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
            quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
            quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        for (int c = 0; c < 4; ++c) {
            const __m512i even_low = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0x88);
            const __m512i odd_low = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0xdd);
            const __m512i even_high = _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0x88);
            const __m512i odd_high = _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0xdd);
            block[c] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
            block[4 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
            block[8 + c] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
            block[12 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
        }
    }
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
