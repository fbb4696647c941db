// The two passes of one instruction set. Compiled once for each of them: GRAINRANK_ISA names it and
// its namespace, GRAINRANK_VECTOR_BYTES is the size of its vectors (0: plain numbers).
#include "passes.h"

#include "gradient_pass.h"
#include "parallel.h"
#include "table_pass.h"

#define GRAINRANK_QUOTE(x) #x
#define GRAINRANK_NAME(x) GRAINRANK_QUOTE(x)

namespace grainrank {
namespace GRAINRANK_ISA {
namespace {

constexpr int64_t kRowsPerPiece = 4;

template <class T, class Values>
using Row = bool (*)(const Block<T>&, const LevelArgs&, const Values&, int64_t);

template <class T, class Values>
struct RowLoop {
    const Block<T>& block;
    const LevelArgs& levels;
    const Values& values;
    Row<T, Values> row;
};

template <class T, class Values>
int run_rows(void* context, int64_t begin, int64_t end) {
    const auto& loop = *static_cast<const RowLoop<T, Values>*>(context);
    for (int64_t row = begin; row < end; ++row)
        if (!loop.row(loop.block, loop.levels, loop.values, row))
            return static_cast<int>(Status::kLevelOutOfRange);
    return static_cast<int>(Status::kOk);
}

template <class T, class Values>
Status for_rows(const Block<T>& block, const LevelArgs& levels, const Values& values,
                Row<T, Values> row) {
    RowLoop<T, Values> loop{block, levels, values, row};
    return static_cast<Status>(
        parallel_for(block.rows, kRowsPerPiece, block.num_threads, run_rows<T, Values>, &loop));
}

template <int kCount>
struct Levels {
    static constexpr int kLevels = kCount;
};

// Calls run with L + 1 as a constant where it is small, 0 where it is not.
template <class Run>
Status with_levels(int max_level, Run run) {
    switch (max_level + 1) {
        case 2:
            return run(Levels<2>{});
        case 3:
            return run(Levels<3>{});
        case 4:
            return run(Levels<4>{});
        case 5:
            return run(Levels<5>{});
        default:
            return run(Levels<0>{});
    }
}

template <class T>
Status tables(const Block<T>& block, const LevelArgs& levels, const Tables<T>& out) {
    return with_levels(levels.max_level, [&](auto count) {
        constexpr int kLevels = decltype(count)::kLevels;
        return for_rows<T, Tables<T>>(
            block, levels, out,
            out.neg_lse ? table_row<T, true, kLevels> : table_row<T, false, kLevels>);
    });
}

template <class T>
Status gradients(const Block<T>& block, const LevelArgs& levels, const TableGradients<T>& in) {
    const bool full = in.d_neg_lse || in.d_total;
    return with_levels(levels.max_level, [&](auto count) {
        constexpr int kLevels = decltype(count)::kLevels;
        return for_rows<T, TableGradients<T>>(
            block, levels, in,
            full ? gradient_row<T, true, kLevels> : gradient_row<T, false, kLevels>);
    });
}

template <class T>
void exponential_array(const T* x, T* y, int64_t n) {
    using V = Lanes<T>;
    int64_t j = 0;
    for (; j + V::kWidth <= n; j += V::kWidth) V::store(y + j, exponential<T>(V::load(x + j)));
    T tail[V::kWidth] = {};
    memcpy(tail, x + j, (n - j) * sizeof(T));
    V::store(tail, exponential<T>(V::load(tail)));
    memcpy(y + j, tail, (n - j) * sizeof(T));
}

template <class T>
Passes<T> passes() {
    return {tables<T>, gradients<T>, exponential_array<T>};
}

}  // namespace

InstructionSet instruction_set() {
    return {GRAINRANK_NAME(GRAINRANK_ISA), passes<float>(), passes<double>()};
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
