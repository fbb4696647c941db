// The list of what Python sees. Pointers come as integers; grainrank/cpu.py is the only caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "huge_pages.h"
#include "nce_head.h"
#include "parallel.h"
#include "passes.h"

namespace py = pybind11;
using namespace grainrank;

namespace {

using Address = std::uintptr_t;

template <class P>
P at(Address address) {
    return reinterpret_cast<P>(address);
}

const InstructionSet& find(const std::string& name) {
    const InstructionSet* sets[kMostSets];
    const int size = available(sets, kMostSets);
    for (int i = 0; i < size; ++i)
        if (name == sets[i]->name) return *sets[i];
    throw std::invalid_argument("this machine has no instruction set named " + name);
}

template <class T>
const Passes<T>& passes(const std::string& name);
template <>
const Passes<float>& passes<float>(const std::string& name) {
    return find(name).f32;
}
template <>
const Passes<double>& passes<double>(const std::string& name) {
    return find(name).f64;
}

void define_levels(py::module_& m) {
    py::enum_<LevelKind>(m, "LevelKind")
        .value("DIAGONAL", LevelKind::kDiagonal)
        .value("KEYS_PREFIX", LevelKind::kKeysPrefix)
        .value("KEYS_COUNT", LevelKind::kKeysCount)
        .value("DENSE", LevelKind::kDense)
        .value("SPARSE", LevelKind::kSparse)
        .value("BANDS", LevelKind::kBands);
    py::class_<LevelLeaf>(m, "LevelLeaf")
        .def(py::init([](LevelKind kind, int max_level, int64_t num_keys, Address query_keys,
                         Address candidate_keys, Address order, Address first, Address last,
                         Address finer_keys, Address dense, Address ends, Address indices,
                         Address levels, Address similarities, int64_t first_row,
                         Address thresholds, int64_t threshold_stride, bool by_column) {
                 return LevelLeaf{kind,
                                  max_level,
                                  num_keys,
                                  at<const int32_t*>(query_keys),
                                  at<const int32_t*>(candidate_keys),
                                  at<const int32_t*>(order),
                                  at<const int32_t*>(first),
                                  at<const int32_t*>(last),
                                  at<const int32_t*>(finer_keys),
                                  at<const int8_t*>(dense),
                                  at<const int64_t*>(ends),
                                  at<const int32_t*>(indices),
                                  at<const int8_t*>(levels),
                                  at<const float*>(similarities),
                                  first_row,
                                  at<const float*>(thresholds),
                                  threshold_stride,
                                  by_column};
             }),
             py::kw_only(), py::arg("kind"), py::arg("max_level"), py::arg("num_keys") = 0,
             py::arg("query_keys") = 0, py::arg("candidate_keys") = 0, py::arg("order") = 0,
             py::arg("first") = 0, py::arg("last") = 0, py::arg("finer_keys") = 0,
             py::arg("dense") = 0, py::arg("ends") = 0, py::arg("indices") = 0,
             py::arg("levels") = 0, py::arg("similarities") = 0, py::arg("first_row") = 0,
             py::arg("thresholds") = 0, py::arg("threshold_stride") = 0,
             py::arg("by_column") = false);
    py::class_<LevelExclusion>(m, "LevelExclusion")
        .def(py::init([](Address query_ids, Address candidate_ids) {
            return LevelExclusion{at<const int32_t*>(query_ids), at<const int32_t*>(candidate_ids)};
        }));
    py::class_<LevelArgs>(m, "LevelArgs")
        .def(py::init<int, std::vector<LevelLeaf>, std::vector<LevelExclusion>>());
}

template <class T>
void define_arguments(py::module_& m, const std::string& suffix) {
    py::class_<CeilingArgs<T>>(m, ("Ceilings_" + suffix).c_str())
        .def(py::init([](Address rows, Address columns, Address reference, Address query_ids,
                         Address candidate_ids) {
                 return CeilingArgs<T>{at<const T*>(rows), at<const T*>(columns),
                                       at<const float*>(reference), at<const int32_t*>(query_ids),
                                       at<const int32_t*>(candidate_ids)};
             }),
             py::kw_only(), py::arg("rows") = 0, py::arg("columns") = 0, py::arg("reference") = 0,
             py::arg("query_ids") = 0, py::arg("candidate_ids") = 0);
    py::class_<Block<T>>(m, ("Block_" + suffix).c_str())
        .def(py::init([](Address similarities, int64_t rows, int64_t columns, int64_t row_stride,
                         int64_t first_row, double scale, Address row_factors,
                         Address column_factors, bool circle, double circle_margin,
                         const CeilingArgs<T>& ceilings, bool narrow, Address dots,
                         int num_threads) {
                 return Block<T>{at<T*>(similarities),
                                 rows,
                                 columns,
                                 row_stride,
                                 first_row,
                                 static_cast<T>(scale),
                                 at<const T*>(row_factors),
                                 at<const T*>(column_factors),
                                 circle,
                                 static_cast<T>(circle_margin),
                                 ceilings,
                                 narrow,
                                 at<T*>(dots),
                                 num_threads};
             }),
             py::kw_only(), py::arg("similarities"), py::arg("rows"), py::arg("columns"),
             py::arg("row_stride"), py::arg("first_row"), py::arg("scale"), py::arg("row_factors"),
             py::arg("column_factors"), py::arg("circle"), py::arg("circle_margin"),
             py::arg("ceilings"), py::arg("narrow"), py::arg("dots"), py::arg("num_threads"));
    py::class_<Tables<T>>(m, ("Tables_" + suffix).c_str())
        .def(py::init([](Address lse, Address total, Address count, Address neg_lse,
                         Address highest, Address lowest, Address highest_at, Address lowest_at) {
                 return Tables<T>{at<T*>(lse),
                                  at<T*>(total),
                                  at<int64_t*>(count),
                                  at<T*>(neg_lse),
                                  at<T*>(highest),
                                  at<T*>(lowest),
                                  at<int64_t*>(highest_at),
                                  at<int64_t*>(lowest_at)};
             }),
             py::kw_only(), py::arg("lse"), py::arg("total"), py::arg("count"), py::arg("neg_lse"),
             py::arg("highest"), py::arg("lowest"), py::arg("highest_at"), py::arg("lowest_at"));
    py::class_<RowGradientArgs<T>>(m, ("RowGradients_" + suffix).c_str())
        .def(py::init([](Address lse, Address d_lse, Address neg_lse, Address d_neg_lse,
                         Address d_total, Address thresholds, Address d_softplus) {
                 return RowGradientArgs<T>{at<const T*>(lse),       at<const T*>(d_lse),
                                           at<const T*>(neg_lse),   at<const T*>(d_neg_lse),
                                           at<const T*>(d_total),   at<const T*>(thresholds),
                                           at<const T*>(d_softplus)};
             }),
             py::kw_only(), py::arg("lse"), py::arg("d_lse") = 0, py::arg("neg_lse") = 0,
             py::arg("d_neg_lse") = 0, py::arg("d_total") = 0, py::arg("thresholds") = 0,
             py::arg("d_softplus") = 0);
    py::class_<ColumnGradientArgs<T>>(m, ("ColumnGradients_" + suffix).c_str())
        .def(py::init([](Address lse, Address d_lse, Address neg_lse, Address d_neg_lse,
                         Address d_total, int64_t stride) {
                 return ColumnGradientArgs<T>{at<const T*>(lse),     at<const T*>(d_lse),
                                              at<const T*>(neg_lse), at<const T*>(d_neg_lse),
                                              at<const T*>(d_total), stride};
             }),
             py::kw_only(), py::arg("lse") = 0, py::arg("d_lse") = 0, py::arg("neg_lse") = 0,
             py::arg("d_neg_lse") = 0, py::arg("d_total") = 0, py::arg("stride") = 0);
    py::class_<Channel<T>>(m, ("Channel_" + suffix).c_str())
        .def(py::init([](Address factors, const RowGradientArgs<T>& rows,
                         const ColumnGradientArgs<T>& columns, Address moments) {
                 return Channel<T>{at<const T*>(factors), rows, columns, at<T*>(moments)};
             }),
             py::kw_only(), py::arg("factors"), py::arg("rows"), py::arg("columns"),
             py::arg("moments"));
    py::class_<SoftplusArgs<T>>(m, ("Softplus_" + suffix).c_str())
        .def(py::init([](Address factors, Address thresholds, int64_t threshold_stride,
                         Address weights, bool positives, Address value, Address slope) {
                 return SoftplusArgs<T>{at<const T*>(factors),
                                        at<const T*>(thresholds),
                                        threshold_stride,
                                        at<const T*>(weights),
                                        positives,
                                        at<T*>(value),
                                        at<T*>(slope)};
             }),
             py::kw_only(), py::arg("factors"), py::arg("thresholds"), py::arg("threshold_stride"),
             py::arg("weights"), py::arg("positives"), py::arg("value"), py::arg("slope"));
}

template <class T>
void define_rank_arguments(py::module_& m, const std::string& suffix) {
    py::class_<RankArgs<T>>(m, ("Ranks_" + suffix).c_str())
        .def(py::init([](Address levels, int max_level, Address starts, Address column,
                         Address level, Address similarity) {
                 return RankArgs<T>{at<const int8_t*>(levels),  max_level,
                                    at<const int64_t*>(starts), at<const int64_t*>(column),
                                    at<const int64_t*>(level),  at<const T*>(similarity)};
             }),
             py::kw_only(), py::arg("levels"), py::arg("max_level"), py::arg("starts"),
             py::arg("column"), py::arg("level"), py::arg("similarity"));
    py::class_<PositiveArgs<T>>(m, ("Positives_" + suffix).c_str())
        .def(py::init([](Address levels, Address starts, Address row, Address column, Address level,
                         Address similarity) {
                 return PositiveArgs<T>{at<const int8_t*>(levels), at<const int64_t*>(starts),
                                        at<int64_t*>(row),         at<int64_t*>(column),
                                        at<int64_t*>(level),       at<T*>(similarity)};
             }),
             py::kw_only(), py::arg("levels"), py::arg("starts"), py::arg("row"), py::arg("column"),
             py::arg("level"), py::arg("similarity"));
    py::class_<ExactArgs<T>>(m, ("Exact_" + suffix).c_str())
        .def(py::init([](Ties ties, int max_level, int64_t rows, Address starts, Address column,
                         Address level, Address similarity, Address order, Address sorted,
                         Address bucket_starts, Address buckets, Address above, int num_threads) {
                 return ExactArgs<T>{ties,
                                     max_level,
                                     rows,
                                     at<const int64_t*>(starts),
                                     at<const int64_t*>(column),
                                     at<const int64_t*>(level),
                                     at<T*>(similarity),
                                     at<int64_t*>(order),
                                     at<Place<T>*>(sorted),
                                     at<const int64_t*>(bucket_starts),
                                     at<int16_t*>(buckets),
                                     at<int64_t*>(above),
                                     num_threads};
             }),
             py::kw_only(), py::arg("ties"), py::arg("max_level"), py::arg("rows"),
             py::arg("starts"), py::arg("column"), py::arg("level"), py::arg("similarity"),
             py::arg("order"), py::arg("sorted"), py::arg("bucket_starts"), py::arg("buckets"),
             py::arg("above"), py::arg("num_threads"));
    py::class_<EmbeddingRows<T>>(m, ("EmbeddingRows_" + suffix).c_str())
        .def(py::init([](Address values, int64_t stride, int64_t rows, Address factors) {
                 return EmbeddingRows<T>{at<const T*>(values), stride, rows, at<const T*>(factors)};
             }),
             py::kw_only(), py::arg("values"), py::arg("stride"), py::arg("rows"),
             py::arg("factors"));
    py::class_<StepArgs<T>>(m, ("Step_" + suffix).c_str())
        .def(py::init([](bool upper_bound, double temperature, double rho, double delta,
                         double offset) {
                 return StepArgs<T>{upper_bound, static_cast<T>(temperature), static_cast<T>(rho),
                                    static_cast<T>(delta), static_cast<T>(offset)};
             }),
             py::kw_only(), py::arg("upper_bound"), py::arg("temperature"), py::arg("rho") = 0,
             py::arg("delta") = 0, py::arg("offset") = 0);
    py::class_<SmoothArgs<T>>(m, ("Smooth_" + suffix).c_str())
        .def(py::init([](const StepArgs<T>& step, Address above, Address slope, Address at_least) {
                 return SmoothArgs<T>{step, at<double*>(above), at<double*>(slope),
                                      at<int64_t*>(at_least)};
             }),
             py::kw_only(), py::arg("step"), py::arg("above"), py::arg("slope"),
             py::arg("at_least"));
    py::class_<RankGradientArgs<T>>(m, ("RankGradient_" + suffix).c_str())
        .def(py::init([](const StepArgs<T>& step, Address d_above, Address own) {
                 return RankGradientArgs<T>{step, at<const T*>(d_above), at<const T*>(own)};
             }),
             py::kw_only(), py::arg("step"), py::arg("d_above"), py::arg("own"));
}

// A pass over a block and the arguments of its own.
template <class T, class... Args>
void define_rank_pass(py::module_& m, const char* name,
                      void (*Passes<T>::*pass)(const Block<T>&, const Args&...)) {
    m.def(name, [pass](const std::string& set, const Block<T>& block, const Args&... args) {
        const auto run = passes<T>(set).*pass;
        py::gil_scoped_release release;
        run(block, args...);
    });
}

template <class T>
void define_exact_passes(py::module_& m) {
    using Rows = EmbeddingRows<T>;
    using Exact = ExactArgs<T>;
    m.def(
        "pair_similarities",
        [](const std::string& set, const Rows& queries, const Rows& candidates, int64_t features,
           int64_t pairs, Address row, Address column, Address similarity, int num_threads) {
            const auto run = passes<T>(set).pair_similarities;
            const PairArgs<T> in{queries,
                                 candidates,
                                 features,
                                 pairs,
                                 at<const int64_t*>(row),
                                 at<const int64_t*>(column),
                                 at<T*>(similarity),
                                 num_threads};
            py::gil_scoped_release release;
            run(in);
        },
        py::arg("instruction_set"), py::arg("queries"), py::arg("candidates"), py::kw_only(),
        py::arg("features"), py::arg("pairs"), py::arg("row"), py::arg("column"),
        py::arg("similarity"), py::arg("num_threads"));
    const auto over_chunk = [&m](const char* name,
                                 Status (*Passes<T>::*pass)(const Exact&, const LevelArgs&,
                                                            const ChunkArgs<T>&)) {
        m.def(
            name,
            [pass](const std::string& set, const Exact& in, const LevelArgs& levels,
                   const Rows& queries, const Rows& candidates, int64_t features, int64_t first_row,
                   int64_t first_column, int64_t all_columns, bool some_ignored, Address packed) {
                const auto run = passes<T>(set).*pass;
                const ChunkArgs<T> chunk{queries,      candidates,  features,     first_row,
                                         first_column, all_columns, some_ignored, at<T*>(packed)};
                py::gil_scoped_release release;
                return static_cast<int>(run(in, levels, chunk));
            },
            py::arg("instruction_set"), py::arg("exact"), py::arg("levels"), py::arg("queries"),
            py::arg("candidates"), py::kw_only(), py::arg("features"), py::arg("first_row"),
            py::arg("first_column"), py::arg("all_columns"), py::arg("some_ignored"),
            py::arg("packed"));
    };
    over_chunk("count_chunk", &Passes<T>::count_chunk);
    over_chunk("rank_rows", &Passes<T>::rank_rows);
    const auto over_rows = [&m](const char* name, void (*Passes<T>::*pass)(const Exact&)) {
        m.def(name, [pass](const std::string& set, const Exact& in) {
            const auto run = passes<T>(set).*pass;
            py::gil_scoped_release release;
            run(in);
        });
    };
    over_rows("sort_positives", &Passes<T>::sort_positives);
    over_rows("finish_ranks", &Passes<T>::finish_ranks);
}

template <class T>
void define_passes(py::module_& m, const std::string& suffix) {
    using B = Block<T>;
    m.def(
        "tables",
        [](const std::string& set, const B& block, const LevelArgs& levels, Address factors,
           const Tables<T>& rows, const Tables<T>* columns, int64_t table_columns) {
            const auto& pass = passes<T>(set);
            py::gil_scoped_release release;
            return static_cast<int>(
                pass.tables(block, levels, at<const T*>(factors), rows, columns, table_columns));
        },
        py::arg("instruction_set"), py::arg("block"), py::arg("levels"), py::arg("factors"),
        py::arg("rows"), py::arg("columns"), py::arg("table_columns"));
    m.def(
        "gradients",
        [](const std::string& set, const B& block, const LevelArgs& levels,
           const std::vector<Channel<T>>& channels, Address row_moments, Address column_moments) {
            const auto& pass = passes<T>(set);
            const GradientArgs<T> in{channels.data(), static_cast<int>(channels.size()),
                                     at<T*>(row_moments), at<T*>(column_moments)};
            py::gil_scoped_release release;
            return static_cast<int>(pass.gradients(block, levels, in));
        },
        py::arg("instruction_set"), py::arg("block"), py::arg("levels"), py::arg("channels"),
        py::arg("row_moments"), py::arg("column_moments"));
    m.def(
        "softplus",
        [](const std::string& set, const B& block, const LevelArgs& levels,
           const SoftplusArgs<T>& in) {
            const auto& pass = passes<T>(set);
            py::gil_scoped_release release;
            return static_cast<int>(pass.softplus(block, levels, in));
        },
        py::arg("instruction_set"), py::arg("block"), py::arg("levels"), py::arg("arguments"));
    m.def(
        "block_levels",
        [](const std::string& set, const B& block, const LevelArgs& levels, Address out,
           Address count) {
            const auto& pass = passes<T>(set);
            py::gil_scoped_release release;
            return static_cast<int>(
                pass.block_levels(block, levels, at<int8_t*>(out), at<int64_t*>(count)));
        },
        py::arg("instruction_set"), py::arg("block"), py::arg("levels"), py::arg("out"),
        py::arg("count"));
    define_rank_pass<T, PositiveArgs<T>>(m, "positives", &Passes<T>::positives);
    define_rank_pass<T, RankArgs<T>, SmoothArgs<T>>(m, "smooth_ranks", &Passes<T>::smooth_ranks);
    define_rank_pass<T, RankArgs<T>, RankGradientArgs<T>>(m, "rank_gradient",
                                                          &Passes<T>::rank_gradient);
    m.def(("norms_" + suffix).c_str(),
          [](const std::string& set, Address x, int64_t row_stride, int64_t rows,
             const std::vector<int64_t>& prefixes, Address norms, Address unit, int num_threads) {
              const auto& pass = passes<T>(set);
              const NormArgs<T> in{at<const T*>(x),
                                   row_stride,
                                   rows,
                                   prefixes.data(),
                                   static_cast<int>(prefixes.size()),
                                   at<T*>(norms),
                                   at<T*>(unit),
                                   num_threads};
              py::gil_scoped_release release;
              pass.norms(in);
          },
          py::arg("instruction_set"), py::kw_only(), py::arg("x"), py::arg("row_stride"),
          py::arg("rows"), py::arg("prefixes"), py::arg("norms"), py::arg("unit"),
          py::arg("num_threads"));
    m.def(("finish_" + suffix).c_str(),
          [](const std::string& set, Address d, int64_t d_stride, Address values,
             int64_t value_stride, int64_t rows, const std::vector<int64_t>& prefixes, double scale,
             Address norms, Address along, Address dots, int num_threads) {
              const auto& pass = passes<T>(set);
              const FinishArgs<T> in{at<T*>(d),
                                     d_stride,
                                     at<const T*>(values),
                                     value_stride,
                                     rows,
                                     prefixes.data(),
                                     static_cast<int>(prefixes.size()),
                                     static_cast<T>(scale),
                                     at<const T*>(norms),
                                     at<const T*>(along),
                                     at<T*>(dots),
                                     num_threads};
              py::gil_scoped_release release;
              pass.finish(in);
          },
          py::arg("instruction_set"), py::kw_only(), py::arg("d"), py::arg("d_stride"),
          py::arg("values"), py::arg("value_stride"), py::arg("rows"), py::arg("prefixes"),
          py::arg("scale"), py::arg("norms"), py::arg("along"), py::arg("dots"),
          py::arg("num_threads"));
    m.def(("nce_head_" + suffix).c_str(),
          [](Address lse, Address count, int64_t view_stride, int64_t views, int64_t rows,
             int levels, Address weights, bool exact, bool lower, Address losses, Address d_lse) {
              py::gil_scoped_release release;
              nce_head(NceArgs<T>{at<const T*>(lse), at<const int64_t*>(count), view_stride, views,
                                  rows, levels, at<const T*>(weights), exact, lower, at<T*>(losses),
                                  at<T*>(d_lse)});
          },
          py::kw_only(), py::arg("lse"), py::arg("count"), py::arg("view_stride"), py::arg("views"),
          py::arg("rows"), py::arg("levels"), py::arg("weights"), py::arg("exact"),
          py::arg("lower"), py::arg("losses"), py::arg("d_lse"));
    m.def(("function_" + suffix).c_str(),
          [](const std::string& set, const std::string& name, Address x, Address y, int64_t n) {
              const auto& pass = passes<T>(set);
              const auto function = name == "exponential" ? pass.exponential : pass.log1p;
              py::gil_scoped_release release;
              function(at<const T*>(x), at<T*>(y), n);
          },
          py::arg("instruction_set"), py::arg("name"), py::arg("x"), py::arg("y"), py::arg("n"));
}

template <class T>
void define_product(py::module_& m, const std::string& suffix,
                    Product<T> InstructionSet::* product) {
    py::class_<Matrix<T>>(m, ("Matrix_" + suffix).c_str())
        .def(py::init([](Address values, int64_t row_stride, int64_t column_stride) {
            return Matrix<T>{at<const T*>(values), row_stride, column_stride};
        }));
    m.def(("has_product_" + suffix).c_str(),
          [product](const std::string& set) { return find(set).*product != nullptr; });
    m.def(("product_" + suffix).c_str(),
          [product](const std::string& set, const Matrix<T>& a, const Matrix<T>& b, int64_t rows,
                    int64_t columns, int64_t depth, Address out, int64_t out_stride, bool add,
                    int num_threads) {
              const Product<T> run = find(set).*product;
              const ProductArgs<T> in{a,          b,   rows,       columns, depth, at<float*>(out),
                                      out_stride, add, num_threads};
              py::gil_scoped_release release;
              return static_cast<int>(run(in));
          },
          py::arg("instruction_set"), py::arg("a"), py::arg("b"), py::kw_only(), py::arg("rows"),
          py::arg("columns"), py::arg("depth"), py::arg("out"), py::arg("out_stride"),
          py::arg("add"), py::arg("num_threads"));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native CPU passes of grainrank";
    m.attr("MAX_LEVEL") = kMaxLevel;
    m.attr("EMPTY") = kEmpty;
    define_levels(m);
    define_arguments<float>(m, "f32");
    define_arguments<double>(m, "f64");
    py::enum_<Ties>(m, "Ties")
        .value("FIRST", Ties::kFirst)
        .value("LAST", Ties::kLast)
        .value("OPTIMISTIC", Ties::kOptimistic)
        .value("PESSIMISTIC", Ties::kPessimistic);
    define_rank_arguments<float>(m, "f32");
    define_rank_arguments<double>(m, "f64");
    define_exact_passes<float>(m);
    define_exact_passes<double>(m);
    define_passes<float>(m, "f32");
    define_passes<double>(m, "f64");
    define_product<uint16_t>(m, "bf16", &InstructionSet::bf16_product);
    define_product<float>(m, "f32", &InstructionSet::float32_product);
    m.def("bf16_product_is_faster",
          [](const std::string& set) { return find(set).bf16_is_faster; });
    m.def("float32_product_is_faster",
          [](const std::string& set) { return find(set).float32_is_faster; });
    m.attr("MOMENT_ROWS") = kMomentRows;
    m.attr("NOT_COUNTED") = kNotCounted;
    m.attr("PACKED_PADDING") = kPackedPadding;
    m.def("instruction_sets", [] {
        const InstructionSet* sets[kMostSets];
        const int size = available(sets, kMostSets);
        py::list names;
        for (int i = 0; i < size; ++i) names.append(sets[i]->name);
        return names;
    });
    m.def("parallel_runtime", &parallel_runtime);
    m.def("advise_huge_pages", &advise_huge_pages, py::arg("address"), py::arg("bytes"));
}
