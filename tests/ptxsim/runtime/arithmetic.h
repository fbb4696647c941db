// What PTX arithmetic means in C++: registers are containers of bits, each instruction gives them a
// type.
#pragma once

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptxsim {

template <class To, class From>
inline To bits(From from) {
    To to{};
    memcpy(&to, &from, std::min(sizeof to, sizeof from));
    return to;
}

// Stores a value in a register that may be wider: integers keep their sign, the rest its bits.
template <class Register, class T>
inline Register widen(T value) {
    if constexpr (std::is_integral_v<T> && std::is_signed_v<T> && sizeof(Register) > sizeof(T)) {
        return Register(int64_t(value));
    } else {
        return bits<Register>(value);
    }
}

// Rounded towards one side. volatile: the compiler does not know that the direction matters.
template <class T>
inline T directed_fma(int direction, T a, T b, T c) {
    volatile T x = a, y = b, z = c;
    const int before = std::fegetround();
    std::fesetround(direction);
    volatile T result = std::fma(x, y, z);
    std::fesetround(before);
    return result;
}

inline float flush(float x, float smallest = std::numeric_limits<float>::min()) {
    return std::fabs(x) < smallest ? std::copysign(0.0f, x) : x;
}

// ---- number formats
inline float bf16_to_float(uint16_t x) { return bits<float>(uint32_t(x) << 16); }
inline uint16_t float_to_bf16(float x) {
    uint32_t u = bits<uint32_t>(x);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline uint16_t float_to_bf16_toward_zero(float x) {
    return std::isnan(x) ? 0x7fff : uint16_t(bits<uint32_t>(x) >> 16);
}
inline float f16_to_float(uint16_t x) { return float(bits<_Float16>(x)); }
inline uint16_t float_to_f16(float x) {
    return std::isnan(x) ? 0x7fff : bits<uint16_t>(_Float16(x));
}
inline uint16_t double_to_f16(double x) {
    return std::isnan(x) ? 0x7fff : bits<uint16_t>(_Float16(x));
}
inline uint32_t float_to_tf32_rna(float x) {
    uint32_t u = bits<uint32_t>(x);
    if ((u & 0x7f800000) == 0x7f800000) return u;
    return (u + 0x1000) & ~0x1fffu;
}
inline uint32_t float_to_tf32_rn(float x) {
    uint32_t u = bits<uint32_t>(x);
    if ((u & 0x7f800000) == 0x7f800000) return u;
    return (u + 0xfff + (u >> 13 & 1)) & ~0x1fffu;
}
// What a tensor core sees of a 32-bit operand.
inline float tf32_operand(uint32_t u) { return bits<float>(u & ~0x1fffu); }

// Rounds so that another rounding, to a half, gives what a single one would: where inexact, to the
// neighbour whose last bit is odd (Boldo and Melquiond, 2008).
template <class T>
inline float narrow(T x) {
    const auto y = float(x);
    if (T(y) == x || std::isnan(y) || (bits<uint32_t>(y) & 1)) return y;
    return std::nextafter(y, T(y) < x ? HUGE_VALF : -HUGE_VALF);
}
// x y + z of halves, for a single rounding.
inline float fused(float x, float y, float z) {
    const double product = double(x) * y, sum = product + z;  // the product is exact
    if (!std::isfinite(sum)) return float(sum);
    const double added = sum - product, error = (product - (sum - added)) + (z - added);
    if (error == 0 || (bits<uint64_t>(sum) & 1)) return narrow(sum);
    return narrow(std::nextafter(sum, error > 0 ? HUGE_VAL : -HUGE_VAL));
}

// One operation on each 16-bit float of a register, computed in float and rounded once.
template <class Word, class Decode, class Encode, class Operation>
inline Word on_halves(Decode decode, Encode encode, Operation operation, Word a, Word b = 0,
                      Word c = 0) {
    Word result = 0;
    for (unsigned shift = 0; shift < 8 * sizeof(Word); shift += 16) {
        float value = operation(decode(uint16_t(a >> shift)), decode(uint16_t(b >> shift)),
                                decode(uint16_t(c >> shift)));
        result = Word(result | Word(Word(encode(value)) << shift));
    }
    return result;
}

// ---- floats
template <bool kNan, class T>
inline T maximum(T a, T b) {
    if (kNan && std::isunordered(a, b)) return std::numeric_limits<T>::quiet_NaN();
    if (a == b) return std::signbit(a) ? b : a;
    return std::fmax(a, b);
}
template <bool kNan, class T>
inline T minimum(T a, T b) {
    if (kNan && std::isunordered(a, b)) return std::numeric_limits<T>::quiet_NaN();
    if (a == b) return std::signbit(a) ? a : b;
    return std::fmin(a, b);
}
template <class T>
inline T saturate(T x) {
    return x > 0 ? std::fmin(x, T(1)) : T(0);
}
template <class To, class From>
inline To float_to_integer(From x) {
    if (std::isnan(x)) {  // the highest bit, if one of the types has 64
        return sizeof(x) == 8 || sizeof(To) == 8 ? To(To(1) << (8 * sizeof(To) - 1)) : To(0);
    }
    if (x <= From(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    if (x >= From(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    return To(x);
}

// ---- integers
template <class To, class From>
inline To saturate_integer(From x) {
    __int128 low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max();
    return To(std::clamp<__int128>(x, low, high));
}
template <class T>
inline T multiply_high(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T((Wide(a) * Wide(b)) >> (8 * sizeof(T)));
}
template <class T>
inline T shift_left(T x, uint32_t n) {
    return n >= 8 * sizeof(T) ? T(0) : T(x << n);
}
template <class T>
inline T shift_right(T x, uint32_t n) {
    if (n >= 8 * sizeof(T)) return std::is_signed_v<T> && x < 0 ? T(-1) : T(0);
    return T(x >> n);
}
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t n, bool wrap) {
    n = wrap ? n & 31 : std::min(n, 32u);
    return uint32_t(((uint64_t(high) << 32 | low) << n) >> 32);
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t n, bool wrap) {
    n = wrap ? n & 31 : std::min(n, 32u);
    return uint32_t((uint64_t(high) << 32 | low) >> n);
}
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, unsigned table) {
    uint32_t result = 0;
    for (unsigned i = 0; i < 8; i++) {
        if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    }
    return result;
}
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t source = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    for (unsigned i = 0; i < 4; i++) {
        unsigned pick = selector >> 4 * i & 15;
        uint8_t byte = uint8_t(source >> 8 * (pick & 7));
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= uint32_t(byte) << 8 * i;
    }
    return result;
}
template <class T>
inline T extract_bits(T x, uint32_t position, uint32_t length) {
    using U = std::make_unsigned_t<T>;
    const uint32_t width = 8 * sizeof(T);
    position &= 255, length &= 255;
    if (length == 0) return 0;
    uint32_t top = std::min(position + length - 1, width - 1);
    bool negative = std::is_signed_v<T> && (U(x) >> top & 1);
    U result = position < width ? U(x) >> position : 0;
    uint32_t kept = std::min(length, position < width ? width - position : 0u);
    U mask = kept >= width ? ~U(0) : U((U(1) << kept) - 1);
    return T(negative ? (result & mask) | ~mask : result & mask);
}
template <class T>
inline T insert_bits(T field, T base, uint32_t position, uint32_t length) {
    const uint32_t width = 8 * sizeof(T);
    position &= 255, length &= 255;
    if (length == 0 || position >= width) return base;
    T mask = length >= width ? ~T(0) : T((T(1) << length) - 1);
    return T((base & ~T(mask << position)) | T((field & mask) << position));
}
template <class T>
inline uint32_t leading_zeros(T x) {
    return x == 0           ? 8 * sizeof(T)
           : sizeof(T) == 8 ? __builtin_clzll(x)
                            : __builtin_clz(uint32_t(x));
}
template <class T>
inline uint32_t highest_bit(T x) {
    using U = std::make_unsigned_t<T>;
    U u = std::is_signed_v<T> && x < 0 ? U(~x) : U(x);
    return u == 0 ? ~0u : 8 * sizeof(T) - 1 - leading_zeros(u);
}
template <class T>
inline T reverse_bits(T x) {
    T result = 0;
    for (unsigned i = 0; i < 8 * sizeof(T); i++) result |= (x >> i & 1) << (8 * sizeof(T) - 1 - i);
    return result;
}

}  // namespace ptxsim
