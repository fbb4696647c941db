// Sums of softplus over the pairs of each level, and the gradient of the losses that are nothing
// but such a sum. A warp takes a row and walks over a split of its columns.
#include "launch.cuh"

namespace grainrank {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kWarp;
constexpr int kSlots = kMaxLevels;
constexpr int64_t kSplit = 64 * kWarp;  // columns: no more than 64 numbers in a thread's sum

template <class T>
struct LevelSums {
    T value[kSlots], slope[kSlots];
};

// The four pairs of a thread: adds to the sums, and gives the gradients of the logits.
template <class T>
__device__ void add_pairs(const GrainrankSoftplusArgs& args, int levels, int64_t block_row,
                          const T (&z)[kVector], const Levels4& level, LevelSums<T>& sums,
                          T (&g)[kVector]) {
    const T* thresholds =
        static_cast<const T*>(args.thresholds) + block_row * args.threshold_stride;
    const T* weights = static_cast<const T*>(args.weights);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        const bool positive = level[i] > 0;
        const T above = z[i] - thresholds[entry(level[i])];
        const Softplus<T> pair = softplus<T>(positive ? -above : above);
        g[i] = T(0);
        if (weights != nullptr && level[i] >= 0) {
            const T slope = pair.slope * weights[entry(level[i])];
            g[i] = positive ? -slope : slope;
        }
#pragma unroll
        for (int l = 0; l < kSlots; ++l) {
            if (l >= levels) break;
            sums.value[l] += level[i] == l ? pair.value : T(0);
            sums.slope[l] += level[i] == l ? pair.slope : T(0);
        }
    }
}

template <class T, class G>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    softplus_kernel(const __grid_constant__ GrainrankBlock block,
                    const __grid_constant__ GrainrankSoftplusArgs args, int64_t row_groups) {
    const int levels = block.levels.max_level + 1, lane = threadIdx.x % kWarp;
    // Blocks that run together share columns.
    const int64_t split = blockIdx.x / row_groups;
    const int64_t row = blockIdx.x % row_groups * kRows + threadIdx.x / kWarp;
    if (row >= block.rows) return;  // the whole warp
    const T* factors = static_cast<const T*>(args.factors);
    LevelSums<T> sums{};
    Place at{block.first_row + row, row, split * kSplit + int64_t{lane} * kVector, 0};
    const int64_t last =
        (split + 1) * kSplit < block.columns ? (split + 1) * kSplit : block.columns;
    for (; at.column < last; at.column += kWarp * kVector) {
        at.there = block.columns - at.column;
        Levels4 level;
        T s[kVector], z[kVector], g[kVector];
        similarities(block, at, load_products<T>(block, at), s);
        pair_levels(block.levels, block.columns, at, level);
        apply_ceiling(block, false, at, s, level);
        logits(block, factors, s, level, z);
        add_pairs(args, levels, row, z, level, sums, g);
        if (args.weights == nullptr) continue;
        through_logits(block, factors, s, level, g);
        store_gradient<T, G>(block, args.gradient, at, g);
    }
    __syncwarp();
    const int64_t out = (split * block.rows + row) * levels;
    const bool positives = args.weights == nullptr;
#pragma unroll
    for (int l = 0; l < kSlots; ++l) {
        if (l >= levels) break;
        const T value = sum_over(sums.value[l], kWarp), slope = sum_over(sums.slope[l], kWarp);
        if (lane != l) continue;
        static_cast<T*>(args.value)[out + l] = positives && l == 0 ? T(0) : value;
        static_cast<T*>(args.slope)[out + l] = positives && l == 0 ? T(0) : slope;
    }
}

template <class T, class G>
int run(const GrainrankBlock& block, const GrainrankSoftplusArgs& args, cudaStream_t stream) {
    const int64_t row_groups = divided(block.rows, kRows);
    const int64_t blocks = row_groups * divided(block.columns, kSplit);
    if (blocks == 0) return 0;
    softplus_kernel<T, G>
        <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(block, args, row_groups);
    return cudaGetLastError();
}

}  // namespace
}  // namespace cuda
}  // namespace grainrank

using namespace grainrank::cuda;

int64_t grainrank_cuda_softplus_splits(int64_t columns) { return divided(columns, kSplit); }

int grainrank_cuda_softplus(const GrainrankBlock* block, const GrainrankSoftplusArgs* args,
                            void* stream) {
    if (const int error = checked(*block)) return error;
    int gradient = block->dtype;  // not written: any
    if (args->weights != nullptr) {
        if (const int error = checked(*block, args->gradient)) return error;
        gradient = args->gradient.dtype;
    }
    return with_types(block->dtype, gradient, [&](auto types) {
        using Chosen = decltype(types);
        return run<typename Chosen::Pair, typename Chosen::Gradient>(
            *block, *args, static_cast<cudaStream_t>(stream));
    });
}
