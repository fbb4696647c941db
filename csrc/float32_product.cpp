// The product of float32 matrices with AVX-512.
#include "float32_avx512.h"
#include "product_driver.h"

namespace grainrank {

// dispatch.cpp declares it.
// NOLINTNEXTLINE(misc-use-internal-linkage)
Product<float> avx512_float32_product() { return product<Avx512Float32>; }

}  // namespace grainrank
