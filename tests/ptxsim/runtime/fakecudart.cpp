// A CUDA runtime on the simulator: link it instead of libcudart, and an unchanged nvcc host object
// runs its translated kernels. Everything is synchronous, as with CUDA_LAUNCH_BLOCKING=1, and one
// thread calls it at a time. It defines what our host code calls; the rest does not link.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "runtime.h"

#ifndef PTXSIM_CAPABILITY
#define PTXSIM_CAPABILITY 80
#endif

namespace {

using ptxsim::BufferSpec;
using ptxsim::Dim3;
using ptxsim::KernelEntry;
using ptxsim::LaunchSpec;
using ptxsim::Traffic;

enum Error : int {  // cudaError_t
    kSuccess = 0,
    kInvalidValue = 1,
    kMemoryAllocation = 2,
    kInvalidConfiguration = 9,
    kInvalidMemcpyDirection = 21,
    kMissingConfiguration = 52,
    kInvalidDeviceFunction = 98,
    kInvalidDevice = 101,
    kIllegalAddress = 700,
    kLaunchTimeout = 702,
    kMisalignedAddress = 716,
    kLaunchFailure = 719,
};
constexpr std::pair<Error, const char*> kErrorStrings[] = {
    {kSuccess, "no error"},
    {kInvalidValue, "invalid argument"},
    {kMemoryAllocation, "out of memory"},
    {kInvalidConfiguration, "invalid configuration argument"},
    {kInvalidMemcpyDirection, "invalid copy direction for memcpy"},
    {kMissingConfiguration, "__global__ function call is not configured"},
    {kInvalidDeviceFunction, "invalid device function"},
    {kInvalidDevice, "invalid device ordinal"},
    {kIllegalAddress, "an illegal memory access was encountered"},
    {kLaunchTimeout, "the launch timed out and was terminated"},
    {kMisalignedAddress, "misaligned address"},
    {kLaunchFailure, "unspecified launch failure"},
};

constexpr int kMaxDynamicSharedAttribute = 8;  // cudaFuncAttributeMaxDynamicSharedMemorySize
constexpr unsigned kMaxThreads = 1024, kMaxBlockZ = 64;
constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;
constexpr size_t kSharedBytes = 48 << 10;
constexpr size_t most_shared_bytes(int capability) {
    if (capability == 86 || capability == 89 || capability >= 120) return 99 << 10;
    return (capability < 90 ? 163 : 227) << 10;
}
constexpr size_t kMostSharedBytes = most_shared_bytes(PTXSIM_CAPABILITY);
constexpr size_t kReservedSharedBytes = 1 << 10;  // of each resident block
constexpr int kMultiprocessors = 4;               // few, so that persistent kernels do loop
constexpr int kResidentThreads = 2048, kResidentBlocks = 32;
constexpr size_t kAllocationAlignment = 256;
constexpr size_t kGuardBytes = 4096;  // between allocations: an overrun meets no neighbour

struct Kernel {
    std::string name;
    int (*run)(const LaunchSpec*) = nullptr;
    const int* layout = nullptr;
    size_t max_dynamic_bytes = 0;

    int parameter_count() const { return layout[0]; }
    int parameter_offset(int i) const { return layout[1 + 2 * i]; }
    int parameter_bytes(int i) const { return layout[2 + 2 * i]; }
    size_t static_shared_bytes() const { return size_t(layout[1 + 2 * layout[0]]); }
    unsigned max_threads() const { return unsigned(layout[2 + 2 * layout[0]]); }
};
struct Buffer {
    uint64_t address, bytes;
    bool writable;
    std::string name;
};
// The launches of the kernels of a name.
struct Executed {
    uint64_t instructions;  // of all threads
    unsigned threads;       // the most of a block
    size_t dynamic_bytes;   // of shared memory: the most
};
struct Configuration {
    Dim3 grid, block;
    size_t shared_bytes;
    void* stream;
};

struct Runtime {
    std::map<const void*, Kernel> kernels;  // by the host function
    std::map<uint64_t, Buffer> allocations;
    std::map<uint64_t, Buffer> registered;
    std::map<std::string, Traffic> traffic;    // by the buffer's name
    std::map<std::string, Executed> executed;  // by the kernel's name
    std::vector<Configuration> configurations;
    Error last = kSuccess;
    Error fault = kSuccess;  // of a kernel; every call fails with it until cudaGetLastError
    char message[2048] = "";
    uint64_t seed = 0;
    int races = 1, initialised = 1;
};
// The host object registers its kernels before the static objects of this file are made.
Runtime& runtime() {
    static Runtime* state = new Runtime;
    return *state;
}

Error failed(Error error, const char* format, ...) __attribute__((format(printf, 2, 3)));
Error failed(Error error, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(runtime().message, sizeof runtime().message, format, arguments);
    va_end(arguments);
    return runtime().last = error;
}

void register_kernel(const KernelEntry* entry, const void* function, const char* name) {
    while (entry->name != nullptr && strcmp(entry->name, name) != 0) entry++;
    Kernel& kernel = runtime().kernels[function];
    kernel.name = name;
    if (entry->name == nullptr) return;
    kernel.run = entry->run, kernel.layout = entry->layout;
    const size_t used = kernel.static_shared_bytes();
    kernel.max_dynamic_bytes = used < kSharedBytes ? kSharedBytes - used : 0;
}

Kernel* find_kernel(const void* function) {
    auto found = runtime().kernels.find(function);
    if (found == runtime().kernels.end()) {
        failed(kInvalidDeviceFunction, "the host function is no registered kernel");
        return nullptr;
    }
    Kernel& kernel = found->second;
    if (kernel.run == nullptr) {
        failed(kInvalidDeviceFunction, "no translated kernel %s", kernel.name.c_str());
        return nullptr;
    }
    return &kernel;
}

Error check_launch(const Kernel& kernel, Dim3 grid, Dim3 block, size_t dynamic_bytes) {
    const char* name = kernel.name.c_str();
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMaxGridX || grid.y > kMaxGridYZ ||
        grid.z > kMaxGridYZ) {
        return failed(kInvalidConfiguration,
                      "%s: the grid must be 1 to (%u, %u, %u) blocks, got (%u, %u, %u)", name,
                      kMaxGridX, kMaxGridYZ, kMaxGridYZ, grid.x, grid.y, grid.z);
    }
    const uint64_t plane = uint64_t(block.x) * block.y;
    const bool fits = block.x <= kMaxThreads && block.y <= kMaxThreads && block.z <= kMaxBlockZ;
    if (!fits || plane * block.z == 0 || plane * block.z > kMaxThreads) {
        return failed(kInvalidConfiguration,
                      "%s: a block must have 1 to %u threads, at most %u deep, got (%u, %u, %u)",
                      name, kMaxThreads, kMaxBlockZ, block.x, block.y, block.z);
    }
    if (kernel.max_threads() != 0 && plane * block.z > kernel.max_threads()) {
        return failed(kInvalidConfiguration,
                      "%s: its __launch_bounds__ are %u threads, got (%u, %u, %u)", name,
                      kernel.max_threads(), block.x, block.y, block.z);
    }
    if (dynamic_bytes > kernel.max_dynamic_bytes) {
        return failed(kInvalidValue,
                      "%s: %zu bytes of dynamic shared memory beside %zu static ones, where %zu "
                      "are allowed; set cudaFuncAttributeMaxDynamicSharedMemorySize",
                      name, dynamic_bytes, kernel.static_shared_bytes(), kernel.max_dynamic_bytes);
    }
    return kSuccess;
}

std::vector<BufferSpec> buffer_specs() {
    std::vector<BufferSpec> specs;
    auto add = [&](const Buffer& buffer) {
        specs.push_back({buffer.address, buffer.bytes, buffer.writable, buffer.name.c_str()});
    };
    for (const auto& [address, buffer] : runtime().registered) add(buffer);
    for (const auto& [address, buffer] : runtime().allocations) add(buffer);
    return specs;
}

// What the hardware says of it. What it does not notice, such as a race, is a launch failure here.
Error fault_of(const std::string& report) {
    auto starts = [&](const char* text) { return report.rfind(text, 0) == 0; };
    return starts("out-of-bounds") ? kIllegalAddress
           : starts("misaligned")  ? kMisalignedAddress
           : starts("deadlock")    ? kLaunchTimeout
                                   : kLaunchFailure;
}

Error launch(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t dynamic_bytes) {
    Runtime& state = runtime();
    if (state.fault != kSuccess) return state.last = state.fault;
    Kernel* kernel = find_kernel(function);
    if (kernel == nullptr) return state.last;
    const Error refused = check_launch(*kernel, grid, block, dynamic_bytes);
    if (refused != kSuccess) return refused;
    std::vector<char> parameters(8);  // some to spare: a vector load may read past the last one
    for (int i = 0; i < kernel->parameter_count(); i++) {
        const size_t offset = size_t(kernel->parameter_offset(i));
        const size_t bytes = size_t(kernel->parameter_bytes(i));
        parameters.resize(offset + bytes + 8);
        memcpy(parameters.data() + offset, arguments[i], bytes);
    }
    const std::vector<BufferSpec> buffers = buffer_specs();
    char report[sizeof state.message] = "";
    LaunchSpec spec{};
    spec.grid[0] = grid.x, spec.grid[1] = grid.y, spec.grid[2] = grid.z;
    spec.block[0] = block.x, spec.block[1] = block.y, spec.block[2] = block.z;
    spec.dynamic_shared_bytes = unsigned(dynamic_bytes);
    spec.n_buffers = unsigned(buffers.size());
    spec.parameters = parameters.data();
    spec.buffers = buffers.data();
    spec.seed = state.seed, spec.races = state.races, spec.initialised = state.initialised;
    spec.message = report, spec.message_bytes = sizeof report;
    std::vector<Traffic> traffic(buffers.size());
    spec.traffic = traffic.data();
    const uint64_t before = ptxsim::executed;
    const int failure = kernel->run(&spec);
    Executed& sum = state.executed[kernel->name];
    sum.instructions += ptxsim::executed - before;
    sum.threads = std::max(sum.threads, block.x * block.y * block.z);
    sum.dynamic_bytes = std::max(sum.dynamic_bytes, dynamic_bytes);
    for (size_t i = 0; i < buffers.size(); i++) {
        Traffic& total = state.traffic[buffers[i].name];
        total.read += traffic[i].read, total.written += traffic[i].written;
    }
    if (failure == 0) return kSuccess;
    state.fault = fault_of(report);
    return failed(state.fault, "%s: %s", kernel->name.c_str(), report);
}

// The fault of an earlier kernel, which synchronising calls return.
Error synchronise() {
    if (runtime().fault != kSuccess) runtime().last = runtime().fault;
    return runtime().fault;
}

Error check_device_range(const char* call, const void* address, size_t bytes, bool write) {
    const uint64_t first = reinterpret_cast<uint64_t>(address);
    for (const BufferSpec& buffer : buffer_specs()) {
        if (first < buffer.address || first + bytes > buffer.address + buffer.bytes) continue;
        if (buffer.writable || !write) return kSuccess;
        return failed(kInvalidValue, "%s writes the read-only buffer '%s'", call, buffer.name);
    }
    return failed(kInvalidValue, "%s: the %zu bytes at %p are in no device buffer", call, bytes,
                  address);
}

Error copy(void* to, const void* from, size_t bytes, int kind) {
    if (const Error error = synchronise()) return error;
    if (kind < 0 || kind > 4) return failed(kInvalidMemcpyDirection, "cudaMemcpyKind %d", kind);
    if (bytes == 0) return kSuccess;
    const bool to_device = kind == 1 || kind == 3, from_device = kind == 2 || kind == 3;
    if (to_device) {
        if (const Error error = check_device_range("cudaMemcpy", to, bytes, true)) return error;
    }
    if (from_device) {
        if (const Error error = check_device_range("cudaMemcpy", from, bytes, false)) return error;
    }
    memmove(to, from, bytes);
    return kSuccess;
}

Error fill(void* to, int value, size_t bytes) {
    if (const Error error = synchronise()) return error;
    if (bytes == 0) return kSuccess;
    if (const Error error = check_device_range("cudaMemset", to, bytes, true)) return error;
    memset(to, value, bytes);
    return kSuccess;
}

Error allocate(void** address, size_t bytes) {
    if (const Error error = synchronise()) return error;
    *address = nullptr;
    if (bytes == 0) return kSuccess;
    const size_t padded = (bytes / kAllocationAlignment + 1) * kAllocationAlignment + kGuardBytes;
    void* memory = padded > bytes ? aligned_alloc(kAllocationAlignment, padded) : nullptr;
    if (memory == nullptr) return failed(kMemoryAllocation, "cudaMalloc of %zu bytes", bytes);
    memset(memory, 0xff, bytes);  // NaN
    const uint64_t first = reinterpret_cast<uint64_t>(memory);
    runtime().allocations[first] = {first, bytes, true, "cudaMalloc"};
    *address = memory;
    return kSuccess;
}

Error release(void* address) {
    if (address == nullptr) return kSuccess;
    if (runtime().allocations.erase(reinterpret_cast<uint64_t>(address)) == 0) {
        return failed(kInvalidValue, "cudaFree: %p was not allocated by cudaMalloc", address);
    }
    free(address);
    return synchronise();
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// ---- what a Python test calls
const char* ptxsim_last_message() { return runtime().message; }
void ptxsim_options(uint64_t seed, int races, int initialised) {
    runtime().seed = seed, runtime().races = races, runtime().initialised = initialised;
}
// Memory that kernels may touch. It takes the place of a buffer registered at the same address.
void ptxsim_register_buffer(uint64_t address, uint64_t bytes, int writable, const char* name) {
    runtime().registered[address] = {address, bytes, writable != 0, name};
    runtime().traffic[name];
}
// The bytes that kernels have read and written in the buffers of this name. 1: there was none.
int ptxsim_traffic(const char* name, uint64_t* read, uint64_t* written) {
    const auto found = runtime().traffic.find(name);
    if (found == runtime().traffic.end()) return 1;
    *read = found->second.read, *written = found->second.written;
    return 0;
}
// What the kernel at this place has executed, and how it was launched. 1: there are not so many.
int ptxsim_executed(unsigned place, const char** name, uint64_t* instructions, unsigned* threads,
                    uint64_t* dynamic_bytes) {
    if (place >= runtime().executed.size()) return 1;
    const auto& [found, sum] = *std::next(runtime().executed.begin(), place);
    *name = found.c_str(), *instructions = sum.instructions;
    *threads = sum.threads, *dynamic_bytes = sum.dynamic_bytes;
    return 0;
}
// Forgets the registered buffers, the traffic, what was executed, and what has failed.
void ptxsim_clear_buffers() {
    runtime().registered.clear();
    runtime().traffic.clear();
    runtime().executed.clear();
    runtime().last = runtime().fault = kSuccess;
    runtime().message[0] = '\0';
}

// ---- what nvcc writes into a host object
// __cudaRegisterFatBinary is each object's own: it returns the object's kernels (cuda.py).
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void** kernels, const char* function, char*, const char* name, int,
                            void*, void*, void*, void*, int*) {
    register_kernel(reinterpret_cast<const KernelEntry*>(kernels), function, name);
}
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared_bytes, void* stream) {
    runtime().configurations.push_back({grid, block, shared_bytes, stream});
    return 0;
}
Error __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared_bytes, void** stream) {
    std::vector<Configuration>& pushed = runtime().configurations;
    if (pushed.empty()) return failed(kMissingConfiguration, "a launch without <<<...>>>");
    *grid = pushed.back().grid, *block = pushed.back().block;
    *shared_bytes = pushed.back().shared_bytes, *stream = pushed.back().stream;
    pushed.pop_back();
    return kSuccess;
}
Error __cudaGetKernel(const void** kernel, const void* function) {
    *kernel = function;
    return kSuccess;
}
Error __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments,
                         size_t shared_bytes, void*) {
    return launch(kernel, grid, block, arguments, shared_bytes);
}

// ---- the runtime API
Error cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments,
                       size_t shared_bytes, void*) {
    return launch(function, grid, block, arguments, shared_bytes);
}
Error cudaFuncSetAttribute(const void* function, int attribute, int value) {
    Kernel* kernel = find_kernel(function);
    if (kernel == nullptr) return runtime().last;
    if (attribute != kMaxDynamicSharedAttribute) return kSuccess;
    if (value < 0 || size_t(value) + kernel->static_shared_bytes() > kMostSharedBytes) {
        return failed(kInvalidValue,
                      "%s: %d bytes of dynamic shared memory beside %zu static ones; a block of "
                      "this device has at most %zu",
                      kernel->name.c_str(), value, kernel->static_shared_bytes(), kMostSharedBytes);
    }
    kernel->max_dynamic_bytes = size_t(value);
    return kSuccess;
}
// Without the registers, which only ptxas knows.
Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                             int threads, size_t dynamic_bytes,
                                                             unsigned) {
    Kernel* kernel = find_kernel(function);
    if (kernel == nullptr) return runtime().last;
    if (threads <= 0) return failed(kInvalidValue, "occupancy of blocks of %d threads", threads);
    const size_t most = kMostSharedBytes + kReservedSharedBytes;
    const size_t each = kernel->static_shared_bytes() + dynamic_bytes + kReservedSharedBytes;
    const bool too_many = threads > int(kMaxThreads) ||
                          (kernel->max_threads() != 0 && threads > int(kernel->max_threads())) ||
                          dynamic_bytes > kernel->max_dynamic_bytes;
    const int by_threads = kResidentThreads / ((threads + 31) / 32 * 32);
    const int by_shared = int(most / each);
    *blocks = too_many ? 0 : std::min({kResidentBlocks, by_threads, by_shared});
    return kSuccess;
}
Error cudaMalloc(void** address, size_t bytes) { return allocate(address, bytes); }
Error cudaMallocAsync(void** address, size_t bytes, void*) { return allocate(address, bytes); }
Error cudaFree(void* address) { return release(address); }
Error cudaFreeAsync(void* address, void*) { return release(address); }
Error cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
    return copy(to, from, bytes, kind);
}
Error cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void*) {
    return copy(to, from, bytes, kind);
}
Error cudaMemset(void* to, int value, size_t bytes) { return fill(to, value, bytes); }
Error cudaMemsetAsync(void* to, int value, size_t bytes, void*) { return fill(to, value, bytes); }

Error cudaDeviceSynchronize() { return synchronise(); }
Error cudaStreamSynchronize(void*) { return synchronise(); }
Error cudaGetDeviceCount(int* count) {
    *count = 1;
    return kSuccess;
}
Error cudaGetDevice(int* device) {
    *device = 0;
    return kSuccess;
}
Error cudaSetDevice(int device) {
    return device == 0 ? kSuccess : failed(kInvalidDevice, "there is one device, got %d", device);
}
Error cudaDeviceGetAttribute(int* value, int attribute, int device) {
    static const std::map<int, int> values = {
        {1, int(kMaxThreads)},                               // cudaDevAttrMaxThreadsPerBlock
        {2, int(kMaxThreads)},                               // cudaDevAttrMaxBlockDimX
        {3, int(kMaxThreads)},                               // cudaDevAttrMaxBlockDimY
        {4, int(kMaxBlockZ)},                                // cudaDevAttrMaxBlockDimZ
        {5, int(kMaxGridX)},                                 // cudaDevAttrMaxGridDimX
        {6, int(kMaxGridYZ)},                                // cudaDevAttrMaxGridDimY
        {7, int(kMaxGridYZ)},                                // cudaDevAttrMaxGridDimZ
        {8, int(kSharedBytes)},                              // MaxSharedMemoryPerBlock
        {10, 32},                                            // cudaDevAttrWarpSize
        {16, kMultiprocessors},                              // cudaDevAttrMultiProcessorCount
        {39, kResidentThreads},                              // MaxThreadsPerMultiProcessor
        {75, PTXSIM_CAPABILITY / 10},                        // ComputeCapabilityMajor
        {76, PTXSIM_CAPABILITY % 10},                        // ComputeCapabilityMinor
        {81, int(kMostSharedBytes + kReservedSharedBytes)},  // MaxSharedMemoryPerMultiprocessor
        {97, int(kMostSharedBytes)},                         // MaxSharedMemoryPerBlockOptin
    };
    if (const Error error = cudaSetDevice(device)) return error;
    const auto found = values.find(attribute);
    if (found == values.end()) return failed(kInvalidValue, "cudaDeviceAttr %d", attribute);
    *value = found->second;
    return kSuccess;
}

Error cudaGetLastError() {
    const Error error = runtime().last;
    runtime().last = runtime().fault = kSuccess;
    return error;
}
Error cudaPeekAtLastError() { return runtime().last; }
const char* cudaGetErrorString(Error error) {
    for (const auto& [code, text] : kErrorStrings) {
        if (code == error) return text;
    }
    return "unrecognized error code";
}

}  // extern "C"
#pragma GCC visibility pop
