// Sums of softplus over the pairs of each level: losses that are separable by pair (SigLIP), and
// the per-positive terms of RINCE-out and unique softmax.
#pragma once

#include "logits.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Thresholds of the levels of a pair: t, and the sign of x = sign * (z - t).
template <class T>
GRAINRANK_INLINE typename Lanes<T>::Float by_level(const T* of_level, int count,
                                                   typename Lanes<T>::Integer level) {
    using V = Lanes<T>;
    typename V::Float value = V::splat(of_level[0]);
    for (int l = 1; l < count; ++l)
        value = level == V::splat_integer(l) ? V::splat(of_level[l]) : value;
    return value;
}

template <class T>
struct SoftplusPass {
    const Block<T>& block;
    const LevelArgs& levels;
    const SoftplusArgs<T>& in;
};

template <class T>
bool softplus_row(const SoftplusPass<T>& pass, int64_t r) {
    using V = Lanes<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;
    const Block<T>& block = pass.block;
    const SoftplusArgs<T>& in = pass.in;
    const int count = pass.levels.max_level + 1;
    const T* thresholds = in.thresholds + r * in.threshold_stride;
    T value[kMaxLevels] = {}, slope[kMaxLevels] = {}, sum = T(0);
    alignas(64) T z[kChunk + kPadding];
    T scratch[kChunk];
    ChunkLevels chunk;
    constexpr int64_t kSize = kChunk / 16 * V::kWidth;  // 64 numbers a lane, as in table_pass.h
    constexpr int64_t kPiece = kSize < kChunk ? kSize : kChunk;
    for (int64_t begin = 0; begin < block.columns; begin += kPiece) {
        const int64_t left = block.columns - begin;
        const int64_t n = left < kPiece ? left : kPiece;
        if (!row_levels(pass.levels, block.first_row + r, begin, n, block.columns, chunk))
            return false;
        const T* s = similarities(block, r, begin, n, scratch);
        apply_ceiling(block, false, r, begin, n, s, chunk.level);
        logits(block, in.factors, s, chunk.level, n, z);
        for (int64_t j = n; j < n + V::kWidth; ++j) z[j] = T(0);
        Float values[kMaxLevels] = {}, slopes[kMaxLevels] = {};
        for (int64_t j = 0; j < n; j += V::kWidth) {
            const bool zero = V::all_zero(chunk.level + j);
            if (zero && in.positives) continue;
            const Float x = V::load(z + j);
            Float g;
            if (zero) {
                const Softplus<Float> pair = softplus<T>(x - thresholds[0]);
                values[0] += pair.value;
                slopes[0] += pair.slope;
                g = in.weights ? pair.slope * in.weights[0] : Float{};
            } else {
                const Integer level = V::load_levels(chunk.level + j);
                const auto positive = level > Integer{};
                const Float above = x - by_level<T>(thresholds, count, level);
                const Softplus<Float> pair = softplus<T>(positive ? -above : above);
                for (int l = in.positives ? 1 : 0; l < count; ++l) {
                    const auto here = level == V::splat_integer(l);
                    values[l] += here ? pair.value : Float{};
                    slopes[l] += here ? pair.slope : Float{};
                }
                if (in.weights) {
                    g = pair.slope * by_level<T>(in.weights, count, level);
                    g = positive ? -g : g;
                    g = level < Integer{} ? Float{} : g;
                } else {
                    g = Float{};
                }
            }
            if (in.weights) V::store(z + j, g);
        }
        for (int l = 0; l < count; ++l) {
            value[l] += V::sum(values[l]);
            slope[l] += V::sum(slopes[l]);
        }
        if (in.weights) {
            through_logits(block, in.factors, s, chunk.level, n, z);
            if (block.dots) sum += dot(z, s, n);
            write_gradients(block, r, begin, n, z);
        }
    }
    memcpy(in.value + r * count, value, count * sizeof(T));
    memcpy(in.slope + r * count, slope, count * sizeof(T));
    if (in.weights && block.dots) block.dots[r] = sum;
    return true;
}

// The part of the positives' sums in the gradient of the logits: -d_softplus[y] sigmoid(t[y] - z).
template <class T>
void add_softplus_gradient(const RowGradientArgs<T>& in, int max_level, int64_t r,
                           const int32_t* level, const T* z, int64_t n, T* g) {
    using V = Lanes<T>;
    using Float = typename V::Float;
    using Integer = typename V::Integer;
    const int count = max_level + 1;
    const T* thresholds = in.thresholds + r * count;
    const T* d = in.d_softplus + r * count;
    for (int64_t j = 0; j < n; j += V::kWidth) {
        if (V::all_zero(level + j)) continue;
        const int64_t rest = n - j < V::kWidth ? n - j : V::kWidth;
        T values[V::kWidth] = {}, sums[V::kWidth] = {};
        memcpy(values, z + j, rest * sizeof(T));
        memcpy(sums, g + j, rest * sizeof(T));
        const Integer y = V::load_levels(level + j);
        const Softplus<Float> pair =
            softplus<T>(by_level<T>(thresholds, count, y) - V::load(values));
        const Float part = pair.slope * by_level<T>(d, count, y);
        V::store(sums, V::load(sums) - (y > Integer{} ? part : Float{}));
        memcpy(g + j, sums, rest * sizeof(T));
    }
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
