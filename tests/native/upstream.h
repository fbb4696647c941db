// Tables of a batch and random gradients of them: the input of the gradient pass.
#pragma once

#include "outputs.h"

namespace grainrank {

// Of one channel.
template <class T>
class Upstream {
  public:
    Upstream(const Batch<T>& batch, const View<T>& view, Random& random)
        : full_(batch.c.full),
          levels_(batch.c.max_level + 1),
          stride_(batch.c.columns + kColumnPadding) {
        const Case& c = batch.c;
        const int64_t size = c.rows * levels_;
        const TableMemory<T>& rows = view.rows;
        lse_.assign(rows.lse.data(), rows.lse.data() + size);
        neg_lse_.assign(rows.neg_lse.data(), rows.neg_lse.data() + size);
        // Gradients of the rows may be missing, each for itself.
        if (!random.one_in(5)) d_lse_ = gradients(rows, size, random);
        if (full_ && !random.one_in(5)) d_neg_lse_ = gradients(rows, size, random);
        if (full_ && !random.one_in(5)) d_total_ = gradients(rows, size, random);
        if (c.softplus) d_softplus_ = gradients(rows, size, random);
        thresholds_ = Batch<T>::reals(size, -c.scale / 2, c.scale / 2, random);
        if (!c.column_gradients) return;
        const TableMemory<T>& columns = view.columns;
        const int64_t column_size = c.table_columns * levels_;
        const T nowhere = static_cast<T>(-kEmpty);
        by_level_[0] = lay(c, columns.lse.data(), nowhere);
        by_level_[1] = lay(c, gradients(columns, column_size, random).data(), T(0));
        if (!full_) return;
        by_level_[2] = lay(c, columns.neg_lse.data(), nowhere);
        by_level_[3] = lay(c, gradients(columns, column_size, random).data(), T(0));
        by_level_[4] = lay(c, gradients(columns, column_size, random).data(), T(0));
    }

    Channel<T> args(const T* factors, bool softplus, T* moments) const {
        const RowGradientArgs<T> rows{lse_.data(),
                                      or_null(d_lse_),
                                      neg_lse_.data(),
                                      or_null(d_neg_lse_),
                                      or_null(d_total_),
                                      softplus ? thresholds_.data() : nullptr,
                                      softplus ? or_null(d_softplus_) : nullptr};
        const ColumnGradientArgs<T> columns{or_null(by_level_[0]), or_null(by_level_[1]),
                                            or_null(by_level_[2]), or_null(by_level_[3]),
                                            or_null(by_level_[4]), stride_};
        return {factors, rows, columns, moments};
    }

  private:
    static constexpr int64_t kColumnPadding = 64;  // a vector may read it

    static const T* or_null(const std::vector<T>& values) {
        return values.empty() ? nullptr : values.data();
    }

    // 0 at empty levels, where exp(z - lse) is infinite.
    static std::vector<T> gradients(const TableMemory<T>& tables, int64_t size, Random& random) {
        std::vector<T> d = Batch<T>::reals(size, -1, 1, random);
        for (int64_t k = 0; k < size; ++k)
            if (tables.count.data()[k] == 0) d[k] = T(0);
        return d;
    }

    // [table_columns, L + 1] to [L + 1, stride]: `without` in columns that have no tables, NaN in
    // the padding.
    std::vector<T> lay(const Case& c, const T* tables, T without) const {
        std::vector<T> out(levels_ * stride_, std::numeric_limits<T>::quiet_NaN());
        for (int l = 0; l < levels_; ++l)
            for (int64_t j = 0; j < c.columns; ++j)
                out[l * stride_ + j] = j < c.table_columns ? tables[j * levels_ + l] : without;
        return out;
    }

    bool full_;
    int levels_;  // L + 1
    int64_t stride_;
    std::vector<T> lse_, d_lse_, neg_lse_, d_neg_lse_, d_total_, thresholds_, d_softplus_;
    std::vector<T> by_level_[5];  // in the order of ColumnGradientArgs
};

}  // namespace grainrank
