// Ranks of the positives: the levels of a row block, and what stands above each positive, exactly
// or by a smooth step. A warp takes a positive and walks over a split of its row.
#include "ranks.cuh"

namespace grainrank {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLines = kThreads / kWarp;   // rows or positives of a block
constexpr int64_t kChunk = 64 * kWarp;     // columns: no more than 64 numbers in a thread's sum
constexpr int64_t kWarpsToFill = 1 << 13;  // of a large GPU

// A positive, and the columns that a warp compares it with.
template <class T>
struct Share {
    int64_t positive, split, first, last;
    int row = 0, column = 0;
    T similarity = T(0);

    __device__ Share(const GrainrankBlock& block, const GrainrankPositives& in, int64_t groups,
                     int64_t width) {
        // Blocks that run together share rows.
        split = blockIdx.x / groups;
        positive = blockIdx.x % groups * kLines + threadIdx.x / kWarp;
        first = split * width;
        last = first + width < block.columns ? first + width : block.columns;
        if (positive >= in.positives) return;
        row = static_cast<int>(in.row[positive]);
        column = static_cast<int>(in.column[positive]);
        similarity = static_cast<const T*>(in.similarity)[positive];
    }
};

// Calls with(first column, similarities, levels) for the vectors of a chunk that belong to the
// lane; the positive itself has level -1.
template <class T, class With>
__device__ void over_chunk(const GrainrankBlock& block, const GrainrankPositives& in,
                           const Share<T>& share, int64_t chunk, With with) {
    const int64_t last = chunk + kChunk < share.last ? chunk + kChunk : share.last;
    const int first = static_cast<int>(chunk) + threadIdx.x % kWarp * kVector;
    Place<T> at(block, first);
#pragma unroll 1
    for (int column = first; column < last; column += kWarp * kVector) {
        at.move(block, column);
        at.to_row(block, share.row);
        T s[kVector];
        Levels4 level;
        similarities(at, load_products(block, at), s);
        load_levels(in, at, level);
        for (int i = 0; i < kVector; ++i) level[i] = column + i == share.column ? -1 : level[i];
        with(column, s, level);
    }
    __syncwarp();
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    levels_kernel(const __grid_constant__ GrainrankBlock block, int8_t* levels, int64_t stride,
                  int64_t groups) {
    const int64_t chunk = blockIdx.x / groups * kChunk;
    const int64_t row = blockIdx.x % groups * kLines + threadIdx.x / kWarp;
    if (row >= block.rows) return;  // the whole warp
    const int first = static_cast<int>(chunk) + threadIdx.x % kWarp * kVector;
    const int64_t last = chunk + kChunk < block.columns ? chunk + kChunk : block.columns;
    Place<T> at(block, first);
#pragma unroll 1
    for (int column = first; column < last; column += kWarp * kVector) {
        at.move(block, column);
        at.to_row(block, static_cast<int>(row));
        Levels4 level;
        pair_levels(block, at, level);
        if (block.ceilings.rows != nullptr) {
            T s[kVector];
            similarities(at, load_products(block, at), s);
            apply_ceiling(block, false, at, s, level);
        }
        Packed<int8_t> out;
        for (int i = 0; i < kVector; ++i) out.x[i] = static_cast<int8_t>(level[i]);
        *reinterpret_cast<Packed<int8_t>*>(levels + at.at(stride)) = out;
    }
}

// How many pairs there are of each level, 255 at most: four levels to a word.
template <int kSlots>
struct LevelCounts {
    unsigned words[kSlots / 4] = {};

    __device__ void add(int32_t level) {
        const unsigned at = static_cast<unsigned>(level);  // -1 is in no word
        const unsigned one = 1u << at % 4 * 8;
#pragma unroll
        for (unsigned w = 0; w < kSlots / 4; ++w) words[w] += at / 4 == w ? one : 0;
    }

    __device__ int of(int level) const { return words[level / 4] >> level % 4 * 8 & 255; }
};

// Equal similarities are above where their column is before, or behind, the positive's.
struct TiesAbove {
    bool before, behind;
};

template <class T, int kSlots>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    exact_kernel(const __grid_constant__ GrainrankBlock block,
                 const __grid_constant__ GrainrankPositives in, TiesAbove ties, int64_t* above,
                 int64_t groups, int64_t width) {
    const int levels = block.levels.max_level + 1, lane = threadIdx.x % kWarp;
    const Share<T> share(block, in, groups, width);
    if (share.positive >= in.positives) return;  // the whole warp
    int total = 0;                               // of the level that is the lane's
    for (int64_t chunk = share.first; chunk < share.last; chunk += kChunk) {
        LevelCounts<kSlots> count;
        over_chunk(block, in, share, chunk,
                   [&](int column, const T(&s)[kVector], const Levels4& level) {
#pragma unroll
                       for (int i = 0; i < kVector; ++i) {
                           const bool tied = s[i] == share.similarity;
                           const bool wins = column + i < share.column ? ties.before : ties.behind;
                           const bool counts = s[i] > share.similarity || (tied && wins);
                           count.add(counts ? level[i] : -1);
                       }
                   });
#pragma unroll
        for (int l = 0; l < kSlots; ++l) {
            if (l >= levels) break;
            const int here = sum_over(count.of(l), kWarp);
            total += lane == l ? here : 0;
        }
    }
    if (lane < levels) above[(share.split * in.positives + share.positive) * levels + lane] = total;
}

template <class T, int kSlots>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    smooth_kernel(const __grid_constant__ GrainrankBlock block,
                  const __grid_constant__ GrainrankPositives in,
                  const __grid_constant__ GrainrankSmoothRankArgs args, const Step<T> step,
                  int64_t groups, int64_t width) {
    const int levels = block.levels.max_level + 1, lane = threadIdx.x % kWarp;
    const Share<T> share(block, in, groups, width);
    if (share.positive >= in.positives) return;  // the whole warp
    T total_value = T(0), total_slope = T(0);    // of the level that is the lane's
    int total_at_least = 0;
    for (int64_t chunk = share.first; chunk < share.last; chunk += kChunk) {
        T value[kSlots] = {}, slope[kSlots] = {};
        LevelCounts<kSlots> at_least;
        over_chunk(block, in, share, chunk, [&](int, const T(&s)[kVector], const Levels4& level) {
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                const T x = difference(s[i], share.similarity);
                const StepOf<T> h = step.at(x);
                at_least.add(x >= T(0) ? level[i] : -1);
#pragma unroll
                for (int l = 0; l < kSlots; ++l) {
                    value[l] += level[i] == l ? h.value : T(0);
                    slope[l] += level[i] == l ? h.slope : T(0);
                }
            }
        });
#pragma unroll
        for (int l = 0; l < kSlots; ++l) {
            if (l >= levels) break;
            const T of_value = sum_over(value[l], kWarp), of_slope = sum_over(slope[l], kWarp);
            const int count = sum_over(at_least.of(l), kWarp);
            if (lane != l) continue;
            total_value += of_value;
            total_slope += of_slope;
            total_at_least += count;
        }
    }
    if (lane >= levels) return;
    if (step.upper_bound && lane >= in.level[share.positive]) {  // no lower level: the step
        total_value = static_cast<T>(total_at_least);
        total_slope = T(0);
    }
    const int64_t out = (share.split * in.positives + share.positive) * levels + lane;
    static_cast<T*>(args.above)[out] = total_value;
    static_cast<T*>(args.slope)[out] = total_slope * step.inverse;
    args.at_least[out] = total_at_least;
}

// Columns of each of the splits.
int64_t split_width(int64_t columns, int64_t splits) {
    return divided(divided(columns, kChunk), splits) * kChunk;
}

// Of the sums: a block takes kLines positives and a split.
int checked_sums(const GrainrankBlock& block, const GrainrankPositives& in, int64_t splits) {
    if (const int error = checked(block, in)) return error;
    const bool fits = splits > 0 && splits < kMostLines &&
                      divided(in.positives, kLines) < divided(kMostLines, splits);
    return fits ? 0 : GRAINRANK_CUDA_SIZE;
}

template <class T>
int run_levels(const GrainrankBlock& block, int8_t* levels, int64_t stride, cudaStream_t stream) {
    const int64_t groups = divided(block.rows, kLines);
    const int64_t blocks = groups * divided(block.columns, kChunk);
    if (blocks == 0) return 0;
    if (blocks >= kMostLines) return GRAINRANK_CUDA_SIZE;
    levels_kernel<T>
        <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(block, levels, stride, groups);
    return cudaGetLastError();
}

template <class T>
int run_exact(const GrainrankBlock& block, const GrainrankPositives& in, TiesAbove ties,
              int64_t splits, int64_t* above, cudaStream_t stream) {
    const int64_t groups = divided(in.positives, kLines);
    if (groups == 0) return 0;
    const auto kernel =
        block.levels.max_level < 4 ? exact_kernel<T, 4> : exact_kernel<T, kMaxLevels>;
    kernel<<<static_cast<unsigned>(groups * splits), kThreads, 0, stream>>>(
        block, in, ties, above, groups, split_width(block.columns, splits));
    return cudaGetLastError();
}

template <class T>
int run_smooth(const GrainrankBlock& block, const GrainrankPositives& in,
               const GrainrankSmoothRankArgs& args, cudaStream_t stream) {
    const int64_t groups = divided(in.positives, kLines);
    if (groups == 0) return 0;
    const auto kernel =
        block.levels.max_level < 4 ? smooth_kernel<T, 4> : smooth_kernel<T, kMaxLevels>;
    kernel<<<static_cast<unsigned>(groups * args.splits), kThreads, 0, stream>>>(
        block, in, args, Step<T>(args.step), groups, split_width(block.columns, args.splits));
    return cudaGetLastError();
}

}  // namespace
}  // namespace cuda
}  // namespace grainrank

using namespace grainrank::cuda;

int64_t grainrank_cuda_rank_splits(int64_t positives, int64_t columns) {
    const int64_t chunks = divided(columns, kChunk);
    const int64_t wanted = positives > 0 ? divided(kWarpsToFill, positives) : 1;
    if (chunks <= 1 || wanted <= 1) return 1;
    return divided(chunks, divided(chunks, wanted));
}

int grainrank_cuda_block_levels(const GrainrankBlock* block, int8_t* levels, int64_t level_stride,
                                void* stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    GrainrankPositives out{};
    out.levels = levels;
    out.level_stride = level_stride;
    if (const int error = checked(*block, out)) return error;
    if (block->dtype == GRAINRANK_F64) return run_levels<double>(*block, levels, level_stride, on);
    return run_levels<float>(*block, levels, level_stride, on);
}

int grainrank_cuda_exact_ranks(const GrainrankBlock* block, const GrainrankPositives* positives,
                               int ties, int64_t splits, int64_t* above, void* stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    if (const int error = checked_sums(*block, *positives, splits)) return error;
    const bool all = ties == GRAINRANK_TIES_PESSIMISTIC;
    const TiesAbove are{all || ties == GRAINRANK_TIES_FIRST, all || ties == GRAINRANK_TIES_LAST};
    if (block->dtype == GRAINRANK_F64)
        return run_exact<double>(*block, *positives, are, splits, above, on);
    return run_exact<float>(*block, *positives, are, splits, above, on);
}

int grainrank_cuda_smooth_ranks(const GrainrankBlock* block, const GrainrankPositives* positives,
                                const GrainrankSmoothRankArgs* args, void* stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    if (const int error = checked_sums(*block, *positives, args->splits)) return error;
    if (block->dtype == GRAINRANK_F64) return run_smooth<double>(*block, *positives, *args, on);
    return run_smooth<float>(*block, *positives, *args, on);
}
