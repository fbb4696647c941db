// Products of bfloat16 matrices with AVX512-BF16. As in every product that is bound by arithmetic
// both operands are first laid out as the innermost loop reads them: panels of a few rows of `a` or
// columns of `b`, in which a 32-bit word holds two neighbours in the depth.
#include "bf16_product.h"

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>

#include "huge_pages.h"
#include "parallel.h"

namespace grainrank {
namespace {

// A tile: kTileRows x kTileVectors sums of 16 in registers.
constexpr int kTileRows = 8, kTileVectors = 3;
constexpr std::ptrdiff_t kWidth = 16;
constexpr int kTileColumns = kTileVectors * static_cast<int>(kWidth);
// At a time: so much depth that a panel of `a` stays in the first cache; so many columns that their
// panels, and so many rows that their sums, stay in the second.
constexpr int64_t kDepth = 1024;
constexpr int64_t kGroupBytes = 512 * 1024;
constexpr int64_t kGroupRows = 96;
// What is laid out at a time, of each operand: so much depth, and so many bytes.
constexpr int64_t kSlabDepth = 2048;
constexpr int64_t kSlabBytes = 8 * 1024 * 1024;

int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Panels of `wide` lines (rows of `a`, columns of `b`): [panels, words, wide].
struct Panels {
    uint32_t* words;
    int wide;
    int64_t lines;
    int64_t depth;  // in words
    // The operand, from the first line and the first depth of the slab on.
    const uint16_t* values;
    int64_t line_stride;
    int64_t depth_stride;
    int64_t depth_values;

    int64_t count() const { return pieces(lines, wide); }
    uint32_t* at(int64_t panel) const { return words + panel * wide * depth; }
};

uint32_t word(uint16_t first, uint16_t second) {
    return first | static_cast<uint32_t>(second) << 16;
}

// Neighbours in the depth are neighbours in memory: words as they are.
template <int kWide>
void pack_along(const Panels& in, int64_t panel) {
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
void pack_across(const Panels& in, int64_t first_panel, int64_t last_panel) {
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

constexpr int kPanelsOfGroup = 8;

template <int kWide>
int pack_groups(void* context, int64_t begin, int64_t end) {
    const Panels& in = *static_cast<const Panels*>(context);
    const int64_t last = least(end * kPanelsOfGroup, in.count());
    if (in.depth_stride != 1)
        for (int64_t panel = begin * kPanelsOfGroup; panel < last; panel += kPanelsOfGroup)
            pack_across<kWide>(in, panel, least(panel + kPanelsOfGroup, last));
    else
        for (int64_t panel = begin * kPanelsOfGroup; panel < last; ++panel)
            pack_along<kWide>(in, panel);
    return 0;
}

// 32 numbers as the product of pairs takes them.
__m512bh pairs(__m512i words) {
    __m512bh numbers;
    std::memcpy(&numbers, &words, sizeof numbers);
    return numbers;
}

// `rows` x `columns` sums over `depth` words, of one panel of each operand.
template <int kVectors>
void tile(const uint32_t* a, const uint32_t* b, int64_t depth, int rows, int columns, bool add,
          float* out, int64_t stride) {
    __m512 sums[kTileRows][kVectors];
    for (auto& row : sums)
        for (auto& sum : row) sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileColumns) {
        __m512bh columns_of_b[kVectors];
        for (int v = 0; v < kVectors; ++v)
            columns_of_b[v] = pairs(_mm512_loadu_si512(b + v * kWidth));
        for (int i = 0; i < kTileRows; ++i) {
            const __m512bh row = pairs(_mm512_set1_epi32(static_cast<int>(a[i])));
            for (int v = 0; v < kVectors; ++v)
                sums[i][v] = _mm512_dpbf16_ps(sums[i][v], row, columns_of_b[v]);
        }
    }
    const int in_last = columns - (kVectors - 1) * static_cast<int>(kWidth);
    const auto last = static_cast<__mmask16>((1u << in_last) - 1);
    for (int i = 0; i < rows; ++i, out += stride) {
        for (int v = 0; v < kVectors; ++v) {
            const __mmask16 mask = v == kVectors - 1 ? last : static_cast<__mmask16>(0xffff);
            float* at = out + v * kWidth;
            const __m512 sum =
                add ? _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sums[i][v]) : sums[i][v];
            _mm512_mask_storeu_ps(at, mask, sum);
        }
    }
}

using Tile = void (*)(const uint32_t*, const uint32_t*, int64_t, int, int, bool, float*, int64_t);
constexpr Tile kTiles[kTileVectors] = {tile<1>, tile<2>, tile<3>};

struct Slab {
    const Panels& a;
    const Panels& b;
    float* out;
    int64_t stride;
    bool add;
    int64_t rows_of_group;  // panels of `a`
    int64_t columns_of_group;
    int64_t depth_of_piece;  // in words
};

void multiply_group(const Slab& in, int64_t first_row, int64_t first_column) {
    const int64_t last_row = least(first_row + in.rows_of_group, in.a.count());
    const int64_t last_column = least(first_column + in.columns_of_group, in.b.count());
    for (int64_t k = 0; k < in.a.depth; k += in.depth_of_piece) {
        const int64_t depth = least(in.depth_of_piece, in.a.depth - k);
        for (int64_t i = first_row; i < last_row; ++i) {
            const int64_t row = i * kTileRows;
            const auto rows = static_cast<int>(least(kTileRows, in.a.lines - row));
            for (int64_t j = first_column; j < last_column; ++j) {
                const int64_t column = j * kTileColumns;
                const auto columns = static_cast<int>(least(kTileColumns, in.b.lines - column));
                kTiles[(columns - 1) / kWidth](
                    in.a.at(i) + k * kTileRows, in.b.at(j) + k * kTileColumns, depth, rows, columns,
                    in.add || k > 0, in.out + row * in.stride + column, in.stride);
            }
        }
    }
}

int multiply_groups(void* context, int64_t begin, int64_t end) {
    const Slab& in = *static_cast<const Slab*>(context);
    const int64_t across = pieces(in.b.count(), in.columns_of_group);
    for (int64_t g = begin; g < end; ++g)
        multiply_group(in, g / across * in.rows_of_group, g % across * in.columns_of_group);
    return 0;
}

constexpr std::align_val_t kAlignment{64};

struct Memory {
    explicit Memory(int64_t words) {
        const auto bytes = static_cast<std::size_t>(words) * sizeof(uint32_t);
        values = static_cast<uint32_t*>(::operator new(bytes, kAlignment, std::nothrow));
        if (values) advise_huge_pages(reinterpret_cast<std::uintptr_t>(values), bytes);
    }
    ~Memory() { ::operator delete(values, kAlignment); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    uint32_t* values;
};

template <int kWide>
void pack(Panels& in, int num_threads) {
    parallel_for(pieces(in.count(), kPanelsOfGroup), 1, num_threads, pack_groups<kWide>, &in);
}

// Lines of a slab, a multiple of the panels' width.
int64_t slab_lines(int64_t lines, int64_t words, int wide) {
    const int64_t most = kSlabBytes / (words * static_cast<int64_t>(sizeof(uint32_t))) / wide;
    return least(most, pieces(lines, wide)) * wide;
}

ProductStatus product(const Bf16ProductArgs& in) {
    if (in.depth == 0) {
        for (int64_t i = 0; i < in.rows && !in.add; ++i)
            std::memset(in.out + i * in.out_stride, 0, sizeof(float) * in.columns);
        return ProductStatus::kOk;
    }
    const int64_t slab_words = pieces(least(in.depth, kSlabDepth), 2);
    const int64_t rows = slab_lines(in.rows, slab_words, kTileRows);
    const int64_t columns = slab_lines(in.columns, slab_words, kTileColumns);
    const Memory of_a(rows * slab_words), of_b(columns * slab_words);
    if (!of_a.values || !of_b.values) return ProductStatus::kOutOfMemory;
    for (int64_t k = 0; k < in.depth; k += kSlabDepth) {
        const int64_t depth = least(kSlabDepth, in.depth - k), words = pieces(depth, 2);
        const int64_t piece = pieces(words, pieces(depth, kDepth));
        Panels a{of_a.values,     kTileRows,          0,    words, nullptr,
                 in.a.row_stride, in.a.column_stride, depth};
        Panels b{of_b.values,        kTileColumns,    0,    words, nullptr,
                 in.b.column_stride, in.b.row_stride, depth};
        for (int64_t j = 0; j < in.columns; j += columns) {
            b.lines = least(columns, in.columns - j);
            b.values = in.b.values + j * in.b.column_stride + k * in.b.row_stride;
            pack<kTileColumns>(b, in.num_threads);
            for (int64_t i = 0; i < in.rows; i += rows) {
                if (i > 0 || j == 0 || rows < in.rows) {  // else it is still there
                    a.lines = least(rows, in.rows - i);
                    a.values = in.a.values + i * in.a.row_stride + k * in.a.column_stride;
                    pack<kTileRows>(a, in.num_threads);
                }
                Slab slab{a,
                          b,
                          in.out + i * in.out_stride + j,
                          in.out_stride,
                          in.add || k > 0,
                          kGroupRows / kTileRows,
                          std::max<int64_t>(1, kGroupBytes / (piece * 4 * kTileColumns)),
                          piece};
                const int64_t groups = pieces(a.count(), slab.rows_of_group) *
                                       pieces(b.count(), slab.columns_of_group);
                parallel_for(groups, 1, in.num_threads, multiply_groups, &slab);
            }
        }
    }
    return ProductStatus::kOk;
}

}  // namespace

// dispatch.cpp declares it.
// NOLINTNEXTLINE(misc-use-internal-linkage)
Bf16Product bf16_product() { return product; }

}  // namespace grainrank
