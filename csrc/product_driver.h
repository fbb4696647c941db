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
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "panels.h"
#include "parallel.h"
#include "product.h"

namespace grainrank {

// What is laid out at a time, of each operand: so much depth, and so many bytes.
inline constexpr int64_t kSlabDepth = 2048;
inline constexpr int64_t kSlabBytes = 8 * 1024 * 1024;
inline constexpr int kLinesOfGroup = 256;  // of an operand, that a thread lays out

// Panels of some rows, some columns and some of the depth; laid out, and multiplied.
template <class Kernel>
struct Slab {
    using Operand = Panels<typename Kernel::Value>;
    Operand a, b;
    bool packs_a, packs_b;  // else the slab before has left them
    float* out;
    int64_t out_stride;
    bool add;
    int64_t columns_of_group;                                                    // panels of `b`
    int64_t depth_of_piece;                                                      // in words
    static constexpr int64_t kRowsOfGroup = Kernel::kGroupRows / Kernel::kRows;  // panels of `a`

    int64_t packings() const { return packings(packs_b, b) + packings(packs_a, a); }
    void pack(int64_t group) const {
        const int64_t of_b = packings(packs_b, b);
        if (group < of_b)
            pack(b, Kernel::pack_columns, group);
        else
            pack(a, Kernel::pack_rows, group - of_b);
    }

    int64_t products() const { return pieces(a.count(), kRowsOfGroup) * across(); }
    void multiply(int64_t group) const {
        const int64_t first_row = group / across() * kRowsOfGroup;
        const int64_t first_column = group % across() * columns_of_group;
        const int64_t last_row = least(first_row + kRowsOfGroup, a.count());
        const int64_t last_column = least(first_column + columns_of_group, b.count());
        for (int64_t k = 0; k < a.depth; k += depth_of_piece)
            for (int64_t i = first_row; i < last_row; ++i)
                for (int64_t j = first_column; j < last_column; ++j) multiply(i, j, k);
    }

  private:
    static int64_t panels_of_group(const Operand& x) { return kLinesOfGroup / x.wide; }
    static int64_t packings(bool packs, const Operand& x) {
        return packs ? pieces(x.count(), panels_of_group(x)) : 0;
    }
    template <class Pack>
    static void pack(const Operand& x, Pack run, int64_t group) {
        const int64_t first = group * panels_of_group(x);
        run(x, first, least(first + panels_of_group(x), x.count()));
    }

    int64_t across() const { return pieces(b.count(), columns_of_group); }
    void multiply(int64_t i, int64_t j, int64_t k) const {
        const int64_t row = i * Kernel::kRows, column = j * Kernel::kColumns;
        Kernel::multiply(a.at(i) + k * Kernel::kRows, b.at(j) + k * Kernel::kColumns,
                         least(depth_of_piece, a.depth - k),
                         static_cast<int>(least(Kernel::kRows, a.lines - row)),
                         static_cast<int>(least(Kernel::kColumns, b.lines - column)), add || k > 0,
                         out + row * out_stride + column, out_stride);
    }
};

// Pieces of work that have to be done before those of the next phase. Nobody waits for a thread
// that has not come: on cores that others keep busy it may be long in coming.
class Phase {
  public:
    template <class Work>
    void run(int64_t n, Work work) {
        for (int64_t piece = next_++; piece < n; piece = next_++) {
            work(piece);
            done_.fetch_add(1, std::memory_order_release);
        }
        for (int turn = 0; done_.load(std::memory_order_acquire) < n; ++turn)
            if (turn > kTurns) std::this_thread::yield();
    }

  private:
    static constexpr int kTurns = 2000;
    std::atomic<int64_t> next_{0}, done_{0};
};

template <class Kernel>
struct Work {
    const std::vector<Slab<Kernel>>& slabs;
    std::vector<Phase> packing, multiplying;  // of each slab
};

template <class Kernel>
int take_part(void* context, int64_t, int64_t) {
    Work<Kernel>& work = *static_cast<Work<Kernel>*>(context);
    [[maybe_unused]] const typename Kernel::Session session{};
    for (size_t s = 0; s < work.slabs.size(); ++s) {
        const Slab<Kernel>& slab = work.slabs[s];
        work.packing[s].run(slab.packings(), [&](int64_t group) { slab.pack(group); });
        work.multiplying[s].run(slab.products(), [&](int64_t group) { slab.multiply(group); });
    }
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
    using Operand = typename Slab<Kernel>::Operand;
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
    std::vector<Slab<Kernel>> slabs;
    for (int64_t k = 0; k < in.depth; k += kSlabDepth) {
        const int64_t depth = least(kSlabDepth, in.depth - k), words = words_of<Kernel>(depth);
        const int64_t piece =
            pieces(words / Kernel::kWords, pieces(depth, Kernel::kDepth)) * Kernel::kWords;
        for (int64_t j = 0; j < in.columns; j += columns)
            for (int64_t i = 0; i < in.rows; i += rows) {
                const Operand a{of_a.get(),
                                Kernel::kRows,
                                least(rows, in.rows - i),
                                words,
                                in.a.values + i * in.a.row_stride + k * in.a.column_stride,
                                in.a.row_stride,
                                in.a.column_stride,
                                depth};
                const Operand b{of_b.get(),
                                Kernel::kColumns,
                                least(columns, in.columns - j),
                                words,
                                in.b.values + j * in.b.column_stride + k * in.b.row_stride,
                                in.b.column_stride,
                                in.b.row_stride,
                                depth};
                slabs.push_back(
                    {a, b, i > 0 || j == 0 || rows < in.rows, i == 0,
                     in.out + i * in.out_stride + j, in.out_stride, in.add || k > 0,
                     std::max<int64_t>(1, Kernel::kGroupBytes / (piece * 4 * Kernel::kColumns)),
                     piece});
            }
    }
    int64_t most = 0;
    for (const Slab<Kernel>& slab : slabs)
        most = std::max({most, slab.packings(), slab.products()});
    Work<Kernel> work{slabs, std::vector<Phase>(slabs.size()), std::vector<Phase>(slabs.size())};
    const auto threads = static_cast<int>(least(most, in.num_threads));
    parallel_for(threads, 1, threads, take_part<Kernel>, &work);
    return ProductStatus::kOk;
}

}  // namespace grainrank
