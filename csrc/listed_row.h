// The pairs of a row that are not of level 0, listed. Where they are few, a pass takes every pair
// for one of level 0, with no level to look at, and puts these right afterwards.
#pragma once

#include "level_row.h"

namespace grainrank {
namespace GRAINRANK_ISA {

// Of a chunk: their places in it, and their levels.
struct ListedPairs {
    int64_t size;
    int32_t place[kChunk + kPadding];
    alignas(64) int32_t level[kChunk + kPadding];

    // In vectors: these are of level -1.
    int64_t pad(int width) {
        for (int j = 0; j < width; ++j) {
            place[size + j] = 0;
            level[size + j] = -1;
        }
        return (size + width - 1) / width;
    }
};

// One pair in four may be listed.
inline bool few(int64_t listed, int64_t pairs) { return listed * 4 <= pairs; }

// The list of one row, read chunk by chunk.
class RowList {
  public:
    // Whether the pairs of row i can be listed.
    bool open(const LevelArgs& args, int64_t i, int64_t columns) {
        if (args.leaves.size() != 1 || !args.exclusions.empty()) return false;
        leaf_ = &args.leaves[0];
        row_ = i;
        switch (leaf_->kind) {
            case LevelKind::kKeysPrefix:
                if (!leaf_->order) return false;
                all_ = leaf_->order;
                next_ = all_ + leaf_->first[i];
                last_ = all_ + leaf_->last[i];
                break;
            case LevelKind::kSparse:
                all_ = leaf_->indices;
                next_ = all_ + leaf_->ends[i];
                last_ = all_ + leaf_->ends[i + 1];
                break;
            case LevelKind::kDiagonal:
                diagonal_ = static_cast<int32_t>(i);
                all_ = next_ = &diagonal_;
                last_ = all_ + 1;
                break;
            default:
                return false;
        }
        columns_ = columns;
        return true;
    }

    // The pairs that are not read yet.
    int64_t left() const { return last_ - next_; }

    // Those in front of column `begin` are not read.
    void skip(int64_t begin) {
        next_ = std::lower_bound(next_, last_, static_cast<int32_t>(begin));
    }

    // The pairs in the columns begin .. begin + n, behind those of the call before.
    void read(int64_t begin, int64_t n, ListedPairs& out) {
        const int32_t* end = std::lower_bound(next_, last_, static_cast<int32_t>(begin + n));
        const int64_t first = next_ - all_;
        const bool given = leaf_->kind == LevelKind::kSparse;
        out.size = 0;
        for (int64_t j = 0; j < end - next_; ++j) {
            const int32_t level = given ? leaf_->levels[first + j] : 1;
            out.place[out.size] = next_[j] - static_cast<int32_t>(begin);
            out.level[out.size] = level;
            out.size += level != 0;
        }
        next_ = end;
        if (leaf_->kind == LevelKind::kKeysPrefix) add_finer(first, out);
    }

  private:
    void add_finer(int64_t first, ListedPairs& out) const {
        const int32_t* of_row = leaf_->query_keys + row_ * leaf_->num_keys;
        for (int64_t k = 1; k < leaf_->num_keys && of_row[k] >= 0; ++k) {
            const int32_t* keys = leaf_->finer_keys + (k - 1) * columns_ + first;
            for (int64_t j = 0; j < out.size; ++j)
                out.level[j] += finer_match(key_match(keys[j], of_row[k]), out.level[j],
                                            static_cast<int32_t>(k));
        }
    }

    const LevelLeaf* leaf_;
    int64_t row_, columns_;
    int32_t diagonal_;
    const int32_t* all_;
    const int32_t *next_, *last_;
};

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
