#include "fiber.h"

#ifdef PTXSIM_UCONTEXT

namespace ptxsim {

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
}

void Fiber::switch_between(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

}  // namespace ptxsim

#else

extern "C" __attribute__((visibility("hidden"))) void ptxsim_switch(void** save, void* load);
asm(R"(
.text
.globl ptxsim_switch
.hidden ptxsim_switch
.type ptxsim_switch, @function
ptxsim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ptxsim_switch, . - ptxsim_switch
)");

namespace ptxsim {

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
    constexpr int kSavedRegisters = 6;
    auto top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes);
    *--top = nullptr;  // where a return address would stand: keeps the stack 16-byte aligned
    *--top = reinterpret_cast<void*>(entry);
    stack_pointer_ = top - kSavedRegisters;
}

void Fiber::switch_between(Fiber& from, Fiber& to) {
    ptxsim_switch(&from.stack_pointer_, to.stack_pointer_);
}

}  // namespace ptxsim

#endif
