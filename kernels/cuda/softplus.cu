// Sums of softplus over the pairs of each level, and the gradient of the losses that are nothing
// but such a sum. A warp takes a row and walks over a split of its columns.
#include "launch.cuh"

namespace grainrank {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kWarp;
constexpr int64_t kSplit = 64 * kWarp;  // columns: no more than 64 numbers in a thread's sum

template <class T, int kSlots>
struct LevelSums {
    T value[kSlots], slope[kSlots];
};

// The four pairs of a thread: adds to the sums, and gives the gradients of the logits.
template <class T, int kSlots>
__device__ void add_pairs(const T* thresholds, const T* weights, const T (&z)[kVector],
                          const Levels4& level, LevelSums<T, kSlots>& sums, T (&g)[kVector]) {
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
            sums.value[l] += level[i] == l ? pair.value : T(0);
            sums.slope[l] += level[i] == l ? pair.slope : T(0);
        }
    }
}

template <class T, class G, int kSlots>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    softplus_kernel(const __grid_constant__ GrainrankBlock block,
                    const __grid_constant__ GrainrankSoftplusArgs args, int64_t row_groups) {
    const int levels = block.levels.max_level + 1, lane = threadIdx.x % kWarp;
    // Blocks that run together share columns.
    const int64_t split = blockIdx.x / row_groups;
    const int64_t row = blockIdx.x % row_groups * kRows + threadIdx.x / kWarp;
    if (row >= block.rows) return;  // the whole warp
    const T* factors = static_cast<const T*>(args.factors);
    const T* thresholds = static_cast<const T*>(args.thresholds) + row * args.threshold_stride;
    const T* weights = static_cast<const T*>(args.weights);
    LevelSums<T, kSlots> sums{};
    const int first = static_cast<int>(split * kSplit) + lane * kVector;
    const int64_t last =
        (split + 1) * kSplit < block.columns ? (split + 1) * kSplit : block.columns;
    Place<T> at(block, first);
#pragma unroll 1
    for (int column = first; column < last; column += kWarp * kVector) {
        at.move(block, column);
        at.to_row(block, static_cast<int>(row));
        Levels4 level;
        T s[kVector], z[kVector], g[kVector];
        const Packed<T> products = load_products(block, at);
        pair_levels(block, at, level);
        similarities(at, products, s);
        apply_ceiling(block, false, at, s, level);
        // Of the positives alone: most vectors have none.
        const bool any = level[0] > 0 || level[1] > 0 || level[2] > 0 || level[3] > 0;
        if (weights == nullptr && !any) continue;
        logits(block, factors, at, s, level, z);
        add_pairs(thresholds, weights, z, level, sums, g);
        if (weights == nullptr) continue;
        through_logits(block, factors, s, level, g);
        store_gradient<T, G>(args.gradient, at, g);
    }
    __syncwarp();
    const int64_t out = (split * block.rows + row) * levels;
#pragma unroll
    for (int l = 0; l < kSlots; ++l) {
        if (l >= levels) break;
        const T value = sum_over(sums.value[l], kWarp), slope = sum_over(sums.slope[l], kWarp);
        const bool counts = weights != nullptr || l > 0;
        if (lane != l) continue;
        static_cast<T*>(args.value)[out + l] = counts ? value : T(0);
        static_cast<T*>(args.slope)[out + l] = counts ? slope : T(0);
    }
}

template <class T, class G>
int run(const GrainrankBlock& block, const GrainrankSoftplusArgs& args, cudaStream_t stream) {
    const int64_t row_groups = divided(block.rows, kRows);
    const int64_t blocks = row_groups * divided(block.columns, kSplit);
    if (blocks == 0) return 0;
    const auto kernel =
        block.levels.max_level < 4 ? softplus_kernel<T, G, 4> : softplus_kernel<T, G, kMaxLevels>;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(block, args, row_groups);
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
