#!/usr/bin/env bash
# clang-tidy on the sources in csrc/ and kernels/cuda/. The argument: where clang-tidy and python are.
set -euo pipefail
bin=$(realpath "$1")
cd "$(dirname "$0")/../.."
shopt -s nullglob

python_headers=$("$bin/python" -c 'import pybind11, sysconfig
print(f"""-isystem "{pybind11.get_include()}" -isystem "{sysconfig.get_path("include")}" """)')
vectors="-DGRAINRANK_ISA=neon -DGRAINRANK_VECTOR_BYTES=16"
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl"
sets="-DGRAINRANK_HAS_NEON=1"
if [[ $(uname -m) == x86_64 ]]; then
    vectors="-DGRAINRANK_ISA=avx2 -DGRAINRANK_VECTOR_BYTES=32 -mavx2 -mfma"
    sets="-DGRAINRANK_HAS_AVX2=1 -DGRAINRANK_HAS_AVX512=1 -DGRAINRANK_HAS_AVX512_BF16=1 -DGRAINRANK_HAS_AMX_BF16=1"
fi

# nvcc may be a wrapper in another folder: it says itself where its toolkit is.
toolkit=
if command -v nvcc >/dev/null; then
    toolkit=$(realpath "$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')")
    # clang includes this header of cuRAND always, and a toolkit may be without cuRAND.
    mkdir -p build/tidy
    touch build/tidy/curand_mtgp32_kernel.h
else
    echo "clang-tidy: no nvcc, kernels/cuda/*.cu are skipped"
fi

# One line for each run, carried out side by side; xargs fails where any of them does.
runs() {
    for source in csrc/*.cpp; do
        case $source in
            csrc/passes.cpp)
                echo "$source -- -DGRAINRANK_ISA=scalar -DGRAINRANK_VECTOR_BYTES=0"
                echo "$source -- $vectors"
                ;;
            csrc/bf16_product.cpp)
                [[ $(uname -m) != x86_64 ]] ||
                    echo "$source -- $avx512 -mavx512bf16 -DGRAINRANK_ISA=avx512_bf16" \
                        "-mamx-tile -mamx-bf16 -DGRAINRANK_HAS_AMX_BF16=1"
                ;;
            csrc/float32_product.cpp)
                if [[ $(uname -m) == x86_64 ]]; then
                    echo "$source -- $vectors"
                    echo "$source -- $avx512 -mfma -DGRAINRANK_ISA=avx512 -DGRAINRANK_VECTOR_BYTES=64"
                fi
                ;;
            *) echo "$source -- $sets $python_headers" ;;
        esac
    done
    [[ $toolkit ]] || return 0
    for source in kernels/cuda/*.cu; do
        for side in host device; do
            echo "$source -- -x cuda --cuda-$side-only --cuda-gpu-arch=sm_90 -Wno-unknown-cuda-version" \
                "\"--cuda-path=$toolkit\" -isystem \"$toolkit/include/cccl\" -idirafter build/tidy"
        done
    done
}

runs | sed 's/$/ -std=c++17 -Wall -Wextra -Wold-style-cast -Icsrc -Ikernels\/cuda/' |
    xargs -P "$(nproc)" -L 1 "$bin/clang-tidy" --quiet
