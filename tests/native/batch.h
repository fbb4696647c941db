// One case of the agreement test: what varies, and the random batch that it stands for.
#pragma once

#include <cmath>
#include <limits>

#include "levels.h"
#include "passes.h"

namespace grainrank {

struct Case {
    int number;  // also the seed
    int64_t rows, columns;
    int64_t table_columns;  // 0: no column tables
    int max_level;
    std::vector<Source> sources;
    int exclusions;
    double scale;
    bool rare, ties, ramp;
    bool full, column_gradients;
    bool row_factors, circle, level_factors;
    int channels;
    bool row_ceilings, column_ceilings;
    bool moments, row_moments, column_moments, softplus;
    bool reference, curated;  // of the ceilings
    bool shared_thresholds;   // of the softplus sums
};

inline Case draw_case(int number, int64_t columns, int max_level, Source source, double scale) {
    Random random{std::mt19937(number)};
    const auto sometimes = [&] { return random.one_in(2); };
    Case c{};
    c.number = number;
    c.columns = columns;
    c.max_level = max_level;
    c.scale = scale;
    const int64_t few[] = {1, 5, 5, 9}, many[] = {33, 64, 67, 131};
    c.rows = (random.one_in(columns > 1000 ? 40 : 3) ? many : few)[random.below(4)];
    const int64_t tables[] = {columns, columns, columns - 1, columns / 2, 0};
    c.table_columns = tables[random.below(5)];
    c.sources = {source};
    if (random.one_in(3)) c.sources.push_back(static_cast<Source>(random.below(kSources)));
    if (random.one_in(6)) c.sources.push_back(static_cast<Source>(random.below(kSources)));
    c.exclusions = random.one_in(3) ? 1 + random.below(2) : 0;
    c.rare = sometimes();
    c.ties = random.one_in(3);
    c.ramp = random.one_in(3);
    c.full = sometimes();
    c.column_gradients = c.table_columns > 0 && sometimes();
    // Many options together in one half of the cases, few or a single one in the other.
    const int odds = sometimes() ? 2 : 8;
    const auto option = [&] { return random.one_in(odds); };
    c.row_factors = option();
    c.circle = option();
    c.level_factors = option();
    c.channels = option() ? 2 + random.below(2) : 1;
    c.row_ceilings = option();
    c.column_ceilings = option();
    c.moments = option();
    c.row_moments = option();
    c.column_moments = option();
    c.softplus = option();
    c.reference = sometimes();
    c.curated = sometimes();
    c.shared_thresholds = sometimes();
    return c;
}

template <class T>
struct Batch {
    Case c;
    Sizes sizes;
    std::vector<Leaf> leaves;
    std::vector<std::vector<int32_t>> query_ids, candidate_ids;  // of each exclusion, and curated
    int64_t stride;
    std::vector<T> similarities;                 // [R, M]
    std::vector<T> row_factors, column_factors;  // [R], [M]
    std::vector<T> level_factors;                // [channels, L + 1]
    std::vector<T> row_ceilings;                 // [N]
    std::vector<T> column_ceilings;              // [M]
    std::vector<float> reference;                // [R, M]
    std::vector<T> thresholds;                   // [R, L + 1] or [L + 1]
    std::vector<T> weights;                      // [L + 1]

    explicit Batch(const Case& given) : c(given), sizes{given.rows + 5, 3, given.rows, c.columns} {
        Random random{std::mt19937(c.number + 1000000)};
        for (const Source source : c.sources) {
            int most = c.max_level;  // the first leaf has them all
            if (!leaves.empty()) most = 1 + random.below(most);
            if (source == Source::kDiagonal) most = 1;
            leaves.emplace_back(source, most, sizes, c.rare, random);
        }
        for (int k = 0; k < c.exclusions + 1; ++k) {
            query_ids.emplace_back(sizes.batch);
            candidate_ids.emplace_back(c.columns);
            for (int32_t& id : query_ids.back()) id = random.below(41);
            for (int32_t& id : candidate_ids.back()) id = random.below(41);
        }
        fill_similarities(random);
        const int levels = c.max_level + 1;
        row_factors = reals(c.rows, 0.5, 1.2, random);
        column_factors = reals(c.columns, 0.5, 1.2, random);
        level_factors = reals(c.channels * levels, 0.5, 1.5, random);
        row_ceilings = coarse(sizes.batch, random);
        column_ceilings = coarse(c.columns, random);
        reference.resize(c.rows * c.columns);
        for (float& s : reference) s = static_cast<float>(random.coarse(-1, 1));
        thresholds =
            reals((c.shared_thresholds ? 1 : c.rows) * levels, -c.scale / 2, c.scale / 2, random);
        weights = reals(levels, 0.1, 2, random);
    }

    LevelArgs levels() const {
        LevelArgs args{c.max_level, {}, {}};
        for (const Leaf& leaf : leaves) args.leaves.push_back(leaf.args());
        for (int k = 0; k < c.exclusions; ++k)
            args.exclusions.push_back({query_ids[k].data(), candidate_ids[k].data()});
        return args;
    }

    // `plain`: without factors, circle and ceilings.
    Block<T> block(T* values, bool plain, int num_threads) const {
        Block<T> block{};
        block.similarities = values;
        block.rows = c.rows;
        block.columns = c.columns;
        block.row_stride = stride;
        block.first_row = sizes.first_row;
        block.scale = static_cast<T>(c.scale);
        block.num_threads = num_threads;
        if (plain) return block;
        if (c.row_factors) {
            block.row_factors = row_factors.data();
            block.column_factors = column_factors.data();
        }
        block.circle = c.circle;
        block.circle_margin = T(0.25);
        CeilingArgs<T>& ceilings = block.ceilings;
        if (c.row_ceilings) ceilings.rows = row_ceilings.data();
        if (c.column_ceilings) ceilings.columns = column_ceilings.data();
        if (c.reference) ceilings.reference = reference.data();
        if (c.curated) {
            ceilings.query_ids = query_ids.back().data();
            ceilings.candidate_ids = candidate_ids.back().data();
        }
        return block;
    }

    const T* factors(int channel, bool plain) const {
        return c.level_factors && !plain ? level_factors.data() + channel * (c.max_level + 1)
                                         : nullptr;
    }

    static std::vector<T> reals(int64_t size, double low, double high, Random& random) {
        std::vector<T> values(size);
        for (T& x : values) x = static_cast<T>(random.real(low, high));
        return values;
    }

  private:
    static std::vector<T> coarse(int64_t size, Random& random) {
        std::vector<T> values(size);
        for (T& x : values) x = static_cast<T>(random.coarse(0, 1));
        return values;
    }

    // Between the rows lies NaN, behind the last one nothing that may be touched.
    void fill_similarities(Random& random) {
        stride = c.columns + 3;
        similarities.assign((c.rows - 1) * stride + c.columns, std::numeric_limits<T>::quiet_NaN());
        for (int64_t i = 0; i < c.rows; ++i)
            for (int64_t j = 0; j < c.columns; ++j) {
                const double growth = 0.1 + 0.45 * (1.0 * i / c.rows + 1.0 * j / c.columns);
                const double s = c.ties ? random.coarse(-1, 1) : random.real(-1, 1);
                similarities[i * stride + j] = static_cast<T>(c.ramp ? growth * s : s);
            }
    }
};

}  // namespace grainrank
