"""Python modules of several sources, CUDA and C++, on the simulator."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from .build import compiler
from .cuda import Device, _Compilers, build_module
from .test_cuda import register

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH"),
    pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH"),
]

# One of two files, whose kernels have the same names.
_PART = r"""
#include "together.h"

namespace {
__global__ void put(float* x) { x[threadIdx.x] = NUMBER; }
}  // namespace

static __global__ void put_more(float* x) { x[threadIdx.x] = NUMBER + 10; }

cudaError_t PART(float* x, unsigned threads) {
    put<<<1, threads>>>(x);
    put_more<<<1, threads>>>(x + threads);
    return times<NUMBER % 2>(x, 2 * threads);
}
"""
_TOGETHER = r"""
template <bool kNegative>
__global__ void multiply(float* x, float by) {
    x[threadIdx.x] *= kNegative ? -by : by;
}
template <bool kNegative>
cudaError_t times(float* x, unsigned threads) {
    multiply<kNegative><<<1, threads>>>(x, 100);
    return cudaPeekAtLastError();
}
"""
_BINDINGS = r"""
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

cudaError_t first(float* x, unsigned threads);
cudaError_t second(float* x, unsigned threads);

template <cudaError_t run(float*, unsigned)>
const char* call(uintptr_t x, unsigned threads) {
    return cudaGetErrorString(run(reinterpret_cast<float*>(x), threads));
}

struct Properties {
    int major = 0;
    Properties() { cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0); }
};

PYBIND11_MODULE(_parts, module) {
    pybind11::class_<Properties>(module, "Properties")
        .def(pybind11::init<>())
        .def_readonly("major", &Properties::major);
    module.def("first", call<first>);
    module.def("second", call<second>);
    module.attr("SCALE") = SCALE;
}
"""
_FLAGS = ["-DSCALE=7"]
_NAME = "some.package._parts"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")
    folder = tmp_path_factory.mktemp("module")
    (folder / "together.h").write_text(_TOGETHER)
    for part, number in (("first", 1), ("second", 3)):
        text = _PART.replace("PART", part).replace("NUMBER", str(number))
        (folder / f"{part}.cu").write_text(text)
    (folder / "bindings.cpp").write_text(_BINDINGS)
    return [folder / name for name in ("first.cu", "second.cu", "bindings.cpp")]


def test_module_of_several_sources(parts: list[Path]) -> None:
    module = build_module(_NAME, parts, flags=_FLAGS)
    assert module.__name__ == _NAME
    assert build_module(_NAME, parts, flags=_FLAGS) is module
    assert module.SCALE == 7
    device = Device(module)
    x = np.zeros(8, np.float32)
    assert module.first(register(device, "x", x), 4) == "no error", device.message()
    np.testing.assert_array_equal(x, [-100] * 4 + [-1100] * 4)
    assert module.second(x.ctypes.data, 4) == "no error", device.message()
    np.testing.assert_array_equal(x, [-300] * 4 + [-1300] * 4)
    assert device.traffic("x") == (2 * 32, 4 * 32)
    # Kernels of the same name in two files count together.
    counts = device.instructions()
    assert set(counts) == {"put", "put_more", "multiply<true>"}
    assert counts["put"] % 8 == 0
    assert module.second(x.ctypes.data, 5) == "an illegal memory access was encountered"
    assert "put_more" in device.message()
    assert "at second.cu:8" in device.message()
    device.clear()
    assert device.message() == ""


def test_only_the_changed_source_is_compiled(parts: list[Path]) -> None:
    compilers = _Compilers((), 80, _FLAGS)
    objects = compilers.objects(parts[:2])
    text = parts[0].read_text()
    parts[0].write_text(text + "// changed\n")
    try:
        changed = compilers.objects(parts[:2])
    finally:
        parts[0].write_text(text)
    assert changed[0] != objects[0]
    assert changed[1:] == objects[1:]


def test_modules_of_two_capabilities(parts: list[Path]) -> None:
    modules = [build_module(_NAME, parts, (), capability, _FLAGS) for capability in (80, 90)]
    assert [module.Properties().major for module in modules] == [8, 9]
    x = np.zeros(2, np.float32)
    register(Device(modules[0]), "x", x)
    assert modules[0].second(x.ctypes.data, 1) == "no error"
    # Each has a device of its own.
    assert modules[1].second(x.ctypes.data, 1) == "an illegal memory access was encountered"
    for module in modules:
        Device(module).clear()


def test_module_that_lacks_a_function(parts: list[Path]) -> None:
    with pytest.raises(ImportError, match=r"undefined symbol: \w*first"):
        build_module(_NAME, parts[1:], flags=_FLAGS)


def test_source_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.cu or \.cpp, got kernel\.cc"):
        build_module(_NAME, [tmp_path / "kernel.cc"])
