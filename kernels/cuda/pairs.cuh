// Four pairs of a row at a time, of adjacent columns: their similarities, levels and logits, and
// where their gradient goes. Shared by all kernels; the formulas are those of csrc/epilogue.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "grainrank_cuda.h"

#define GRAINRANK_ISA cuda
#define GRAINRANK_VECTOR_BYTES 0
#include "epilogue.h"

namespace grainrank {
namespace cuda {

constexpr int kVector = 4;  // pairs of a thread: 16 bytes of float32
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// One access, or two of 16 bytes.
template <class X>
struct alignas(kVector * sizeof(X) < 16 ? kVector * sizeof(X) : 16) Packed {
    X x[kVector];
};

template <class X>
__device__ bool is_aligned(const X* p) {
    return reinterpret_cast<uintptr_t>(p) % alignof(Packed<X>) == 0;
}

// p[at], .. for the first `there` of four; `other` for those behind. One access where it can be.
template <class X, class T>
__device__ void load(const X* p, int64_t at, int64_t there, T other, T (&out)[kVector]) {
    if (there >= kVector && is_aligned(p + at)) {
        const Packed<X> packed = *reinterpret_cast<const Packed<X>*>(p + at);
        for (int i = 0; i < kVector; ++i) out[i] = static_cast<T>(packed.x[i]);
    } else {
        for (int i = 0; i < kVector; ++i) out[i] = i < there ? static_cast<T>(p[at + i]) : other;
    }
}

template <class X>
__device__ void store(X* p, int64_t at, int64_t there, const X (&in)[kVector]) {
    if (there >= kVector && is_aligned(p + at)) {
        Packed<X> packed;
        for (int i = 0; i < kVector; ++i) packed.x[i] = in[i];
        *reinterpret_cast<Packed<X>*>(p + at) = packed;
    } else {
        for (int i = 0; i < kVector; ++i)
            if (i < there) p[at + i] = in[i];
    }
}

using Levels4 = int32_t[kVector];

// Four pairs of adjacent columns, and what they share with those of other rows: a thread keeps its
// columns while it goes from row to row.
template <class T>
struct Place {
    int row = 0;        // of the batch
    int block_row = 0;  // of the row block
    int column;         // the first of the four
    int there = 0;      // how many of them are in the matrix: 0 .. 4
    T scale;
    T column_factor[kVector];
    T factor[kVector] = {};  // between the product and the similarity

    __device__ Place(const GrainrankBlock& block, int column_) : column(column_) {
        move(block, column_);
    }

    __device__ void move(const GrainrankBlock& block, int column_) {
        column = column_;
        const int64_t left = block.columns - column;
        there = left < 0 ? 0 : left < kVector ? static_cast<int>(left) : kVector;
        scale = *static_cast<const T*>(block.scale);
        if (block.column_factors == nullptr) {
            for (T& x : column_factor) x = T(1);
        } else {
            load(static_cast<const T*>(block.column_factors), column, there, T(0), column_factor);
        }
    }

    __device__ void to_row(const GrainrankBlock& block, int block_row_) {
        block_row = block_row_;
        row = static_cast<int>(block.first_row) + block_row;
        T of_row = T(1);
        if (block.row_factors != nullptr)
            of_row = static_cast<const T*>(block.row_factors)[block_row];
        for (int i = 0; i < kVector; ++i) factor[i] = of_row * column_factor[i];
    }

    __device__ int64_t at(int64_t columns) const { return block_row * columns + column; }
};

template <class Key, bool kPrefix, class T>
__device__ void key_levels(const GrainrankSource& source, const Place<T>& at, Levels4& level) {
    const Key* query =
        static_cast<const Key*>(source.query_keys) + int64_t{at.row} * source.num_keys;
    const Key* candidates = static_cast<const Key*>(source.candidate_keys) + at.column;
#pragma unroll 1
    for (int k = 0; k < source.num_keys; ++k, ++query, candidates += source.key_stride) {
        const Key query_key = *query;
        const Packed<Key> packed = *reinterpret_cast<const Packed<Key>*>(candidates);
        for (int i = 0; i < kVector; ++i) {
            const int32_t match = key_match(packed.x[i], query_key);
            level[i] += kPrefix ? finer_match(match, level[i], k) : match;
        }
    }
}

// The entries of the row that lie at the four columns: few, where judgements are sparse.
template <class T>
__device__ void sparse_levels(const GrainrankSource& source, const Place<T>& at, Levels4& level) {
    int64_t low = source.ends[at.row];
    const int64_t end = source.ends[at.row + 1];
    for (int64_t high = end; low < high;) {
        const int64_t middle = low + (high - low) / 2;
        if (source.indices[middle] < at.column)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < end; ++low) {
        const int offset = source.indices[low] - at.column;
        if (offset >= kVector) break;
        const int32_t value = source.levels[low];
        for (int i = 0; i < kVector; ++i) level[i] = offset == i ? value : level[i];
    }
}

template <class T>
__device__ void band_levels(const GrainrankSource& source, int64_t columns, const Place<T>& at,
                            Levels4& level) {
    float similarity[kVector];
    load(source.similarities, at.at(columns), at.there, 0.0f, similarity);
    for (int l = 0; l < source.max_level; ++l) {
        float threshold[kVector];
        if (source.by_column) {
            load(source.thresholds, l * source.threshold_stride + at.column, at.there, 0.0f,
                 threshold);
        } else {
            const float of_row = source.thresholds[at.row * source.threshold_stride + l];
            for (float& x : threshold) x = of_row;
        }
        for (int i = 0; i < kVector; ++i) level[i] += above_threshold(similarity[i], threshold[i]);
    }
}

template <class T>
__device__ void source_levels(const GrainrankSource& source, int64_t columns, const Place<T>& at,
                              Levels4& level) {
    for (int32_t& l : level) l = 0;
    switch (source.kind) {
        case GRAINRANK_KEYS_PREFIX:
            if (source.wide_keys)
                key_levels<int64_t, true>(source, at, level);
            else
                key_levels<int32_t, true>(source, at, level);
            break;
        case GRAINRANK_KEYS_COUNT:
            if (source.wide_keys)
                key_levels<int64_t, false>(source, at, level);
            else
                key_levels<int32_t, false>(source, at, level);
            break;
        case GRAINRANK_DENSE:
            load(source.dense, at.row * columns + at.column, at.there, int32_t(0), level);
            break;
        case GRAINRANK_SPARSE:
            sparse_levels(source, at, level);
            break;
        case GRAINRANK_BANDS:
            band_levels(source, columns, at, level);
            break;
        default:
            for (int i = 0; i < kVector; ++i) level[i] = at.row == at.column + i;
    }
}

// Of each of the four pairs, whether its ids are equal.
template <class Id, class T>
__device__ void equal_ids(const GrainrankIds& ids, const Place<T>& at, bool (&equal)[kVector]) {
    const Id query = static_cast<const Id*>(ids.query_ids)[at.row];
    Id candidate[kVector];
    load(static_cast<const Id*>(ids.candidate_ids), at.column, at.there, Id(0), candidate);
    for (int i = 0; i < kVector; ++i) equal[i] = excluded(0, query, candidate[i]) < 0;
}

template <class T>
__device__ void equal_ids(const GrainrankIds& ids, const Place<T>& at, bool (&equal)[kVector]) {
    if (ids.wide)
        equal_ids<int64_t>(ids, at, equal);
    else
        equal_ids<int32_t>(ids, at, equal);
}

// -1 for ignored pairs, and behind the last column.
template <class T>
__device__ void pair_levels(const GrainrankBlock& block, const Place<T>& at, Levels4& level) {
    const GrainrankLevels& levels = block.levels;
    source_levels(levels.sources[0], block.columns, at, level);
    for (int n = 1; n < levels.num_sources; ++n) {
        Levels4 other;
        source_levels(levels.sources[n], block.columns, at, other);
        for (int i = 0; i < kVector; ++i) level[i] = united(level[i], other[i]);
    }
    for (int n = 0; n < levels.num_exclusions; ++n) {
        bool equal[kVector];
        equal_ids(levels.exclusions[n], at, equal);
        for (int i = 0; i < kVector; ++i) level[i] = equal[i] ? -1 : level[i];
    }
    if (at.there == kVector) return;
    for (int i = 0; i < kVector; ++i) level[i] = i < at.there ? level[i] : -1;
}

// Levels as the rows, or the columns, see them.
template <class T>
__device__ void apply_ceiling(const GrainrankBlock& block, bool by_column, const Place<T>& at,
                              const T (&s)[kVector], Levels4& level) {
    const GrainrankCeilings& ceilings = block.ceilings;
    const T* given = static_cast<const T*>(by_column ? ceilings.columns : ceilings.rows);
    if (given == nullptr) return;
    T ceiling[kVector], judged[kVector];
    bool kept[kVector] = {};
    if (by_column) {
        load(given, at.column, at.there, T(0), ceiling);
    } else {
        const T of_row = given[at.row];
        for (T& x : ceiling) x = of_row;
    }
    if (ceilings.reference != nullptr) {
        load(ceilings.reference, at.at(block.columns), at.there, T(0), judged);
    } else {
        for (int i = 0; i < kVector; ++i) judged[i] = s[i];
    }
    if (ceilings.kept.query_ids != nullptr) equal_ids(ceilings.kept, at, kept);
    for (int i = 0; i < kVector; ++i)
        level[i] = under_ceiling(level[i], judged[i], ceiling[i], kept[i]);
}

// The four products: the row block has room for all of them, also behind the last column.
template <class T>
__device__ Packed<T> load_products(const GrainrankBlock& block, const Place<T>& at) {
    const T* products = static_cast<const T*>(block.similarities) + at.at(block.row_stride);
    return *reinterpret_cast<const Packed<T>*>(products);
}

// From products to similarities; 0 behind the last column.
template <class T>
__device__ void similarities(const Place<T>& at, const Packed<T>& products, T (&s)[kVector]) {
    for (int i = 0; i < kVector; ++i) s[i] = products.x[i] * at.factor[i];
    if (at.there == kVector) return;
    for (int i = 0; i < kVector; ++i) s[i] = i < at.there ? s[i] : T(0);
}

// `factors`: of the levels, or null.
template <class T>
__device__ void logits(const GrainrankBlock& block, const T* factors, const Place<T>& at,
                       const T (&s)[kVector], const Levels4& level, T (&z)[kVector]) {
    if (block.circle) {
        const T margin = static_cast<T>(block.circle_margin);
        for (int i = 0; i < kVector; ++i) z[i] = circle_logit(s[i], at.scale, margin, level[i] > 0);
    } else if (factors != nullptr) {
        for (int i = 0; i < kVector; ++i) z[i] = at.scale * factors[entry(level[i])] * s[i];
    } else {
        for (int i = 0; i < kVector; ++i) z[i] = logit(s[i], at.scale);
    }
}

// From gradients of the logits to gradients of `scale * similarity`.
template <class T>
__device__ void through_logits(const GrainrankBlock& block, const T* factors, const T (&s)[kVector],
                               const Levels4& level, T (&g)[kVector]) {
    if (block.circle) {
        const T margin = static_cast<T>(block.circle_margin);
        for (int i = 0; i < kVector; ++i) g[i] *= circle_weight(s[i], margin, level[i] > 0);
    } else if (factors != nullptr) {
        for (int i = 0; i < kVector; ++i) g[i] *= factors[entry(level[i])];
    }
}

__device__ inline float rounded(float x, float) { return x; }
__device__ inline double rounded(double x, double) { return x; }
__device__ inline __half rounded(float x, __half) { return __float2half_rn(x); }
__device__ inline __nv_bfloat16 rounded(float x, __nv_bfloat16) { return __float2bfloat16_rn(x); }

// Times the block's factors and the unit, in the dtype of the gradient.
template <class T, class G>
__device__ void store_gradient(const GrainrankGradient& gradient, const Place<T>& at,
                               T (&g)[kVector]) {
    for (int i = 0; i < kVector; ++i) g[i] *= at.factor[i];
    if (gradient.unit != nullptr) {
        const T unit = *static_cast<const T*>(gradient.unit);
        // A row of length 0 has a factor of 1e12: its gradient is as large as float16 can be.
        const T most = T(65504);
        for (T& x : g) {
            x *= unit;
            x = x > most ? most : x;
            x = x < -most ? -most : x;
        }
    }
    Packed<G> out;
    for (int i = 0; i < kVector; ++i) out.x[i] = rounded(g[i], G());
    G* to = static_cast<G*>(gradient.values) + at.at(gradient.row_stride);
    if (at.there == kVector) {
        *reinterpret_cast<Packed<G>*>(to) = out;
    } else {
        for (int i = 0; i < kVector; ++i)
            if (i < at.there) to[i] = out.x[i];
    }
}

// The sum over groups of `lanes` neighbouring lanes, in each of them.
template <class T>
__device__ T sum_over(T x, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(kAllLanes, x, offset);
    return x;
}

}  // namespace cuda
}  // namespace grainrank
