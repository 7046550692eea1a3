// The rules that every access obeys. Two accesses to one byte, at least one a write and not both atomic, of which
// neither happened before the other (order.h), are a race - also when the order of the fibres hid it.
#ifndef XPCONV_EMULATOR_CHECKER_H
#define XPCONV_EMULATOR_CHECKER_H
#include "runtime.h"

namespace emulator HIDDEN {

enum class Access { read, write, atomic };

// ---- accesses by the current thread; a bad address abandons the launch, as the caller would go on to use it ----
void check_access(const void* address, unsigned bytes, Access access, const Site& site);
void check_alignment(const void* address, unsigned alignment, const Site& site);
void check_proxy(const void* shared, unsigned bytes, const Site& site);  // a product reads what threads have written

// ---- what happens to shared memory behind the threads ----
void begin_flight(const void* shared, unsigned bytes, const Site& site);
void end_flight(const void* shared, unsigned bytes, bool tensor_copy);
void mark_barrier(const void* barrier);
bool within_shared_memory(const void* pointer, unsigned bytes);
size_t shared_offset(const void* pointer);

}  // namespace emulator
#endif
