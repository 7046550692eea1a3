// One fibre per CUDA thread: a stack of its own and a switch that saves what the calling convention demands.
#ifndef XPCONV_EMULATOR_FIBRES_H
#define XPCONV_EMULATOR_FIBRES_H
#include <cstddef>
#include <cstdint>

#include "runtime.h"

namespace emulator HIDDEN {

// The stacks lie in one mapping, so that the checker can dismiss an access to a local variable by one comparison.
extern uintptr_t stacks_begin;
extern size_t stacks_bytes;

void provide_fibres(unsigned count);
void start_fibre(unsigned number, void (*entry)());  // it runs at its first resumption; `entry` must not return
void resume_fibre(unsigned number);                  // from the scheduler; returns when the fibre suspends
void suspend_fibre(unsigned number);                 // from the fibre, back to the scheduler

}  // namespace emulator
#endif
