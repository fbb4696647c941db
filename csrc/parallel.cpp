#include "parallel.h"

#include <atomic>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace grainrank {
namespace {

// The entry point of GNU's OpenMP runtime; LLVM's and Intel's export it too. Looked up at run time:
// a second runtime beside torch's would put two pools of spinning threads on the same cores.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel find_runtime() {
#if defined(__unix__) || defined(__APPLE__)
    return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
    return nullptr;
#endif
}

GompParallel runtime() {
    static const GompParallel found = find_runtime();
    return found;
}

struct Loop {
    std::atomic<int64_t> next{0};
    std::atomic<int> status{0};
    int64_t n;
    int64_t grain;
    Body body;
    void* context;
};

void run(void* opaque) {
    Loop& loop = *static_cast<Loop*>(opaque);
    for (;;) {
        const int64_t begin = loop.next.fetch_add(loop.grain, std::memory_order_relaxed);
        if (begin >= loop.n || loop.status.load(std::memory_order_relaxed) != 0) return;
        const int64_t end = begin + loop.grain < loop.n ? begin + loop.grain : loop.n;
        if (const int status = loop.body(loop.context, begin, end)) {
            loop.status.store(status, std::memory_order_relaxed);
            return;
        }
    }
}

}  // namespace

int parallel_for(int64_t n, int64_t grain, int num_threads, Body body, void* context) {
    const int64_t pieces = (n + grain - 1) / grain;
    const int threads = static_cast<int>(pieces < num_threads ? pieces : num_threads);
    if (threads <= 1) {
        return n > 0 ? body(context, 0, n) : 0;
    }
    Loop loop;
    loop.n = n;
    loop.grain = grain;
    loop.body = body;
    loop.context = context;
    if (const GompParallel gomp_parallel = runtime()) {
        gomp_parallel(run, &loop, static_cast<unsigned>(threads), 0);
        return loop.status;
    }
    std::vector<std::thread> pool;
    pool.reserve(threads - 1);
    for (int t = 1; t < threads; ++t) pool.emplace_back(run, &loop);
    run(&loop);
    for (std::thread& thread : pool) thread.join();
    return loop.status;
}

const char* parallel_runtime() { return runtime() ? "openmp" : "threads"; }

}  // namespace grainrank
