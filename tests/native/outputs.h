// Memory that the passes write, and what they wrote, by name.
#pragma once

#include <cstring>
#include <string>
#include <utility>

#include "batch.h"

namespace grainrank {

// How near two results have to be.
enum class Tolerance { kExact, kOfLargest, kOfEach, kOfEachSum };

struct Result {
    std::string name;
    std::vector<double> values;
    Tolerance tolerance;
    double terms = 0;  // of sums whose terms cancel: the largest sum without the signs
};
using Results = std::vector<Result>;

// Output memory between guards. Floats are NaN, and integers kUnwritten, until they are written.
template <class V>
class Output {
  public:
    explicit Output(int64_t size = 0) : values_(size + 2 * kGuard, unwritten()) {}

    V* data() { return values_.data() + kGuard; }
    const V* data() const { return values_.data() + kGuard; }

    void collect(const std::string& name, Results& results, double terms = 0,
                 Tolerance tolerance = kInteger ? Tolerance::kExact : Tolerance::kOfLargest) const {
        const V *first = data(), *last = values_.data() + values_.size() - kGuard;
        Result result{name, {}, tolerance, terms};
        for (const V* p = first; p != last; ++p)
            result.values.push_back(is_unwritten(*p) ? NAN : static_cast<double>(*p));
        if (!intact()) result.values.assign(1, NAN);
        results.push_back(std::move(result));
    }
    // Nothing was written outside.
    bool intact() const {
        const V *first = data(), *last = values_.data() + values_.size() - kGuard;
        for (int64_t k = 0; k < kGuard; ++k)
            if (!is_unwritten(first[-1 - k]) || !is_unwritten(last[k])) return false;
        return true;
    }

  private:
    static constexpr int64_t kGuard = 64, kUnwritten = -7;
    static constexpr bool kInteger = std::numeric_limits<V>::is_integer;
    static V unwritten() {
        return kInteger ? static_cast<V>(kUnwritten) : std::numeric_limits<V>::quiet_NaN();
    }
    static bool is_unwritten(V x) { return kInteger ? x == static_cast<V>(kUnwritten) : x != x; }

    std::vector<V> values_;
};

// A copy of rows of numbers that a pass may write over, between which lies NaN.
template <class T>
class Overwritten {
  public:
    Overwritten(const std::vector<T>& given, int64_t columns, int64_t stride)
        : given_(given), values_(given), columns_(columns), stride_(stride) {}

    T* data() { return values_.data(); }

    void collect(const std::string& name, Results& results, double terms = 0) const {
        Result result{name, {}, Tolerance::kOfLargest, terms};
        for (size_t k = 0; k < values_.size(); ++k)
            if (within(k))
                result.values.push_back(values_[k]);
            else if (!std::isnan(values_[k]))
                result.values.assign(1, NAN);
        results.push_back(std::move(result));
    }
    void collect_unchanged(const std::string& name, Results& results) const {
        const bool same = !std::memcmp(values_.data(), given_.data(), given_.size() * sizeof(T));
        results.push_back({name + " leaves its input", {same ? 0 : NAN}, Tolerance::kExact});
    }

    // The largest sum over a row, and over a column, of |given|, or of |given * written|.
    struct Sums {
        double row, column;
    };
    Sums largest_sums(bool of_products) const {
        std::vector<double> rows(values_.size() / stride_ + 1), columns(columns_);
        for (size_t k = 0; k < values_.size(); ++k) {
            if (!within(k)) continue;
            const double term = std::abs(of_products ? given_[k] * values_[k] : given_[k]);
            rows[k / stride_] += term;
            columns[k % stride_] += term;
        }
        return {*std::max_element(rows.begin(), rows.end()),
                *std::max_element(columns.begin(), columns.end())};
    }
    double largest() const {
        double found = 0;
        for (size_t k = 0; k < values_.size(); ++k)
            if (within(k)) found = std::fmax(found, std::abs(static_cast<double>(values_[k])));
        return found;
    }

  private:
    bool within(size_t k) const { return static_cast<int64_t>(k) % stride_ < columns_; }

    const std::vector<T>& given_;
    std::vector<T> values_;
    int64_t columns_, stride_;
};

template <class T>
struct TableMemory {
    Output<T> lse, total, neg_lse, highest, lowest;
    Output<int64_t> count, highest_at, lowest_at;

    explicit TableMemory(int64_t n)
        : lse(n),
          total(n),
          neg_lse(n),
          highest(n),
          lowest(n),
          count(n),
          highest_at(n),
          lowest_at(n) {}

    Tables<T> args(bool full) {
        if (!full)
            return {lse.data(), total.data(), count.data(), nullptr,
                    nullptr,    nullptr,      nullptr,      nullptr};
        return {lse.data(),     total.data(),  count.data(),      neg_lse.data(),
                highest.data(), lowest.data(), highest_at.data(), lowest_at.data()};
    }

    // `logit`: the size of the logits, to which an lse near 0 comes back; `terms`: of the totals.
    void collect(const std::string& name, bool full, double logit, double terms,
                 Results& results) const {
        lse.collect(name + "lse", results, logit);
        total.collect(name + "total", results, terms);
        count.collect(name + "count", results);
        if (!full) return;
        neg_lse.collect(name + "neg_lse", results, logit);
        highest.collect(name + "highest", results, 0, Tolerance::kExact);
        lowest.collect(name + "lowest", results, 0, Tolerance::kExact);
        highest_at.collect(name + "highest_at", results);
        lowest_at.collect(name + "lowest_at", results);
    }
};

// The tables of one channel.
template <class T>
struct View {
    TableMemory<T> rows, columns;
};

}  // namespace grainrank
