// Operands of a product as its innermost loop reads them: panels of a few lines (rows of `a`,
// columns of `b`), in which a 32-bit word holds a float, or two bfloat16 that are neighbours in the
// depth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "huge_pages.h"

namespace grainrank {

inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// [panels, words of the depth, wide]; a kernel may lay a panel out in another order.
template <class T>
struct Panels {
    uint32_t* words;
    int wide;
    int64_t lines;
    int64_t depth;  // in words; those behind the operand's are 0
    // The operand, from the first line and the first depth of the slab on.
    const T* values;
    int64_t line_stride;
    int64_t depth_stride;
    int64_t depth_values;

    int64_t count() const { return pieces(lines, wide); }
    uint32_t* at(int64_t panel) const { return words + panel * wide * depth; }
};

class PanelMemory {
  public:
    explicit PanelMemory(int64_t words) {
        const auto bytes = static_cast<std::size_t>(words) * sizeof(uint32_t);
        values_ = static_cast<uint32_t*>(::operator new(bytes, kAlignment, std::nothrow));
        if (values_) advise_huge_pages(reinterpret_cast<std::uintptr_t>(values_), bytes);
    }
    ~PanelMemory() { ::operator delete(values_, kAlignment); }
    PanelMemory(const PanelMemory&) = delete;
    PanelMemory& operator=(const PanelMemory&) = delete;
    uint32_t* get() const { return values_; }

  private:
    static constexpr std::align_val_t kAlignment{64};
    uint32_t* values_;
};

}  // namespace grainrank
