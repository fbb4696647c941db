// Products of some queries with some candidates, tile by tile. Each similarity is the sum over the
// features in their order, in one accumulator: the same bits wherever a pair stands in a tile, and
// if it stands alone.
#pragma once

#include "rank_args.h"
#include "vector.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// As many sums as there are registers for, with few loads for each.
constexpr int kTileRows = 4, kTileVectors = 3;
template <class T>
constexpr int kTileColumns = kTileVectors * Lanes<T>::kWidth;

// Rows begin .. begin + n of at most `wide` as the tiles read them, [D, wide]; zeros behind them.
template <class T>
void pack(const EmbeddingRows<T>& rows, int64_t features, int64_t begin, int n, int wide, T* out) {
    for (int i = 0; i < wide; ++i) {
        if (i >= n) {
            for (int64_t k = 0; k < features; ++k) out[k * wide + i] = T(0);
            continue;
        }
        const T* x = rows.values + (begin + i) * rows.stride;
        for (int64_t k = 0; k < features; ++k) out[k * wide + i] = x[k];
    }
}

template <class T>
T factor(const EmbeddingRows<T>& rows, int64_t i) {
    return rows.factors ? rows.factors[i] : T(1);
}

// Similarities of kTileRows packed queries and kTileColumns packed candidates, rows `stride` apart.
template <class T>
GRAINRANK_INLINE void tile(const T* queries, const T* candidates, int64_t features,
                           const T* query_factors, const T* candidate_factors, T* out,
                           int64_t stride) {
    using V = Lanes<T>;
    typename V::Float sums[kTileRows][kTileVectors] = {};
    for (int64_t k = 0; k < features; ++k) {
        typename V::Float c[kTileVectors];
        for (int j = 0; j < kTileVectors; ++j)
            c[j] = V::load(candidates + k * kTileColumns<T> + j * V::kWidth);
        for (int i = 0; i < kTileRows; ++i) {
            const typename V::Float q = V::splat(queries[k * kTileRows + i]);
            for (int j = 0; j < kTileVectors; ++j)
                sums[i][j] = V::multiply_add(q, c[j], sums[i][j]);
        }
    }
    for (int i = 0; i < kTileRows; ++i) {
        const typename V::Float q = V::splat(query_factors[i]);
        for (int j = 0; j < kTileVectors; ++j) {
            const typename V::Float c = V::load(candidate_factors + j * V::kWidth);
            V::store(out + i * stride + j * V::kWidth, sums[i][j] * (q * c));
        }
    }
}

constexpr int64_t kPairs = 8;  // at a time: sums side by side hide the latency of the addition

// Similarities of pairs begin .. begin + kPairs, or to the last one.
template <class T>
bool pair_group(const PairArgs<T>& in, int64_t group) {
    const int64_t begin = group * kPairs;
    const T *q[kPairs], *c[kPairs];
    for (int64_t i = 0; i < kPairs; ++i) {
        const int64_t p = begin + i < in.pairs ? begin + i : in.pairs - 1;
        q[i] = in.queries.values + in.row[p] * in.queries.stride;
        c[i] = in.candidates.values + in.column[p] * in.candidates.stride;
    }
    T sums[kPairs] = {};
    for (int64_t k = 0; k < in.features; ++k)
        for (int64_t i = 0; i < kPairs; ++i) sums[i] = multiply_add(q[i][k], c[i][k], sums[i]);
    for (int64_t i = 0; i < kPairs && begin + i < in.pairs; ++i) {
        const int64_t p = begin + i;
        in.similarity[p] =
            sums[i] * (factor(in.queries, in.row[p]) * factor(in.candidates, in.column[p]));
    }
    return true;
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
