"""Host code and kernels of a CUDA source, run together on the simulator."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .build import compiler
from .cuda import Device, build_library
from .errors import SimulatorError

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH"),
    pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH"),
]

_OK, _INVALID_VALUE, _OUT_OF_MEMORY, _INVALID_CONFIGURATION = 0, 1, 2, 9
_ILLEGAL_ADDRESS, _LAUNCH_FAILURE = 700, 719
_HEADER = "constexpr int kThreads = 128;\n"
_SOURCE = r"""
#include <cuda_pipeline.h>

#include "sizes.h"

namespace {

__global__ void __launch_bounds__(kThreads) scale(const float* x, float* y, int n, float by) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = by * x[i];
}

template <bool kSynchronise>
__global__ void sum(const float* x, float* total, int n) {
    extern __shared__ float part[];
    float mine = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) mine += x[i];
    part[threadIdx.x] = mine;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (kSynchronise) __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *total = part[0];
}

// 40 KB of its own must not count against the other kernels.
__global__ void reverse(float* x, int n) {
    __shared__ float copy[10240];
    for (int i = threadIdx.x; i < n; i += blockDim.x) copy[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = copy[n - 1 - i];
}

// A cp.async, a load, a vector store and an atomic operation.
__global__ void several_ways(const float4* x, float4* y, int* count) {
    __shared__ float4 staged[kThreads];
    const unsigned i = threadIdx.x;
    __pipeline_memcpy_async(&staged[i], &x[i], 16);
    __pipeline_commit();
    const float before = i == 0 ? 0 : x[i - 1].w;
    __pipeline_wait_prior(0);
    y[i] = make_float4(staged[i].x, staged[i].y, staged[i].z, before);
    atomicAdd(count, 1);
}

__global__ void count_down(unsigned n) {
    asm volatile(
        "{ .reg .u32 left; .reg .pred more;\n"
        "mov.u32 left, %0;\n"
        "again: sub.u32 left, left, 1;\n"
        "setp.ne.u32 more, left, 0;\n"
        "@more bra again; }" ::"r"(n));
}

}  // namespace

extern "C" cudaError_t run_count_down(unsigned n, unsigned blocks, unsigned threads) {
    count_down<<<blocks, threads>>>(n);
    return cudaPeekAtLastError();
}

extern "C" cudaError_t run_several_ways(const float4* x, float4* y, int* count) {
    several_ways<<<1, kThreads>>>(x, y, count);
    return cudaPeekAtLastError();
}

extern "C" cudaError_t run_scale(const float* x, float* y, int n, float by, unsigned blocks,
                                 unsigned rows, unsigned threads) {
    scale<<<dim3(blocks, rows), threads>>>(x, y, n, by);
    return cudaPeekAtLastError();
}

extern "C" cudaError_t run_sum(const float* x, float* total, int n, size_t shared_bytes,
                               int opt_in, bool synchronise) {
    auto kernel = synchronise ? sum<true> : sum<false>;
    if (opt_in > 0) {
        cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, opt_in);
        if (error != cudaSuccess) return error;
    }
    kernel<<<1, kThreads, shared_bytes>>>(x, total, n);
    return cudaGetLastError();
}

// Host memory in and out: the buffers are cudaMalloc'ed.
extern "C" cudaError_t run_reverse(float* x, int n, int allocated) {
    float* on_device = nullptr;
    cudaError_t error = cudaMalloc(&on_device, allocated * sizeof(float));
    if (error != cudaSuccess) return error;
    error = cudaMemcpy(on_device, x, n * sizeof(float), cudaMemcpyHostToDevice);
    if (error == cudaSuccess) {
        reverse<<<1, kThreads>>>(on_device, n);
        error = cudaMemcpy(x, on_device, n * sizeof(float), cudaMemcpyDeviceToHost);
    }
    cudaFree(on_device);
    return error;
}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "include").mkdir()
    (folder / "include" / "sizes.h").write_text(_HEADER)
    (folder / "kernels.cu").write_text(_SOURCE)
    return folder / "kernels.cu"


@pytest.fixture(scope="module")
def library(source: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_library(source, [source.parent / "include"])))
    pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
    library.run_scale.argtypes = (
        pointer, pointer, ctypes.c_int, ctypes.c_float, unsigned, unsigned, unsigned
    )  # fmt: skip
    library.run_sum.argtypes = (
        pointer, pointer, ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_bool
    )  # fmt: skip
    library.run_several_ways.argtypes = (pointer, pointer, pointer)
    library.run_count_down.argtypes = (unsigned, unsigned, unsigned)
    library.run_reverse.argtypes = (pointer, ctypes.c_int, ctypes.c_int)
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


@pytest.fixture
def device(library: ctypes.CDLL) -> Iterator[Device]:
    device = Device(Path(library._name))
    device.options()
    yield device
    device.clear()


def register(device: Device, name: str, array: np.ndarray, writable: bool = True) -> int:
    device.register(array.ctypes.data, array.nbytes, name, writable)
    return array.ctypes.data


def _scale(
    library: ctypes.CDLL,
    device: Device,
    n: int = 1000,
    blocks: int = 8,
    rows: int = 1,
    threads: int = 128,
) -> tuple[int, np.ndarray, np.ndarray]:
    x = np.arange(1000, dtype=np.float32)
    y = np.full(1000, np.nan, np.float32)
    code = library.run_scale(
        register(device, "x", x, writable=False), register(device, "y", y), n, 3.0,
        blocks, rows, threads,
    )  # fmt: skip
    return code, x, y


def _sum(
    library: ctypes.CDLL,
    device: Device,
    shared_bytes: int = 512,
    opt_in: int = 0,
    synchronise: bool = True,
) -> tuple[int, float]:
    x = np.arange(300, dtype=np.float32)
    total = np.zeros(1, np.float32)
    code = library.run_sum(
        register(device, "x", x, writable=False), register(device, "total", total), len(x),
        shared_bytes, opt_in, synchronise,
    )  # fmt: skip
    return code, float(total[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_right_results(library: ctypes.CDLL, device: Device, seed: int) -> None:
    device.options(seed)
    code, x, y = _scale(library, device)
    assert code == _OK, device.message()
    np.testing.assert_array_equal(y, 3 * x)
    assert _sum(library, device) == (_OK, 300 * 299 / 2), device.message()


def test_memory_of_cuda_malloc(library: ctypes.CDLL, device: Device) -> None:
    x = np.arange(500, dtype=np.float32)
    assert library.run_reverse(x.ctypes.data, len(x), len(x)) == _OK, device.message()
    np.testing.assert_array_equal(x, np.arange(500, dtype=np.float32)[::-1])


def test_copy_beyond_an_allocation(library: ctypes.CDLL, device: Device) -> None:
    x = np.zeros(500, np.float32)
    assert library.run_reverse(x.ctypes.data, 500, 499) == _INVALID_VALUE
    assert "cudaMemcpy: the 2000 bytes" in device.message()


def test_allocation_that_is_too_large(library: ctypes.CDLL, device: Device) -> None:
    address = ctypes.c_void_p()
    code = library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(1 << 60))
    assert (code, address.value) == (_OUT_OF_MEMORY, None)


def test_out_of_bounds(library: ctypes.CDLL, device: Device) -> None:
    code, _, _ = _scale(library, device, n=1001)
    assert code == _ILLEGAL_ADDRESS
    message = device.message()
    assert "out-of-bounds global read of 4 bytes at byte 4000 of buffer 'x'" in message
    assert "kernels.cu:10" in message
    # Until the error is taken, whatever synchronises fails with it and no kernel runs.
    assert library.cudaDeviceSynchronize() == _ILLEGAL_ADDRESS
    assert _sum(library, device) == (_ILLEGAL_ADDRESS, 0.0)
    assert _sum(library, device)[0] == _OK


def test_memory_that_is_not_registered(library: ctypes.CDLL, device: Device) -> None:
    x = np.zeros(128, np.float32)
    assert library.run_scale(x.ctypes.data, x.ctypes.data, 128, 1.0, 1, 1, 128) == _ILLEGAL_ADDRESS
    assert "out-of-bounds global read" in device.message()


def test_write_to_a_read_only_buffer(library: ctypes.CDLL, device: Device) -> None:
    x = register(device, "x", np.zeros(128, np.float32), writable=False)
    assert library.run_scale(x, x, 128, 1.0, 1, 1, 128) == _LAUNCH_FAILURE
    assert "read-only buffer 'x'" in device.message()


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ({"blocks": 0}, "the grid must be"),
        ({"blocks": 1 << 31}, "the grid must be"),
        ({"rows": 65536}, "the grid must be"),
        ({"threads": 0}, "a block must have"),
        ({"threads": 1025}, "a block must have"),
        ({"threads": 129}, "__launch_bounds__ are 128 threads"),
    ],
    ids=str,
)
def test_bad_grid_or_block(
    library: ctypes.CDLL, device: Device, launch: dict[str, int], expected: str
) -> None:
    code, _, y = _scale(library, device, **launch)
    assert code == _INVALID_CONFIGURATION
    assert expected in device.message()
    assert np.isnan(y).all()
    assert library.cudaGetErrorString(code) == b"invalid configuration argument"
    assert library.cudaGetLastError() == _INVALID_CONFIGURATION
    assert library.cudaPeekAtLastError() == _OK


def test_much_shared_memory_without_opt_in(library: ctypes.CDLL, device: Device) -> None:
    # The kernel that no test opts in: what was allowed once stays allowed.
    code, _ = _sum(library, device, (48 << 10) + 1, synchronise=False)
    assert code == _INVALID_VALUE
    assert "cudaFuncAttributeMaxDynamicSharedMemorySize" in device.message()


@pytest.mark.parametrize(
    ("shared_bytes", "opt_in", "expected"),
    [
        (48 << 10, 0, _OK),
        (100 << 10, 100 << 10, _OK),
        ((100 << 10) + 1, 100 << 10, _INVALID_VALUE),
        (163 << 10, 163 << 10, _OK),
        (512, (163 << 10) + 1, _INVALID_VALUE),
    ],
)
def test_shared_memory_with_opt_in(
    library: ctypes.CDLL, device: Device, shared_bytes: int, opt_in: int, expected: int
) -> None:
    code, total = _sum(library, device, shared_bytes, opt_in)
    assert code == expected, device.message()
    assert total == (300 * 299 / 2 if expected == _OK else 0)


@pytest.mark.parametrize(
    ("initialised", "expected"), [(False, "race"), (True, "read of uninitialised shared memory")]
)
def test_missing_syncthreads(
    library: ctypes.CDLL, device: Device, initialised: bool, expected: str
) -> None:
    device.options(initialised=initialised)
    code, _ = _sum(library, device, synchronise=False)
    assert code == _LAUNCH_FAILURE
    assert expected in device.message()
    assert "at kernels.cu:21" in device.message()


def test_library_is_kept(source: Path, library: ctypes.CDLL) -> None:
    include = source.parent / "include"
    assert str(build_library(source, [include])) == library._name
    (include / "sizes.h").write_text(_HEADER + "// changed\n")
    try:
        assert str(build_library(source, [include])) != library._name
    finally:
        (include / "sizes.h").write_text(_HEADER)


def test_errors_of_the_compiler_are_shown(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("__global__ void f() { nothing(); }")
    with pytest.raises(SimulatorError, match='identifier "nothing" is undefined'):
        build_library(tmp_path / "wrong.cu")


def test_traffic(library: ctypes.CDLL, device: Device) -> None:
    for launches in (1, 2):
        code, x, _ = _scale(library, device, n=900)
        assert code == _OK, device.message()
        assert device.traffic("x") == (launches * 900 * x.itemsize, 0)
        assert device.traffic("y") == (0, launches * 900 * x.itemsize)
    device.clear()
    with pytest.raises(KeyError, match="no buffer was registered as 'x'"):
        device.traffic("x")


def test_traffic_of_other_instructions(library: ctypes.CDLL, device: Device) -> None:
    x = np.ones((128, 4), np.float32)
    y, count = np.zeros_like(x), np.zeros(1, np.int32)
    code = library.run_several_ways(
        register(device, "x", x), register(device, "y", y), register(device, "count", count)
    )
    assert (code, count[0]) == (_OK, 128), device.message()
    assert device.traffic("x") == (128 * 16 + 127 * 4, 0)
    assert device.traffic("y") == (0, 128 * 16)
    assert device.traffic("count") == (128 * 4, 128 * 4)


def test_instructions(library: ctypes.CDLL, device: Device) -> None:
    def counted(n: int, blocks: int) -> int:
        device.clear()
        assert library.run_count_down(n, blocks, 40) == _OK, device.message()
        (name,) = device.instructions()
        assert name == "count_down"
        return device.instructions()[name]

    few, more = counted(9, 2), counted(10, 2)
    assert more - few == 2 * 40 * 3  # of one round, the branch that is not taken with it
    # Two moves, a load and a return, at most, beside the rounds.
    assert 2 * 40 * (3 * 10 + 2) <= more <= 2 * 40 * (3 * 10 + 4)
    assert counted(10, 6) == 3 * more
    # Those of several launches are added up.
    assert library.run_count_down(10, 2, 40) == _OK, device.message()
    assert device.instructions() == {"count_down": 4 * more}


def test_how_kernels_were_launched(library: ctypes.CDLL, device: Device) -> None:
    assert device.executed() == {}
    assert _sum(library, device, 1000)[0] == _OK, device.message()
    assert _sum(library, device)[0] == _OK, device.message()
    ((name, executed),) = device.executed().items()
    assert (name, executed.threads, executed.dynamic_shared) == ("sum<true>", 128, 1000)
    device.clear()
    assert device.executed() == {}


def test_traffic_without_checks_of_races(library: ctypes.CDLL, device: Device) -> None:
    device.options(races=False, initialised=False)
    code, _ = _sum(library, device)
    assert code == _OK, device.message()
    assert device.traffic("x") == (1200, 0)
    assert device.traffic("total") == (0, 4)


def test_buffer_at_the_address_of_a_former_one(library: ctypes.CDLL, device: Device) -> None:
    x = np.zeros(128, np.float32)
    device.register(x.ctypes.data, x.nbytes, "whole", writable=False)
    device.register(x.ctypes.data, x.nbytes // 2, "half")
    address = x.ctypes.data
    assert library.run_scale(address, address, 64, 1.0, 1, 1, 128) == _OK, device.message()
    assert device.traffic("half") == (256, 256)
    assert device.traffic("whole") == (0, 0)
    assert library.run_scale(address, address, 65, 1.0, 1, 1, 128) == _ILLEGAL_ADDRESS
    assert "buffer 'half'" in device.message()
