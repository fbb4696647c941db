// The list of what Python sees of the CUDA passes. Pointers come as integers;
// grainrank/cuda_passes.py and cuda_ranks.py are the only callers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "grainrank_cuda.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <class P>
P at(Address address) {
    return reinterpret_cast<P>(address);
}

template <class T, std::size_t kCapacity>
int fill(T (&array)[kCapacity], const std::vector<T>& items, const char* what) {
    if (items.size() > kCapacity)
        throw std::invalid_argument("the CUDA passes take at most " + std::to_string(kCapacity) +
                                    " " + what + ", got " + std::to_string(items.size()));
    std::copy(items.begin(), items.end(), array);
    return static_cast<int>(items.size());
}

void check(int error) {
    if (error != 0)
        throw std::runtime_error(std::string("CUDA passes: ") + grainrank_cuda_error_string(error) +
                                 " (" + std::to_string(error) + ")");
}

void define_levels(py::module_& m) {
    py::class_<GrainrankSource>(m, "Source")
        .def(py::init([](int kind, int max_level, int num_keys, bool wide_keys, Address query_keys,
                         Address candidate_keys, int64_t key_stride, Address dense, Address ends,
                         Address indices, Address levels, Address similarities, Address thresholds,
                         int64_t threshold_stride, bool by_column) {
                 return GrainrankSource{kind,
                                        max_level,
                                        num_keys,
                                        wide_keys,
                                        at<const void*>(query_keys),
                                        at<const void*>(candidate_keys),
                                        key_stride,
                                        at<const int8_t*>(dense),
                                        at<const int64_t*>(ends),
                                        at<const int32_t*>(indices),
                                        at<const int8_t*>(levels),
                                        at<const float*>(similarities),
                                        at<const float*>(thresholds),
                                        threshold_stride,
                                        by_column};
             }),
             py::kw_only(), py::arg("kind"), py::arg("max_level"), py::arg("num_keys") = 0,
             py::arg("wide_keys") = false, py::arg("query_keys") = 0, py::arg("candidate_keys") = 0,
             py::arg("key_stride") = 0, py::arg("dense") = 0, py::arg("ends") = 0,
             py::arg("indices") = 0, py::arg("levels") = 0, py::arg("similarities") = 0,
             py::arg("thresholds") = 0, py::arg("threshold_stride") = 0,
             py::arg("by_column") = false);
    py::class_<GrainrankIds>(m, "Ids").def(
        py::init([](Address query_ids, Address candidate_ids, bool wide) {
            return GrainrankIds{at<const void*>(query_ids), at<const void*>(candidate_ids), wide};
        }),
        py::arg("query_ids") = 0, py::arg("candidate_ids") = 0, py::arg("wide") = false);
    py::class_<GrainrankLevels>(m, "Levels")
        .def(py::init([](int max_level, const std::vector<GrainrankSource>& sources,
                         const std::vector<GrainrankIds>& exclusions) {
            GrainrankLevels levels{};
            levels.max_level = max_level;
            levels.num_sources = fill(levels.sources, sources, "level sources");
            levels.num_exclusions = fill(levels.exclusions, exclusions, "exclusions");
            return levels;
        }));
}

void define_block(py::module_& m) {
    py::class_<GrainrankCeilings>(m, "Ceilings")
        .def(py::init(
                 [](Address rows, Address columns, Address reference, const GrainrankIds& kept) {
                     return GrainrankCeilings{at<const void*>(rows), at<const void*>(columns),
                                              at<const float*>(reference), kept};
                 }),
             py::kw_only(), py::arg("rows") = 0, py::arg("columns") = 0, py::arg("reference") = 0,
             py::arg("kept") = GrainrankIds{});
    py::class_<GrainrankBlock>(m, "Block")
        .def(py::init([](int dtype, Address similarities, int64_t rows, int64_t columns,
                         int64_t row_stride, int64_t first_row, Address scale, Address row_factors,
                         Address column_factors, bool circle, double circle_margin,
                         const GrainrankCeilings& ceilings, const GrainrankLevels& levels) {
                 return GrainrankBlock{dtype,
                                       at<const void*>(similarities),
                                       rows,
                                       columns,
                                       row_stride,
                                       first_row,
                                       at<const void*>(scale),
                                       at<const void*>(row_factors),
                                       at<const void*>(column_factors),
                                       circle,
                                       circle_margin,
                                       ceilings,
                                       levels};
             }),
             py::kw_only(), py::arg("dtype"), py::arg("similarities"), py::arg("rows"),
             py::arg("columns"), py::arg("row_stride"), py::arg("first_row"), py::arg("scale"),
             py::arg("row_factors"), py::arg("column_factors"), py::arg("circle"),
             py::arg("circle_margin"), py::arg("ceilings"), py::arg("levels"));
}

void define_arguments(py::module_& m) {
    py::class_<GrainrankTables>(m, "Tables")
        .def(py::init([](Address lse, Address total, Address count, Address neg_lse,
                         Address highest, Address lowest, Address highest_at, Address lowest_at) {
                 return GrainrankTables{at<void*>(lse),           at<void*>(total),
                                        at<int64_t*>(count),      at<void*>(neg_lse),
                                        at<void*>(highest),       at<void*>(lowest),
                                        at<int64_t*>(highest_at), at<int64_t*>(lowest_at)};
             }),
             py::kw_only(), py::arg("lse") = 0, py::arg("total") = 0, py::arg("count") = 0,
             py::arg("neg_lse") = 0, py::arg("highest") = 0, py::arg("lowest") = 0,
             py::arg("highest_at") = 0, py::arg("lowest_at") = 0);
    py::class_<GrainrankTableGradients>(m, "TableGradients")
        .def(py::init([](Address lse, Address d_lse, Address neg_lse, Address d_neg_lse,
                         Address d_total) {
                 return GrainrankTableGradients{
                     at<const void*>(lse), at<const void*>(d_lse), at<const void*>(neg_lse),
                     at<const void*>(d_neg_lse), at<const void*>(d_total)};
             }),
             py::kw_only(), py::arg("lse") = 0, py::arg("d_lse") = 0, py::arg("neg_lse") = 0,
             py::arg("d_neg_lse") = 0, py::arg("d_total") = 0);
    py::class_<GrainrankChannel>(m, "Channel")
        .def(py::init([](Address factors, const GrainrankTableGradients& rows,
                         const GrainrankTableGradients& columns, Address thresholds,
                         Address d_softplus, Address moments) {
                 return GrainrankChannel{at<const void*>(factors),
                                         rows,
                                         columns,
                                         at<const void*>(thresholds),
                                         at<const void*>(d_softplus),
                                         at<void*>(moments)};
             }),
             py::kw_only(), py::arg("factors"), py::arg("rows"), py::arg("columns"),
             py::arg("thresholds"), py::arg("d_softplus"), py::arg("moments") = 0)
        .def_property(
            "moments", [](const GrainrankChannel& c) { return Address(c.moments); },
            [](GrainrankChannel& c, Address moments) { c.moments = at<void*>(moments); });
    py::class_<GrainrankGradient>(m, "Gradient")
        .def(py::init([](int dtype, Address values, int64_t row_stride, Address unit) {
                 return GrainrankGradient{dtype, at<void*>(values), row_stride,
                                          at<const void*>(unit)};
             }),
             py::kw_only(), py::arg("dtype") = 0, py::arg("values") = 0, py::arg("row_stride") = 0,
             py::arg("unit") = 0);
    py::class_<GrainrankGradientArgs>(m, "GradientArgs")
        .def(py::init([](const GrainrankGradient& gradient,
                         const std::vector<GrainrankChannel>& channels, int64_t column_stride,
                         Address row_moments, Address column_moments) {
                 GrainrankGradientArgs args{};
                 args.gradient = gradient;
                 args.num_channels = fill(args.channels, channels, "channels");
                 args.column_stride = column_stride;
                 args.row_moments = at<void*>(row_moments);
                 args.column_moments = at<void*>(column_moments);
                 return args;
             }),
             py::kw_only(), py::arg("gradient"), py::arg("channels"), py::arg("column_stride"),
             py::arg("row_moments"), py::arg("column_moments"));
}

void define_rank_arguments(py::module_& m) {
    py::class_<GrainrankPositives>(m, "Positives")
        .def(py::init([](Address levels, int64_t level_stride, int64_t positives, Address starts,
                         Address row, Address column, Address level, Address similarity) {
                 return GrainrankPositives{at<const int8_t*>(levels),
                                           level_stride,
                                           positives,
                                           at<const int64_t*>(starts),
                                           at<const int64_t*>(row),
                                           at<const int64_t*>(column),
                                           at<const int64_t*>(level),
                                           at<const void*>(similarity)};
             }),
             py::kw_only(), py::arg("levels"), py::arg("level_stride"), py::arg("positives"),
             py::arg("starts"), py::arg("row"), py::arg("column"), py::arg("level"),
             py::arg("similarity"));
    py::class_<GrainrankStep>(m, "Step").def(
        py::init([](bool upper_bound, double temperature, double rho, double delta, double offset) {
            return GrainrankStep{upper_bound, temperature, rho, delta, offset};
        }),
        py::kw_only(), py::arg("upper_bound"), py::arg("temperature"), py::arg("rho") = 0.0,
        py::arg("delta") = 0.0, py::arg("offset") = 0.0);
}

template <class Args>
void set_prefixes(Args& args, const std::vector<int64_t>& prefixes) {
    args.num_prefixes = fill(args.prefixes, prefixes, "prefixes");
}

void define_passes(py::module_& m) {
    m.def("table_workspace", &grainrank_cuda_table_workspace, py::kw_only(), py::arg("dtype"),
          py::arg("rows"), py::arg("columns"), py::arg("max_level"), py::arg("table_columns"),
          py::arg("all_tables"));
    m.def(
        "tables",
        [](const GrainrankBlock& block, Address factors, const GrainrankTables& rows,
           const GrainrankTables& columns, int64_t table_columns, Address workspace,
           Address stream) {
            const GrainrankTableArgs args{at<const void*>(factors), rows, columns, table_columns,
                                          at<void*>(workspace)};
            check(grainrank_cuda_tables(&block, &args, at<void*>(stream)));
        },
        py::arg("block"), py::kw_only(), py::arg("factors"), py::arg("rows"), py::arg("columns"),
        py::arg("table_columns"), py::arg("workspace"), py::arg("stream"));
    m.def(
        "gradient_columns",
        [](const GrainrankBlock& block, const GrainrankGradientArgs& args) {
            return grainrank_cuda_gradient_columns(&block, &args);
        },
        py::arg("block"), py::arg("arguments"));
    m.def(
        "gradients",
        [](const GrainrankBlock& block, const GrainrankGradientArgs& args, Address stream) {
            check(grainrank_cuda_gradients(&block, &args, at<void*>(stream)));
        },
        py::arg("block"), py::arg("arguments"), py::arg("stream"));
    m.def("softplus_splits",
          [](int64_t columns) { return grainrank_cuda_softplus_splits(columns); });
    m.def(
        "softplus",
        [](const GrainrankBlock& block, Address factors, Address thresholds,
           int64_t threshold_stride, Address weights, const GrainrankGradient& gradient,
           Address value, Address slope, Address stream) {
            const GrainrankSoftplusArgs args{at<const void*>(factors),
                                             at<const void*>(thresholds),
                                             threshold_stride,
                                             at<const void*>(weights),
                                             gradient,
                                             at<void*>(value),
                                             at<void*>(slope)};
            check(grainrank_cuda_softplus(&block, &args, at<void*>(stream)));
        },
        py::arg("block"), py::kw_only(), py::arg("factors"), py::arg("thresholds"),
        py::arg("threshold_stride"), py::arg("weights"), py::arg("gradient"), py::arg("value"),
        py::arg("slope"), py::arg("stream"));
    m.def(
        "norms",
        [](int dtype, Address x, int64_t row_stride, int64_t rows,
           const std::vector<int64_t>& prefixes, int norms_dtype, Address norms, Address stream) {
            GrainrankNormArgs args{};
            args.dtype = dtype;
            args.x = at<const void*>(x);
            args.row_stride = row_stride;
            args.rows = rows;
            set_prefixes(args, prefixes);
            args.norms_dtype = norms_dtype;
            args.norms = at<void*>(norms);
            check(grainrank_cuda_norms(&args, at<void*>(stream)));
        },
        py::kw_only(), py::arg("dtype"), py::arg("x"), py::arg("row_stride"), py::arg("rows"),
        py::arg("prefixes"), py::arg("norms_dtype"), py::arg("norms"), py::arg("stream"));
    m.def(
        "finish",
        [](int dtype, Address d, int64_t d_stride, int values_dtype, Address values,
           int64_t value_stride, int64_t rows, const std::vector<int64_t>& prefixes, Address scale,
           Address unit, Address norms, Address along, Address dots, Address stream) {
            GrainrankFinishArgs args{};
            args.dtype = dtype;
            args.d = at<void*>(d);
            args.d_stride = d_stride;
            args.values_dtype = values_dtype;
            args.values = at<const void*>(values);
            args.value_stride = value_stride;
            args.rows = rows;
            set_prefixes(args, prefixes);
            args.scale = at<const void*>(scale);
            args.unit = at<const void*>(unit);
            args.norms = at<const void*>(norms);
            args.along = at<const void*>(along);
            args.dots = at<void*>(dots);
            check(grainrank_cuda_finish(&args, at<void*>(stream)));
        },
        py::kw_only(), py::arg("dtype"), py::arg("d"), py::arg("d_stride"), py::arg("values_dtype"),
        py::arg("values"), py::arg("value_stride"), py::arg("rows"), py::arg("prefixes"),
        py::arg("scale"), py::arg("unit"), py::arg("norms"), py::arg("along"), py::arg("dots"),
        py::arg("stream"));
}

void define_rank_passes(py::module_& m) {
    m.def("rank_splits", &grainrank_cuda_rank_splits, py::arg("positives"), py::arg("columns"));
    m.def(
        "block_levels",
        [](const GrainrankBlock& block, Address levels, int64_t level_stride, Address stream) {
            check(grainrank_cuda_block_levels(&block, at<int8_t*>(levels), level_stride,
                                              at<void*>(stream)));
        },
        py::arg("block"), py::kw_only(), py::arg("levels"), py::arg("level_stride"),
        py::arg("stream"));
    m.def(
        "exact_ranks",
        [](const GrainrankBlock& block, const GrainrankPositives& positives, int ties,
           int64_t splits, Address above, Address stream) {
            check(grainrank_cuda_exact_ranks(&block, &positives, ties, splits, at<int64_t*>(above),
                                             at<void*>(stream)));
        },
        py::arg("block"), py::arg("positives"), py::kw_only(), py::arg("ties"), py::arg("splits"),
        py::arg("above"), py::arg("stream"));
    m.def(
        "smooth_ranks",
        [](const GrainrankBlock& block, const GrainrankPositives& positives,
           const GrainrankStep& step, int64_t splits, Address above, Address slope,
           Address at_least, Address stream) {
            const GrainrankSmoothRankArgs args{step, splits, at<void*>(above), at<void*>(slope),
                                               at<int64_t*>(at_least)};
            check(grainrank_cuda_smooth_ranks(&block, &positives, &args, at<void*>(stream)));
        },
        py::arg("block"), py::arg("positives"), py::kw_only(), py::arg("step"), py::arg("splits"),
        py::arg("above"), py::arg("slope"), py::arg("at_least"), py::arg("stream"));
    m.def(
        "rank_gradient",
        [](const GrainrankBlock& block, const GrainrankPositives& positives,
           const GrainrankStep& step, const GrainrankGradient& gradient, Address d_above,
           Address own, Address stream) {
            const GrainrankRankGradientArgs args{step, gradient, at<const void*>(d_above),
                                                 at<const void*>(own)};
            check(grainrank_cuda_rank_gradient(&block, &positives, &args, at<void*>(stream)));
        },
        py::arg("block"), py::arg("positives"), py::kw_only(), py::arg("step"), py::arg("gradient"),
        py::arg("d_above"), py::arg("own"), py::arg("stream"));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA passes of grainrank";
    m.attr("MOMENT_ROWS") = int(GRAINRANK_CUDA_MOMENT_ROWS);
    m.attr("ALIGNMENT") = int(GRAINRANK_CUDA_ALIGNMENT);
    py::enum_<GrainrankDtype>(m, "Dtype", py::arithmetic())
        .value("F32", GRAINRANK_F32)
        .value("F64", GRAINRANK_F64)
        .value("F16", GRAINRANK_F16)
        .value("BF16", GRAINRANK_BF16);
    py::enum_<GrainrankSourceKind>(m, "SourceKind", py::arithmetic())
        .value("DIAGONAL", GRAINRANK_DIAGONAL)
        .value("KEYS_PREFIX", GRAINRANK_KEYS_PREFIX)
        .value("KEYS_COUNT", GRAINRANK_KEYS_COUNT)
        .value("DENSE", GRAINRANK_DENSE)
        .value("SPARSE", GRAINRANK_SPARSE)
        .value("BANDS", GRAINRANK_BANDS);
    py::enum_<GrainrankTies>(m, "Ties", py::arithmetic())
        .value("FIRST", GRAINRANK_TIES_FIRST)
        .value("LAST", GRAINRANK_TIES_LAST)
        .value("OPTIMISTIC", GRAINRANK_TIES_OPTIMISTIC)
        .value("PESSIMISTIC", GRAINRANK_TIES_PESSIMISTIC);
    define_levels(m);
    define_block(m);
    define_arguments(m);
    define_rank_arguments(m);
    define_passes(m);
    define_rank_passes(m);
}
