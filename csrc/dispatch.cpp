// Which instruction sets this build holds and this machine runs.
#include "passes.h"

#if GRAINRANK_HAS_AVX2 || GRAINRANK_HAS_AVX512
#include <cpuid.h>

#include <cstring>
#endif
#if GRAINRANK_HAS_AMX_BF16 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace grainrank {

#if GRAINRANK_HAS_AVX512
namespace avx512 {
InstructionSet instruction_set();
Product<float> float32_product();
}  // namespace avx512
#endif
#if GRAINRANK_HAS_AVX2
namespace avx2 {
InstructionSet instruction_set();
Product<float> float32_product();
}  // namespace avx2
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
namespace avx512_bf16 {
Product<uint16_t> bf16_product();
#if GRAINRANK_HAS_AMX_BF16
Product<uint16_t> amx_bf16_product();
#endif
}  // namespace avx512_bf16
#endif

namespace {

#if GRAINRANK_HAS_AMX_BF16
// Whether the machine has the instructions and the system lets this process use their registers,
// which are large: Linux wants to be asked, once for all threads.
bool amx_bf16_usable() {
#if defined(__linux__)
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & amx_bf16) == 0 || (d & amx_tile) == 0) return false;
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
#endif

#if GRAINRANK_HAS_AVX2 || GRAINRANK_HAS_AVX512
bool made_by(const char (&name)[13]) {
    unsigned a = 0, vendor[3] = {};
    return __get_cpuid(0, &a, &vendor[0], &vendor[2], &vendor[1]) &&
           std::memcmp(vendor, name, sizeof vendor) == 0;
}

// 0: of another maker.
unsigned amd_family() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!made_by("AuthenticAMD") || !__get_cpuid(1, &a, &b, &c, &d)) return 0;
    return (a >> 8 & 0xf) + (a >> 20 & 0xff);
}

// MKL, which torch multiplies with, uses AVX2 on every AMD, in a kernel of its own for them.
// Measured on servers with Zen 3 and Zen 5; the units of Zen 5's laptops are half as wide.
[[maybe_unused]] bool is_zen3() { return amd_family() >= 0x19; }
[[maybe_unused]] bool is_zen5() { return amd_family() >= 0x1a; }

// Where Intel makes AMX (here switched off), AVX512-BF16 multiplies at half the rate of float32:
// measured on a Xeon of the fifth generation. AVX512-FP16 tells these from the one before AMX.
[[maybe_unused]] bool has_slow_avx512_bf16() {
    constexpr unsigned avx512_fp16 = 1u << 23;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return made_by("GenuineIntel") && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (d & avx512_fp16) != 0;
}
#endif

struct Sets {
    InstructionSet items[kMostSets];
    int size = 0;

    Sets() {
#if GRAINRANK_HAS_AVX512
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            add_avx512();
#endif
#if GRAINRANK_HAS_AVX2
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
            items[size] = avx2::instruction_set();
            items[size].float32_product = avx2::float32_product();
            items[size++].float32_is_faster = is_zen3();
        }
#endif
#if GRAINRANK_HAS_NEON
        items[size++] = neon::instruction_set();
#endif
        items[size++] = scalar::instruction_set();
    }

#if GRAINRANK_HAS_AVX512
    // With a product of bfloat16 it is a set of its own.
    void add_avx512() {
#if GRAINRANK_HAS_AMX_BF16
        if (amx_bf16_usable()) add_avx512("amx_bf16", avx512_bf16::amx_bf16_product(), true);
#endif
#if GRAINRANK_HAS_AVX512_BF16
        if (__builtin_cpu_supports("avx512bf16"))
            add_avx512("avx512_bf16", avx512_bf16::bf16_product(), !has_slow_avx512_bf16());
#endif
        add_avx512("avx512", nullptr, false);
    }

    void add_avx512(const char* name, Product<uint16_t> of_bf16, bool bf16_is_faster) {
        items[size] = avx512::instruction_set();
        items[size].name = name;
        items[size].bf16_product = of_bf16;
        items[size].bf16_is_faster = bf16_is_faster;
        items[size].float32_product = avx512::float32_product();
        items[size++].float32_is_faster = is_zen5();
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
