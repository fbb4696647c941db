// The passes of one instruction set. Compiled once for each of them: GRAINRANK_ISA names it and
// its namespace, GRAINRANK_VECTOR_BYTES is the size of its vectors (0: plain numbers).
#include "passes.h"

#include "exact_ranks.h"
#include "gradient_pass.h"
#include "parallel.h"
#include "rank_levels.h"
#include "row_pass.h"
#include "smooth_ranks.h"
#include "softplus_pass.h"
#include "two_way_tables.h"

#define GRAINRANK_QUOTE(x) #x
#define GRAINRANK_NAME(x) GRAINRANK_QUOTE(x)

namespace grainrank {
namespace GRAINRANK_ISA {
namespace {

constexpr int64_t kRowsPerPiece = 4;

// Runs `item`, one row or strip of a pass, over all of them.
template <class Pass>
struct Loop {
    const Pass& pass;
    bool (*item)(const Pass&, int64_t);
};

template <class Pass>
int run_items(void* context, int64_t begin, int64_t end) {
    const auto& loop = *static_cast<const Loop<Pass>*>(context);
    for (int64_t i = begin; i < end; ++i)
        if (!loop.item(loop.pass, i)) return static_cast<int>(Status::kLevelOutOfRange);
    return static_cast<int>(Status::kOk);
}

template <class Pass>
Status for_each(const Pass& pass, int64_t items, int64_t grain, int num_threads,
                bool (*item)(const Pass&, int64_t)) {
    Loop<Pass> loop{pass, item};
    return static_cast<Status>(parallel_for(items, grain, num_threads, run_items<Pass>, &loop));
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

template <class T, int kLevels>
Status two_way_tables(const TablePass<T>& pass) {
    const Block<T>& block = pass.block;
    const int64_t panels = (block.columns + kPanel<T> - 1) / kPanel<T>;
    std::vector<LevelPart<T, false>> parts(panels * block.rows * kLevels);
    const TwoWayPass<T> both{pass, parts.data()};
    for_each(both, panels, 1, block.num_threads, two_way_panel<T, kLevels>);
    return for_each(both, block.rows, kRowsPerPiece, block.num_threads, two_way_row<T, kLevels>);
}

template <class T>
Status tables(const Block<T>& block, const LevelArgs& levels, const T* factors,
              const Tables<T>& rows, const Tables<T>* columns, int64_t table_columns) {
    const TablePass<T> pass{block, levels, factors, rows, columns, table_columns};
    return with_levels(levels.max_level, [&](auto count) {
        constexpr int kLevels = decltype(count)::kLevels;
        const bool all = rows.neg_lse;
        if constexpr (kLevels > 0 && Lanes<T>::kWidth > 1)
            if (columns && !all && lists_block(pass)) return two_way_tables<T, kLevels>(pass);
        const Status status =
            for_each(pass, block.rows, kRowsPerPiece, block.num_threads,
                     all ? table_row<T, true, kLevels> : table_row<T, false, kLevels>);
        if (!columns || status != Status::kOk) return status;
        return for_each(pass, (table_columns + kStrip - 1) / kStrip, 1, block.num_threads,
                        all ? table_strip<T, true, kLevels> : table_strip<T, false, kLevels>);
    });
}

template <class T, bool kFull, int kLevels>
bool (*gradient_row(bool columns, bool plain))(const GradientPass<T>&, int64_t) {
    if (plain)
        return columns ? plain_gradient_row<T, kFull, kLevels, true>
                       : plain_gradient_row<T, kFull, kLevels, false>;
    return columns ? general_gradient_row<T, kFull, kLevels, true>
                   : general_gradient_row<T, kFull, kLevels, false>;
}

template <class T>
Status gradients(const Block<T>& block, const LevelArgs& levels, const GradientArgs<T>& in) {
    const Channel<T>& first = *in.channels;
    const bool plain = is_plain(block) && in.num_channels == 1 && !first.factors &&
                       !first.rows.d_softplus && !first.moments && !in.row_moments &&
                       !in.column_moments;
    bool full = false;
    for (int c = 0; c < in.num_channels; ++c) {
        const Channel<T>& channel = in.channels[c];
        full |= channel.rows.d_neg_lse || channel.rows.d_total || channel.columns.d_neg_lse ||
                channel.columns.d_total;
    }
    const bool columns = first.columns.lse;
    const bool may_list = block.rows > 0 && RowList().open(levels, block.first_row, block.columns);
    const SharedExponential<T> shared =
        plain && columns && !full && may_list && Lanes<T>::kWidth > 1
            ? SharedExponential<T>(first, block.rows, levels.max_level + 1, block.columns)
            : SharedExponential<T>();
    const GradientPass<T> pass{block, levels, in, shared};
    // The rows that share a row of column_moments belong to one thread.
    const int64_t grain = in.column_moments ? kMomentRows : kRowsPerPiece;
    if (in.column_moments) {
        const int64_t pieces = (block.rows + kMomentRows - 1) / kMomentRows;
        memset(in.column_moments, 0, sizeof(T) * pieces * block.columns);
    }
    return with_levels(levels.max_level, [&](auto count) {
        constexpr int kLevels = decltype(count)::kLevels;
        return for_each(pass, block.rows, grain, block.num_threads,
                        full ? gradient_row<T, true, kLevels>(columns, plain)
                             : gradient_row<T, false, kLevels>(columns, plain));
    });
}

template <class T>
Status softplus_sums(const Block<T>& block, const LevelArgs& levels, const SoftplusArgs<T>& in) {
    const SoftplusPass<T> pass{block, levels, in};
    return for_each(pass, block.rows, kRowsPerPiece, block.num_threads, softplus_row<T>);
}

template <class T>
Status block_levels(const Block<T>& block, const LevelArgs& levels, int8_t* out, int64_t* count) {
    const LevelPass<T> pass{block, levels, out, count};
    return for_each(pass, block.rows, kRowsPerPiece, block.num_threads, level_row<T>);
}

template <class T>
void positives(const Block<T>& block, const PositiveArgs<T>& out) {
    const PositivePass<T> pass{block, out};
    for_each(pass, block.rows, kRowsPerPiece, block.num_threads, positive_row<T>);
}

constexpr int64_t kPairGroupsPerPiece = 64;

template <class T>
void pair_similarities(const PairArgs<T>& in) {
    for_each(in, (in.pairs + kPairs - 1) / kPairs, kPairGroupsPerPiece, in.num_threads,
             pair_group<T>);
}

// Rows differ in their positives, and so in their work: one at a time.

template <class T>
void sort_positives(const ExactArgs<T>& in) {
    for_each(in, in.rows, 1, in.num_threads, sort_row<T>);
}

template <class T>
Status over_items(const ExactArgs<T>& in, const LevelArgs& levels, const ChunkArgs<T>& chunk,
                  bool (*run)(const ChunkPass<T>&, int64_t)) {
    constexpr int wide = kTileColumns<T>;
    static_assert(wide <= kPackedPadding);
    for_each(chunk, (chunk.candidates.rows + wide - 1) / wide, 1, in.num_threads, pack_panel<T>);
    const ChunkPass<T> pass{in, levels, chunk};
    return for_each(pass, (in.rows + kItemRows - 1) / kItemRows, 1, in.num_threads, run);
}

template <class T>
Status count_chunk(const ExactArgs<T>& in, const LevelArgs& levels, const ChunkArgs<T>& chunk) {
    return over_items(in, levels, chunk, count_item<T>);
}

template <class T>
Status rank_rows(const ExactArgs<T>& in, const LevelArgs& levels, const ChunkArgs<T>& all) {
    return over_items(in, levels, all, rank_item<T>);
}

template <class T>
void finish_ranks(const ExactArgs<T>& in) {
    for_each(in, in.rows, 1, in.num_threads, ranks_of_row<T>);
}

template <class T>
void smooth_ranks(const Block<T>& block, const RankArgs<T>& in, const SmoothArgs<T>& out) {
    const SmoothPass<T> pass{block, in, out};
    for_each(pass, block.rows, 1, block.num_threads, smooth_row<T>);
}

template <class T>
void rank_gradient(const Block<T>& block, const RankArgs<T>& in, const RankGradientArgs<T>& out) {
    const RankGradientPass<T> pass{block, in, out};
    for_each(pass, block.rows, 1, block.num_threads, rank_gradient_row<T>);
}

// Rows of embeddings for which another thread is worth calling: on cores that others keep busy it
// may be milliseconds in coming.
int64_t embeddings_of_piece(const int64_t features) {
    constexpr int64_t least_numbers = int64_t{1} << 20;
    return least_numbers / (features > 0 ? features : 1) + 1;
}

template <class T>
void norms(const NormArgs<T>& in) {
    const int64_t grain = embeddings_of_piece(in.prefixes[in.num_prefixes - 1]);
    for_each(in, in.rows, grain, in.num_threads, norm_row<T>);
}

template <class T>
void finish(const FinishArgs<T>& in) {
    const int64_t grain = embeddings_of_piece(in.prefixes[in.num_prefixes - 1]);
    for_each(in, in.rows, grain, in.num_threads, finish_row<T>);
}

template <class T, typename Lanes<T>::Float (*function)(typename Lanes<T>::Float)>
void over_array(const T* x, T* y, int64_t n) {
    using V = Lanes<T>;
    int64_t j = 0;
    for (; j + V::kWidth <= n; j += V::kWidth) V::store(y + j, function(V::load(x + j)));
    T tail[V::kWidth] = {};
    memcpy(tail, x + j, (n - j) * sizeof(T));
    V::store(tail, function(V::load(tail)));
    memcpy(y + j, tail, (n - j) * sizeof(T));
}

template <class T>
Passes<T> passes() {
    return {tables<T>,
            gradients<T>,
            softplus_sums<T>,
            block_levels<T>,
            positives<T>,
            pair_similarities<T>,
            sort_positives<T>,
            count_chunk<T>,
            finish_ranks<T>,
            rank_rows<T>,
            smooth_ranks<T>,
            rank_gradient<T>,
            norms<T>,
            finish<T>,
            over_array<T, exponential<T>>,
            over_array<T, log1p_unit<T>>};
}

}  // namespace

// dispatch.cpp declares it, for each instruction set.
// NOLINTNEXTLINE(misc-use-internal-linkage)
InstructionSet instruction_set() {
    return {GRAINRANK_NAME(GRAINRANK_ISA), passes<float>(), passes<double>()};
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
