// Operands of a product as its innermost loop reads them: panels of a few lines (rows of `a`,
// columns of `b`), in which a 32-bit word holds a float, or two bfloat16 that are neighbours in the
// depth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "huge_pages.h"

namespace grainrank {
namespace GRAINRANK_ISA {

inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// [panels, words of the depth, wide]; a kernel may lay the words of its `kWords` out in another
// order.
template <class T>
struct Panels {
    uint32_t* words;
    int64_t panel_words;
    int wide;
    int64_t lines;
    int64_t depth;  // in words; those behind the operand's are 0
    // The operand, from the first line and the first depth of the slab on.
    const T* values;
    int64_t line_stride;
    int64_t depth_stride;
    int64_t depth_values;

    int64_t count() const { return pieces(lines, wide); }
    uint32_t* at(int64_t panel) const { return words + panel * panel_words; }

    // The words first .. last of the depth, of so many values each.
    Panels of_depth(int64_t first, int64_t last, int64_t values_of_word) const {
        Panels part = *this;
        part.words += first * wide;
        part.depth = last - first;
        part.values += first * values_of_word * depth_stride;
        part.depth_values =
            least(depth_values - first * values_of_word, (last - first) * values_of_word);
        return part;
    }
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

}  // namespace GRAINRANK_ISA
}  // namespace grainrank
