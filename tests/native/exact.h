// Runs the passes of exact ranks, and finds these from their definition.
#pragma once

#include "ranks.h"

namespace grainrank {

constexpr Ties kTies[] = {Ties::kFirst, Ties::kLast, Ties::kOptimistic, Ties::kPessimistic};

inline std::string name_of(Ties ties) {
    return "exact ranks of ties " + std::to_string(static_cast<int>(ties));
}

// The candidate of column j, as similar as the positive of another column, is above it.
inline bool above_tie(Ties ties, int64_t j, int64_t positive) {
    switch (ties) {
        case Ties::kFirst:
            return j < positive;
        case Ties::kLast:
            return j > positive;
        case Ties::kOptimistic:
            return false;
        case Ties::kPessimistic:
            break;
    }
    return true;
}

// Embeddings of the rows and columns of a batch, with NaN between them.
template <class T>
struct ExactBatch {
    const RankBatch<T>& ranks;
    int64_t features, stride;
    std::vector<T> queries, candidates;  // [R, D], [M, D]

    ExactBatch(const RankBatch<T>& given, Spread spread) : ranks(given) {
        const Case& c = given.batch.c;
        Random random{std::mt19937(c.number + 4000000)};
        // Infinities of several features would cancel.
        features = spread == Spread::kInfinite ? 1 : 1 + random.below(20);
        stride = features + random.below(3);
        queries = embeddings(c.rows, random);
        candidates = embeddings(c.columns, random);
        std::vector<char> positive(c.columns);
        for (const int64_t j : given.column) positive[j] = true;
        const double huge = std::sqrt(static_cast<double>(std::numeric_limits<T>::max())) * 2;
        if (spread == Spread::kInfinite)
            for (T& x : queries) x = static_cast<T>(x * huge);
        for (int64_t j = 0; j < c.columns; ++j) {
            // Some equal another one, at another place in the tiles.
            if (spread == Spread::kEqual || (spread == Spread::kEqualPositives && positive[j]))
                copy(0, j);
            else if (random.one_in(3))
                copy(random.below(j + 1), j);
            if (spread == Spread::kInfinite && random.one_in(4)) scale(j, huge);
        }
        if (spread != Spread::kFar) return;
        scale(random.below(c.columns), 1e6);
        scale(random.below(c.columns), -1e6);
    }

    EmbeddingRows<T> query_rows() const {
        const Batch<T>& batch = ranks.batch;
        return {queries.data(), stride, batch.c.rows, factors(batch.row_factors)};
    }
    // From column `begin` on.
    EmbeddingRows<T> candidate_rows(int64_t begin, int64_t n) const {
        const T* of_columns = factors(ranks.batch.column_factors);
        return {candidates.data() + begin * stride, stride, n,
                of_columns ? of_columns + begin : nullptr};
    }

  private:
    const T* factors(const std::vector<T>& values) const {
        return ranks.batch.c.row_factors ? values.data() : nullptr;
    }
    std::vector<T> embeddings(int64_t rows, Random& random) const {
        std::vector<T> x((rows - 1) * stride + features, std::numeric_limits<T>::quiet_NaN());
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t k = 0; k < features; ++k)
                x[i * stride + k] = static_cast<T>(random.real(-1, 1));
        return x;
    }
    void copy(int64_t from, int64_t to) {
        for (int64_t k = 0; k < features; ++k)
            candidates[to * stride + k] = candidates[from * stride + k];
    }
    void scale(int64_t j, double by) {
        for (int64_t k = 0; k < features; ++k)
            candidates[j * stride + k] = static_cast<T>(candidates[j * stride + k] * by);
    }
};

// Similarities [R, M] of all pairs, each of its own.
template <class T>
std::vector<T> run_pairs(const Passes<T>& passes, const ExactBatch<T>& x, int num_threads) {
    const Case& c = x.ranks.batch.c;
    const int64_t pairs = c.rows * c.columns;
    std::vector<int64_t> row(pairs), column(pairs);
    for (int64_t p = 0; p < pairs; ++p) {
        row[p] = p / c.columns;
        column[p] = p % c.columns;
    }
    Output<T> out(pairs);
    passes.pair_similarities({x.query_rows(), x.candidate_rows(0, c.columns), x.features, pairs,
                              row.data(), column.data(), out.data(), num_threads});
    if (!out.intact()) out.data()[0] = std::numeric_limits<T>::quiet_NaN();
    return {out.data(), out.data() + pairs};
}

// Calls a pass with candidates begin .. begin + n.
template <class T>
void run_chunk(Status (*pass)(const ExactArgs<T>&, const LevelArgs&, const ChunkArgs<T>&),
               const ExactBatch<T>& x, const ExactArgs<T>& exact, int64_t begin, int64_t n) {
    const auto& levels = x.ranks.levels;
    const bool some_ignored = std::find(levels.begin(), levels.end(), -1) != levels.end();
    std::vector<T> packed((n + kPackedPadding) * x.features);
    pass(exact, x.ranks.batch.levels(),
         {x.query_rows(), x.candidate_rows(begin, n), x.features, x.ranks.batch.sizes.first_row,
          begin, x.ranks.batch.c.columns, some_ignored, packed.data()});
}

template <class T>
Result by_definition(const RankBatch<T>& ranks, const std::vector<T>& s, Ties ties) {
    const Case& c = ranks.batch.c;
    std::vector<double> above(ranks.row.size() * (c.max_level + 1));
    for (size_t p = 0; p < ranks.row.size(); ++p) {
        const int64_t row = ranks.row[p] * c.columns;
        const T own = s[row + ranks.column[p]];
        for (int64_t j = 0; j < c.columns; ++j) {
            const int8_t l = ranks.levels[row + j];
            if (l < 0 || j == ranks.column[p]) continue;
            const bool tie = s[row + j] == own && above_tie(ties, j, ranks.column[p]);
            above[p * (c.max_level + 1) + l] += s[row + j] > own || tie;
        }
    }
    return {name_of(ties), above, Tolerance::kExact};
}

struct ExactResults {
    Results similarities;  // of all pairs
    Results above, by_definition;
};

// Of the similarities that the passes themselves find.
template <class T>
ExactResults run_exact(const Passes<T>& passes, const ExactBatch<T>& x, int num_threads) {
    const RankBatch<T>& ranks = x.ranks;
    const Case& c = ranks.batch.c;
    const int64_t positives = static_cast<int64_t>(ranks.row.size()), levels = c.max_level + 1;
    const std::vector<T> s = run_pairs(passes, x, num_threads);
    ExactResults results;
    results.similarities.push_back(
        {"pairs", {s.begin(), s.end()}, Tolerance::kOfLargest, 2.0 * x.features});
    std::vector<T> similarity;
    std::vector<int64_t> bucket_starts{0};
    for (int64_t p = 0; p < positives; ++p)
        similarity.push_back(s[ranks.row[p] * c.columns + ranks.column[p]]);
    for (int64_t r = 0; r < c.rows; ++r) {
        const int64_t n = ranks.starts[r + 1] - ranks.starts[r];
        bucket_starts.push_back(bucket_starts.back() + (n ? kNotCounted + 3 + n % 100 : 0));
    }
    for (const Ties ties : kTies) {
        Output<int64_t> order(positives), above(positives * levels);
        std::vector<Place<T>> sorted(positives);
        Output<int16_t> buckets(bucket_starts.back());
        std::vector<T> own = similarity;
        const ExactArgs<T> exact{ties,
                                 c.max_level,
                                 c.rows,
                                 ranks.starts.data(),
                                 ranks.column.data(),
                                 ranks.level.data(),
                                 own.data(),
                                 order.data(),
                                 sorted.data(),
                                 bucket_starts.data(),
                                 buckets.data(),
                                 above.data(),
                                 num_threads};
        const Result expected = by_definition(x.ranks, s, ties);
        const auto collect = [&] {
            above.collect(name_of(ties), results.above);
            const bool intact = order.intact() && buckets.intact() && own == similarity;
            results.above.push_back({"scratch", {intact ? 0 : NAN}, Tolerance::kExact});
            results.by_definition.push_back(expected);
            results.by_definition.push_back({"scratch", {0}, Tolerance::kExact});
        };
        passes.sort_positives(exact);
        const int64_t size = c.columns > 8 ? c.columns / 2 + 1 : c.columns;
        for (int64_t begin = 0; begin < c.columns; begin += size)
            run_chunk(passes.count_chunk, x, exact, begin, std::min(size, c.columns - begin));
        passes.finish_ranks(exact);
        collect();
        std::fill_n(above.data(), positives * levels, -1);
        std::fill(own.begin(), own.end(), T(0));
        run_chunk(passes.rank_rows, x, exact, 0, c.columns);
        collect();
    }
    return results;
}

}  // namespace grainrank
