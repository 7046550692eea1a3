// The arithmetic of a tensor core, and the layouts of its fragments.
#ifndef XPCONV_EMULATOR_TENSOR_CORE_H
#define XPCONV_EMULATOR_TENSOR_CORE_H
#include "runtime.h"

namespace emulator HIDDEN {

// One mma of a warp: 16 by 8 accumulators, 16 (or 8, for tf32) products each. One pointer a lane; accumulates in place.
void multiply_fragments(float (*const* d)[4], const unsigned* const* a, const unsigned* const* b,
                        emulator_element element);

}  // namespace emulator
#endif
