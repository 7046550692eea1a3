#include "fibres.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace emulator {

uintptr_t stacks_begin = 0;
size_t stacks_bytes = 0;

namespace {
// Unoptimised kernels keep every fragment on the stack. Only touched pages cost memory.
constexpr size_t STACK_BYTES = 256 * 1024, GUARD_BYTES = 4096;
unsigned provided = 0;

unsigned char* stack_of(unsigned number) {
    return reinterpret_cast<unsigned char*>(stacks_begin) + number * STACK_BYTES;
}
}  // namespace

void provide_fibres(unsigned count) {
    if (count <= provided) return;
    if (provided) munmap(reinterpret_cast<void*>(stacks_begin), stacks_bytes);
    stacks_bytes = count * STACK_BYTES;
    void* mapping =
        mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        std::perror("cuda_emulator: no memory for the stacks");
        std::abort();
    }
    stacks_begin = reinterpret_cast<uintptr_t>(mapping);
    provided = count;
    for (unsigned number = 0; number < count; ++number) mprotect(stack_of(number), GUARD_BYTES, PROT_NONE);
}

}  // namespace emulator

#if defined(__x86_64__) && !defined(XPCONV_EMULATOR_UCONTEXT)

// Saves the callee-saved registers on the stack it leaves, and the stack pointer through the first argument.
extern "C" void emulator_switch(void** leave, void* enter);
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size emulator_switch, .-emulator_switch
)");

namespace emulator {
namespace {
void* contexts[1024];
void* scheduler;
}  // namespace

void start_fibre(unsigned number, void (*entry)()) {
    constexpr int CALLEE_SAVED = 6;
    auto* top = reinterpret_cast<uint64_t*>(stack_of(number + 1));
    *--top = 0;  // the address that `entry` would return to, and the alignment that a call leaves
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < CALLEE_SAVED; ++i) *--top = 0;
    contexts[number] = top;
}
void resume_fibre(unsigned number) { emulator_switch(&scheduler, contexts[number]); }
void suspend_fibre(unsigned number) { emulator_switch(&contexts[number], scheduler); }
}  // namespace emulator

#else
#include <ucontext.h>

namespace emulator {
namespace {
ucontext_t contexts[1024], scheduler;
}

void start_fibre(unsigned number, void (*entry)()) {
    getcontext(&contexts[number]);
    contexts[number].uc_stack.ss_sp = stack_of(number);
    contexts[number].uc_stack.ss_size = STACK_BYTES;
    contexts[number].uc_link = nullptr;
    makecontext(&contexts[number], entry, 0);
}
void resume_fibre(unsigned number) { swapcontext(&scheduler, &contexts[number]); }
void suspend_fibre(unsigned number) { swapcontext(&contexts[number], &scheduler); }
}  // namespace emulator
#endif
