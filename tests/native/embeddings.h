// Runs the passes over rows of embeddings: norms, and gradients back through the normalisation.
#pragma once

#include "outputs.h"

namespace grainrank {

template <class T>
struct Embeddings {
    int64_t rows, features, stride;
    std::vector<int64_t> prefixes;
    std::vector<T> values, d;  // [R, D], NaN between the rows
    std::vector<T> norms;      // [R]
    std::vector<T> along;      // [P, R]
    double scale = 14;

    Embeddings(int64_t given_rows, int64_t given_features, int64_t gap, Random& random)
        : rows(given_rows), features(given_features), stride(features + gap) {
        for (const int64_t prefix : {features / 3, features / 2})
            if (prefix > 0 && random.one_in(2)) prefixes.push_back(prefix);
        prefixes.push_back(features);
        values = rows_of_reals(random);
        d = rows_of_reals(random);
        // One row of zeros, and one norm that counts as kNormEps.
        const int64_t zero = random.below(rows);
        for (int64_t k = 0; k < features; ++k) values[zero * stride + k] = T(0);
        norms = Batch<T>::reals(rows, 0.5, 2, random);
        if (random.one_in(3)) norms[zero] = static_cast<T>(kNormEps / 2);
        along = Batch<T>::reals(rows * prefixes.size(), -1, 1, random);
    }

  private:
    std::vector<T> rows_of_reals(Random& random) const {
        std::vector<T> x((rows - 1) * stride + features, std::numeric_limits<T>::quiet_NaN());
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t k = 0; k < features; ++k)
                x[i * stride + k] = static_cast<T>(random.real(-1, 1));
        return x;
    }
};

template <class T>
void run_norms(const Passes<T>& passes, const Embeddings<T>& x, bool with_unit, bool in_place,
               int num_threads, Results& results) {
    Overwritten<T> values(x.values, x.features, x.stride);
    const int64_t count = static_cast<int64_t>(x.prefixes.size());
    Output<T> norms(count * x.rows), unit(with_unit && !in_place ? x.rows * x.features : 0);
    NormArgs<T> in{};
    in.x = values.data();
    in.row_stride = x.stride;
    in.rows = x.rows;
    in.prefixes = x.prefixes.data();
    in.num_prefixes = static_cast<int>(count);
    in.norms = norms.data();
    if (with_unit) in.unit = in_place ? values.data() : unit.data();
    in.num_threads = num_threads;
    passes.norms(in);
    norms.collect("norms", results);
    unit.collect("unit", results);
    if (with_unit && in_place)
        values.collect("unit in place", results);
    else
        values.collect_unchanged("norms", results);
}

// With `norms` through the normalisation, or without, where `along` is subtracted.
template <class T>
void run_finish(const Passes<T>& passes, const Embeddings<T>& x, bool norms, bool along, bool dots,
                int num_threads, Results& results) {
    Overwritten<T> d(x.d, x.features, x.stride);
    Output<T> products(dots ? x.rows : 0);
    FinishArgs<T> in{};
    in.d = d.data();
    in.d_stride = x.stride;
    in.values = x.values.data();
    in.value_stride = x.stride;
    in.rows = x.rows;
    in.prefixes = x.prefixes.data();
    in.num_prefixes = static_cast<int>(x.prefixes.size());
    in.scale = static_cast<T>(x.scale);
    if (norms) in.norms = x.norms.data();
    if (along) in.along = x.along.data();
    if (dots) in.dots = products.data();
    in.num_threads = num_threads;
    passes.finish(in);
    // |values| <= 1, so that these bound the terms of <values, d>, and the gradient of a row.
    const double terms = Overwritten<T>(x.d, x.features, x.stride).largest_sums(false).row;
    d.collect("finished", results, x.scale * terms);
    products.collect("dots", results, terms);
}

template <class T>
Results run_embeddings(const Passes<T>& p, const Embeddings<T>& x, int num_threads) {
    Results results;
    run_norms(p, x, false, false, num_threads, results);
    run_norms(p, x, true, x.stride == x.features, num_threads, results);
    for (const bool dots : {false, true}) {
        run_finish(p, x, true, false, dots, num_threads, results);
        run_finish(p, x, false, false, dots, num_threads, results);
        run_finish(p, x, false, true, dots, num_threads, results);
    }
    return results;
}

}  // namespace grainrank
