// One exponential of a pair for the gradients of its row and of its column.
#pragma once

#include <algorithm>
#include <vector>

#include "logits.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Where the lse of level 0 of all rows and columns lie close together, around `middle`, one
// exponential serves both gradients of a pair: exp(z - lse of the column) is exp(z - lse of the
// row) times exp(lse of the row - middle) times exp(middle - lse of the column).
template <class T>
class SharedExponential {
    using V = Lanes<T>;

  public:
    SharedExponential() = default;

    SharedExponential(const Channel<T>& channel, int64_t rows, int64_t levels, int64_t columns) {
        const RowGradientArgs<T>& of_rows = channel.rows;
        const ColumnGradientArgs<T>& of_columns = channel.columns;
        T high = T(kEmpty), low = T(-kEmpty);
        bool numbers = true;
        const auto look = [&](T lse) {
            if (is_far(lse)) return;
            high = std::max(high, lse);
            low = std::min(low, lse);
            numbers &= lse == lse;
        };
        for (int64_t r = 0; r < rows; ++r) look(of_rows.lse[r * levels]);
        for (int64_t j = 0; j < columns; ++j) look(of_columns.lse[j]);
        if (!numbers || !(high - low <= T(kClose))) return;
        middle_ = low + (high - low) / 2;
        weights_.resize(columns + kPadding);
        for (int64_t j = 0; j < columns; j += V::kWidth) {
            const auto lse = V::load(of_columns.lse + j);
            const auto power = is_far(lse) ? typename V::Float{} : V::splat(middle_) - lse;
            V::store(&weights_[j], exponential<T>(power) * V::load(of_columns.d_lse + j));
        }
    }

    // [M], or null: not close.
    const T* weights() const { return weights_.empty() ? nullptr : weights_.data(); }
    T factor(T lse_of_row) const { return scalar_exp(lse_of_row - middle_); }

  private:
    // Without pairs of level 0, or without a table.
    template <class F>
    static GRAINRANK_INLINE auto is_far(F lse) {
        return (lse == F{} + T(kEmpty)) | (lse == F{} - T(kEmpty));
    }

    T middle_ = T(0);
    std::vector<T> weights_;  // exp(middle - lse) * d_lse
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
