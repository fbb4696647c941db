// A product from an innermost loop: as in every product that is bound by arithmetic both operands
// are first laid out as that loop reads them. A kernel has
//
//   Value               of an operand: float, or uint16_t for a bfloat16
//   kRows, kColumns     of a tile of sums
//   kValues             that are neighbours in the depth in a 32-bit word
//   kWords              the depth is laid out in so many
//   kDepth              values of the depth that are summed at a time
//   kGroupBytes         of the panels of `b` that a thread stays with, and
//   kGroupRows          the rows of `a`
//   Session             what lasts while a thread multiplies
//   pack_rows, pack_columns, multiply
#pragma once

#include <algorithm>
#include <cstring>

#include "panels.h"
#include "parallel.h"
#include "product.h"

namespace grainrank {

// What is laid out at a time, of each operand: so much depth, and so many bytes.
inline constexpr int64_t kSlabDepth = 2048;
inline constexpr int64_t kSlabBytes = 8 * 1024 * 1024;
inline constexpr int kLinesOfGroup = 256;  // of an operand, that a thread lays out

template <class T>
using Pack = void (*)(const Panels<T>&, int64_t first, int64_t last);

template <class T>
struct Packing {
    const Panels<T>& in;
    Pack<T> run;
    int64_t panels_of_group;
};

template <class T>
int pack_groups(void* context, int64_t begin, int64_t end) {
    const Packing<T>& packing = *static_cast<const Packing<T>*>(context);
    const int64_t count = packing.in.count(), size = packing.panels_of_group;
    for (int64_t group = begin; group < end; ++group)
        packing.run(packing.in, group * size, least((group + 1) * size, count));
    return 0;
}

template <class T>
void pack(const Panels<T>& in, Pack<T> run, int num_threads) {
    Packing<T> packing{in, run, kLinesOfGroup / in.wide};
    parallel_for(pieces(in.count(), packing.panels_of_group), 1, num_threads, pack_groups<T>,
                 &packing);
}

template <class T>
struct Slab {
    const Panels<T>& a;
    const Panels<T>& b;
    float* out;
    int64_t stride;
    bool add;
    int64_t rows_of_group;  // panels of `a`
    int64_t columns_of_group;
    int64_t depth_of_piece;  // in words
};

template <class Kernel>
void multiply_group(const Slab<typename Kernel::Value>& in, int64_t first_row,
                    int64_t first_column) {
    const int64_t last_row = least(first_row + in.rows_of_group, in.a.count());
    const int64_t last_column = least(first_column + in.columns_of_group, in.b.count());
    for (int64_t k = 0; k < in.a.depth; k += in.depth_of_piece) {
        const int64_t depth = least(in.depth_of_piece, in.a.depth - k);
        for (int64_t i = first_row; i < last_row; ++i) {
            const int64_t row = i * Kernel::kRows;
            const auto rows = static_cast<int>(least(Kernel::kRows, in.a.lines - row));
            for (int64_t j = first_column; j < last_column; ++j) {
                const int64_t column = j * Kernel::kColumns;
                const auto columns = static_cast<int>(least(Kernel::kColumns, in.b.lines - column));
                Kernel::multiply(in.a.at(i) + k * Kernel::kRows, in.b.at(j) + k * Kernel::kColumns,
                                 depth, rows, columns, in.add || k > 0,
                                 in.out + row * in.stride + column, in.stride);
            }
        }
    }
}

template <class Kernel>
int multiply_groups(void* context, int64_t begin, int64_t end) {
    using Group = Slab<typename Kernel::Value>;
    const Group& in = *static_cast<const Group*>(context);
    const int64_t across = pieces(in.b.count(), in.columns_of_group);
    [[maybe_unused]] const typename Kernel::Session session{};
    for (int64_t g = begin; g < end; ++g)
        multiply_group<Kernel>(in, g / across * in.rows_of_group, g % across * in.columns_of_group);
    return 0;
}

// Words of the depth as a kernel lays them out.
template <class Kernel>
int64_t words_of(int64_t depth) {
    return pieces(depth, Kernel::kValues * Kernel::kWords) * Kernel::kWords;
}

// Lines of a slab, a multiple of the panels' width.
inline int64_t slab_lines(int64_t lines, int64_t words, int wide) {
    const int64_t most = kSlabBytes / (words * static_cast<int64_t>(sizeof(uint32_t))) / wide;
    return least(most, pieces(lines, wide)) * wide;
}

template <class Kernel>
ProductStatus product(const ProductArgs<typename Kernel::Value>& in) {
    using Value = typename Kernel::Value;
    if (in.depth == 0) {
        for (int64_t i = 0; i < in.rows && !in.add; ++i)
            std::memset(in.out + i * in.out_stride, 0, sizeof(float) * in.columns);
        return ProductStatus::kOk;
    }
    const int64_t slab_words = words_of<Kernel>(least(in.depth, kSlabDepth));
    const int64_t rows = slab_lines(in.rows, slab_words, Kernel::kRows);
    const int64_t columns = slab_lines(in.columns, slab_words, Kernel::kColumns);
    const PanelMemory of_a(rows * slab_words), of_b(columns * slab_words);
    if (!of_a.get() || !of_b.get()) return ProductStatus::kOutOfMemory;
    for (int64_t k = 0; k < in.depth; k += kSlabDepth) {
        const int64_t depth = least(kSlabDepth, in.depth - k), words = words_of<Kernel>(depth);
        const int64_t piece =
            pieces(words / Kernel::kWords, pieces(depth, Kernel::kDepth)) * Kernel::kWords;
        Panels<Value> a{of_a.get(),      Kernel::kRows,      0,    words, nullptr,
                        in.a.row_stride, in.a.column_stride, depth};
        Panels<Value> b{of_b.get(),         Kernel::kColumns, 0,    words, nullptr,
                        in.b.column_stride, in.b.row_stride,  depth};
        for (int64_t j = 0; j < in.columns; j += columns) {
            b.lines = least(columns, in.columns - j);
            b.values = in.b.values + j * in.b.column_stride + k * in.b.row_stride;
            pack<Value>(b, Kernel::pack_columns, in.num_threads);
            for (int64_t i = 0; i < in.rows; i += rows) {
                if (i > 0 || j == 0 || rows < in.rows) {  // else it is still there
                    a.lines = least(rows, in.rows - i);
                    a.values = in.a.values + i * in.a.row_stride + k * in.a.column_stride;
                    pack<Value>(a, Kernel::pack_rows, in.num_threads);
                }
                Slab<Value> slab{
                    a,
                    b,
                    in.out + i * in.out_stride + j,
                    in.out_stride,
                    in.add || k > 0,
                    Kernel::kGroupRows / Kernel::kRows,
                    std::max<int64_t>(1, Kernel::kGroupBytes / (piece * 4 * Kernel::kColumns)),
                    piece};
                const int64_t groups = pieces(a.count(), slab.rows_of_group) *
                                       pieces(b.count(), slab.columns_of_group);
                parallel_for(groups, 1, in.num_threads, multiply_groups<Kernel>, &slab);
            }
        }
    }
    return ProductStatus::kOk;
}

}  // namespace grainrank
