// Products of bfloat16 matrices, summed and returned in float32.
#pragma once

#include <cstdint>

namespace grainrank {

// A matrix of bfloat16, one of whose strides is 1.
struct Bf16Matrix {
    const uint16_t* values;
    int64_t row_stride;
    int64_t column_stride;
};

// out = a b, or out += a b. Sums run over the k in their order, in pieces of kDepth.
struct Bf16ProductArgs {
    Bf16Matrix a;  // [rows, depth]
    Bf16Matrix b;  // [depth, columns]
    int64_t rows;
    int64_t columns;
    int64_t depth;
    float* out;  // [rows, columns], rows `out_stride` apart
    int64_t out_stride;
    bool add;
    int num_threads;
};

enum class ProductStatus : int { kOk = 0, kOutOfMemory = 1 };

using Bf16Product = ProductStatus (*)(const Bf16ProductArgs&);

}  // namespace grainrank
