// Shadow memory: for each word that a kernel may touch, which of its bytes hold a value and who touched it last.
#ifndef XPCONV_EMULATOR_SHADOW_H
#define XPCONV_EMULATOR_SHADOW_H
#include <mutex>
#include <string>

#include "order.h"

namespace emulator HIDDEN {

// One word of 4 bytes. Two of each, since different threads may own different bytes.
struct Cell {
    Stamp writes[2], reads[2];
};

// A word's state: which of its bytes hold a value, and marks that shared memory alone has. What a tensor copy wrote
// needs no fence before a product reads it.
constexpr uint8_t VALUE = 0x0f, IN_FLIGHT = 0x10, BARRIER = 0x20, BY_TENSOR_COPY = 0x40;
static_assert(VALUE == BYTES, "a stamp and a state name bytes alike");

struct Region {
    uintptr_t begin = 0;
    size_t bytes = 0;
    bool shared = false;
    Cell* cells = nullptr;
    uint8_t* state = nullptr;
};

extern Region shared;  // of the block that runs; it begins at 0 when none does

Region* find_allocation(uintptr_t address);                 // null when it lies in none
std::string nearest_allocation(uintptr_t address);          // in words
std::string describe(const Region& region, size_t offset);  // likewise

void shadow_start_launch();
void shadow_start_block(const unsigned char* shared_memory, size_t bytes);
void shadow_end_launch();
std::unique_lock<std::mutex> hold_allocations();  // memory comes and goes only between launches

}  // namespace emulator
#endif
