// From similarities to logits, and which pairs a ceiling takes out: chunk by chunk, in front of the
// passes, so that these know nothing of it.
#pragma once

#include "level_row.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Logits are close when they differ by at most this: exp of the difference is far from underflow,
// and the logarithm of a sum of such exponentials is no larger than the logits themselves may be.
constexpr double kClose = 32.0;

// The similarities are logits but for the scale.
template <class T>
bool is_plain(const Block<T>& block) {
    return !block.circle && !block.ceilings.rows && !block.ceilings.columns;
}

// s of row r, columns begin .. begin + n: the block's own memory where nothing has to be done.
template <class T>
T* similarities(const Block<T>& block, int64_t r, int64_t begin, int64_t n, T* scratch) {
    T* given = block.similarities + r * block.row_stride + begin;
    if (!block.row_factors) return given;
    const T row = block.row_factors[r];
    const T* column = block.column_factors + begin;
    for (int64_t j = 0; j < n; ++j) scratch[j] = given[j] * (row * column[j]);
    return scratch;
}

template <class T>
void logits(const Block<T>& block, const T* factors, const T* s, const int32_t* level, int64_t n,
            T* z) {
    const T scale = block.scale, m = block.circle_margin;
    if (block.circle) {
        for (int64_t j = 0; j < n; ++j) z[j] = circle_logit(s[j], scale, m, level[j] > 0);
    } else if (factors) {
        for (int64_t j = 0; j < n; ++j) z[j] = scale * factors[entry(level[j])] * s[j];
    } else {
        for (int64_t j = 0; j < n; ++j) z[j] = logit(s[j], scale);
    }
}

// From gradients of the logits to gradients of `scale * similarity`, in place.
template <class T>
void through_logits(const Block<T>& block, const T* factors, const T* s, const int32_t* level,
                    int64_t n, T* g) {
    if (block.circle) {
        const T m = block.circle_margin;
        for (int64_t j = 0; j < n; ++j) g[j] *= circle_weight(s[j], m, level[j] > 0);
    } else if (factors) {
        for (int64_t j = 0; j < n; ++j) g[j] *= factors[entry(level[j])];
    }
}

// Levels as row r sees them, or as the columns see them.
template <class T>
void apply_ceiling(const Block<T>& block, bool by_column, int64_t r, int64_t begin, int64_t n,
                   const T* s, int32_t* level) {
    const CeilingArgs<T>& ceilings = block.ceilings;
    if (!(by_column ? ceilings.columns : ceilings.rows)) return;
    const int64_t i = block.first_row + r;
    const float* reference =
        ceilings.reference ? ceilings.reference + r * block.columns + begin : nullptr;
    for (int64_t j = 0; j < n; ++j) {
        const T similarity = reference ? static_cast<T>(reference[j]) : s[j];
        const T ceiling = by_column ? ceilings.columns[begin + j] : ceilings.rows[i];
        const bool kept =
            ceilings.query_ids && ceilings.query_ids[i] == ceilings.candidate_ids[begin + j];
        level[j] = grainrank::GRAINRANK_ISA::under_ceiling(level[j], similarity, ceiling, kept);
    }
}

// To bfloat16; `out` may begin where x does.
inline void narrow(const float* x, uint16_t* out, int64_t n) {
    using V = Lanes<float>;
    int64_t j = 0;
    for (; j + V::kWidth <= n; j += V::kWidth) V::store_bf16(out + j, V::load(x + j));
    if (j == n) return;
    float tail[V::kWidth] = {};
    uint16_t words[V::kWidth];
    memcpy(tail, x + j, (n - j) * sizeof(float));
    V::store_bf16(words, V::load(tail));
    memcpy(out + j, words, (n - j) * sizeof(uint16_t));
}
inline void narrow(const double*, uint16_t*, int64_t) {}

// The gradients of `scale * s`, of row r, columns begin .. begin + n, become those of the product.
template <class T>
void write_gradients(const Block<T>& block, int64_t r, int64_t begin, int64_t n, T* g) {
    if (block.row_factors) {
        const T row = block.row_factors[r];
        for (int64_t j = 0; j < n; ++j) g[j] *= row * block.column_factors[begin + j];
    }
    T* out = block.similarities + r * block.row_stride;
    if (block.narrow)
        narrow(g, reinterpret_cast<uint16_t*>(out) + begin, n);
    else if (g != out + begin)
        memcpy(out + begin, g, n * sizeof(T));
}

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
