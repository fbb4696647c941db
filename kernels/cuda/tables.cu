// Tables of the rows and columns of a row block. A block of threads takes a tile of rows and walks
// over a split of the columns: it reads each product once, keeps logits and levels in shared
// memory, and sums them along the rows, a thread each, and down the columns, eight threads each.
// Parts merge in a fixed order, so that a result is the same in every run.
#include "launch.cuh"

namespace grainrank {
namespace cuda {
namespace {

constexpr int kTileColumns = 32;
constexpr int kMostRows = 256;                          // of a tile: a thread each
constexpr int kVectorsAcross = kTileColumns / kVector;  // of a row of the tile
constexpr int kPasses = kVectorsAcross;                 // vectors of a thread
// Row strides in shared memory: threads of a warp meet no bank twice, in either direction.
constexpr int kLogitStride = kTileColumns + kVector;
constexpr int kLevelStride = kVectorsAcross + 1;  // words of four levels
constexpr int kGroups = 8;                        // threads of a column
constexpr int kLeastSplit = 256;                  // columns
constexpr int64_t kBlocks = 1024;  // enough of them, and the columns are not split further
constexpr size_t kSharedBytes = 48 << 10;

struct TilePlan {
    int rows;
    int64_t row_tiles, splits, columns_per_split;
    size_t shared_bytes;
};

template <class T, bool kAll>
size_t shared_bytes(int rows, int levels, bool columns) {
    return rows * (sizeof(LevelPart<T, kAll>) * levels + sizeof(T) * kLogitStride +
                   sizeof(uint32_t) * kLevelStride * (columns ? 2 : 1));
}

template <class T, bool kAll>
TilePlan plan(int64_t rows, int64_t columns, int levels, int64_t table_columns) {
    TilePlan out{};
    out.rows = kMostRows;
    while (out.rows > kWarp &&
           shared_bytes<T, kAll>(out.rows, levels, table_columns > 0) > kSharedBytes)
        out.rows /= 2;
    out.shared_bytes = shared_bytes<T, kAll>(out.rows, levels, table_columns > 0);
    out.row_tiles = divided(rows, out.rows);
    const int64_t wanted = divided(kBlocks, out.row_tiles > 0 ? out.row_tiles : 1);
    const int64_t split = divided(divided(columns, wanted), kTileColumns) * kTileColumns;
    out.columns_per_split = split < kLeastSplit ? kLeastSplit : split;
    out.splits = divided(columns, out.columns_per_split);
    return out;
}

template <class Part>
__device__ Part exchanged(const Part& part, int offset) {
    static_assert(sizeof(Part) % sizeof(uint32_t) == 0, "exchanged word by word");
    constexpr int kWords = sizeof(Part) / sizeof(uint32_t);
    uint32_t words[kWords];
    memcpy(words, &part, sizeof part);
    for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(kAllLanes, words[i], offset);
    Part other;
    memcpy(&other, words, sizeof other);
    return other;
}

__device__ int32_t level_in(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }

__device__ uint32_t packed(const Levels4& level) {
    uint32_t word = 0;
    for (int i = 0; i < kVector; ++i) word |= (level[i] & 0xffu) << (8 * i);
    return word;
}

// The tile in shared memory, and the tables of its rows so far. kSlots: levels at a time, in
// registers.
template <class T, bool kAll, int kSlots>
struct Tile {
    LevelPart<T, kAll>* parts;  // [L + 1, rows]
    T* logits;                  // [rows, kLogitStride]
    uint32_t* row_levels;       // [rows, kLevelStride], as the rows see them
    uint32_t* column_levels;    // as the columns do, or null
    int rows, levels;

    __device__ Tile(unsigned char* memory, int levels_, bool columns)
        : parts(reinterpret_cast<LevelPart<T, kAll>*>(memory)), rows(blockDim.x), levels(levels_) {
        logits = reinterpret_cast<T*>(parts + levels * rows);
        row_levels = reinterpret_cast<uint32_t*>(logits + rows * kLogitStride);
        column_levels = columns ? row_levels + int64_t{rows} * kLevelStride : nullptr;
    }

    __device__ Packed<T>& vector(int row, int across) {
        return *reinterpret_cast<Packed<T>*>(logits + (row * kLogitStride + across * kVector));
    }

    // The products of the columns from `column` on become logits and levels.
    __device__ void fill(const GrainrankBlock& block, const T* factors, int first_row, int column) {
        const int across = threadIdx.x % kVectorsAcross;
        const int first = threadIdx.x / kVectorsAcross, step = rows / kPasses;
        Place<T> at(block, column + across * kVector);
        // All of them under way before the first one is needed. Each thread reads what it wrote.
#pragma unroll
        for (int n = 0; n < kPasses; ++n) {
            at.block_row = first_row + first + n * step;
            Packed<T> products{};
            if (at.block_row < block.rows && at.there > 0) products = load_products(block, at);
            vector(first + n * step, across) = products;
        }
#pragma unroll 1
        for (int n = 0; n < kPasses; ++n) {
            const int row = first + n * step;
            Packed<T>& place = vector(row, across);
            Levels4 level = {-1, -1, -1, -1}, of_columns = {-1, -1, -1, -1};
            T s[kVector], z[kVector] = {};
            if (first_row + row < block.rows && at.there > 0) {
                at.to_row(block, first_row + row);
                similarities(at, place, s);
                pair_levels(block, at, level);
                cuda::logits(block, factors, at, s, level, z);
                for (int i = 0; i < kVector; ++i) of_columns[i] = level[i];
                apply_ceiling(block, false, at, s, level);
                if (column_levels != nullptr) apply_ceiling(block, true, at, s, of_columns);
            }
            for (int i = 0; i < kVector; ++i) place.x[i] = z[i];
            const int word = row * kLevelStride + across;
            row_levels[word] = packed(level);
            if (column_levels != nullptr) column_levels[word] = packed(of_columns);
        }
    }

    // Along the row of this thread. `column`: the first of the tile.
    __device__ void add_row(int column) {
        const int row = threadIdx.x;
#pragma unroll 1
        for (int first = 0; first < levels; first += kSlots) {
            PairTables<T, kAll, kSlots> sums;
#pragma unroll
            for (int l = 0; l < kSlots; ++l)
                if (first + l < levels) sums.start_from(l, parts[(first + l) * rows + row]);
#pragma unroll 1
            for (int v = 0; v < kVectorsAcross; ++v) {
                const Packed<T> z = vector(row, v);
                const uint32_t word = row_levels[row * kLevelStride + v];
#pragma unroll
                for (int i = 0; i < kVector; ++i)
                    sums.add(z.x[i], level_in(word, i) - first, column + v * kVector + i);
            }
#pragma unroll
            for (int l = 0; l < kSlots; ++l) {
                if (first + l >= levels) break;
                LevelPart<T, kAll>& so_far = parts[(first + l) * rows + row];
                LevelPart<T, kAll> merged = so_far;
                merged.merge(sums.parts[l]);
                so_far = merged;
            }
        }
    }

    // Down the columns: four of them, and kGroups groups of rows, to a warp. `first_row`: of the
    // tile, in the batch. out: [columns, L + 1] from the tile's first column on.
    __device__ void add_columns(int first_row, int64_t columns_left, LevelPart<T, kAll>* out) {
        const int lane = threadIdx.x % kWarp, group = lane / kVector;
#pragma unroll 1
        for (int first = 0; first < levels; first += kSlots) {
#pragma unroll 1
            for (int v = threadIdx.x / kWarp; v < kVectorsAcross; v += rows / kWarp) {
                PairTables<T, kAll, kSlots> sums;
                const int column = v * kVector + lane % kVector;
#pragma unroll 2
                for (int row = group; row < rows; row += kGroups) {
                    const T z = logits[row * kLogitStride + column];
                    const uint32_t word = column_levels[row * kLevelStride + v];
                    sums.add(z, level_in(word, lane % kVector) - first, first_row + row);
                }
#pragma unroll
                for (int l = 0; l < kSlots; ++l) {
                    if (first + l >= levels) break;
                    LevelPart<T, kAll> part = sums.parts[l];
#pragma unroll
                    for (int offset = kVector; offset < kWarp; offset *= 2)
                        part.merge(exchanged(part, offset));
                    if (group == 0 && column < columns_left)
                        out[column * levels + first + l] = part;
                }
            }
        }
    }
};

template <class T, bool kAll, int kSlots>
__global__ void __launch_bounds__(kMostRows, kResident<T>)
    tables_kernel(const __grid_constant__ GrainrankBlock block, const T* factors,
                  int64_t table_columns, int64_t row_tiles, int64_t columns_per_split,
                  LevelPart<T, kAll>* row_parts, LevelPart<T, kAll>* column_parts) {
    extern __shared__ __align__(16) unsigned char memory[];
    Tile<T, kAll, kSlots> tile(memory, block.levels.max_level + 1, table_columns > 0);
    // Blocks that run together share columns.
    const int64_t row_tile = blockIdx.x % row_tiles, split = blockIdx.x / row_tiles;
    const int first_row = static_cast<int>(row_tile * tile.rows);
    for (int l = 0; l < tile.levels; ++l) tile.parts[l * tile.rows + threadIdx.x] = {};
    const int64_t first = split * columns_per_split;
    const int64_t last =
        first + columns_per_split < block.columns ? first + columns_per_split : block.columns;
    for (int64_t column = first; column < last; column += kTileColumns) {
        tile.fill(block, factors, first_row, static_cast<int>(column));
        __syncthreads();
        tile.add_row(static_cast<int>(column));
        if (column < table_columns)
            tile.add_columns(static_cast<int>(block.first_row) + first_row, table_columns - column,
                             column_parts + (row_tile * table_columns + column) * tile.levels);
        __syncthreads();
    }
    const int64_t row = first_row + threadIdx.x;
    if (row >= block.rows) return;
    for (int l = 0; l < tile.levels; ++l)
        row_parts[(split * block.rows + row) * tile.levels + l] =
            tile.parts[l * tile.rows + threadIdx.x];
}

template <class T>
__device__ LevelPart<double, false> widened(const LevelPart<T, false>& part) {
    return {{part.exponentials.reference, part.exponentials.sum}, part.total, part.count};
}
template <class T>
__device__ LevelPart<double, true> widened(const LevelPart<T, true>& part) {
    LevelPart<double, true> out;
    static_cast<LevelPart<double, false>&>(out) =
        widened(static_cast<const LevelPart<T, false>&>(part));
    out.negative = {part.negative.reference, part.negative.sum};
    out.highest = {part.highest.value, part.highest.at};
    out.lowest = {part.lowest.value, part.lowest.at};
    return out;
}

// `count` parts [lines, L + 1] in their order; a thread for each entry.
template <class T, bool kAll>
__global__ void merge_kernel(const LevelPart<T, kAll>* parts, int64_t count, int64_t lines,
                             int levels, GrainrankTables out) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t entries = lines * levels;
    if (at >= entries) return;
    LevelPart<double, kAll> sum;
    for (int64_t k = 0; k < count; ++k) sum.merge(widened(parts[k * entries + at]));
    static_cast<T*>(out.lse)[at] = static_cast<T>(lse_of<double>(sum));
    static_cast<T*>(out.total)[at] = static_cast<T>(sum.total);
    out.count[at] = sum.count;
    if constexpr (kAll) {
        const LevelEntry<double> entry = entry_of<double>(sum, static_cast<int>(at % levels));
        static_cast<T*>(out.neg_lse)[at] = static_cast<T>(entry.neg_lse);
        static_cast<T*>(out.highest)[at] = static_cast<T>(entry.highest);
        static_cast<T*>(out.lowest)[at] = static_cast<T>(entry.lowest);
        out.highest_at[at] = sum.highest.at;
        out.lowest_at[at] = sum.lowest.at;
    }
}

template <class T, bool kAll>
void merge(const LevelPart<T, kAll>* parts, int64_t count, int64_t lines, int levels,
           const GrainrankTables& out, cudaStream_t stream) {
    if (lines == 0) return;
    constexpr int kThreads = 128;
    const auto blocks = static_cast<unsigned>(divided(lines * levels, kThreads));
    merge_kernel<T, kAll><<<blocks, kThreads, 0, stream>>>(parts, count, lines, levels, out);
}

template <class T, bool kAll>
int64_t workspace(int64_t rows, int64_t columns, int levels, int64_t table_columns) {
    const TilePlan p = plan<T, kAll>(rows, columns, levels, table_columns);
    const int64_t lines = p.splits * rows + p.row_tiles * table_columns;
    return lines * levels * static_cast<int64_t>(sizeof(LevelPart<T, kAll>));
}

template <class T, bool kAll>
int run(const GrainrankBlock& block, const GrainrankTableArgs& args, cudaStream_t stream) {
    const int levels = block.levels.max_level + 1;
    const TilePlan p = plan<T, kAll>(block.rows, block.columns, levels, args.table_columns);
    auto* row_parts = static_cast<LevelPart<T, kAll>*>(args.workspace);
    auto* column_parts = row_parts + p.splits * block.rows * levels;
    const int64_t blocks = p.row_tiles * p.splits;
    const auto kernel = levels == 2 ? tables_kernel<T, kAll, 2> : tables_kernel<T, kAll, 4>;
    if (p.shared_bytes > kSharedBytes) {  // float64 with many levels
        const cudaError_t error = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(p.shared_bytes));
        if (error != cudaSuccess) return error;
    }
    if (blocks > 0)
        kernel<<<static_cast<unsigned>(blocks), p.rows, p.shared_bytes, stream>>>(
            block, static_cast<const T*>(args.factors), args.table_columns, p.row_tiles,
            p.columns_per_split, row_parts, column_parts);
    merge<T, kAll>(row_parts, p.splits, block.rows, levels, args.rows, stream);
    merge<T, kAll>(column_parts, p.row_tiles, args.table_columns, levels, args.columns, stream);
    return cudaGetLastError();
}

}  // namespace
}  // namespace cuda
}  // namespace grainrank

using namespace grainrank::cuda;

int64_t grainrank_cuda_table_workspace(int dtype, int64_t rows, int64_t columns, int max_level,
                                       int64_t table_columns, int all_tables) {
    const int levels = max_level + 1;
    if (dtype == GRAINRANK_F64)
        return all_tables ? workspace<double, true>(rows, columns, levels, table_columns)
                          : workspace<double, false>(rows, columns, levels, table_columns);
    return all_tables ? workspace<float, true>(rows, columns, levels, table_columns)
                      : workspace<float, false>(rows, columns, levels, table_columns);
}

int grainrank_cuda_tables(const GrainrankBlock* block, const GrainrankTableArgs* args,
                          void* stream) {
    if (const int error = checked(*block)) return error;
    if (args->table_columns < 0 || args->table_columns > block->columns) return GRAINRANK_CUDA_SIZE;
    const auto on = static_cast<cudaStream_t>(stream);
    const bool all = args->rows.neg_lse != nullptr;
    if (block->dtype == GRAINRANK_F64)
        return all ? run<double, true>(*block, *args, on) : run<double, false>(*block, *args, on);
    return all ? run<float, true>(*block, *args, on) : run<float, false>(*block, *args, on);
}
