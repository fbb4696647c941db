// One stack per simulated thread. Assembly where there is some, for speed; ucontext elsewhere.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(PTXSIM_UCONTEXT)
#define PTXSIM_UCONTEXT
#endif
#ifdef PTXSIM_UCONTEXT
#include <ucontext.h>
#endif

namespace ptxsim {

class Fiber {
  public:
    // `entry` never returns: it switches away for good.
    void prepare(void* stack, size_t bytes, void (*entry)());
    // Leaves the caller in `from` until something switches back to it.
    static void switch_between(Fiber& from, Fiber& to);

  private:
#ifdef PTXSIM_UCONTEXT
    ucontext_t context_;
#else
    void* stack_pointer_ = nullptr;
#endif
};

}  // namespace ptxsim
