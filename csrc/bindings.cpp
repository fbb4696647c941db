// The list of what Python sees. Pointers come as integers; grainrank/cpu.py is the only caller.
#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "huge_pages.h"
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
    const InstructionSet* sets[4];
    const int size = available(sets, 4);
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

template <class T>
void define_passes(py::module_& m, const std::string& suffix) {
    using B = Block<T>;
    using TableArgs = Tables<T>;
    using Gradients = TableGradients<T>;
    py::class_<B>(m, ("Block_" + suffix).c_str())
        .def(py::init([](Address similarities, int64_t rows, int64_t columns, int64_t row_stride,
                         int64_t first_row, double scale, int num_threads) {
                 return B{at<T*>(similarities),  rows,       columns, row_stride, first_row,
                          static_cast<T>(scale), num_threads};
             }),
             py::kw_only(), py::arg("similarities"), py::arg("rows"), py::arg("columns"),
             py::arg("row_stride"), py::arg("first_row"), py::arg("scale"), py::arg("num_threads"));
    py::class_<TableArgs>(m, ("Tables_" + suffix).c_str())
        .def(py::init([](Address lse, Address neg_lse, Address total, Address count,
                         Address highest, Address lowest, Address highest_at, Address lowest_at) {
                 return TableArgs{at<T*>(lse),
                                  at<T*>(neg_lse),
                                  at<T*>(total),
                                  at<int64_t*>(count),
                                  at<T*>(highest),
                                  at<T*>(lowest),
                                  at<int64_t*>(highest_at),
                                  at<int64_t*>(lowest_at)};
             }),
             py::kw_only(), py::arg("lse"), py::arg("neg_lse"), py::arg("total"), py::arg("count"),
             py::arg("highest"), py::arg("lowest"), py::arg("highest_at"), py::arg("lowest_at"));
    py::class_<Gradients>(m, ("TableGradients_" + suffix).c_str())
        .def(py::init([](Address lse, Address d_lse, Address neg_lse, Address d_neg_lse,
                         Address d_total, Address d_highest, Address highest_at, Address d_lowest,
                         Address lowest_at) {
                 return Gradients{at<const T*>(lse),
                                  at<const T*>(d_lse),
                                  at<const T*>(neg_lse),
                                  at<const T*>(d_neg_lse),
                                  at<const T*>(d_total),
                                  at<const T*>(d_highest),
                                  at<const int64_t*>(highest_at),
                                  at<const T*>(d_lowest),
                                  at<const int64_t*>(lowest_at)};
             }),
             py::kw_only(), py::arg("lse"), py::arg("d_lse"), py::arg("neg_lse"),
             py::arg("d_neg_lse"), py::arg("d_total"), py::arg("d_highest"), py::arg("highest_at"),
             py::arg("d_lowest"), py::arg("lowest_at"));
    m.def(
        "tables",
        [](const std::string& set, const B& block, const LevelArgs& levels, const TableArgs& out) {
            const auto& pass = passes<T>(set);
            py::gil_scoped_release release;
            return static_cast<int>(pass.tables(block, levels, out));
        },
        py::arg("instruction_set"), py::arg("block"), py::arg("levels"), py::arg("out"));
    m.def(
        "gradients",
        [](const std::string& set, const B& block, const LevelArgs& levels, const Gradients& in) {
            const auto& pass = passes<T>(set);
            py::gil_scoped_release release;
            return static_cast<int>(pass.gradients(block, levels, in));
        },
        py::arg("instruction_set"), py::arg("block"), py::arg("levels"), py::arg("gradients"));
    m.def(("exponential_" + suffix).c_str(),
          [](const std::string& set, Address x, Address y, int64_t n) {
              const auto& pass = passes<T>(set);
              py::gil_scoped_release release;
              pass.exponential(at<const T*>(x), at<T*>(y), n);
          },
          py::arg("instruction_set"), py::arg("x"), py::arg("y"), py::arg("n"));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native CPU passes of grainrank";
    m.attr("MAX_LEVEL") = kMaxLevel;
    m.attr("EMPTY") = kEmpty;
    py::enum_<LevelKind>(m, "LevelKind")
        .value("DIAGONAL", LevelKind::kDiagonal)
        .value("KEYS_PREFIX", LevelKind::kKeysPrefix)
        .value("KEYS_COUNT", LevelKind::kKeysCount)
        .value("DENSE", LevelKind::kDense);
    py::class_<LevelArgs>(m, "LevelArgs")
        .def(py::init([](LevelKind kind, int max_level, int64_t num_keys, Address query_keys,
                         Address candidate_keys, Address dense, Address query_ids,
                         Address candidate_ids) {
                 return LevelArgs{kind,
                                  max_level,
                                  num_keys,
                                  at<const int32_t*>(query_keys),
                                  at<const int32_t*>(candidate_keys),
                                  at<const int8_t*>(dense),
                                  at<const int32_t*>(query_ids),
                                  at<const int32_t*>(candidate_ids)};
             }),
             py::kw_only(), py::arg("kind"), py::arg("max_level"), py::arg("num_keys"),
             py::arg("query_keys"), py::arg("candidate_keys"), py::arg("dense"),
             py::arg("query_ids"), py::arg("candidate_ids"));
    define_passes<float>(m, "f32");
    define_passes<double>(m, "f64");
    m.def("instruction_sets", [] {
        const InstructionSet* sets[4];
        const int size = available(sets, 4);
        py::list names;
        for (int i = 0; i < size; ++i) names.append(sets[i]->name);
        return names;
    });
    m.def("parallel_runtime", &parallel_runtime);
    m.def("advise_huge_pages", &advise_huge_pages, py::arg("address"), py::arg("bytes"));
}
