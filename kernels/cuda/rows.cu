// Rows of embeddings: their norms, and gradients back through the normalisation; a warp for each
// row. Derived in python/grainrank/reference.py.
#include "launch.cuh"

namespace grainrank {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kWarp;
constexpr double kNormEps = 1e-12;  // a norm below this counts as this

// Calls with(features from .. on, values of four, how many there are) for a warp's share.
template <class X, class T, class With>
__device__ void over_features(const X* row, int64_t first, int64_t last, With with) {
    // Four features belong to the same thread in every prefix: nobody reads what another writes.
    const int64_t vector = first / kVector;
    const int64_t mine = vector + (threadIdx.x - static_cast<unsigned>(vector)) % kWarp;
    for (int64_t k = mine * kVector; k < last; k += kWarp * kVector) {
        T x[kVector];
        load(row, k, last - k, T(0), x);
        with(k, x);
    }
}

template <class T, class X>
__global__ void __launch_bounds__(kThreads)
    norms_kernel(const __grid_constant__ GrainrankNormArgs args) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
    if (row >= args.rows) return;  // the whole warp
    const X* x = static_cast<const X*>(args.x) + row * args.row_stride;
    T squares = T(0);
    int64_t first = 0;
    for (int p = 0; p < args.num_prefixes; ++p) {
        const int64_t last = args.prefixes[p];
        T own = T(0);
        over_features<X, T>(x, first, last, [&](int64_t k, const T(&values)[kVector]) {
            for (int i = 0; i < kVector; ++i) own += k + i < first ? T(0) : values[i] * values[i];
        });
        squares += sum_over(own, kWarp);
        if (threadIdx.x % kWarp == 0)
            static_cast<T*>(args.norms)[p * args.rows + row] = sqrt(squares);
        first = last;
    }
}

template <class T, class X>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ GrainrankFinishArgs args) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
    if (row >= args.rows) return;  // the whole warp
    const X* values = static_cast<const X*>(args.values) + row * args.value_stride;
    T* d = static_cast<T*>(args.d) + row * args.d_stride;
    const int64_t features = args.prefixes[args.num_prefixes - 1];
    T product = T(0);
    over_features<X, T>(values, 0, features, [&](int64_t k, const T(&v)[kVector]) {
        T g[kVector];
        load(d, k, features - k, T(0), g);
        for (int i = 0; i < kVector; ++i) product += v[i] * g[i];
    });
    product = sum_over(product, kWarp);
    if (threadIdx.x % kWarp == 0) static_cast<T*>(args.dots)[row] = product;
    T factor = *static_cast<const T*>(args.scale);
    if (args.unit != nullptr) factor /= *static_cast<const T*>(args.unit);
    T part = T(0);
    if (args.norms != nullptr) {
        const T norm = static_cast<const T*>(args.norms)[row];
        const bool tiny = norm < T(kNormEps);
        const T inverse = T(1) / (tiny ? T(kNormEps) : norm);
        part = tiny ? T(0) : factor * (product * inverse) * inverse;
    }
    int64_t first = 0;
    for (int p = 0; p < args.num_prefixes; ++p) {
        const int64_t last = args.prefixes[p];
        if (args.along != nullptr) part = static_cast<const T*>(args.along)[p * args.rows + row];
        over_features<X, T>(values, first, last, [&](int64_t k, const T(&v)[kVector]) {
            const int64_t before = k < first ? first - k : 0;
            T g[kVector];
            load(d, k, last - k, T(0), g);
            for (int i = 0; i < kVector; ++i) g[i] = factor * g[i] - v[i] * part;
            if (before == 0) {
                store(d, k, last - k, g);
            } else {
                for (int i = 0; i < kVector; ++i)
                    if (i >= before && k + i < last) d[k + i] = g[i];
            }
        });
        first = last;
    }
}

int checked(int num_prefixes, int64_t rows) {
    if (num_prefixes < 1 || num_prefixes > GRAINRANK_CUDA_MAX_PREFIXES)
        return GRAINRANK_CUDA_TOO_MANY;
    return rows < 0 || rows >= kMostLines ? GRAINRANK_CUDA_SIZE : 0;
}

}  // namespace
}  // namespace cuda
}  // namespace grainrank

using namespace grainrank::cuda;

int grainrank_cuda_norms(const GrainrankNormArgs* args, void* stream) {
    if (const int error = checked(args->num_prefixes, args->rows)) return error;
    if (args->rows == 0) return 0;
    return with_types(args->norms_dtype, args->dtype, [&](auto types) {
        using Chosen = decltype(types);
        const auto blocks = static_cast<unsigned>(divided(args->rows, kRows));
        norms_kernel<typename Chosen::Pair, typename Chosen::Gradient>
            <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*args);
        return static_cast<int>(cudaGetLastError());
    });
}

int grainrank_cuda_finish(const GrainrankFinishArgs* args, void* stream) {
    if (const int error = checked(args->num_prefixes, args->rows)) return error;
    if (args->rows == 0) return 0;
    return with_types(args->dtype, args->values_dtype, [&](auto types) {
        using Chosen = decltype(types);
        const auto blocks = static_cast<unsigned>(divided(args->rows, kRows));
        finish_kernel<typename Chosen::Pair, typename Chosen::Gradient>
            <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*args);
        return static_cast<int>(cudaGetLastError());
    });
}

const char* grainrank_cuda_error_string(int error) {
    switch (error) {
        case GRAINRANK_CUDA_MISALIGNED:
            return "a row block, its levels or its gradient is not aligned to 16 bytes";
        case GRAINRANK_CUDA_DTYPE:
            return "there is no kernel for this combination of dtypes";
        case GRAINRANK_CUDA_TOO_MANY:
            return "too many level sources, exclusions, channels, prefixes or levels";
        case GRAINRANK_CUDA_SIZE:
            return "a size is negative, too large or smaller than its stride allows";
        default:
            return cudaGetErrorString(static_cast<cudaError_t>(error));
    }
}
