// Every instruction set of the build gives the tables and gradients of the scalar one, for ragged
// sizes, every level source and both types. Without Python, so that it also runs under an emulator.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "passes.h"

#if GRAINRANK_WITH_WIDE
namespace grainrank::wide {
InstructionSet instruction_set();
}
#endif

using namespace grainrank;

namespace {

template <class T>
const Passes<T>& passes(const InstructionSet& set);
template <>
const Passes<float>& passes<float>(const InstructionSet& set) {
    return set.f32;
}
template <>
const Passes<double>& passes<double>(const InstructionSet& set) {
    return set.f64;
}

struct Case {
    int64_t rows, columns;
    int max_level;
    LevelKind kind;
    bool exclude;
    double scale;
};

template <class T>
struct Result {
    std::vector<T> lse, neg_lse, total, highest, lowest, gradient, plain_lse;
    std::vector<int64_t> count, highest_at, lowest_at;
};

template <class T>
Result<T> run(const InstructionSet& set, const Case& c) {
    std::mt19937 random(7);
    std::uniform_real_distribution<double> real(-1.0, 1.0);
    std::uniform_int_distribution<int32_t> key(-1, 2), id(0, 40);
    std::uniform_int_distribution<int> level(-1, c.max_level);
    const int64_t keys = c.max_level, size = c.rows * (c.max_level + 1);
    std::vector<int32_t> query_keys(c.rows * keys), candidate_keys(c.columns * keys);
    std::vector<int32_t> query_ids(c.rows), candidate_ids(c.columns);
    std::vector<int8_t> dense(c.rows * c.columns);
    for (auto& x : query_keys) x = key(random);
    for (auto& x : candidate_keys) x = key(random);
    for (auto& x : query_ids) x = id(random);
    for (auto& x : candidate_ids) x = id(random);
    for (auto& x : dense) x = static_cast<int8_t>(level(random));
    const LevelArgs levels{c.kind,
                           c.max_level,
                           keys,
                           query_keys.data(),
                           candidate_keys.data(),
                           dense.data(),
                           c.exclude ? query_ids.data() : nullptr,
                           c.exclude ? candidate_ids.data() : nullptr};
    // Rows are longer than their columns, and what lies between must not be read.
    const int64_t stride = c.columns + 3;
    std::vector<T> similarities(c.rows * stride, std::nan(""));
    for (int64_t i = 0; i < c.rows; ++i)
        for (int64_t j = 0; j < c.columns; ++j)
            similarities[i * stride + j] = static_cast<T>(real(random));
    const Block<T> block{similarities.data(),     c.rows, c.columns, stride, 0,
                         static_cast<T>(c.scale), 2};

    Result<T> r;
    for (auto* table : {&r.lse, &r.neg_lse, &r.total, &r.highest, &r.lowest, &r.plain_lse})
        table->assign(size, std::nan(""));
    for (auto* table : {&r.count, &r.highest_at, &r.lowest_at}) table->assign(size, -7);
    Tables<T> tables{
        r.plain_lse.data(), nullptr, nullptr, r.count.data(), nullptr, nullptr, nullptr, nullptr};
    passes<T>(set).tables(block, levels, tables);
    tables = {r.lse.data(),     r.neg_lse.data(), r.total.data(),      r.count.data(),
              r.highest.data(), r.lowest.data(),  r.highest_at.data(), r.lowest_at.data()};
    passes<T>(set).tables(block, levels, tables);

    std::vector<T> d[5];
    for (auto& table : d) {
        table.resize(size);
        for (auto& x : table) x = static_cast<T>(real(random));
    }
    const TableGradients<T> gradients{r.lse.data(),        d[0].data(), r.neg_lse.data(),
                                      d[1].data(),         d[2].data(), d[3].data(),
                                      r.highest_at.data(), d[4].data(), r.lowest_at.data()};
    passes<T>(set).gradients(block, levels, gradients);
    for (int64_t i = 0; i < c.rows; ++i)
        for (int64_t j = 0; j < c.columns; ++j) r.gradient.push_back(similarities[i * stride + j]);
    return r;
}

int failures = 0;

template <class V>
void compare(const char* set, const char* what, const V& actual, const V& expected, double eps) {
    double largest = 0, error = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        if (std::abs(static_cast<double>(expected[i])) > 1e29) {  // an empty level
            if (actual[i] != expected[i]) error = INFINITY;
            continue;
        }
        largest = std::fmax(largest, std::abs(static_cast<double>(expected[i])));
        const double difference = std::abs(static_cast<double>(actual[i] - expected[i]));
        if (!(difference <= error)) error = difference;
    }
    if (!(error <= 64 * eps * largest)) {
        std::printf("%s: %s differs by %g of %g\n", set, what, error, largest);
        ++failures;
    }
}

template <class T>
void check(const InstructionSet& set, const InstructionSet& scalar, const Case& c, double eps) {
    const Result<T> actual = run<T>(set, c), expected = run<T>(scalar, c);
    compare(set.name, "lse", actual.lse, expected.lse, eps);
    compare(set.name, "lse without the other tables", actual.plain_lse, expected.lse, eps);
    compare(set.name, "neg_lse", actual.neg_lse, expected.neg_lse, eps);
    compare(set.name, "total", actual.total, expected.total, eps);
    compare(set.name, "highest", actual.highest, expected.highest, 0);
    compare(set.name, "lowest", actual.lowest, expected.lowest, 0);
    compare(set.name, "gradient", actual.gradient, expected.gradient, eps);
    compare(set.name, "count", actual.count, expected.count, 0);
    compare(set.name, "highest_at", actual.highest_at, expected.highest_at, 0);
    compare(set.name, "lowest_at", actual.lowest_at, expected.lowest_at, 0);
}

}  // namespace

int main() {
    const InstructionSet* found[4];
    const int size = available(found, 4);
    std::vector<InstructionSet> sets;
    for (int i = 0; i < size; ++i) sets.push_back(*found[i]);
    const InstructionSet scalar = sets.back();
#if GRAINRANK_WITH_WIDE
    sets.push_back(wide::instruction_set());
#endif
    int cases = 0;
    for (const InstructionSet& set : sets) {
        for (int64_t columns : {1, 3, 7, 8, 15, 16, 17, 63, 65, 1003, 1024, 1025, 2100})
            for (int max_level : {1, 2, 3, 4, 7, 15})
                for (LevelKind kind : {LevelKind::kDiagonal, LevelKind::kKeysPrefix,
                                       LevelKind::kKeysCount, LevelKind::kDense})
                    for (double scale : {1.0, 14.0, 100.0}) {
                        if (kind == LevelKind::kDiagonal && max_level != 1) continue;
                        const Case c{5, columns, max_level, kind, columns % 2 == 1, scale};
                        check<float>(set, scalar, c, 1.2e-7);
                        check<double>(set, scalar, c, 2.3e-16);
                        cases += 2;
                    }
        std::printf("%s agrees with %s\n", set.name, scalar.name);
    }
    std::printf("%d passed, %d failed\n", cases - (failures > 0), failures);
    return failures != 0;
}
