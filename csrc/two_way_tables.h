// Tables of the rows and of the columns of a block in one pass, panel by panel of its columns, with
// one exponential for both: light ones, where the logits are the similarities but for the scale and
// the pairs whose level is not 0 are listed. For a group of rows, exp(z - m) with m the highest
// logit of level 0 of the row also serves the columns, times exp(m - h) with h the highest m. What
// is left of a column far below h is summed again, against its own highest logit.
#pragma once

#include "table_pass.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Columns of a panel. The logits of a group of kLaneTerms rows stay in the second-level cache.
template <class T>
constexpr int64_t kPanel =
    kTableChunk<T> * sizeof(T) < 2048 ? kTableChunk<T> : 2048 / static_cast<int64_t>(sizeof(T));

template <class T>
struct TwoWayPass {
    const TablePass<T>& pass;
    LevelPart<T, false>* parts;  // [panels, R, L + 1]: of the rows, over one panel
};

// Whether the pairs whose level is not 0 can be listed, and are few in the block.
template <class T>
bool lists_block(const TablePass<T>& pass) {
    const Block<T>& block = pass.block;
    if (!is_plain(block) || pass.factors) return false;
    int64_t listed = 0;
    RowList list;
    for (int64_t r = 0; r < block.rows; ++r) {
        if (!list.open(pass.levels, block.first_row + r, block.columns)) return false;
        listed += list.left();
    }
    return few(listed, block.rows * block.columns);
}

// Sums over the level-0 logits of kWidth columns: of exp(z - shift) and of z.
template <class T>
struct ColumnSums {
    typename Lanes<T>::Float shift, sum, total;
};

// The tables of the columns of a panel in progress.
template <class T, int kLevels>
class PanelColumns {
    using V = Lanes<T>;
    using Float = typename V::Float;

  public:
    void start() {
        zeros_ = {};
        for (T& shift : zeros_.shift) shift = T(kEmpty);
        for (Others& others : others_) {
            others = {};
            for (T& shift : others.shift) shift = T(kEmpty);
        }
        memset(listed_, 0, sizeof listed_);
    }

    // Of level 0, of the columns from j on.
    GRAINRANK_INLINE void add(int64_t j, const ColumnSums<T>& of_group) {
        const Float shift = V::load(zeros_.shift + j);
        const Float top = of_group.shift > shift ? of_group.shift : shift;
        V::store(zeros_.shift + j, top);
        V::store(zeros_.sum + j, V::load(zeros_.sum + j) * exponential<T>(shift - top) +
                                     of_group.sum * exponential<T>(of_group.shift - top));
        V::store(zeros_.total + j, V::load(zeros_.total + j) + of_group.total);
    }

    // The listed pairs of a row, and their logits.
    void add(const ListedPairs& listed, const T* z) {
        alignas(64) T powers[kPanel<T> + kPadding];
        for (int64_t k = 0; k < listed.size; ++k) {
            const int32_t j = listed.place[k];
            ++listed_[j];
            powers[k] = T(0);
            if (!counts(listed.level[k])) continue;
            Others& of_level = others_[listed.level[k] - 1];
            T& shift = of_level.shift[j];
            if (z[k] > shift) {
                if (of_level.count[j] > 0) of_level.sum[j] *= scalar_exp(shift - z[k]);
                shift = z[k];
            }
            powers[k] = z[k] - shift;
        }
        for (int64_t k = listed.size; k % V::kWidth != 0; ++k) powers[k] = T(0);
        for (int64_t k = 0; k < listed.size; k += V::kWidth)
            V::store(powers + k, probability<T>(V::load(powers + k)));
        for (int64_t k = 0; k < listed.size; ++k) {
            if (!counts(listed.level[k])) continue;
            Others& of_level = others_[listed.level[k] - 1];
            const int32_t j = listed.place[k];
            of_level.sum[j] += static_cast<double>(powers[k]);
            of_level.total[j] += static_cast<double>(z[k]);
            ++of_level.count[j];
        }
    }

    // Columns begin .. begin + n of the table, over so many rows.
    void write(const Tables<T>& out, int64_t begin, int64_t n, int64_t rows) const {
        for (int64_t j = 0; j < n; ++j) {
            const int64_t at = (begin + j) * kLevels;
            write_entry(out, at, rows - listed_[j], zeros_.sum[j], zeros_.shift[j],
                        zeros_.total[j]);
            for (int l = 1; l < kLevels; ++l) {
                const Others& of_level = others_[l - 1];
                write_entry(out, at + l, of_level.count[j], static_cast<T>(of_level.sum[j]),
                            of_level.shift[j], static_cast<T>(of_level.total[j]));
            }
        }
    }

  private:
    static bool counts(int32_t level) { return level > 0 && level < kLevels; }

    struct Zeros {
        alignas(64) T shift[kPanel<T>];
        alignas(64) T sum[kPanel<T>];
        alignas(64) T total[kPanel<T>];
    };
    // Of a level above 0, added pair by pair.
    struct Others {
        T shift[kPanel<T>];
        double sum[kPanel<T>];
        double total[kPanel<T>];
        int64_t count[kPanel<T>];
    };

    Zeros zeros_;
    Others others_[kLevels - 1];
    int32_t listed_[kPanel<T>];
};

// A group of rows in a panel: logits of level 0 in z, the others taken out.
template <class T>
struct RowGroup {
    alignas(64) T z[kLaneTerms<T> * kPanel<T>];
    T highest[kLaneTerms<T>];
    int64_t rows, steps;  // vectors of a row

    const T* row(int64_t i) const { return z + i * kPanel<T>; }
};

// Against the highest logit of each column.
template <class T>
ColumnSums<T> sums_of_columns(const RowGroup<T>& group, int64_t j) {
    using V = Lanes<T>;
    const auto out = typename V::Integer{} + kTakenOut<T>;
    ColumnSums<T> sums{V::splat(T(kEmpty)), {}, {}};
    for (int64_t i = 0; i < group.rows; ++i) {
        const auto x = V::load(group.row(i) + j);
        sums.shift = x > sums.shift ? x : sums.shift;  // a NaN is passed over
    }
    for (int64_t i = 0; i < group.rows; ++i) {
        const auto x = V::load(group.row(i) + j);
        const auto taken_out = V::bits(x) == out;
        sums.sum += taken_out ? typename V::Float{} : probability<T>(x - sums.shift);
        sums.total += taken_out ? typename V::Float{} : x;
    }
    return sums;
}

template <class T, int kLevels>
class TwoWayPanel {
    using V = Lanes<T>;
    using Float = typename V::Float;

  public:
    TwoWayPanel(const TwoWayPass<T>& both, int64_t panel)
        : pass_(both.pass),
          begin_(panel * kPanel<T>),
          n_(std::min(kPanel<T>, pass_.block.columns - begin_)),
          parts_(both.parts + panel * pass_.block.rows * kLevels) {
        columns_.start();
        group_.steps = (n_ + V::kWidth - 1) / V::kWidth;
    }

    void run() {
        const int64_t rows = pass_.block.rows;
        for (int64_t first = 0; first < rows; first += kLaneTerms<T>) {
            group_.rows = std::min(kLaneTerms<T>, rows - first);
            for (int64_t i = 0; i < group_.rows; ++i) read_row(first + i, i);
            add_zeros(first);
        }
        const int64_t with_tables = pass_.table_columns - begin_;
        columns_.write(*pass_.columns, begin_, std::min(n_, with_tables), rows);
    }

  private:
    // Row r, the i-th of its group: its logits and the highest one; the listed pairs are added.
    void read_row(int64_t r, int64_t i) {
        const Block<T>& block = pass_.block;
        T scratch[kPanel<T> + kPadding];
        alignas(64) T apart[kPanel<T> + kPadding];
        T* z = group_.z + i * kPanel<T>;
        const T* s = similarities(block, r, begin_, n_, scratch);
        if (n_ % V::kWidth != 0 && s != scratch) {
            memcpy(scratch, s, n_ * sizeof(T));
            s = scratch;
        }
        const Logits<T> logits{s, block.scale};
        const int64_t end = group_.steps * V::kWidth;
        for (int64_t j = 0; j < end; j += V::kWidth) V::store(z + j, logits.load(j));
        RowList list;
        ListedPairs listed;
        list.open(pass_.levels, block.first_row + r, block.columns);
        list.skip(begin_);
        list.read(begin_, n_, listed);
        for (int64_t k = 0; k < listed.size; ++k) {
            apart[k] = z[listed.place[k]];
            take_out(z + listed.place[k]);
        }
        for (int64_t j = n_; j < end; ++j) take_out(z + j);
        Float highest = V::splat(T(kEmpty));
        for (int64_t j = 0; j < end; j += V::kWidth) {
            const Float x = V::load(z + j);
            highest = x > highest ? x : highest;  // a NaN is passed over
        }
        group_.highest[i] = V::max(highest);
        LevelPart<T, false>* parts = parts_ + r * kLevels;
        parts[0].count = static_cast<typename V::ScalarInteger>(n_ - listed.size);
        for (int l = 1; l < kLevels; ++l) parts[l] = {};
        if (listed.size == 0) return;
        for (int k = 0; k < V::kWidth; ++k) apart[listed.size + k] = T(0);
        columns_.add(listed, apart);
        LevelTables<T, false, kLevels, Lane::kAlong> others;
        others.start(kLevels - 1);
        others.add_listed({apart, T(1)}, listed.level, listed.pad(V::kWidth));
        for (int l = 1; l < kLevels; ++l) parts[l] = others.part(l);
    }

    // The pairs of level 0 of a group, whose first row is `first`.
    void add_zeros(int64_t first) {
        alignas(64) T sums[kPanel<T>], totals[kPanel<T>];
        const int64_t end = group_.steps * V::kWidth;
        for (int64_t j = 0; j < end; ++j) sums[j] = totals[j] = T(0);
        T highest = group_.highest[0];
        for (int64_t i = 1; i < group_.rows; ++i) highest = std::max(highest, group_.highest[i]);
        const auto out = typename V::Integer{} + kTakenOut<T>;
        for (int64_t i = 0; i < group_.rows; ++i) {
            const T* z = group_.row(i);
            // Of the next group, while this one is computed with.
            const T* ahead = pass_.block.similarities +
                             (first + i + kLaneTerms<T>)*pass_.block.row_stride + begin_;
            const Float shift = V::splat(group_.highest[i]);
            const Float factor = V::splat(scalar_exp(group_.highest[i] - highest));
            Float sum{}, total{};
            for (int64_t j = 0; j < end; j += V::kWidth) {
                fetch_far_ahead(ahead + j);
                const Float x = V::load(z + j);
                const auto taken_out = V::bits(x) == out;
                const Float e = taken_out ? Float{} : probability<T>(x - shift);
                const Float logit = taken_out ? Float{} : x;
                sum += e;
                total += logit;
                V::store(sums + j, V::load(sums + j) + e * factor);
                V::store(totals + j, V::load(totals + j) + logit);
            }
            LevelPart<T, false>& part = parts_[(first + i) * kLevels];
            part.exponentials.reference = group_.highest[i];
            part.exponentials.sum = V::sum(sum);
            part.total = V::sum(total);
        }
        const Float least = V::splat(scalar_exp(T(-kClose)));
        for (int64_t j = 0; j < end; j += V::kWidth) {
            const Float sum = V::load(sums + j);
            const bool close = V::sum_integer(V::ones(sum > least)) == V::kWidth;  // no NaN either
            columns_.add(j, close ? ColumnSums<T>{V::splat(highest), sum, V::load(totals + j)}
                                  : sums_of_columns(group_, j));
        }
    }

    const TablePass<T>& pass_;
    const int64_t begin_, n_;
    LevelPart<T, false>* parts_;
    PanelColumns<T, kLevels> columns_;
    RowGroup<T> group_;
};

template <class T, int kLevels>
bool two_way_panel(const TwoWayPass<T>& both, int64_t panel) {
    TwoWayPanel<T, kLevels>(both, panel).run();
    return true;
}

// Row r, of its parts.
template <class T, int kLevels>
bool two_way_row(const TwoWayPass<T>& both, int64_t r) {
    const Block<T>& block = both.pass.block;
    const Tables<T>& out = both.pass.rows;
    const int64_t panels = (block.columns + kPanel<T> - 1) / kPanel<T>;
    const auto part = [&](int64_t p, int l) -> const LevelPart<T, false>& {
        return both.parts[(p * block.rows + r) * kLevels + l];
    };
    for (int l = 0; l < kLevels; ++l) {
        T shift = T(kEmpty);
        for (int64_t p = 0; p < panels; ++p)
            shift = std::max(shift, part(p, l).exponentials.reference);
        double sum = 0, total = 0;
        int64_t count = 0;
        for (int64_t p = 0; p < panels; ++p) {
            const LevelPart<T, false>& of_panel = part(p, l);
            const ExponentialSum<T>& exponentials = of_panel.exponentials;
            if (of_panel.count == 0) continue;
            sum +=
                static_cast<double>(exponentials.sum * scalar_exp(exponentials.reference - shift));
            total += static_cast<double>(of_panel.total);
            count += of_panel.count;
        }
        write_entry(out, r * kLevels + l, count, static_cast<T>(sum), shift, static_cast<T>(total));
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
