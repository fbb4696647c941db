#!/usr/bin/env bash
# The C++ under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, with gcc.
# Arguments: the bin folder of the environment, then tests to run instead of those below.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$1
shift
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-2} CXX=${CXX:-g++}
python=$PWD/$bin/python
build=$PWD/build/sanitize

# What calls the C++ most directly, with the sizes and inputs at which an index could leave its memory.
tests=(
    tests/test_exponential.py tests/test_passes.py tests/test_products.py tests/test_extremes.py
    tests/test_listed_rows.py tests/test_two_way_tables.py tests/test_errors.py tests/test_levels.py tests/test_streamed_ranks.py tests/fuzz
)
if [ $# -gt 0 ]; then tests=("$@"); fi

configure() { # folder, sanitizers, options
    cmake -S . -B "$build/$1" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DGRAINRANK_CUDA=OFF \
        -DGRAINRANK_NATIVE_TESTS=ON "-DGRAINRANK_SANITIZE=$2" "${@:3}"
    cmake --build "$build/$1"
}

# Without Python the parallel loops run on threads that ThreadSanitizer sees, not on OpenMP's.
configure thread thread -DGRAINRANK_PYTHON=OFF
ctest --test-dir "$build/thread" --output-on-failure

configure address 'address;undefined;float-cast-overflow' -DGRAINRANK_PYTHON=ON \
    "-DPython_EXECUTABLE=$python" "-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)"
ctest --test-dir "$build/address" --output-on-failure

# The package as it would be installed, with the checked module. Its memory comes from torch, whose
# allocations AddressSanitizer sees too. libstdc++ is there from the start, or its exceptions are not seen.
rm -rf "$build/package"
cmake --install "$build/address" --prefix "$build/package"
cp -r python/grainrank "$build/package/"
cp -r kernels "$build/package/grainrank/kernels"
preload=$("$CXX" -print-file-name=libasan.so):$("$CXX" -print-file-name=libstdc++.so.6)
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    "$python" tests/native/sanitized.py "$build/package" "${tests[@]}" -q -s -p no:cacheprovider
