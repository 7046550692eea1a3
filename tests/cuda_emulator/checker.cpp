#include "checker.h"

#include <algorithm>

#include "fibres.h"
#include "reports.h"
#include "shadow.h"

namespace emulator {
namespace {

const char* verb(Access access) {
    return access == Access::read ? "reads" : access == Access::write ? "writes" : "atomically updates";
}

[[noreturn]] void leaves_region(const Region& region, size_t offset, unsigned bytes, Access access, const Site& site) {
    report("OUT_OF_BOUNDS", site, "%s %u bytes at byte %zu of %s of %zu bytes", verb(access), bytes, offset,
           region.shared ? "shared memory" : "a global array", region.bytes);
    abandon_launch();
}

__attribute__((cold)) void race(Stamp other, bool other_wrote, const Region& region, size_t word, Access access,
                                const Site& site) {
    const char* did = other_wrote ? "wrote" : "read";
    const std::string where = describe(region, word * 4);
    if (interval_of(other) < block_interval)
        report("RACE", site, "%s %s, which another block %s in this launch", verb(access), where.c_str(), did);
    else
        report("RACE", site, "%s %s, which thread %u %s with no barrier between", verb(access), where.c_str(),
               thread_of(other), did);
    if (too_many_reports()) abandon_launch();
}

inline void look_for_race(const Stamp (&others)[2], bool they_wrote, Stamp stamp, const Region& region, size_t word,
                          Access access, const Site& site) {
    for (const Stamp other : others) {
        if (!(other & stamp & VALUE) || same_moment(other, stamp)) continue;
        if (other & stamp & ATOMIC) continue;
        if (unordered(other, region.shared)) race(other, they_wrote, region, word, access, site);
    }
}

// Keeps the newcomer, and of the older two the one that a later access could still race with.
inline void note(Stamp (&slots)[2], Stamp stamp, const Region& region) {
    for (Stamp& slot : slots) {
        if ((slot ^ stamp) >> ATOMIC_SHIFT == 0) {
            slot |= stamp & VALUE;
            return;
        }
        if (!unordered(slot, region.shared)) {
            slot = stamp;
            return;
        }
    }
    const bool same_warp = thread_of(slots[0]) / WARP == thread_of(stamp) / WARP && interval_of(slots[0]) == interval;
    slots[same_warp ? 0 : 1] = stamp;
}

__attribute__((cold)) void wrong_state(uint8_t& state, uint8_t bytes, const Region& region, size_t word, Access access,
                                       const Site& site) {
    const std::string where = describe(region, word * 4);
    if (state & BARRIER)
        report("BARRIER_MISUSE", site, "%s %s, where a barrier lies", verb(access), where.c_str());
    else if (state & IN_FLIGHT)
        report("ASYNC", site, "%s %s while an asynchronous copy into it is in flight", verb(access), where.c_str());
    else if (access != Access::write)
        report("UNINITIALISED", site, "%s %s, which nobody has written", verb(access), where.c_str());
    state |= bytes;  // reported once
    if (too_many_reports()) abandon_launch();
}

inline void check_word(Region& region, size_t word, uint8_t bytes, Access access, const Site& site) {
    uint8_t& state = region.state[word];
    Cell& cell = region.cells[word];
    const Stamp stamp = own_stamp | bytes | (access == Access::atomic ? ATOMIC : 0);
    const uint8_t wanted = access == Access::write ? 0 : bytes;
    if ((state & (IN_FLIGHT | BARRIER | wanted)) != wanted) wrong_state(state, bytes, region, word, access, site);
    look_for_race(cell.writes, true, stamp, region, word, access, site);
    if (access == Access::read) {
        note(cell.reads, stamp, region);
        return;
    }
    look_for_race(cell.reads, false, stamp, region, word, access, site);
    note(cell.writes, stamp, region);
    state = uint8_t((state | bytes) & ~BY_TENSOR_COPY);
}

inline void check_region(Region& region, size_t offset, unsigned bytes, Access access, const Site& site) {
    const size_t end = offset + bytes;
    for (size_t word = offset / 4; word * 4 < end; ++word) {
        const size_t first = std::max(offset, word * 4), last = std::min(end, word * 4 + 4);
        check_word(region, word, uint8_t(((1u << (last - first)) - 1) << (first & 3)), access, site);
    }
}

// The region of an address; null when it is a table of constants in the kernel's own library.
Region* region_of(uintptr_t address, unsigned bytes, Access access, const Site& site) {
    if (Region* const allocation = find_allocation(address)) return allocation;
    const auto library = reinterpret_cast<uintptr_t>(launch.library_begin);
    if (address - library < size_t(launch.library_end - launch.library_begin)) return nullptr;
    if (shared.begin && address - shared.begin < shared.bytes + BEYOND_SHARED)
        leaves_region(shared, address - shared.begin, bytes, access, site);
    report("OUT_OF_BOUNDS", site, "%s %u bytes %s", verb(access), bytes, nearest_allocation(address).c_str());
    abandon_launch();
}

// The hot path: called before every load and store that the compiler instrumented.
inline void check(uintptr_t address, unsigned bytes, Access access, const Site& site) {
    if (!current || address - stacks_begin < stacks_bytes) return;
    Region* region = &shared;
    if (address - shared.begin >= shared.bytes) {
        region = region_of(address, bytes, access, site);
        if (!region) return;
    }
    const size_t offset = address - region->begin;
    if (offset + bytes > region->bytes) leaves_region(*region, offset, bytes, access, site);
    if (bytes == 4 && (offset & 3) == 0)
        check_word(*region, offset / 4, VALUE, access, site);
    else
        check_region(*region, offset, bytes, access, site);
}

void set_state(const void* pointer, unsigned bytes, uint8_t set, uint8_t clear) {
    const size_t first = shared_offset(pointer);
    for (size_t word = first / 4; word * 4 < first + bytes; ++word)
        shared.state[word] = uint8_t((shared.state[word] & ~clear) | set);
}

}  // namespace

void check_access(const void* address, unsigned bytes, Access access, const Site& site) {
    if (launch.checked) check(reinterpret_cast<uintptr_t>(address), bytes, access, site);
}

void check_alignment(const void* address, unsigned alignment, const Site& site) {
    if (reinterpret_cast<uintptr_t>(address) % alignment == 0) return;
    report("MISALIGNED", site, "address %p is not a multiple of %u bytes", address, alignment);
    abandon_launch();
}

size_t shared_offset(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) - shared.begin; }

bool within_shared_memory(const void* pointer, unsigned bytes) {
    const size_t offset = shared_offset(pointer);
    return offset < shared.bytes && offset + bytes <= shared.bytes;
}

void begin_flight(const void* pointer, unsigned bytes, const Site& site) {
    if (!within_shared_memory(pointer, bytes)) {
        report("OUT_OF_BOUNDS", site, "copies %u bytes to byte %zd of shared memory of %zu bytes", bytes,
               ptrdiff_t(shared_offset(pointer)), shared.bytes);
        abandon_launch();
    }
    check_access(pointer, bytes, Access::write, site);
    set_state(pointer, bytes, IN_FLIGHT, 0);
}

void end_flight(const void* pointer, unsigned bytes, bool tensor_copy) {
    set_state(pointer, bytes, tensor_copy ? VALUE | BY_TENSOR_COPY : VALUE, IN_FLIGHT);
}

void check_proxy(const void* pointer, unsigned bytes, const Site& site) {
    if (!launch.checked) return;
    const size_t first = shared_offset(pointer);
    for (size_t word = first / 4; word * 4 < first + bytes; ++word) {
        if (shared.state[word] & BY_TENSOR_COPY) continue;
        for (const Stamp write : shared.cells[word].writes) {
            if (interval_of(write) < block_interval || write < threads[thread_of(write)].proxy_fence) continue;
            report("PROXY", site, "a product reads %s, which thread %u wrote without fence_async_proxy after it",
                   describe(shared, word * 4).c_str(), thread_of(write));
        }
    }
}

void mark_barrier(const void* barrier) { set_state(barrier, 8, BARRIER | VALUE, 0); }

}  // namespace emulator

using namespace emulator;

extern "C" {

void emulator_atomic_access(const void* address, unsigned bytes, EMULATOR_SITE_PARAMETERS) {
    if (!launch.checked) return;
    const Site site(file, line);
    check_alignment(address, bytes, site);
    check(reinterpret_cast<uintptr_t>(address), bytes, Access::atomic, site);
    if (!within_shared_memory(address, bytes)) meet_atomically(address);
}

void emulator_fence_async_proxy() {
    if (!launch.checked) return;
    tick(*current);  // earlier writes have smaller stamps from here on
    current->proxy_fence = own_stamp;
}

// ---- hooks of -fsanitize=thread; libtsan is not linked ----

#define SITE Site(__builtin_return_address(0))
#define HOOKS(prefix, bytes)                                                                       \
    void __tsan_##prefix##read##bytes(void* p) { check(uintptr_t(p), bytes, Access::read, SITE); } \
    void __tsan_##prefix##write##bytes(void* p) { check(uintptr_t(p), bytes, Access::write, SITE); }
HOOKS(, 1)
HOOKS(, 2)
HOOKS(, 4)
HOOKS(, 8)
HOOKS(, 16)
HOOKS(unaligned_, 2)
HOOKS(unaligned_, 4)
HOOKS(unaligned_, 8)
HOOKS(unaligned_, 16)
void __tsan_read_range(void* p, unsigned long bytes) { check(uintptr_t(p), unsigned(bytes), Access::read, SITE); }
void __tsan_write_range(void* p, unsigned long bytes) { check(uintptr_t(p), unsigned(bytes), Access::write, SITE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
