#include "shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace emulator {

Region shared;

namespace {

std::vector<Region*> allocations;  // by address
std::mutex allocations_mutex;
constexpr unsigned RECENT = 64, PAGE_SHIFT = 12;
Region* recent[RECENT];  // by page

void map_shadow(Region& region) {
    const size_t words = region.bytes / 4 + 2;
    void* memory = mmap(nullptr, words * (sizeof(Cell) + 1), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("cuda_emulator: no memory for the shadow");
        std::abort();
    }
    region.cells = static_cast<Cell*>(memory);
    region.state = reinterpret_cast<uint8_t*>(region.cells + words);
}

void unmap_shadow(Region& region) {
    if (region.cells) munmap(region.cells, (region.bytes / 4 + 2) * (sizeof(Cell) + 1));
    region.cells = nullptr;
}

// The first allocation that ends beyond the address; it holds the address if it also begins before.
std::vector<Region*>::iterator first_ending_after(uintptr_t address) {
    return std::upper_bound(
        allocations.begin(), allocations.end(), address,
        [](uintptr_t wanted, const Region* region) { return wanted < region->begin + region->bytes; });
}

void forget_recent() { std::fill(recent, recent + RECENT, nullptr); }

void forget_stamps(Region& region) {
    if (region.cells) std::memset(region.cells, 0, (region.bytes / 4 + 1) * sizeof(Cell));
}

std::string in_words(size_t distance, const char* where, const Region& region) {
    char text[128];
    std::snprintf(text, sizeof text, "%zu bytes %s a global array of %zu bytes", distance, where, region.bytes);
    return text;
}

}  // namespace

Region* find_allocation(uintptr_t address) {
    Region*& slot = recent[address >> PAGE_SHIFT & (RECENT - 1)];
    if (slot && address - slot->begin < slot->bytes) return slot;
    const auto found = first_ending_after(address);
    if (found == allocations.end() || address < (*found)->begin) return nullptr;
    return slot = *found;
}

std::string nearest_allocation(uintptr_t address) {
    constexpr uintptr_t FIRST_PAGE = 4096;
    if (address < FIRST_PAGE) return "through a null pointer";
    const auto after = first_ending_after(address);
    const bool any_after = after != allocations.end(), any_before = after != allocations.begin();
    if (!any_after && !any_before) return "where no array is";
    const size_t until = any_after ? (*after)->begin - address : SIZE_MAX;
    const size_t past = any_before ? address - ((*(after - 1))->begin + (*(after - 1))->bytes) : SIZE_MAX;
    return past <= until ? in_words(past, "past the end of", **(after - 1)) : in_words(until, "before", **after);
}

std::string describe(const Region& region, size_t offset) {
    char text[96];
    if (region.shared)
        std::snprintf(text, sizeof text, "shared memory at byte %zu", offset);
    else
        std::snprintf(text, sizeof text, "byte %zu of a global array of %zu bytes", offset, region.bytes);
    return text;
}

void shadow_start_launch() {
    if (!intervals_exhausted()) return;
    for (Region* region : allocations) forget_stamps(*region);
    forget_stamps(shared);
    restart_intervals();
}

void shadow_start_block(const unsigned char* shared_memory, size_t bytes) {
    if (!shared.cells || shared.bytes != bytes) {
        unmap_shadow(shared);
        shared.bytes = bytes;
        map_shadow(shared);
    }
    shared.shared = true;
    shared.begin = reinterpret_cast<uintptr_t>(shared_memory);
    std::memset(shared.state, 0, bytes / 4 + 1);
}

void shadow_end_launch() {
    shared.begin = 0;
    if (launch.checked) return;
    // Nobody watched what was written, so everything may have been.
    for (Region* region : allocations) std::memset(region->state, VALUE, region->bytes / 4 + 1);
}

std::unique_lock<std::mutex> hold_allocations() { return std::unique_lock<std::mutex>(allocations_mutex); }

}  // namespace emulator

using namespace emulator;

// ---- for memory.py ----

extern "C" {

void emulator_register(uintptr_t address, size_t bytes, int initialised) {
    const auto lock = hold_allocations();
    auto* region = new Region;
    region->begin = address;
    region->bytes = bytes;
    map_shadow(*region);
    if (initialised) std::memset(region->state, VALUE, bytes / 4 + 1);
    allocations.insert(first_ending_after(address), region);
    forget_recent();
}

void emulator_unregister(uintptr_t address) {
    const auto lock = hold_allocations();
    const auto found = first_ending_after(address);
    if (found == allocations.end() || (*found)->begin != address) return;
    unmap_shadow(**found);
    delete *found;
    allocations.erase(found);
    forget_recent();
}

void emulator_mark_initialised(uintptr_t address, size_t bytes) {
    const auto lock = hold_allocations();
    const Region* region = find_allocation(address);
    if (!region) return;
    const size_t first = address - region->begin, last = std::min(first + bytes, region->bytes);
    for (size_t byte = first; byte < last;) {
        if (byte % 4 == 0 && byte + 4 <= last) {
            const size_t words = (last - byte) / 4;
            std::memset(region->state + byte / 4, VALUE, words);
            byte += words * 4;
        } else {
            region->state[byte / 4] |= uint8_t(1u << byte % 4);
            ++byte;
        }
    }
}

// The offset from `address` of the first byte without a value, or -1; memory that is not ours counts as written.
long long emulator_first_uninitialised(uintptr_t address, size_t bytes) {
    const auto lock = hold_allocations();
    const Region* region = find_allocation(address);
    if (!region) return -1;
    const size_t first = address - region->begin, last = std::min(first + bytes, region->bytes);
    for (size_t byte = first; byte < last;) {
        const uint8_t state = region->state[byte / 4];
        if (byte % 4 == 0 && state == VALUE)
            byte += 4;
        else if (state >> byte % 4 & 1)
            ++byte;
        else
            return (long long)(byte - first);
    }
    return -1;
}
}
