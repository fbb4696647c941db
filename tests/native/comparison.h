// Compares the results of an instruction set with those of the scalar one, and counts.
#pragma once

#include <cstdio>

#include "outputs.h"

namespace grainrank {

constexpr int kPrinted = 20;        // failures of a set
constexpr double kSentinel = 1e29;  // and above: an empty level

struct Tested {
    InstructionSet set;
    int passed = 0, failed = 0;
};

template <class T>
const Passes<T>& passes(const InstructionSet& set) {
    if constexpr (sizeof(T) == 4)
        return set.f32;
    else
        return set.f64;
}

// Empty if the results agree: up to 64 units of rounding of the largest value, or 4 of each, or, of
// sums of positive terms, 64 of each. A sum whose terms cancel is only as exact as its terms are
// large: 4 units of their sum without signs.
template <class T>
std::string difference(const Result& actual, const Result& expected) {
    const size_t size = expected.values.size();
    if (actual.name != expected.name || actual.values.size() != size)
        return actual.name + " was written outside of its memory";
    constexpr double eps = std::numeric_limits<T>::epsilon();
    constexpr double denormal = std::numeric_limits<T>::denorm_min();
    const bool sum = expected.tolerance == Tolerance::kOfEachSum;
    const bool each = sum || expected.tolerance == Tolerance::kOfEach;
    double largest = 0;
    for (const double e : expected.values)
        if (std::abs(e) < kSentinel) largest = std::fmax(largest, std::abs(e));
    double tolerance = eps * std::fmax(64 * largest, 4 * expected.terms);
    if (expected.tolerance == Tolerance::kExact) tolerance = 0;
    for (size_t k = 0; k < size; ++k) {
        const double a = actual.values[k], e = expected.values[k];
        if (each) tolerance = (sum ? 64 : 4) * eps * std::abs(e) + 2 * denormal;
        // An empty level holds its sentinel exactly; a NaN agrees with nothing.
        if (a == e || ((each || std::abs(e) < kSentinel) && std::abs(a - e) <= tolerance)) continue;
        char text[200];
        std::snprintf(text, sizeof text, "%s[%zu] is %.9g, not %.9g: %.3g of %.3g",
                      actual.name.c_str(), k, a, e, a - e, largest);
        return text;
    }
    return "";
}

// Counts the results of one case, and prints the first difference.
template <class T>
void compare(Tested& tested, const std::string& label, const Results& actual,
             const Results& expected) {
    std::string found;
    for (size_t k = 0; k < expected.size() && found.empty(); ++k)
        found = difference<T>(actual[k], expected[k]);
    if (found.empty()) {
        ++tested.passed;
        return;
    }
    if (++tested.failed <= kPrinted)
        std::printf("%s, %s %s: %s\n", tested.set.name, sizeof(T) == 4 ? "float" : "double",
                    label.c_str(), found.c_str());
}

}  // namespace grainrank
