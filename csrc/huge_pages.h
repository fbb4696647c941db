// Memory that a step allocates and fills once.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace grainrank {

// Asks for huge pages behind [address, address + bytes): a fresh workspace then costs one page
// fault for 2 MiB instead of 512. A hint; where the system has no huge pages nothing happens.
inline void advise_huge_pages(std::uintptr_t address, std::uintptr_t bytes) {
#if defined(__linux__)
    constexpr std::uintptr_t kPage = 4096;
    const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage;
    const std::uintptr_t end = (address + bytes) / kPage * kPage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)address;
    (void)bytes;
#endif
}

}  // namespace grainrank
