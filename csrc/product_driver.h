// A product from an innermost loop: as in every product that is bound by arithmetic both operands
// are first laid out as that loop reads them. A kernel has
//
//   Value               of an operand: float, or uint16_t for a bfloat16
//   kRows, kColumns     of a tile of sums
//   kValues             that are neighbours in the depth in a 32-bit word
//   kWords              the depth is laid out in so many
//   kDepth              values of the depth that are summed at a time
//   kSlabDepth          of the depth that is laid out at a time
//   kBuffers            of panels: 2, so that a thread that waits for no others lays out the next
//   kGroupBytes         of the panels of `b` that a thread stays with, and
//   kGroupRows          the rows of `a`: so many at most
//   kStaysWithColumns   whether it goes through these rows for each panel of `b`, or the reverse
//   kReadsRows          whether rows of `a` whose depth is contiguous are read where they lie
//   Session             what lasts while a thread multiplies
//   pack_rows, pack_columns, multiply, and multiply_rows where it reads them
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#include "panels.h"
#include "parallel.h"
#include "product.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// What is laid out of each operand at a time, in all buffers.
inline constexpr int64_t kSlabBytes = 8 * 1024 * 1024;
// Of an operand, that a thread lays out at a time; words of depth.
inline constexpr int kLinesOfGroup = 256;
inline constexpr int kDepthOfGroup = 256;

// Panels of some rows, some columns and some of the depth; laid out, and multiplied.
template <class Kernel>
struct Slab {
    using Operand = Panels<typename Kernel::Value>;
    Operand a, b;
    bool packs_a, packs_b;  // else the slab before has left them
    float* out;
    int64_t out_stride;
    bool add;
    int64_t depth_of_piece;    // in words
    int64_t rows_of_group;     // panels of `a`
    int64_t columns_of_group;  // panels of `b`

    Slab(const Operand& of_a, const Operand& of_b, bool new_a, bool new_b, float* sums,
         int64_t stride, bool adds, int64_t piece, int threads)
        : a(of_a),
          b(of_b),
          packs_a(new_a && !in_place(of_a.depth_stride)),
          packs_b(new_b),
          out(sums),
          out_stride(stride),
          add(adds),
          depth_of_piece(piece) {
        const int64_t most_columns = Kernel::kGroupBytes / (piece * 4 * Kernel::kColumns);
        const int64_t across = pieces(b.count(), std::max<int64_t>(1, most_columns));
        const int64_t down = pieces(a.count(), Kernel::kGroupRows / Kernel::kRows);
        columns_of_group = pieces(b.count(), across);
        rows_of_group = pieces(a.count(), even(down, across, threads));
    }

    int64_t packings() const { return packings(packs_b, b) + packings(packs_a, a); }
    void pack(int64_t group) const {
        const int64_t of_b = packings(packs_b, b);
        if (group < of_b)
            pack(b, Kernel::pack_columns, group);
        else
            pack(a, Kernel::pack_rows, group - of_b);
    }

    int64_t products() const { return pieces(a.count(), rows_of_group) * across(); }
    void multiply(int64_t group) const {
        const int64_t first_row = group / across() * rows_of_group;
        const int64_t first_column = group % across() * columns_of_group;
        const int64_t last_row = least(first_row + rows_of_group, a.count());
        const int64_t last_column = least(first_column + columns_of_group, b.count());
        for (int64_t k = 0; k < a.depth; k += depth_of_piece) {
            if constexpr (Kernel::kStaysWithColumns) {
                for (int64_t j = first_column; j < last_column; ++j)
                    for (int64_t i = first_row; i < last_row; ++i) multiply(i, j, k);
            } else {
                for (int64_t i = first_row; i < last_row; ++i)
                    for (int64_t j = first_column; j < last_column; ++j) multiply(i, j, k);
            }
        }
    }

    // Whether rows of `a` are read where they lie.
    static bool in_place(int64_t depth_stride) { return Kernel::kReadsRows && depth_stride == 1; }

  private:
    // At least `down`, fewer than twice as many: so that the last pieces, down * across in all,
    // keep every thread busy.
    static int64_t even(int64_t down, int64_t across, int threads) {
        int64_t best = down;
        const auto turns = [&](int64_t n) { return pieces(n * across, threads); };
        for (int64_t n = down + 1; n < 2 * down; ++n)
            if (turns(n) * best < turns(best) * n) best = n;
        return best;
    }
    static int64_t panels_of_group(const Operand& x) { return kLinesOfGroup / x.wide; }
    static int64_t packings(bool packs, const Operand& x) {
        return packs ? pieces(x.count(), panels_of_group(x)) * pieces(x.depth, kDepthOfGroup) : 0;
    }
    template <class Pack>
    static void pack(const Operand& x, Pack run, int64_t group) {
        const int64_t of_lines = pieces(x.count(), panels_of_group(x));
        const int64_t first = group % of_lines * panels_of_group(x);
        const int64_t k = group / of_lines * kDepthOfGroup;
        run(x.of_depth(k, least(k + kDepthOfGroup, x.depth), Kernel::kValues), first,
            least(first + panels_of_group(x), x.count()));
    }

    int64_t across() const { return pieces(b.count(), columns_of_group); }
    void multiply(int64_t i, int64_t j, int64_t k) const {
        const int64_t row = i * Kernel::kRows, column = j * Kernel::kColumns;
        const int64_t depth = least(depth_of_piece, a.depth - k);
        const auto rows = static_cast<int>(least(Kernel::kRows, a.lines - row));
        const auto columns = static_cast<int>(least(Kernel::kColumns, b.lines - column));
        const uint32_t* of_b = b.at(j) + k * Kernel::kColumns;
        const bool adds = add || k > 0;
        float* sums = out + row * out_stride + column;
        if constexpr (Kernel::kReadsRows)
            if (in_place(a.depth_stride)) {
                Kernel::multiply_rows(a.values + row * a.line_stride + k, a.line_stride, of_b,
                                      depth, rows, columns, adds, sums, out_stride);
                return;
            }
        Kernel::multiply(a.at(i) + k * Kernel::kRows, of_b, depth, rows, columns, adds, sums,
                         out_stride);
    }
};

// Pieces of work that have to be done before those of a later phase. Nobody waits for a thread
// that has not come: on cores that others keep busy it may be long in coming.
class Phase {
  public:
    explicit Phase(int64_t n) : n_(n) {}

    template <class Work>
    void run(Work work) {
        for (int64_t piece = next_++; piece < n_; piece = next_++) {
            work(piece);
            done_.fetch_add(1, std::memory_order_release);
        }
    }
    void wait() const {
        for (int turn = 0; done_.load(std::memory_order_acquire) < n_; ++turn)
            if (turn > kTurns) std::this_thread::yield();
    }

  private:
    static constexpr int kTurns = 2000;
    int64_t n_;
    std::atomic<int64_t> next_{0}, done_{0};
};

template <class Kernel>
struct Work {
    const std::vector<Slab<Kernel>>& slabs;
    std::deque<Phase> packing, multiplying;  // of each slab

    explicit Work(const std::vector<Slab<Kernel>>& of) : slabs(of) {
        for (const Slab<Kernel>& slab : of) {
            packing.emplace_back(slab.packings());
            multiplying.emplace_back(slab.products());
        }
    }
};

template <class Kernel>
int take_part(void* context, int64_t, int64_t) {
    Work<Kernel>& work = *static_cast<Work<Kernel>*>(context);
    [[maybe_unused]] const typename Kernel::Session session{};
    for (size_t s = 0; s < work.slabs.size(); ++s) {
        const Slab<Kernel>& slab = work.slabs[s];
        if (s >= size_t{Kernel::kBuffers}) work.multiplying[s - Kernel::kBuffers].wait();
        work.packing[s].run([&](int64_t group) { slab.pack(group); });
        work.packing[s].wait();
        if (s > 0) work.multiplying[s - 1].wait();  // whose sums it may add to
        work.multiplying[s].run([&](int64_t group) { slab.multiply(group); });
    }
    return 0;
}

// Words of the depth as a kernel lays them out.
template <class Kernel>
int64_t words_of(int64_t depth) {
    return pieces(depth, Kernel::kValues * Kernel::kWords) * Kernel::kWords;
}

// The memory for an operand's panels of a slab.
template <class Kernel>
class SlabMemory {
  public:
    SlabMemory(int64_t lines, int64_t words, int wide, bool in_place)
        : lines_(in_place ? lines : most_lines(lines, words, wide)),
          words_(in_place ? 0 : lines_ * words),
          memory_(words_ * Kernel::kBuffers) {}
    bool is_there() const { return memory_.get() != nullptr; }
    int64_t lines() const { return lines_; }  // of a slab
    // Of the next slab, or where the one before has laid the same out.
    uint32_t* words(bool anew) {
        turn_ += anew;
        return memory_.get() + turn_ % Kernel::kBuffers * words_;
    }

  private:
    // A multiple of the panels' width.
    static int64_t most_lines(int64_t lines, int64_t words, int wide) {
        const int64_t bytes = words * static_cast<int64_t>(sizeof(uint32_t));
        return least(kSlabBytes / Kernel::kBuffers / bytes / wide, pieces(lines, wide)) * wide;
    }
    int64_t lines_, words_;
    PanelMemory memory_;
    int64_t turn_ = 0;
};

template <class Kernel>
ProductStatus product(const ProductArgs<typename Kernel::Value>& in) {
    using Operand = typename Slab<Kernel>::Operand;
    if (in.depth == 0) {
        for (int64_t i = 0; i < in.rows && !in.add; ++i)
            std::memset(in.out + i * in.out_stride, 0, sizeof(float) * in.columns);
        return ProductStatus::kOk;
    }
    const int64_t slab_words = words_of<Kernel>(least(in.depth, Kernel::kSlabDepth));
    const bool reads_rows = Slab<Kernel>::in_place(in.a.column_stride);
    SlabMemory<Kernel> of_a(in.rows, slab_words, Kernel::kRows, reads_rows);
    SlabMemory<Kernel> of_b(in.columns, slab_words, Kernel::kColumns, false);
    if (!of_a.is_there() || !of_b.is_there()) return ProductStatus::kOutOfMemory;
    const int64_t rows = of_a.lines(), columns = of_b.lines();
    std::vector<Slab<Kernel>> slabs;
    for (int64_t k = 0; k < in.depth; k += Kernel::kSlabDepth) {
        const int64_t depth = least(Kernel::kSlabDepth, in.depth - k),
                      words = words_of<Kernel>(depth);
        const int64_t piece =
            pieces(words / Kernel::kWords, pieces(depth, Kernel::kDepth)) * Kernel::kWords;
        for (int64_t j = 0; j < in.columns; j += columns)
            for (int64_t i = 0; i < in.rows; i += rows) {
                const bool new_a = i > 0 || j == 0 || rows < in.rows, new_b = i == 0;
                const Operand a{of_a.words(new_a),
                                Kernel::kRows * words,
                                Kernel::kRows,
                                least(rows, in.rows - i),
                                words,
                                in.a.values + i * in.a.row_stride + k * in.a.column_stride,
                                in.a.row_stride,
                                in.a.column_stride,
                                depth};
                const Operand b{of_b.words(new_b),
                                Kernel::kColumns * words,
                                Kernel::kColumns,
                                least(columns, in.columns - j),
                                words,
                                in.b.values + j * in.b.column_stride + k * in.b.row_stride,
                                in.b.column_stride,
                                in.b.row_stride,
                                depth};
                slabs.emplace_back(a, b, new_a, new_b, in.out + i * in.out_stride + j,
                                   in.out_stride, in.add || k > 0, piece, in.num_threads);
            }
    }
    int64_t most = 0;
    for (const Slab<Kernel>& slab : slabs)
        most = std::max({most, slab.packings(), slab.products()});
    Work<Kernel> work(slabs);
    const auto threads = static_cast<int>(least(most, in.num_threads));
    parallel_for(threads, 1, threads, take_part<Kernel>, &work);
    return ProductStatus::kOk;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
