/* The fused CUDA passes over a row block of similarities, for C and C++: no PyTorch, no C++ types.
 *
 * Pointers are to the GPU's memory, except where a structure says otherwise; sizes and strides are
 * in elements. A launcher puts its kernels into `stream` (a cudaStream_t) of the current device,
 * waits for nothing and returns 0, a cudaError_t, or one of GrainrankCudaError. Letters as in the
 * dimension key: N, M, D, K, L, R. */
#ifndef GRAINRANK_CUDA_H
#define GRAINRANK_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    GRAINRANK_CUDA_MAX_SOURCES = 8,
    GRAINRANK_CUDA_MAX_EXCLUSIONS = 4,
    GRAINRANK_CUDA_MAX_CHANNELS = 16,
    GRAINRANK_CUDA_MAX_PREFIXES = 32,
    GRAINRANK_CUDA_MOMENT_ROWS = 64, /* rows of one row of column_moments */
    GRAINRANK_CUDA_ALIGNMENT = 16,   /* bytes: of a row block and its gradient, and of their rows */
};

typedef enum {
    GRAINRANK_CUDA_MISALIGNED = -1, /* a row block, its levels or gradient, or their strides */
    GRAINRANK_CUDA_DTYPE = -2,      /* not a combination that there are kernels for */
    GRAINRANK_CUDA_TOO_MANY = -3,   /* sources, exclusions, channels, prefixes or levels */
    GRAINRANK_CUDA_SIZE = -4,       /* a negative size, or 2^31 columns or rows and more */
} GrainrankCudaError;

typedef enum {
    GRAINRANK_F32 = 0,
    GRAINRANK_F64 = 1,
    GRAINRANK_F16 = 2,
    GRAINRANK_BF16 = 3,
} GrainrankDtype;

typedef enum {
    GRAINRANK_DIAGONAL = 0,
    GRAINRANK_KEYS_PREFIX = 1,
    GRAINRANK_KEYS_COUNT = 2,
    GRAINRANK_DENSE = 3,
    GRAINRANK_SPARSE = 4,
    GRAINRANK_BANDS = 5,
} GrainrankSourceKind;

/* Where levels come from. Pointers that a kind has no use for are null. */
typedef struct {
    int kind;      /* GrainrankSourceKind */
    int max_level; /* L of this source */
    int num_keys;  /* K */
    int wide_keys; /* keys are int64, else int32; unknown ones are -2 of queries, -1 of candidates
                    */
    const void* query_keys;     /* [N, K] */
    const void* candidate_keys; /* [K, M], rows `key_stride` apart, 16-byte aligned */
    int64_t key_stride;         /* a multiple of 4 */
    const int8_t* dense;        /* [N, M] */
    const int64_t* ends;        /* [N + 1]: the row's entries in indices and levels */
    const int32_t* indices;     /* [nnz], ascending in a row */
    const int8_t* levels;       /* [nnz] */
    const float* similarities;  /* [R, M], of the block's pairs in the reference */
    const float* thresholds;    /* [N, L], [1, L] with stride 0, or [L, M] with by_column */
    int64_t threshold_stride;
    int by_column;
} GrainrankSource;

/* Pairs with equal ids; null: none. */
typedef struct {
    const void* query_ids;     /* [N] */
    const void* candidate_ids; /* [M] */
    int wide;                  /* int64, else int32 */
} GrainrankIds;

/* The highest level of all sources, but -1 where a source or an exclusion ignores the pair. */
typedef struct {
    int max_level; /* L, at most 15 */
    int num_sources;
    int num_exclusions;
    GrainrankSource sources[GRAINRANK_CUDA_MAX_SOURCES];
    GrainrankIds exclusions[GRAINRANK_CUDA_MAX_EXCLUSIONS];
} GrainrankLevels;

/* Pairs of level 0 whose similarity is above the ceiling of their row (seen from a column: of the
 * column) are ignored, unless their ids are equal. */
typedef struct {
    const void* rows;       /* [N], or null: nothing is ignored */
    const void* columns;    /* [M], or null */
    const float* reference; /* [R, M]: of the block's pairs in another space, or null: s */
    GrainrankIds kept;
} GrainrankCeilings;

/* A row block of similarities, and how they become logits: s = similarity * row_factor *
 * column_factor, z = scale * factor[level] * s, or the curve of the circle loss (csrc/passes.h).
 * Everything without a type of its own is of `dtype`, float32 or float64. */
typedef struct {
    int dtype;
    const void* similarities; /* [R, M], rows `row_stride` apart, 16-byte aligned */
    int64_t rows;             /* R */
    int64_t columns;          /* M */
    int64_t row_stride;
    int64_t first_row;          /* of the batch */
    const void* scale;          /* [1] */
    const void* row_factors;    /* [R], or null: 1 */
    const void* column_factors; /* [M], or null: 1 */
    int circle;
    double circle_margin;
    GrainrankCeilings ceilings;
    GrainrankLevels levels;
} GrainrankBlock;

/* Tables [R, L + 1] of rows, or [M, L + 1] of columns. neg_lse to lowest_at are null together. */
typedef struct {
    void* lse;
    void* total;
    int64_t* count;
    void* neg_lse;
    void* highest;
    void* lowest;
    int64_t* highest_at;
    int64_t* lowest_at;
} GrainrankTables;

typedef struct {
    const void* factors;     /* [L + 1] of the levels, or null: 1 */
    GrainrankTables rows;    /* of the block's rows */
    GrainrankTables columns; /* of the first `table_columns` columns over the block's rows */
    int64_t table_columns;   /* 0: none are wanted */
    void* workspace;         /* grainrank_cuda_table_workspace bytes */
} GrainrankTableArgs;

/* Tables and the gradients of them; null gradients are zero. */
typedef struct {
    const void* lse;
    const void* d_lse;
    const void* neg_lse;
    const void* d_neg_lse;
    const void* d_total;
} GrainrankTableGradients;

/* One way of reading the similarities as logits, with its own tables. */
typedef struct {
    const void* factors;             /* [L + 1], or null: 1 */
    GrainrankTableGradients rows;    /* [R, L + 1] */
    GrainrankTableGradients columns; /* [L + 1, column_stride] */
    const void* thresholds;          /* [R, L + 1], of the softplus sums of the positives */
    const void* d_softplus;          /* [R, L + 1], or null */
    void* moments; /* [column tiles, R, L + 1], or null: sums over the level of G * scale * s */
} GrainrankChannel;

/* Where G goes: times the factors of the block, and `unit`. */
typedef struct {
    int dtype;          /* of values; float64 with blocks of float64 */
    void* values;       /* [R, M], 16-byte aligned; may be the similarities, if of their dtype */
    int64_t row_stride; /* of values */
    const void* unit;   /* [1] of the block's dtype, or null: 1 */
} GrainrankGradient;

typedef struct {
    GrainrankGradient gradient;
    int num_channels;
    GrainrankChannel channels[GRAINRANK_CUDA_MAX_CHANNELS];
    int64_t column_stride; /* of the tables of the columns */
    void* row_moments;     /* [column tiles, R], or null */
    void* column_moments;  /* [ceil(R / MOMENT_ROWS), M], or null */
} GrainrankGradientArgs;

/* Sums over the pairs of a level of softplus(x) and of its derivative; x = z - threshold at level
 * 0, threshold - z above. */
typedef struct {
    const void* factors;    /* [L + 1] of the levels, or null: 1 */
    const void* thresholds; /* [R, L + 1], or [L + 1] with stride 0 */
    int64_t threshold_stride;
    const void* weights; /* [L + 1]: G = weight * d softplus / dz is written; or null: the sums are
                            of the positives alone */
    GrainrankGradient gradient;
    void* value; /* [splits, R, L + 1] */
    void* slope;
} GrainrankSoftplusArgs;

/* The levels of a row block as its rows see them, and its P positives: pairs of level 1 and more.
 */
typedef struct {
    const int8_t* levels;   /* [R, M], as grainrank_cuda_block_levels writes them */
    int64_t level_stride;   /* of rows */
    int64_t positives;      /* P */
    const int64_t* starts;  /* [R + 1]: row r has the positives starts[r] .. starts[r + 1] */
    const int64_t* row;     /* [P], of the block */
    const int64_t* column;  /* [P], ascending in a row */
    const int64_t* level;   /* [P] */
    const void* similarity; /* [P]: similarity * (row_factor * column_factor), rounded each time */
} GrainrankPositives;

/* Which of equal similarities are above a positive. */
typedef enum {
    GRAINRANK_TIES_FIRST = 0, /* of lower columns */
    GRAINRANK_TIES_LAST = 1,  /* of higher columns */
    GRAINRANK_TIES_OPTIMISTIC = 2,
    GRAINRANK_TIES_PESSIMISTIC = 3,
} GrainrankTies;

/* h(x) of x = s_j - s_p: sigmoid(x / temperature), or the upper bound for candidates of a lower
 * level than the positive's and the step for others (python/grainrank/ranks/surrogates.py). */
typedef struct {
    int upper_bound;
    double temperature;
    double rho, delta, offset; /* of the upper bound */
} GrainrankStep;

/* Sums over the other candidates of each level. */
typedef struct {
    GrainrankStep step;
    int64_t splits;
    void* above;       /* [splits, P, L + 1], of h */
    void* slope;       /* [splits, P, L + 1], of its derivative */
    int64_t* at_least; /* [splits, P, L + 1]: how many have s_j >= s_p */
} GrainrankSmoothRankArgs;

/* G of a pair: the sum of d_above[p, level] h'(s_j - s_p) over the row's positives p but itself,
 * minus own[p] where it is the positive p; 0 at level -1. */
typedef struct {
    GrainrankStep step;
    GrainrankGradient gradient;
    const void* d_above; /* [P, L + 1] */
    const void* own;     /* [P] */
} GrainrankRankGradientArgs;

/* Norms of the prefixes of embeddings. */
typedef struct {
    int dtype;     /* of x */
    const void* x; /* [R, D] */
    int64_t row_stride;
    int64_t rows;
    int num_prefixes;                              /* P */
    int64_t prefixes[GRAINRANK_CUDA_MAX_PREFIXES]; /* lengths, ascending */
    int norms_dtype;                               /* float64 with x of float64, else float32 */
    void* norms;                                   /* [P, R] */
} GrainrankNormArgs;

/* In place: from gradients of the rows of a product, per unit of scale and times `unit`, to those
 * of the rows as given. */
typedef struct {
    int dtype; /* of d and all that has no other */
    void* d;   /* [R, D] */
    int64_t d_stride;
    int values_dtype;
    const void* values; /* [R, D], the rows of the product */
    int64_t value_stride;
    int64_t rows;
    int num_prefixes;
    int64_t prefixes[GRAINRANK_CUDA_MAX_PREFIXES];
    const void* scale; /* [1] */
    const void* unit;  /* [1], or null: 1 */
    const void* norms; /* [R]: the values' own, which were factors of the products; or null */
    const void* along; /* [P, R]: d loses values * along in the features a prefix adds; or null */
    void* dots;        /* [R]: <values, d> as it came */
} GrainrankFinishArgs;

/* Bytes of the workspace for a block of rows and columns; all_tables: neg_lse and more. */
int64_t grainrank_cuda_table_workspace(int dtype, int64_t rows, int64_t columns, int max_level,
                                       int64_t table_columns, int all_tables);
/* Columns of a column tile, for the moments. */
int64_t grainrank_cuda_gradient_columns(const GrainrankBlock* block,
                                        const GrainrankGradientArgs* args);
/* Parts of the softplus sums, to be added up. */
int64_t grainrank_cuda_softplus_splits(int64_t columns);
/* Parts of the sums over ranks, to be added up: so many that they fill a GPU, 1 at least. */
int64_t grainrank_cuda_rank_splits(int64_t positives, int64_t columns);

int grainrank_cuda_tables(const GrainrankBlock* block, const GrainrankTableArgs* args,
                          void* stream);
int grainrank_cuda_gradients(const GrainrankBlock* block, const GrainrankGradientArgs* args,
                             void* stream);
int grainrank_cuda_softplus(const GrainrankBlock* block, const GrainrankSoftplusArgs* args,
                            void* stream);
/* Levels [R, M] as the rows see them, rows `level_stride` apart, 16-byte aligned; -1 behind the
 * last column as far as a multiple of 4. */
int grainrank_cuda_block_levels(const GrainrankBlock* block, int8_t* levels, int64_t level_stride,
                                void* stream);
/* above [splits, P, L + 1]: the candidates of each level above each positive. */
int grainrank_cuda_exact_ranks(const GrainrankBlock* block, const GrainrankPositives* positives,
                               int ties, int64_t splits, int64_t* above, void* stream);
int grainrank_cuda_smooth_ranks(const GrainrankBlock* block, const GrainrankPositives* positives,
                                const GrainrankSmoothRankArgs* args, void* stream);
int grainrank_cuda_rank_gradient(const GrainrankBlock* block, const GrainrankPositives* positives,
                                 const GrainrankRankGradientArgs* args, void* stream);
int grainrank_cuda_norms(const GrainrankNormArgs* args, void* stream);
int grainrank_cuda_finish(const GrainrankFinishArgs* args, void* stream);

/* What an error code means; the text is static. */
const char* grainrank_cuda_error_string(int error);

#ifdef __cplusplus
}
#endif

#endif
