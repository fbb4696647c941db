// Products of bfloat16 matrices with AVX512-BF16 or AMX.
#include "bf16_avx512.h"
#include "product_driver.h"
#if GRAINRANK_HAS_AMX_BF16
#include "bf16_amx.h"
#endif

namespace grainrank {
namespace GRAINRANK_ISA {

// dispatch.cpp declares them.
// NOLINTNEXTLINE(misc-use-internal-linkage)
Product<uint16_t> bf16_product() { return product<Avx512Bf16>; }

#if GRAINRANK_HAS_AMX_BF16
// NOLINTNEXTLINE(misc-use-internal-linkage)
Product<uint16_t> amx_bf16_product() { return product<AmxBf16>; }
#endif

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
