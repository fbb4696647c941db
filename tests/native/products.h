// Runs a product of matrices, and finds it from its definition.
#pragma once

#include "outputs.h"

namespace grainrank {

// Numbers of a matrix [rows, columns] of which one stride is 1, the other `gap` longer than it need
// be; nothing lies behind the last one.
template <class T>
struct Numbers {
    static constexpr bool kIsBf16 = std::is_same_v<T, uint16_t>;
    int64_t row_stride, column_stride;
    std::vector<T> values;

    Numbers(int64_t rows, int64_t columns, bool by_row, int64_t gap, Random& random)
        : row_stride(by_row ? columns + gap : 1), column_stride(by_row ? 1 : rows + gap) {
        constexpr T nan = kIsBf16 ? T(0x7fc0) : T(NAN);
        values.assign((rows - 1) * row_stride + (columns - 1) * column_stride + 1, nan);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j) {
                const auto x = static_cast<float>(random.real(-1, 1));
                values[i * row_stride + j * column_stride] = rounded(x);
            }
    }

    Matrix<T> matrix() const { return {values.data(), row_stride, column_stride}; }
    double at(int64_t i, int64_t j) const {
        const T value = values[i * row_stride + j * column_stride];
        if constexpr (kIsBf16) {
            const uint32_t bits = static_cast<uint32_t>(value) << 16;
            float x;
            std::memcpy(&x, &bits, sizeof x);
            return x;
        } else {
            return value;
        }
    }

  private:
    static T rounded(float x) {
        if constexpr (kIsBf16) {
            uint32_t bits;
            std::memcpy(&bits, &x, sizeof bits);
            return static_cast<uint16_t>(bits >> 16);
        } else {
            return x;
        }
    }
};

struct ProductCase {
    int64_t rows, columns, depth;
    bool a_by_row, b_by_row, add;
    int64_t gap;
};

// The result, and what it should be.
template <class T>
std::pair<Results, Results> run_product(Product<T> product, const ProductCase& c, int num_threads,
                                        Random& random) {
    const Numbers<T> a(c.rows, c.depth, c.a_by_row, c.gap, random);
    const Numbers<T> b(c.depth, c.columns, c.b_by_row, c.gap, random);
    const int64_t stride = c.columns + c.gap;
    Output<float> out(c.rows * stride);
    if (c.add)
        for (int64_t i = 0; i < c.rows; ++i)
            for (int64_t j = 0; j < c.columns; ++j) out.data()[i * stride + j] = 1;
    const ProductStatus status = product({a.matrix(), b.matrix(), c.rows, c.columns, c.depth,
                                          out.data(), stride, c.add, num_threads});
    Result expected{"product", {}, Tolerance::kOfLargest, static_cast<double>(c.depth)};
    Result actual = expected;
    bool untouched = status == ProductStatus::kOk && out.intact();
    for (int64_t i = 0; i < c.rows; ++i) {
        for (int64_t j = 0; j < c.columns; ++j) {
            double sum = c.add;
            for (int64_t k = 0; k < c.depth; ++k) sum += a.at(i, k) * b.at(k, j);
            expected.values.push_back(sum);
            actual.values.push_back(out.data()[i * stride + j]);
        }
        for (int64_t j = c.columns; j < stride; ++j)
            untouched = untouched && std::isnan(out.data()[i * stride + j]);
    }
    return {{actual, {"between the rows", {untouched ? 0 : NAN}, Tolerance::kExact}},
            {expected, {"between the rows", {0}, Tolerance::kExact}}};
}

}  // namespace grainrank
