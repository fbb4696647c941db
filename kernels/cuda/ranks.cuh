// What the passes over ranks have in common: the smooth step, the stored levels, and checks.
#pragma once

#include "launch.cuh"
#include "rank_step.h"

namespace grainrank {
namespace cuda {

// The step in numbers of the pairs' type.
template <class T>
struct Step {
    bool upper_bound;
    T inverse;  // of the temperature
    T rho, delta, offset, steep;

    explicit Step(const GrainrankStep& step)
        : upper_bound(step.upper_bound),
          inverse(static_cast<T>(1 / step.temperature)),
          rho(static_cast<T>(step.rho)),
          delta(static_cast<T>(step.delta)),
          offset(static_cast<T>(step.offset)),
          steep(static_cast<T>(step.rho * step.temperature)) {}

    __device__ StepOf<T> at(T x) const {
        const StepOf<T> sigmoid = sigmoid_step<T>(x * inverse);
        return upper_bound ? bound_step(sigmoid, x, rho, delta, offset, steep) : sigmoid;
    }
};

// Never part of a fused multiply-add, which would tell equal similarities apart.
__device__ inline float difference(float a, float b) { return __fsub_rn(a, b); }
__device__ inline double difference(double a, double b) { return __dsub_rn(a, b); }

// Of four pairs; -1 behind the last column.
template <class T>
__device__ void load_levels(const GrainrankPositives& in, const Place<T>& at, Levels4& level) {
    const int8_t* levels = in.levels + at.at(in.level_stride);
    const Packed<int8_t> packed = *reinterpret_cast<const Packed<int8_t>*>(levels);
    for (int i = 0; i < kVector; ++i) level[i] = packed.x[i];
}

// 0, or the error.
inline int checked(const GrainrankBlock& block, const GrainrankPositives& in) {
    if (const int error = checked(block)) return error;
    if (in.positives < 0 || in.level_stride < block.columns) return GRAINRANK_CUDA_SIZE;
    return is_misaligned(in.levels, in.level_stride, 1) ? GRAINRANK_CUDA_MISALIGNED : 0;
}

}  // namespace cuda
}  // namespace grainrank
