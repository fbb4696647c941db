// Products of matrices, summed and returned in float32.
#pragma once

#include <cstdint>

namespace grainrank {

// One of whose strides is 1. T: float, or uint16_t for the bits of a bfloat16.
template <class T>
struct Matrix {
    const T* values;
    int64_t row_stride;
    int64_t column_stride;
};

// out = a b, or out += a b. Sums run over the k in their order, in pieces of kDepth.
template <class T>
struct ProductArgs {
    Matrix<T> a;  // [rows, depth]
    Matrix<T> b;  // [depth, columns]
    int64_t rows;
    int64_t columns;
    int64_t depth;
    float* out;  // [rows, columns], rows `out_stride` apart
    int64_t out_stride;
    bool add;
    int num_threads;
};

enum class ProductStatus : int { kOk = 0, kOutOfMemory = 1 };

template <class T>
using Product = ProductStatus (*)(const ProductArgs<T>&);

}  // namespace grainrank
