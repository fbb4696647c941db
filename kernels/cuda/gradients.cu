// The gradient of the product of each pair of a row block: read once, written once. A block of
// threads takes a tile: its threads lie side by side along a row, four pairs each, and go down the
// rows. Tables of the rows are looked up in memory, where a row's entries lie side by side; those
// of the columns in shared memory.
#include "launch.cuh"

namespace grainrank {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = GRAINRANK_CUDA_MOMENT_ROWS;
constexpr size_t kSharedBytes = 48 << 10;
constexpr size_t kSumBytes = kThreads * kVector * sizeof(double);  // of the column moments

int tables_of(const GrainrankTableGradients& t) {
    return (t.lse != nullptr) + (t.d_lse != nullptr) + (t.neg_lse != nullptr) +
           (t.d_neg_lse != nullptr) + (t.d_total != nullptr);
}

size_t shared_bytes(const GrainrankBlock& block, const GrainrankGradientArgs& args, int lanes) {
    size_t entries = 0;
    for (int f = 0; f < args.num_channels; ++f) entries += tables_of(args.channels[f].columns);
    const size_t size = block.dtype == GRAINRANK_F64 ? sizeof(double) : sizeof(float);
    return entries * (block.levels.max_level + 1) * kVector * lanes * size;
}

// Threads of a row: a warp, or fewer where the tables of its columns would not fit.
int lanes_of(const GrainrankBlock& block, const GrainrankGradientArgs& args) {
    int lanes = kWarp;
    while (lanes > 1 && shared_bytes(block, args, lanes) > kSharedBytes) lanes /= 2;
    return lanes;
}

// Which tables a gradient is made of: lse of the rows, or of both sides, of one channel with
// nothing else; or whatever is given.
enum class Terms { kRows, kBoth, kAny };

template <class T>
struct TableGradients {
    const T *lse, *d_lse, *neg_lse, *d_neg_lse, *d_total;

    // `at`: of the pair's entry.
    template <Terms kTerms>
    __device__ T of_pair(T z, int32_t level, int at) const {
        T g = T(0);
        if constexpr (kTerms != Terms::kAny) {
            g = gradient<T>(z, lse[at], d_lse[at], T(0));
        } else {
            if (d_lse != nullptr)
                g = gradient<T>(z, lse[at], d_lse[at], d_total != nullptr ? d_total[at] : T(0));
            else if (d_total != nullptr)
                g = d_total[at];
            if (neg_lse != nullptr && d_neg_lse != nullptr)
                g += negative_gradient<T>(z, level, neg_lse[at], d_neg_lse[at]);
        }
        return level < 0 ? T(0) : g;
    }

    // From an entry on.
    __device__ TableGradients from(int64_t entry) const {
        const auto moved = [&](const T* table) { return table == nullptr ? table : table + entry; };
        return {moved(lse), moved(d_lse), moved(neg_lse), moved(d_neg_lse), moved(d_total)};
    }
};

template <class T>
__device__ TableGradients<T> typed(const GrainrankTableGradients& t) {
    return {static_cast<const T*>(t.lse), static_cast<const T*>(t.d_lse),
            static_cast<const T*>(t.neg_lse), static_cast<const T*>(t.d_neg_lse),
            static_cast<const T*>(t.d_total)};
}

// The tables of a tile's columns in shared memory, one after another in a fixed order:
// [L + 1, kVector, lanes], so that the threads of a warp meet no bank twice.
template <class T>
struct Staged {
    T* memory;
    int64_t size;  // of one table

    // The next table; null where it is not given.
    __device__ T* take(const void* given) {
        if (given == nullptr) return nullptr;
        T* table = memory;
        memory += size;
        return table;
    }

    __device__ TableGradients<T> take(const GrainrankTableGradients& t) {
        TableGradients<T> out{};
        out.lse = take(t.lse);
        out.d_lse = take(t.d_lse);
        out.neg_lse = take(t.neg_lse);
        out.d_neg_lse = take(t.d_neg_lse);
        out.d_total = take(t.d_total);
        return out;
    }
};

template <class T>
__device__ void stage(const void* given, int64_t first, int64_t stride, int columns, int levels,
                      Staged<T>& staged) {
    T* table = staged.take(given);
    if (table == nullptr) return;
    for (int n = threadIdx.x; n < columns * levels; n += kThreads) {
        const int level = n / columns, column = n % columns;
        // Behind the last column there is nothing to read, and no pair that would look there.
        const T value = first + column < stride
                            ? static_cast<const T*>(given)[level * stride + first + column]
                            : T(0);
        table[level * columns + column % kVector * (columns / kVector) + column / kVector] = value;
    }
}

template <class T>
__device__ void stage(const GrainrankGradientArgs& args, int64_t first, int columns, int levels,
                      Staged<T> staged) {
    for (int f = 0; f < args.num_channels; ++f) {
        const GrainrankTableGradients& t = args.channels[f].columns;
        const void* tables[] = {t.lse, t.d_lse, t.neg_lse, t.d_neg_lse, t.d_total};
#pragma unroll
        for (const void* table : tables)
            stage(table, first, args.column_stride, columns, levels, staged);
    }
    __syncthreads();
}

// The gradients of the logits of one channel, as gradients of `scale * s`.
template <Terms kTerms, class T>
__device__ void channel_gradients(const GrainrankBlock& block, const GrainrankChannel& channel,
                                  const TableGradients<T>& columns, const Place<T>& at, int lane,
                                  int lanes, const T (&s)[kVector], const Levels4& level,
                                  const Levels4& of_rows, const Levels4& of_columns,
                                  T (&g)[kVector]) {
    const int64_t row = int64_t{at.block_row} * (block.levels.max_level + 1);
    const TableGradients<T> rows = typed<T>(channel.rows).from(row);
    const T* factors = static_cast<const T*>(channel.factors);
    T z[kVector];
    if constexpr (kTerms == Terms::kAny) {
        logits(block, factors, at, s, level, z);
    } else {
        for (int i = 0; i < kVector; ++i) z[i] = logit(s[i], at.scale);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        g[i] = rows.template of_pair<kTerms>(z[i], of_rows[i], entry(of_rows[i]));
        const int staged = (entry(of_columns[i]) * kVector + i) * lanes + lane;
        if constexpr (kTerms == Terms::kBoth)
            g[i] += columns.template of_pair<kTerms>(z[i], of_columns[i], staged);
        if constexpr (kTerms == Terms::kAny) {
            if (columns.lse != nullptr)
                g[i] += columns.template of_pair<kTerms>(z[i], of_columns[i], staged);
            if (channel.d_softplus != nullptr && of_rows[i] > 0) {
                const T against = static_cast<const T*>(channel.thresholds)[row + of_rows[i]];
                const T d = static_cast<const T*>(channel.d_softplus)[row + of_rows[i]];
                g[i] -= softplus<T>(against - z[i]).slope * d;
            }
        }
    }
    if constexpr (kTerms == Terms::kAny) through_logits(block, factors, s, level, g);
}

// Sums of g * scaled by level, of each row: [R, L + 1] of this column tile.
template <class T>
__device__ void store_level_moments(T* moments, int levels, int lane, int lanes, bool inside,
                                    const Levels4& level, const T (&g)[kVector],
                                    const T (&scaled)[kVector]) {
    for (int l = 0; l < levels; ++l) {
        T sum = T(0);
        for (int i = 0; i < kVector; ++i) sum += entry(level[i]) == l ? g[i] * scaled[i] : T(0);
        sum = sum_over(sum, lanes);
        if (inside && lane == 0) moments[l] = sum;
    }
}

// Adds up what the threads of a column have, and stores it: [M] of this row tile.
template <class T>
__device__ void store_column_moments(T* moments, const Place<T>& at, int lane, int lanes,
                                     const T (&sums)[kVector], T* shared) {
    __syncthreads();  // the tables are not needed any more
    for (int i = 0; i < kVector; ++i) shared[threadIdx.x * kVector + i] = sums[i];
    __syncthreads();
    if (static_cast<int>(threadIdx.x) >= lanes) return;
    for (int i = 0; i < at.there; ++i) {
        T sum = T(0);
        for (int t = lane; t < kThreads; t += lanes) sum += shared[t * kVector + i];
        moments[at.column + i] = sum;
    }
}

// The gradient of the four pairs, as that of `scale * s`, of all channels; and its moments.
template <class T>
__device__ void any_gradients(const GrainrankBlock& block, const GrainrankGradientArgs& args,
                              Staged<T> staged, const Place<T>& at, int64_t column_tile, int lane,
                              int lanes, bool in_rows, const T (&s)[kVector], const Levels4& level,
                              T (&total)[kVector], T (&column_sums)[kVector]) {
    const int levels = block.levels.max_level + 1;
    const bool inside = in_rows && at.there > 0;
    Levels4 of_rows, of_columns;
    T scaled[kVector];
    for (int i = 0; i < kVector; ++i) {
        scaled[i] = s[i] * at.scale;
        of_rows[i] = of_columns[i] = level[i];
    }
    if (inside) {
        apply_ceiling(block, false, at, s, of_rows);
        apply_ceiling(block, true, at, s, of_columns);
    }
    const int64_t line = column_tile * block.rows + at.block_row;  // of the moments
    for (int f = 0; f < args.num_channels; ++f) {
        const GrainrankChannel& channel = args.channels[f];
        const TableGradients<T> columns = staged.take(channel.columns);
        T g[kVector] = {};
        if (inside)
            channel_gradients<Terms::kAny>(block, channel, columns, at, lane, lanes, s, level,
                                           of_rows, of_columns, g);
        for (int i = 0; i < kVector; ++i) total[i] += g[i];
        if (channel.moments != nullptr)
            store_level_moments(static_cast<T*>(channel.moments) + line * levels, levels, lane,
                                lanes, in_rows, level, g, scaled);
    }
    T sum = T(0);
    for (int i = 0; i < kVector; ++i) {
        const T moment = total[i] * scaled[i];
        column_sums[i] += moment;
        sum += moment;
    }
    if (args.row_moments == nullptr) return;
    sum = sum_over(sum, lanes);
    if (in_rows && lane == 0) static_cast<T*>(args.row_moments)[line] = sum;
}

template <class T, class G, Terms kTerms>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    gradients_kernel(const __grid_constant__ GrainrankBlock block,
                     const __grid_constant__ GrainrankGradientArgs args, int lanes,
                     int64_t row_tiles) {
    extern __shared__ __align__(16) unsigned char memory[];
    const int levels = block.levels.max_level + 1;
    // Blocks that run together share columns.
    const int64_t row_tile = blockIdx.x % row_tiles, column_tile = blockIdx.x / row_tiles;
    const int lane = threadIdx.x % lanes, columns = lanes * kVector;
    const Staged<T> staged{reinterpret_cast<T*>(memory), int64_t{columns} * levels};
    if constexpr (kTerms != Terms::kRows)
        stage(args, column_tile * columns, columns, levels, staged);
    Place<T> at(block, static_cast<int>(column_tile * columns) + lane * kVector);
    T column_sums[kVector] = {};
    // Every thread goes through all rounds: sums over a row are taken together.
    const int first = threadIdx.x / lanes;
#pragma unroll 1
    for (int row = first; row - first < kTileRows; row += kThreads / lanes) {
        const int block_row = static_cast<int>(row_tile * kTileRows) + row;
        const bool in_rows = row < kTileRows && block_row < block.rows;
        const bool inside = in_rows && at.there > 0;
        Levels4 level = {-1, -1, -1, -1};
        T s[kVector] = {}, total[kVector] = {};
        at.block_row = block_row;
        if (inside) {
            const Packed<T> products = load_products(block, at);
            at.to_row(block, block_row);
            pair_levels(block, at, level);
            similarities(at, products, s);
        }
        if constexpr (kTerms == Terms::kAny) {
            any_gradients(block, args, staged, at, column_tile, lane, lanes, in_rows, s, level,
                          total, column_sums);
        } else if (inside) {
            const TableGradients<T> of_columns =
                kTerms == Terms::kBoth ? Staged<T>(staged).take(args.channels[0].columns)
                                       : TableGradients<T>{};
            channel_gradients<kTerms>(block, args.channels[0], of_columns, at, lane, lanes, s,
                                      level, level, level, total);
        }
        if (inside) store_gradient<T, G>(args.gradient, at, total);
    }
    if constexpr (kTerms == Terms::kAny)
        if (args.column_moments != nullptr)
            store_column_moments(static_cast<T*>(args.column_moments) + row_tile * block.columns,
                                 at, lane, lanes, column_sums, reinterpret_cast<T*>(memory));
}

Terms terms_of(const GrainrankBlock& block, const GrainrankGradientArgs& args) {
    const GrainrankChannel& channel = args.channels[0];
    const auto lse_alone = [](const GrainrankTableGradients& t) {
        return t.d_lse != nullptr && t.d_neg_lse == nullptr && t.d_total == nullptr;
    };
    const bool plain = args.num_channels == 1 && channel.factors == nullptr && !block.circle &&
                       block.ceilings.rows == nullptr && block.ceilings.columns == nullptr &&
                       channel.d_softplus == nullptr && channel.moments == nullptr &&
                       args.row_moments == nullptr && args.column_moments == nullptr;
    if (!plain || !lse_alone(channel.rows)) return Terms::kAny;
    if (channel.columns.lse == nullptr) return Terms::kRows;
    return lse_alone(channel.columns) ? Terms::kBoth : Terms::kAny;
}

template <class T, class G>
int run(const GrainrankBlock& block, const GrainrankGradientArgs& args, cudaStream_t stream) {
    const int lanes = lanes_of(block, args);
    const int64_t row_tiles = divided(block.rows, kTileRows);
    const int64_t blocks = row_tiles * divided(block.columns, int64_t{lanes} * kVector);
    if (blocks == 0) return 0;
    size_t shared = shared_bytes(block, args, lanes);
    if (args.column_moments != nullptr && shared < kSumBytes) shared = kSumBytes;
    const Terms terms = terms_of(block, args);
    const auto kernel = terms == Terms::kRows   ? gradients_kernel<T, G, Terms::kRows>
                        : terms == Terms::kBoth ? gradients_kernel<T, G, Terms::kBoth>
                                                : gradients_kernel<T, G, Terms::kAny>;
    kernel<<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(block, args, lanes,
                                                                        row_tiles);
    return cudaGetLastError();
}

}  // namespace
}  // namespace cuda
}  // namespace grainrank

using namespace grainrank::cuda;

int64_t grainrank_cuda_gradient_columns(const GrainrankBlock* block,
                                        const GrainrankGradientArgs* args) {
    return int64_t(lanes_of(*block, *args)) * kVector;
}

int grainrank_cuda_gradients(const GrainrankBlock* block, const GrainrankGradientArgs* args,
                             void* stream) {
    if (const int error = checked(*block)) return error;
    if (const int error = checked(*block, args->gradient)) return error;
    if (args->num_channels < 1 || args->num_channels > GRAINRANK_CUDA_MAX_CHANNELS)
        return GRAINRANK_CUDA_TOO_MANY;
    return with_types(block->dtype, args->gradient.dtype, [&](auto types) {
        using Chosen = decltype(types);
        return run<typename Chosen::Pair, typename Chosen::Gradient>(
            *block, *args, static_cast<cudaStream_t>(stream));
    });
}
