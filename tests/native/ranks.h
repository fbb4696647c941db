// Runs the passes over levels, positives and their smooth ranks.
#pragma once

#include "outputs.h"

namespace grainrank {

// What the similarities of a rank case are like: as a batch has them, all equal, those of the
// positives equal, two far from all others, some infinite.
enum class Spread { kAsDrawn, kEqual, kEqualPositives, kFar, kInfinite };
constexpr int kSpreads = 5;

inline Case draw_rank_case(int number, int64_t columns, int max_level, Source source,
                           Spread spread) {
    Case c = draw_case(number, columns, max_level, source, 1.0);
    if (columns > 1000) c.rows = 1 + number % 3;  // pairs of positives and candidates are many
    // Factors would make equal similarities differ.
    if (spread == Spread::kEqual || spread == Spread::kEqualPositives) c.row_factors = false;
    return c;
}

struct LevelMemory {
    Output<int8_t> levels;   // [R, M]
    Output<int64_t> counts;  // [R, L + 1]
};

template <class T>
LevelMemory run_levels(const Passes<T>& passes, const Batch<T>& batch, int num_threads,
                       Results& results) {
    const Case& c = batch.c;
    Overwritten<T> s(batch.similarities, c.columns, batch.stride);
    LevelMemory out{Output<int8_t>(c.rows * c.columns),
                    Output<int64_t>(c.rows * (c.max_level + 1))};
    passes.block_levels(batch.block(s.data(), false, num_threads), batch.levels(),
                        out.levels.data(), out.counts.data());
    out.levels.collect("levels", results);
    out.counts.collect("counts", results);
    s.collect_unchanged("block_levels", results);
    return out;
}

// A batch, its levels and its positives, and gradients of their ranks.
template <class T>
struct RankBatch {
    Batch<T> batch;
    bool finite;
    std::vector<int8_t> levels;               // [R, M]
    std::vector<int64_t> starts;              // [R + 1]
    std::vector<int64_t> row, column, level;  // [P]
    std::vector<T> similarity;                // [P]
    std::vector<T> d_above;                   // [P, L + 1]
    std::vector<T> own;                       // [P]
    StepArgs<T> sigmoid{}, bound{};

    RankBatch(const Batch<T>& given, const int8_t* given_levels, Spread spread)
        : batch(given),
          finite(spread != Spread::kInfinite),
          levels(given_levels, given_levels + given.c.rows * given.c.columns) {
        Random random{std::mt19937(given.c.number + 3000000)};
        spread_similarities(spread, random);
        list_positives();
        const int64_t positives = static_cast<int64_t>(row.size());
        d_above = Batch<T>::reals(positives * (given.c.max_level + 1), -1, 1, random);
        for (T& d : d_above)
            if (random.one_in(4)) d = T(0);
        own = Batch<T>::reals(positives, -50, 50, random);
        const T temperature = random.one_in(2) ? T(0.01) : T(0.1);
        sigmoid = {false, temperature, T(0), T(0), T(0)};
        bound = {true, temperature, T(100), T(0.05), T(1.44)};
    }

    RankArgs<T> args() const {
        return {levels.data(), batch.c.max_level, starts.data(),
                column.data(), level.data(),      similarity.data()};
    }

    // With the block's factors.
    T similarity_of(int64_t r, int64_t j) const {
        const T s = batch.similarities[r * batch.stride + j];
        return batch.c.row_factors ? s * (batch.row_factors[r] * batch.column_factors[j]) : s;
    }

  private:
    void spread_similarities(Spread spread, Random& random) {
        const Case& c = batch.c;
        const int odds = random.one_in(2) ? 2 : 20;
        for (int64_t r = 0; r < c.rows; ++r) {
            T* s = batch.similarities.data() + r * batch.stride;
            for (int64_t j = 0; j < c.columns; ++j) {
                const bool positive = levels[r * c.columns + j] > 0;
                if (spread == Spread::kEqual || (spread == Spread::kEqualPositives && positive))
                    s[j] = T(0.25);
                if (spread == Spread::kInfinite && random.one_in(odds))
                    s[j] = std::numeric_limits<T>::infinity() * (random.one_in(2) ? T(1) : T(-1));
            }
            if (spread != Spread::kFar) continue;
            s[random.below(c.columns)] = T(1e6);
            s[random.below(c.columns)] = T(-1e6);
        }
    }

    void list_positives() {
        starts.push_back(0);
        for (int64_t r = 0; r < batch.c.rows; ++r) {
            for (int64_t j = 0; j < batch.c.columns; ++j) {
                const int8_t l = levels[r * batch.c.columns + j];
                if (l <= 0) continue;
                row.push_back(r);
                column.push_back(j);
                level.push_back(l);
                similarity.push_back(similarity_of(r, j));
            }
            starts.push_back(static_cast<int64_t>(row.size()));
        }
    }
};

// What run_positives should give.
template <class T>
Results positives_by_definition(const RankBatch<T>& x) {
    Results results;
    const auto add = [&](const std::string& name, const auto& values) {
        results.push_back({name, {values.begin(), values.end()}, Tolerance::kExact});
    };
    add("row", x.row);
    add("column", x.column);
    add("level", x.level);
    add("similarity", x.similarity);
    return results;
}

template <class T>
void run_positives(const Passes<T>& passes, const RankBatch<T>& x, int num_threads,
                   Results& results) {
    const int64_t positives = static_cast<int64_t>(x.row.size());
    Overwritten<T> s(x.batch.similarities, x.batch.c.columns, x.batch.stride);
    Output<int64_t> row(positives), column(positives), level(positives);
    Output<T> similarity(positives);
    passes.positives(x.batch.block(s.data(), false, num_threads),
                     {x.levels.data(), x.starts.data(), row.data(), column.data(), level.data(),
                      similarity.data()});
    row.collect("row", results);
    column.collect("column", results);
    level.collect("level", results);
    similarity.collect("similarity", results, 0, Tolerance::kExact);
}

template <class T>
void run_step(const Passes<T>& passes, const RankBatch<T>& x, const StepArgs<T>& step,
              int num_threads, Results& results) {
    const int64_t size = static_cast<int64_t>(x.d_above.size());
    const std::string name = step.upper_bound ? "bound " : "sigmoid ";
    Overwritten<T> s(x.batch.similarities, x.batch.c.columns, x.batch.stride);
    const Block<T> block = x.batch.block(s.data(), false, num_threads);
    Output<double> above(size), slope(size);
    Output<int64_t> at_least(size);
    passes.smooth_ranks(block, x.args(), {step, above.data(), slope.data(), at_least.data()});
    above.collect(name + "above", results, 0, Tolerance::kOfEachSum);
    slope.collect(name + "slope", results, 0, Tolerance::kOfEachSum);
    at_least.collect(name + "at_least", results);
    s.collect_unchanged(name + "smooth_ranks", results);
    passes.rank_gradient(block, x.args(), {step, x.d_above.data(), x.own.data()});
    s.collect(name + "rank_gradient", results);
}

// Of finite similarities: infinite ones have no differences.
template <class T>
void run_smooth(const Passes<T>& passes, const RankBatch<T>& x, int num_threads, Results& results) {
    run_step(passes, x, x.sigmoid, num_threads, results);
    run_step(passes, x, x.bound, num_threads, results);
}

}  // namespace grainrank
