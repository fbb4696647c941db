// Every instruction set of the build gives what the scalar one gives: tables, gradients, softplus
// sums and ranks, for ragged sizes, every level source, every option of csrc/passes.h and both
// types. Without Python, so that it also runs under an emulator. The argument: one case in so many
// alone, for what makes the passes many times slower.
#include <algorithm>
#include <cstdlib>
#include <thread>

#include "comparison.h"
#include "embeddings.h"
#include "exact.h"
#include "parallel.h"
#include "products.h"
#include "runs.h"

#if GRAINRANK_WITH_WIDE
namespace grainrank::wide {
InstructionSet instruction_set();
}
#endif

using namespace grainrank;

namespace {

constexpr int64_t kColumns[] = {1, 3, 7, 8, 15, 16, 17, 63, 65, 1003, 1024, 1025, 2100};

template <class T>
void check_batch(std::vector<Tested>& sets, const InstructionSet& scalar, const Case& c) {
    const Batch<T> batch(c);
    Upstreams<T> upstreams;
    const Results expected = run_batch(passes<T>(scalar), batch, 1, upstreams);
    char label[100];
    std::snprintf(label, sizeof label, "case %d (%d x %d, L = %d, scale %g)", c.number,
                  static_cast<int>(c.rows), static_cast<int>(c.columns), c.max_level, c.scale);
    for (Tested& tested : sets) {
        if (tested.set.name == scalar.name) {
            compare<T>(tested, label, light_tables(expected, false), light_tables(expected, true));
            if (c.number % 4 != 1) continue;  // against itself, on two threads: now and then
        }
        const int num_threads = 1 + c.number % 2;
        compare<T>(tested, label, run_batch(passes<T>(tested.set), batch, num_threads, upstreams),
                   expected);
    }
}

// Where not even the last bit may differ.
Results exactly(Results results) {
    for (Result& result : results) result.tolerance = Tolerance::kExact;
    return results;
}

// Every set against the definition of exact ranks; the rest against the scalar set.
template <class T>
void check_ranks(std::vector<Tested>& sets, const InstructionSet& scalar, const Case& c,
                 Spread spread) {
    const Batch<T> batch(c);
    Results levels;
    const LevelMemory found = run_levels(passes<T>(scalar), batch, 1, levels);
    const RankBatch<T> x(batch, found.levels.data(), spread);
    Case uncapped = c;  // the passes of exact ranks know no ceilings
    uncapped.row_ceilings = false;
    const Batch<T> other(uncapped);
    const LevelMemory all = run_levels(passes<T>(scalar), other, 1, levels);
    const RankBatch<T> y(other, all.levels.data(), spread);
    const ExactBatch<T> embedded(y, spread);
    const auto run = [&](const Passes<T>& p, int num_threads) {
        Results results;
        run_positives(p, x, num_threads, results);
        run_levels(p, batch, num_threads, results);
        if (x.finite) run_smooth(p, x, num_threads, results);
        return results;
    };
    const Results expected = run(passes<T>(scalar), 1), positives = positives_by_definition(x);
    const Results pairs = run_exact(passes<T>(scalar), embedded, 1).similarities;
    char label[100];
    std::snprintf(label, sizeof label, "ranks %d (%d x %d, L = %d, spread %d)", c.number,
                  static_cast<int>(c.rows), static_cast<int>(c.columns), c.max_level,
                  static_cast<int>(spread));
    for (Tested& tested : sets) {
        const Passes<T>& p = passes<T>(tested.set);
        const Results one = tested.set.name == scalar.name ? expected : run(p, 1);
        compare<T>(tested, label, one, tested.set.name == scalar.name ? positives : expected);
        const ExactResults exact = run_exact(p, embedded, 1);
        compare<T>(tested, label, exact.similarities, pairs);
        compare<T>(tested, label, exact.above, exact.by_definition);
        if (c.number % 4 != 1) continue;
        compare<T>(tested, label, run(p, 2), exactly(one));
        const ExactResults again = run_exact(p, embedded, 2);
        compare<T>(tested, label, again.similarities, exactly(exact.similarities));
        compare<T>(tested, label, again.above, exact.above);
    }
}

template <class T>
void check_embeddings(std::vector<Tested>& sets, const InstructionSet& scalar, int64_t features) {
    Random random{std::mt19937(static_cast<uint32_t>(features))};
    for (const int64_t rows : {1, 5, 131})
        for (const int64_t gap : {0, 3}) {
            const Embeddings<T> x(rows, features, gap, random);
            const Results expected = run_embeddings(passes<T>(scalar), x, 1);
            const std::string label =
                "embeddings " + std::to_string(rows) + " x " + std::to_string(features);
            for (Tested& tested : sets)
                compare<T>(tested, label, run_embeddings(passes<T>(tested.set), x, 2), expected);
        }
}

// exp over its whole range and log1p over 0 .. 1.
template <class T>
void check_functions(std::vector<Tested>& sets, const InstructionSet& scalar, int64_t n) {
    Random random{std::mt19937(static_cast<uint32_t>(n))};
    const double low = sizeof(T) == 4 ? -110 : -760, high = sizeof(T) == 4 ? 95 : 720;
    std::vector<T> x = Batch<T>::reals(n, low, high, random), u = Batch<T>::reals(n, 0, 1, random);
    for (int64_t k = 0; k < n; k += 3) {
        x[k] = static_cast<T>(random.real(-1, 1));
        u[k] = std::exp2(static_cast<T>(-random.below(200)));
    }
    x[n / 2] = u[n / 3] = T(0);
    x[0] = static_cast<T>(kEmpty);
    const auto run = [&](const InstructionSet& set) {
        Output<T> exponentials(n), logarithms(n);
        passes<T>(set).exponential(x.data(), exponentials.data(), n);
        passes<T>(set).log1p(u.data(), logarithms.data(), n);
        Results results;
        exponentials.collect("exponential", results, 0, Tolerance::kOfEach);
        logarithms.collect("log1p", results, 0, Tolerance::kOfEach);
        return results;
    };
    for (Tested& tested : sets)
        compare<T>(tested, "array of " + std::to_string(n), run(tested.set), run(scalar));
}

// Every pass refuses a level that there is not, in whichever leaf.
template <class T>
void check_range(std::vector<Tested>& sets, int8_t level, bool second_leaf) {
    Case c = draw_case(1, 65, 3, second_leaf ? Source::kSparse : Source::kDense, 1.0);
    c.sources.resize(1);
    if (second_leaf) c.sources.push_back(Source::kDense);
    Batch<T> batch(c);
    batch.leaves.back().set_dense(batch.sizes.first_row + c.rows - 1, 64, level);
    for (Tested& tested : sets) {
        const Passes<T>& p = passes<T>(tested.set);
        const LevelArgs levels = batch.levels();
        const int64_t size = c.rows * (c.max_level + 1);
        const std::vector<T> zero(size);
        TableMemory<T> rows(size);
        Overwritten<T> s(batch.similarities, c.columns, batch.stride);
        const Block<T> block = batch.block(s.data(), true, 2);
        Channel<T> channel{};
        channel.rows.lse = zero.data();
        Output<T> value(size), slope(size);
        LevelMemory out{Output<int8_t>(c.rows * c.columns), Output<int64_t>(size)};
        const double refused =
            p.tables(block, levels, nullptr, rows.args(true), nullptr, 0) ==
                Status::kLevelOutOfRange &&
            p.gradients(block, levels, {&channel, 1, nullptr, nullptr}) ==
                Status::kLevelOutOfRange &&
            p.softplus(block, levels,
                       {nullptr, zero.data(), 0, nullptr, true, value.data(), slope.data()}) ==
                Status::kLevelOutOfRange &&
            p.block_levels(block, levels, out.levels.data(), out.counts.data()) ==
                Status::kLevelOutOfRange;
        compare<T>(tested, "level " + std::to_string(level),
                   {{"refused", {refused}, Tolerance::kExact}},
                   {{"refused", {1}, Tolerance::kExact}});
    }
}

template <class T>
void check_product(Tested& tested, const std::string& label, Product<T> product,
                   const ProductCase& c, Random& random) {
    if (!product) return;
    const auto [actual, expected] = run_product(product, c, c.a_by_row ? 1 : 2, random);
    compare<float>(tested, label, actual, expected);
}

// The products that a set has: ragged tiles, and more depth than is laid out at a time.
void check_products(std::vector<Tested>& sets) {
    Random random{std::mt19937(5)};
    for (const int64_t rows : {1, 7, 8, 9, 97})
        for (const int64_t columns : {1, 15, 16, 17, 47, 49, 513})
            for (const int64_t depth : {1, 2, 3, 33, 2049}) {
                if (rows * columns * depth > 2000000) continue;
                for (int layout = 0; layout < 4; ++layout) {
                    const ProductCase c{rows,
                                        columns,
                                        depth,
                                        layout % 2 == 0,
                                        layout / 2 == 0,
                                        random.one_in(2),
                                        random.below(4)};
                    const std::string label =
                        "product " + std::to_string(rows) + " x " + std::to_string(depth) + " x " +
                        std::to_string(columns) + ", layout " + std::to_string(layout);
                    for (Tested& tested : sets) {
                        check_product(tested, label, tested.set.bf16_product, c, random);
                        check_product(tested, label, tested.set.float32_product, c, random);
                    }
                }
            }
}

// Every check of one type, of one case in `one_in`.
template <class T>
void check_all(std::vector<Tested>& sets, const InstructionSet& scalar, int one_in) {
    const auto skipped = [one_in](int number) { return number % one_in != 0; };
    // One of the scales, in turn, at sizes that take long.
    int number = 0;
    for (const int64_t columns : kColumns)
        for (const int max_level : {1, 2, 3, 4, 7, 15})
            for (int source = 0; source < kSources; ++source)
                for (const double scale : {1.0, 14.0, 100.0})
                    if ((++number % 3 == (source + max_level) % 3 || columns < 1000) &&
                        !skipped(number))
                        check_batch<T>(sets, scalar,
                                       draw_case(number, columns, max_level,
                                                 static_cast<Source>(source), scale));
    for (const int64_t columns : kColumns)
        for (const int max_level : {1, 3, 15})
            for (int source = 0; source < kSources; ++source)
                for (int spread = 0; spread < kSpreads; ++spread)
                    if ((++number % 3 == 0 || columns < 1000) && !skipped(number))
                        check_ranks<T>(
                            sets, scalar,
                            draw_rank_case(number, columns, max_level, static_cast<Source>(source),
                                           static_cast<Spread>(spread)),
                            static_cast<Spread>(spread));
    for (const int64_t n : kColumns) check_embeddings<T>(sets, scalar, n);
    for (const int64_t n : kColumns) check_functions<T>(sets, scalar, n);
    for (const bool second_leaf : {false, true})
        for (const int8_t level : {-2, 4}) check_range<T>(sets, level, second_leaf);
}

}  // namespace

int main(int argc, char** argv) {
    const int one_in = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
    const InstructionSet* found[kMostSets];
    const int size = available(found, kMostSets);
    std::vector<Tested> sets;
    for (int i = 0; i < size; ++i) sets.push_back({*found[i]});
    const InstructionSet scalar = sets.back().set;
#if GRAINRANK_WITH_WIDE
    sets.push_back({wide::instruction_set()});
#endif
    std::vector<Tested> doubles = sets;
    std::thread other([&] { check_all<double>(doubles, scalar, one_in); });
    check_all<float>(sets, scalar, one_in);
    check_products(sets);
    other.join();
    int passed = 0, failed = 0;
    for (size_t i = 0; i < sets.size(); ++i) {
        const int wrong = sets[i].failed + doubles[i].failed;
        std::printf("%s %s %s\n", sets[i].set.name, wrong ? "differs from" : "agrees with",
                    scalar.name);
        passed += sets[i].passed + doubles[i].passed;
        failed += wrong;
    }
    std::printf("%d passed, %d failed, on %s\n", passed, failed, parallel_runtime());
#if defined(__SANITIZE_THREAD__)
    // It does not know the threads of OpenMP.
    if (std::string(parallel_runtime()) != "threads") return 1;
#endif
    return failed != 0;
}
