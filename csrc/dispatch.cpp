// Which instruction sets this build holds and this machine runs.
#include "passes.h"

namespace grainrank {

#if GRAINRANK_HAS_AVX512
namespace avx512 {
InstructionSet instruction_set();
}
#endif
#if GRAINRANK_HAS_AVX2
namespace avx2 {
InstructionSet instruction_set();
}
#endif
#if GRAINRANK_HAS_NEON
namespace neon {
InstructionSet instruction_set();
}
#endif
namespace scalar {
InstructionSet instruction_set();
}

#if GRAINRANK_HAS_AVX512_BF16
Bf16Product bf16_product();
#endif

namespace {

struct Sets {
    InstructionSet items[4];
    int size = 0;

    Sets() {
#if GRAINRANK_HAS_AVX512
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            add_avx512();
#endif
#if GRAINRANK_HAS_AVX2
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            items[size++] = avx2::instruction_set();
#endif
#if GRAINRANK_HAS_NEON
        items[size++] = neon::instruction_set();
#endif
        items[size++] = scalar::instruction_set();
    }

#if GRAINRANK_HAS_AVX512
    // With products of bfloat16 it is a set of its own.
    void add_avx512() {
#if GRAINRANK_HAS_AVX512_BF16
        if (__builtin_cpu_supports("avx512bf16")) {
            items[size] = avx512::instruction_set();
            items[size].name = "avx512_bf16";
            items[size++].bf16_product = bf16_product();
        }
#endif
        items[size++] = avx512::instruction_set();
    }
#endif
};

}  // namespace

int available(const InstructionSet** sets, int capacity) {
    static const Sets found;
    const int size = found.size < capacity ? found.size : capacity;
    for (int i = 0; i < size; ++i) sets[i] = &found.items[i];
    return found.size;
}

}  // namespace grainrank
