// Candidates by their first key, as LevelLeaf has them.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "level_args.h"

namespace grainrank {

struct FirstKeys {
    std::vector<int32_t> order, first, last, finer_keys;

    FirstKeys() = default;
    // Of query keys [rows, keys] and candidate keys [keys, columns].
    FirstKeys(const std::vector<int32_t>& query_keys, const std::vector<int32_t>& candidate_keys,
              int64_t keys, int64_t columns)
        : order(columns) {
        const auto key = [&](int32_t j) { return candidate_keys[j]; };
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return key(a) < key(b); });
        for (size_t i = 0; i < query_keys.size(); i += keys) {
            const int32_t of_row = query_keys[i];
            const auto begin = std::partition_point(order.begin(), order.end(),
                                                    [&](int32_t j) { return key(j) < of_row; });
            const auto end = std::partition_point(
                begin, order.end(), [&](int32_t j) { return of_row >= 0 && key(j) == of_row; });
            first.push_back(static_cast<int32_t>(begin - order.begin()));
            last.push_back(static_cast<int32_t>(end - order.begin()));
        }
        for (int64_t k = 1; k < keys; ++k)
            for (const int32_t j : order) finer_keys.push_back(candidate_keys[k * columns + j]);
    }

    void write(LevelLeaf& leaf) const {
        leaf.order = order.data();
        leaf.first = first.data();
        leaf.last = last.data();
        leaf.finer_keys = finer_keys.data();
    }
};

}  // namespace grainrank
