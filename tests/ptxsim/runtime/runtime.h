// The interface of the runtime: what translated kernels call, and how they are launched.
#pragma once

#include <cstdint>
#include <cstring>

#include "arithmetic.h"

// Before each kernel's entry point and layout.
#ifndef PTXSIM_ENTRY
#define PTXSIM_ENTRY extern "C" __attribute__((visibility("default")))
#endif

namespace ptxsim {

// An instruction: the source line it came from, and its line in the PTX.
struct Site {
    const char* location;
    int ptx_line;
};

struct Dim3 {
    unsigned x, y, z;
};
struct Thread {
    Dim3 tid, ctaid, ntid, nctaid;
    unsigned index;  // in its block
};

// Shared with Python (kernel.py) and with fakecudart.cpp: the layout is part of the interface.
struct BufferSpec {
    uint64_t address, bytes;
    int writable;
    const char* name;
};
// Bytes that threads have read and written; an atomic operation does both.
struct Traffic {
    uint64_t read, written;
};
struct LaunchSpec {
    unsigned grid[3], block[3];
    unsigned dynamic_shared_bytes, n_buffers;
    const void* parameters;
    const BufferSpec* buffers;
    uint64_t seed;
    int races, initialised;
    char* message;
    uint64_t message_bytes;
    Traffic* traffic;  // null, or one for each buffer: the launch is added to it
};
// What the translator knows of a kernel.
struct KernelSpec {
    void (*body)();
    unsigned static_shared_bytes;
    unsigned n_variables;
    const BufferSpec* variables;
};
// How a translated kernel is found and launched.
struct KernelEntry {
    const char* name;
    int (*run)(const LaunchSpec*);
    const int* layout;  // count, offset and bytes of each parameter, shared bytes, threads
};
int launch(const KernelSpec& kernel, const LaunchSpec& spec);

extern Thread* current;
extern unsigned char* shared_memory;
extern uint32_t shared_bytes;
extern const unsigned char* parameters;
extern uint64_t executed;  // instructions, of all threads of all launches

[[noreturn]] void fail(const Site* site, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// ---- memory
enum class Access : uint8_t { kNone, kRead, kWrite, kSameValueWrite, kAtomic };
void check_global(uint64_t address, unsigned bytes, Access access, const Site* site);
void check_shared_bounds(uint32_t address, unsigned bytes, Access access, const Site* site);
void check_shared(uint32_t address, unsigned bytes, Access access, const Site* site);
void check_local(uint64_t address, unsigned bytes, const Site* site);
bool is_local(uint64_t address);

inline bool is_shared(uint64_t address) {
    return address - reinterpret_cast<uint64_t>(shared_memory) < shared_bytes;
}
inline uint64_t shared_to_generic(uint64_t address) {
    return reinterpret_cast<uint64_t>(shared_memory) + uint32_t(address);
}
inline uint64_t generic_to_shared(uint64_t address) {
    return address - reinterpret_cast<uint64_t>(shared_memory);
}

// The parameters of a kernel by their address, of which they have `all` bytes.
inline const unsigned char* parameter_at(uint64_t address, unsigned bytes, unsigned all,
                                         const Site* site) {
    if (address - reinterpret_cast<uint64_t>(parameters) > all - bytes) {
        fail(site, "read of %u bytes outside the parameters of the kernel", bytes);
    }
    return reinterpret_cast<const unsigned char*>(address);
}
template <class T>
inline T load_parameter(const unsigned char* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}
template <class T>
inline void store_parameter(unsigned char* to, T value) {
    memcpy(to, &value, sizeof value);
}
template <class T, unsigned N>
inline void load_shared(uint64_t address, T* to, const Site* site) {
    check_shared(uint32_t(address), sizeof(T) * N, Access::kRead, site);
    memcpy(to, shared_memory + uint32_t(address), sizeof(T) * N);
}
template <class T, unsigned N>
inline void store_shared(uint64_t address, const T* from, const Site* site) {
    uint32_t offset = uint32_t(address);
    const bool same = uint64_t(offset) + sizeof(T) * N <= shared_bytes &&
                      memcmp(shared_memory + offset, from, sizeof(T) * N) == 0;
    check_shared(offset, sizeof(T) * N, same ? Access::kSameValueWrite : Access::kWrite, site);
    memcpy(shared_memory + offset, from, sizeof(T) * N);
}
template <class T, unsigned N>
inline void load_global(uint64_t address, T* to, const Site* site) {
    check_global(address, sizeof(T) * N, Access::kRead, site);
    memcpy(to, reinterpret_cast<const void*>(address), sizeof(T) * N);
}
template <class T, unsigned N>
inline void store_global(uint64_t address, const T* from, const Site* site) {
    check_global(address, sizeof(T) * N, Access::kWrite, site);
    memcpy(reinterpret_cast<void*>(address), from, sizeof(T) * N);
}
template <class T, unsigned N>
inline void load_local(uint64_t address, T* to, const Site* site) {
    check_local(address, sizeof(T) * N, site);
    memcpy(to, reinterpret_cast<const void*>(address), sizeof(T) * N);
}
template <class T, unsigned N>
inline void store_local(uint64_t address, const T* from, const Site* site) {
    check_local(address, sizeof(T) * N, site);
    memcpy(reinterpret_cast<void*>(address), from, sizeof(T) * N);
}
template <class T, unsigned N>
inline void load_generic(uint64_t address, T* to, const Site* site) {
    if (is_shared(address)) return load_shared<T, N>(generic_to_shared(address), to, site);
    if (is_local(address)) return load_local<T, N>(address, to, site);
    load_global<T, N>(address, to, site);
}
template <class T, unsigned N>
inline void store_generic(uint64_t address, const T* from, const Site* site) {
    if (is_shared(address)) return store_shared<T, N>(generic_to_shared(address), from, site);
    if (is_local(address)) return store_local<T, N>(address, from, site);
    store_global<T, N>(address, from, site);
}

// `operation(old)` is the new value; the old one is returned.
template <class T, class Operation>
inline T atomic(void* where, Operation operation) {
    T before;
    memcpy(&before, where, sizeof before);
    T after = operation(before);
    memcpy(where, &after, sizeof after);
    return before;
}
template <class T, class Operation>
inline T atomic_shared(uint64_t address, Operation operation, const Site* site) {
    check_shared(uint32_t(address), sizeof(T), Access::kAtomic, site);
    return atomic<T>(shared_memory + uint32_t(address), operation);
}
template <class T, class Operation>
inline T atomic_global(uint64_t address, Operation operation, const Site* site) {
    check_global(address, sizeof(T), Access::kAtomic, site);
    return atomic<T>(reinterpret_cast<void*>(address), operation);
}
template <class T, class Operation>
inline T atomic_generic(uint64_t address, Operation operation, const Site* site) {
    if (is_shared(address)) {
        return atomic_shared<T>(generic_to_shared(address), operation, site);
    }
    return atomic_global<T>(address, operation, site);
}

template <class T>
inline T divide(T a, T b, const Site* site) {
    if (b == 0) fail(site, "integer division by zero");
    return b == T(-1) && std::is_signed_v<T> ? T(0 - a) : T(a / b);
}
template <class T>
inline T remainder(T a, T b, const Site* site) {
    if (b == 0) fail(site, "integer remainder by zero");
    return b == T(-1) && std::is_signed_v<T> ? T(0) : T(a % b);
}

// ---- copies in flight
void cp_async(uint64_t target, uint64_t source, unsigned bytes, unsigned valid, const Site* site);
void cp_async_commit();
void cp_async_wait(unsigned pending, const Site* site);
void cp_async_wait_all(const Site* site);
void fence_proxy_async();

// ---- threads that act together
enum class Shuffle { kIndex, kButterfly, kUp, kDown };
enum class Vote { kBallot, kAny, kAll, kUniform };
enum class Reduction { kAdd, kMinSigned, kMaxSigned, kMin, kMax, kAnd, kOr, kXor };
uint32_t shuffle(Shuffle mode, uint32_t value, uint32_t lane, uint32_t clamp, uint32_t mask,
                 bool& in_range, const Site* site);
uint32_t vote(Vote mode, bool predicate, uint32_t mask, const Site* site);
uint32_t reduce(Reduction operation, uint32_t value, uint32_t mask, const Site* site);
uint32_t match_any(uint64_t value, uint32_t mask, const Site* site);
bool elect(uint32_t mask, uint32_t& leader, const Site* site);
void warp_barrier(uint32_t mask, const Site* site);
// A count of 0 means every thread of the block. Returns how many of them brought a true predicate.
unsigned barrier(unsigned id, unsigned count, bool predicate, const Site* site);
void barrier_arrive(unsigned id, unsigned count, const Site* site);

// ---- matrices
void load_matrices(uint32_t* to, unsigned count, bool transpose, uint64_t row, const Site* site);
void store_matrices(const uint32_t* from, unsigned count, bool transpose, uint64_t row,
                    const Site* site);
enum class Element { kBf16, kF16, kTf32, kS8, kU8 };
// D[16, 8] = A[16, k] B[k, 8] + C[16, 8]; `in` holds this lane's registers of A, B and C.
void mma(uint32_t* d, const uint32_t* in, unsigned k, Element element, bool saturate,
         const Site* site);
void mma_f64(uint64_t* d, const uint64_t* in, unsigned m, unsigned k, const Site* site);
struct Wgmma {
    unsigned n, k;
    Element element;
    bool accumulate;
    int scale_a, scale_b;
    bool transpose_a, transpose_b;
};
// D[64, n] += A[64, k] B[k, n]; A from registers, or from shared memory where `a` is null.
void wgmma(uint32_t* d, const Wgmma& shape, const uint32_t* a, uint64_t a_descriptor,
           uint64_t b_descriptor, const Site* site);
void wgmma_commit(const Site* site);
void wgmma_wait(unsigned pending, const Site* site);

}  // namespace ptxsim
