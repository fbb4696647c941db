// What the launchers have in common: checks of their arguments, and the choice by dtype.
#pragma once

#include <cuda_runtime.h>

#include "pairs.cuh"

namespace grainrank {
namespace cuda {

// Blocks of 256 threads that a multiprocessor has room for at least: 128 registers each, or all.
template <class T>
constexpr int kResident = sizeof(T) == sizeof(float) ? 2 : 1;

constexpr int64_t kMostLines = int64_t(1) << 31;

__host__ inline int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Rows are read and written four pairs at a time, also behind the last column.
inline bool is_misaligned(const void* p, int64_t stride, size_t size) {
    return reinterpret_cast<uintptr_t>(p) % GRAINRANK_CUDA_ALIGNMENT != 0 ||
           stride * static_cast<int64_t>(size) % GRAINRANK_CUDA_ALIGNMENT != 0 ||
           stride % kVector != 0;
}

// 0, or the error.
inline int checked(const GrainrankBlock& block) {
    if (block.dtype != GRAINRANK_F32 && block.dtype != GRAINRANK_F64) return GRAINRANK_CUDA_DTYPE;
    if (block.rows < 0 || block.columns < 0 || block.rows >= kMostLines ||
        block.columns >= kMostLines || block.first_row < 0 ||
        block.first_row + block.rows >= kMostLines || block.row_stride < block.columns)
        return GRAINRANK_CUDA_SIZE;
    const size_t size = block.dtype == GRAINRANK_F32 ? sizeof(float) : sizeof(double);
    if (is_misaligned(block.similarities, block.row_stride, size)) return GRAINRANK_CUDA_MISALIGNED;
    const GrainrankLevels& levels = block.levels;
    if (levels.max_level < 1 || levels.max_level > kMaxLevel || levels.num_sources < 1 ||
        levels.num_sources > GRAINRANK_CUDA_MAX_SOURCES || levels.num_exclusions < 0 ||
        levels.num_exclusions > GRAINRANK_CUDA_MAX_EXCLUSIONS)
        return GRAINRANK_CUDA_TOO_MANY;
    for (int n = 0; n < levels.num_sources; ++n) {
        const GrainrankSource& source = levels.sources[n];
        const size_t key = source.wide_keys ? sizeof(int64_t) : sizeof(int32_t);
        if (is_misaligned(source.candidate_keys, source.key_stride, key))
            return GRAINRANK_CUDA_MISALIGNED;
    }
    return 0;
}

inline int checked(const GrainrankBlock& block, const GrainrankGradient& gradient) {
    size_t size = sizeof(__half);
    if (gradient.dtype == GRAINRANK_F32) size = sizeof(float);
    if (gradient.dtype == GRAINRANK_F64) size = sizeof(double);
    if (gradient.row_stride < block.columns) return GRAINRANK_CUDA_SIZE;
    return is_misaligned(gradient.values, gradient.row_stride, size) ? GRAINRANK_CUDA_MISALIGNED
                                                                     : 0;
}

template <class T, class G>
struct Types {
    using Pair = T;
    using Gradient = G;
};

// Calls run with the types of the block and the gradient, or the rows.
template <class Run>
int with_types(int pair, int gradient, Run run) {
    if (pair == GRAINRANK_F64 && gradient == GRAINRANK_F64) return run(Types<double, double>{});
    if (pair != GRAINRANK_F32) return GRAINRANK_CUDA_DTYPE;
    switch (gradient) {
        case GRAINRANK_F32:
            return run(Types<float, float>{});
        case GRAINRANK_F16:
            return run(Types<float, __half>{});
        case GRAINRANK_BF16:
            return run(Types<float, __nv_bfloat16>{});
        default:
            return GRAINRANK_CUDA_DTYPE;
    }
}

}  // namespace cuda
}  // namespace grainrank
