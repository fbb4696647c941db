// The product of float32 matrices; compiled once for each instruction set that has one.
#if GRAINRANK_VECTOR_BYTES == 64
#include "float32_avx512.h"
#else
#include "float32_avx2.h"
#endif
#include "product_driver.h"

namespace grainrank {
namespace GRAINRANK_ISA {

#if GRAINRANK_VECTOR_BYTES == 64
using Float32Kernel = Avx512Float32;
#else
using Float32Kernel = Avx2Float32;
#endif

// dispatch.cpp declares it.
// NOLINTNEXTLINE(misc-use-internal-linkage)
Product<float> float32_product() { return product<Float32Kernel>; }

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
