// Random levels of a batch, of every kind that csrc/level_args.h knows. Letters as there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "first_keys.h"
#include "level_args.h"

namespace grainrank {

struct Random {
    std::mt19937 engine;

    int below(int64_t n) { return static_cast<int>(engine() % static_cast<uint32_t>(n)); }
    bool one_in(int n) { return below(n) == 0; }
    double real(double low, double high) { return low + (high - low) * engine() / 4294967296.0; }
    // On a grid, so that equal values and values equal to a threshold are common.
    double coarse(double low, double high) { return low + (high - low) * below(65) / 64.0; }
};

enum class Source {
    kDiagonal,
    kPrefix,
    kCount,
    kDense,
    kSparse,
    kBandsByRow,
    kBandsSingle,
    kBandsByColumn
};
constexpr int kSources = 8;

// A row block in a batch.
struct Sizes {
    int64_t batch;      // N
    int64_t first_row;  // of the block
    int64_t rows;       // R
    int64_t columns;    // M
};

// The memory of a leaf. `rare`: levels other than 0 are.
class Leaf {
  public:
    Leaf(Source source, int max_level, const Sizes& sizes, bool rare, Random& random)
        : source_(source), max_level_(max_level), sizes_(sizes) {
        switch (source) {
            case Source::kDiagonal:
                break;
            case Source::kPrefix:
            case Source::kCount:
                fill_keys(rare, random);
                break;
            case Source::kDense:
                dense_.resize(sizes.batch * sizes.columns);
                for (int8_t& level : dense_) level = rare && !random.one_in(128) ? 0 : any(random);
                break;
            case Source::kSparse:
                fill_sparse(rare ? 128 : 4, random);
                break;
            default:
                fill_bands(rare, random);
        }
    }

    LevelLeaf args() const {
        const bool by_column = source_ == Source::kBandsByColumn;
        int64_t stride = 0;
        if (source_ == Source::kBandsByRow) stride = max_level_;
        if (by_column) stride = sizes_.columns;
        LevelLeaf leaf{};
        leaf.kind = kind();
        leaf.max_level = max_level_;
        leaf.num_keys = max_level_;
        leaf.query_keys = query_keys_.data();
        leaf.candidate_keys = candidate_keys_.data();
        if (listed_) first_keys_.write(leaf);
        leaf.dense = dense_.data();
        leaf.ends = ends_.data();
        leaf.indices = indices_.data();
        leaf.levels = levels_.data();
        leaf.similarities = similarities_.data();
        leaf.first_row = sizes_.first_row;
        leaf.thresholds = thresholds_.data();
        leaf.threshold_stride = stride;
        leaf.by_column = by_column;
        return leaf;
    }

    void set_dense(int64_t i, int64_t j, int8_t level) { dense_[i * sizes_.columns + j] = level; }

  private:
    LevelKind kind() const {
        switch (source_) {
            case Source::kDiagonal:
                return LevelKind::kDiagonal;
            case Source::kPrefix:
                return LevelKind::kKeysPrefix;
            case Source::kCount:
                return LevelKind::kKeysCount;
            case Source::kDense:
                return LevelKind::kDense;
            case Source::kSparse:
                return LevelKind::kSparse;
            default:
                return LevelKind::kBands;
        }
    }

    int8_t any(Random& random) const {
        return static_cast<int8_t>(random.below(max_level_ + 2) - 1);
    }

    // A candidate repeats the first keys of some query, so that every level comes up.
    void fill_keys(bool rare, Random& random) {
        const int64_t keys = max_level_, columns = sizes_.columns;
        const auto key = [&] { return random.one_in(16) ? -1 : random.below(rare ? 500 : 3); };
        query_keys_.resize(sizes_.batch * keys);
        candidate_keys_.resize(keys * columns);
        for (int32_t& k : query_keys_) k = key();
        for (int64_t j = 0; j < columns; ++j) {
            const int64_t like = random.below(sizes_.batch);
            const int64_t same = rare && !random.one_in(64) ? 0 : random.below(keys + 1);
            for (int64_t k = 0; k < keys; ++k)
                candidate_keys_[k * columns + j] = k < same ? query_keys_[like * keys + k] : key();
        }
        listed_ = !random.one_in(4);
        first_keys_ = FirstKeys(query_keys_, candidate_keys_, keys, columns);
    }

    void fill_sparse(int one_in, Random& random) {
        ends_.push_back(0);
        for (int64_t i = 0; i < sizes_.batch; ++i) {
            for (int32_t j = 0; j < sizes_.columns; ++j) {
                if (!random.one_in(one_in)) continue;
                indices_.push_back(j);
                levels_.push_back(any(random));
            }
            ends_.push_back(static_cast<int64_t>(indices_.size()));
        }
    }

    void fill_bands(bool rare, Random& random) {
        int64_t thresholds = max_level_;
        if (source_ == Source::kBandsByRow) thresholds *= sizes_.batch;
        if (source_ == Source::kBandsByColumn) thresholds *= sizes_.columns;
        thresholds_.resize(thresholds);
        similarities_.resize(sizes_.rows * sizes_.columns);
        for (float& t : thresholds_) t = static_cast<float>(rare ? 1.0 : random.coarse(-1, 1));
        for (float& s : similarities_)
            s = static_cast<float>(rare ? random.real(-1.0, 1.005) : random.coarse(-1, 1));
    }

    Source source_;
    int max_level_;
    Sizes sizes_;
    std::vector<int32_t> query_keys_, candidate_keys_, indices_;
    FirstKeys first_keys_;
    bool listed_ = false;
    std::vector<int8_t> dense_, levels_;
    std::vector<int64_t> ends_;
    std::vector<float> similarities_, thresholds_;
};

}  // namespace grainrank
