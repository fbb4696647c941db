"""Host code and kernels of a CUDA source, run together on the simulator."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .build import compiler
from .cuda import build_library
from .errors import SimulatorError

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH"),
    pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH"),
]

_OK, _INVALID_VALUE, _OUT_OF_MEMORY, _INVALID_CONFIGURATION = 0, 1, 2, 9
_ILLEGAL_ADDRESS, _LAUNCH_FAILURE = 700, 719
_HEADER = "constexpr int kThreads = 128;\n"
_SOURCE = r"""
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

}  // namespace

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
def loaded(source: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_library(source, [source.parent / "include"])))
    pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
    library.run_scale.argtypes = (
        pointer, pointer, ctypes.c_int, ctypes.c_float, unsigned, unsigned, unsigned
    )  # fmt: skip
    library.run_sum.argtypes = (
        pointer, pointer, ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_bool
    )  # fmt: skip
    library.run_reverse.argtypes = (pointer, ctypes.c_int, ctypes.c_int)
    library.ptxsim_register_buffer.argtypes = (
        pointer,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_char_p,
    )
    library.ptxsim_options.argtypes = (ctypes.c_uint64, ctypes.c_int, ctypes.c_int)
    library.ptxsim_last_message.restype = ctypes.c_char_p
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


@pytest.fixture
def library(loaded: ctypes.CDLL) -> Iterator[ctypes.CDLL]:
    loaded.ptxsim_options(0, 1, 1)
    yield loaded
    loaded.ptxsim_clear_buffers()


def _message(library: ctypes.CDLL) -> str:
    message: bytes = library.ptxsim_last_message()
    return message.decode()


def _register(library: ctypes.CDLL, name: str, array: np.ndarray, writable: bool = True) -> int:
    library.ptxsim_register_buffer(array.ctypes.data, array.nbytes, writable, name.encode())
    return array.ctypes.data


def _scale(
    library: ctypes.CDLL, n: int = 1000, blocks: int = 8, rows: int = 1, threads: int = 128
) -> tuple[int, np.ndarray, np.ndarray]:
    x = np.arange(1000, dtype=np.float32)
    y = np.full(1000, np.nan, np.float32)
    code = library.run_scale(
        _register(library, "x", x, writable=False), _register(library, "y", y), n, 3.0,
        blocks, rows, threads,
    )  # fmt: skip
    return code, x, y


def _sum(
    library: ctypes.CDLL, shared_bytes: int = 512, opt_in: int = 0, synchronise: bool = True
) -> tuple[int, float]:
    x = np.arange(300, dtype=np.float32)
    total = np.zeros(1, np.float32)
    code = library.run_sum(
        _register(library, "x", x, writable=False), _register(library, "total", total), len(x),
        shared_bytes, opt_in, synchronise,
    )  # fmt: skip
    return code, float(total[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_right_results(library: ctypes.CDLL, seed: int) -> None:
    library.ptxsim_options(seed, 1, 1)
    code, x, y = _scale(library)
    assert code == _OK, _message(library)
    np.testing.assert_array_equal(y, 3 * x)
    assert _sum(library) == (_OK, 300 * 299 / 2), _message(library)


def test_memory_of_cuda_malloc(library: ctypes.CDLL) -> None:
    x = np.arange(500, dtype=np.float32)
    assert library.run_reverse(x.ctypes.data, len(x), len(x)) == _OK, _message(library)
    np.testing.assert_array_equal(x, np.arange(500, dtype=np.float32)[::-1])


def test_copy_beyond_an_allocation(library: ctypes.CDLL) -> None:
    x = np.zeros(500, np.float32)
    assert library.run_reverse(x.ctypes.data, 500, 499) == _INVALID_VALUE
    assert "cudaMemcpy: the 2000 bytes" in _message(library)


def test_allocation_that_is_too_large(library: ctypes.CDLL) -> None:
    address = ctypes.c_void_p()
    code = library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(1 << 60))
    assert (code, address.value) == (_OUT_OF_MEMORY, None)


def test_out_of_bounds(library: ctypes.CDLL) -> None:
    code, _, _ = _scale(library, n=1001)
    assert code == _ILLEGAL_ADDRESS
    message = _message(library)
    assert "out-of-bounds global read of 4 bytes at byte 4000 of buffer 'x'" in message
    assert "kernels.cu:8" in message
    # Until the error is taken, whatever synchronises fails with it and no kernel runs.
    assert library.cudaDeviceSynchronize() == _ILLEGAL_ADDRESS
    assert _sum(library) == (_ILLEGAL_ADDRESS, 0.0)
    assert _sum(library)[0] == _OK


def test_memory_that_is_not_registered(library: ctypes.CDLL) -> None:
    x = np.zeros(128, np.float32)
    assert library.run_scale(x.ctypes.data, x.ctypes.data, 128, 1.0, 1, 1, 128) == _ILLEGAL_ADDRESS
    assert "out-of-bounds global read" in _message(library)


def test_write_to_a_read_only_buffer(library: ctypes.CDLL) -> None:
    x = _register(library, "x", np.zeros(128, np.float32), writable=False)
    assert library.run_scale(x, x, 128, 1.0, 1, 1, 128) == _LAUNCH_FAILURE
    assert "read-only buffer 'x'" in _message(library)


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
def test_bad_grid_or_block(library: ctypes.CDLL, launch: dict[str, int], expected: str) -> None:
    code, _, y = _scale(library, **launch)
    assert code == _INVALID_CONFIGURATION
    assert expected in _message(library)
    assert np.isnan(y).all()
    assert library.cudaGetErrorString(code) == b"invalid configuration argument"
    assert library.cudaGetLastError() == _INVALID_CONFIGURATION
    assert library.cudaPeekAtLastError() == _OK


def test_much_shared_memory_without_opt_in(library: ctypes.CDLL) -> None:
    # The kernel that no test opts in: what was allowed once stays allowed.
    code, _ = _sum(library, (48 << 10) + 1, synchronise=False)
    assert code == _INVALID_VALUE
    assert "cudaFuncAttributeMaxDynamicSharedMemorySize" in _message(library)


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
    library: ctypes.CDLL, shared_bytes: int, opt_in: int, expected: int
) -> None:
    code, total = _sum(library, shared_bytes, opt_in)
    assert code == expected, _message(library)
    assert total == (300 * 299 / 2 if expected == _OK else 0)


@pytest.mark.parametrize(
    ("initialised", "expected"), [(0, "race"), (1, "read of uninitialised shared memory")]
)
def test_missing_syncthreads(library: ctypes.CDLL, initialised: int, expected: str) -> None:
    library.ptxsim_options(0, 1, initialised)
    code, _ = _sum(library, synchronise=False)
    assert code == _LAUNCH_FAILURE
    assert expected in _message(library)
    assert "at kernels.cu:19" in _message(library)


def test_library_is_kept(source: Path, loaded: ctypes.CDLL) -> None:
    include = source.parent / "include"
    assert str(build_library(source, [include])) == loaded._name
    (include / "sizes.h").write_text(_HEADER + "// changed\n")
    try:
        assert str(build_library(source, [include])) != loaded._name
    finally:
        (include / "sizes.h").write_text(_HEADER)


def test_errors_of_the_compiler_are_shown(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("__global__ void f() { nothing(); }")
    with pytest.raises(SimulatorError, match='identifier "nothing" is undefined'):
        build_library(tmp_path / "wrong.cu")
