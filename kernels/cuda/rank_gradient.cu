// The gradient of smooth ranks by the similarities. A thread takes four pairs of a row and walks
// over the row's positives, which its block stages in shared memory.
#include "ranks.cuh"

namespace grainrank {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStaged = 64;  // positives: no more than 64 numbers in a thread's sum

// What the pairs of a row need of some of its positives.
template <class T>
struct Staged {
    T similarity[kStaged], own[kStaged];
    T weight[kStaged * kMaxLevels];  // [kStaged, L + 1], of the slope by z
    int column[kStaged];

    __device__ void fill(const GrainrankPositives& in, const GrainrankRankGradientArgs& args,
                         const Step<T>& step, int levels, int64_t first, int here) {
        if (static_cast<int>(threadIdx.x) < here) {
            const int64_t p = first + threadIdx.x;
            similarity[threadIdx.x] = static_cast<const T*>(in.similarity)[p];
            own[threadIdx.x] = static_cast<const T*>(args.own)[p];
            column[threadIdx.x] = static_cast<int>(in.column[p]);
        }
        const T* d_above = static_cast<const T*>(args.d_above) + first * levels;
        for (int n = threadIdx.x; n < here * levels; n += kThreads) {
            const bool has_slope = !step.upper_bound || n % levels < in.level[first + n / levels];
            weight[n] = has_slope ? d_above[n] * step.inverse : T(0);
        }
    }

    // Adds the gradients of four pairs from the positive p of these.
    __device__ void add(const Step<T>& step, int levels, int p, int first_column,
                        const T (&s)[kVector], const Levels4& level, T (&g)[kVector]) const {
        const int itself = column[p] - first_column;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            const T x = difference(s[i], similarity[p]);
            const T of_level = weight[p * levels + entry(level[i])];
            g[i] += step.at(x).slope * (i == itself ? T(0) : of_level);
        }
        if (itself < 0 || itself >= kVector) return;
#pragma unroll
        for (int i = 0; i < kVector; ++i) g[i] -= i == itself ? own[p] : T(0);
    }
};

template <class T, class G>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    gradient_kernel(const __grid_constant__ GrainrankBlock block,
                    const __grid_constant__ GrainrankPositives in,
                    const __grid_constant__ GrainrankRankGradientArgs args, const Step<T> step,
                    int64_t tiles) {
    __shared__ Staged<T> staged;
    const int levels = block.levels.max_level + 1;
    const int64_t row = blockIdx.x / tiles;
    const int64_t vector = blockIdx.x % tiles * kThreads + threadIdx.x;
    Place<T> at(block, static_cast<int>(vector * kVector));
    at.to_row(block, static_cast<int>(row));
    Levels4 level = {};
    T s[kVector] = {}, g[kVector] = {};
    if (at.there > 0) {
        similarities(at, load_products(block, at), s);
        load_levels(in, at, level);
    }
    const int64_t last = in.starts[row + 1];
    for (int64_t first = in.starts[row]; first < last; first += kStaged) {
        const int here = last - first < kStaged ? static_cast<int>(last - first) : kStaged;
        __syncthreads();  // the ones before are not needed any more
        staged.fill(in, args, step, levels, first, here);
        __syncthreads();
        T part[kVector] = {};
#pragma unroll 1
        for (int p = 0; p < here; ++p) staged.add(step, levels, p, at.column, s, level, part);
        for (int i = 0; i < kVector; ++i) g[i] += part[i];
    }
    if (at.there == 0) return;
    for (int i = 0; i < kVector; ++i) g[i] = level[i] < 0 ? T(0) : g[i];
    store_gradient<T, G>(args.gradient, at, g);
}

template <class T, class G>
int run_gradient(const GrainrankBlock& block, const GrainrankPositives& in,
                 const GrainrankRankGradientArgs& args, cudaStream_t stream) {
    const int64_t tiles = divided(block.columns, kThreads * kVector);
    const int64_t blocks = block.rows * tiles;
    if (blocks == 0) return 0;
    if (blocks >= kMostLines) return GRAINRANK_CUDA_SIZE;
    gradient_kernel<T, G><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        block, in, args, Step<T>(args.step), tiles);
    return cudaGetLastError();
}

}  // namespace
}  // namespace cuda
}  // namespace grainrank

using namespace grainrank::cuda;

int grainrank_cuda_rank_gradient(const GrainrankBlock* block, const GrainrankPositives* positives,
                                 const GrainrankRankGradientArgs* args, void* stream) {
    if (const int error = checked(*block, *positives)) return error;
    if (const int error = checked(*block, args->gradient)) return error;
    return with_types(block->dtype, args->gradient.dtype, [&](auto types) {
        using Chosen = decltype(types);
        return run_gradient<typename Chosen::Pair, typename Chosen::Gradient>(
            *block, *positives, *args, static_cast<cudaStream_t>(stream));
    });
}
