// The state of the one launch under way, shared by the runtime's parts. Everything runs on one operating-system thread.
#ifndef XPCONV_EMULATOR_RUNTIME_H
#define XPCONV_EMULATOR_RUNTIME_H
#include <cstdint>
#include <cstring>
#include <vector>

#include "abi.h"

// Within the library these are plain variables and direct calls; only what abi.h declares is seen from outside.
#define HIDDEN __attribute__((visibility("hidden")))

namespace emulator HIDDEN {

constexpr size_t BEYOND_SHARED = 65536;  // bytes after a block's shared memory that belong to nobody
constexpr unsigned MAX_THREADS = 1024, WARP = 32, WARPGROUP = 4 * WARP;

// Where in a kernel something happened: a line known to the compiler, or an address for module.py to look up.
struct Site {
    const char* file;
    int line;
    const void* address;
    Site() : file(nullptr), line(0), address(nullptr) {}
    Site(const char* file, int line) : file(file), line(line), address(nullptr) {}
    explicit Site(const void* address) : file(nullptr), line(0), address(address) {}
};
inline bool same_line(const Site& a, const Site& b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

enum class State { ready, at_block_barrier, in_collective, at_transaction_barrier, finished };

// A cp.async that has been issued and not yet waited for. The data are held back until the wait.
struct PendingCopy {
    unsigned char* shared;
    unsigned bytes, group;
    unsigned char data[16];
    Site site;
};

// A wgmma that has been issued; it reads its operands when it is waited for, the latest moment the device may.
struct PendingProduct {
    float* accumulators;
    int columns;
    unsigned long long a, b;
    bool transposed_b;
    emulator_element element;
    unsigned group;
    Site site;
};

struct Thread {
    uint3 index;
    unsigned number, warp, lane;
    State state;
    Site waiting_at;
    unsigned clock;        // counts this thread's releases within the barrier interval; see order.h
    bool fenced;           // has executed __threadfence in this block
    uint64_t proxy_fence;  // the stamp of its latest fence_async_proxy
    unsigned copy_group, product_group;
    std::vector<PendingCopy> copies;
    std::vector<PendingProduct> products;
};

struct Block {
    uint3 index;
    unsigned finished, at_barrier, barrier_votes, last_barrier_votes;
};

extern emulator_launch_request launch;
extern Block block;
extern std::vector<Thread> threads;
extern Thread* current;  // null while the runtime itself works

// ---- runtime.cpp ----
void wait_here(State state, const Site& site);  // leaves the fibre until somebody makes it ready
[[noreturn]] void abandon_launch();             // leaves the fibre for good and ends the launch

// ---- collectives.cpp ----
void start_warps();
void leave_warp(const Thread& thread);
bool explain_stuck_warps();  // reports lanes that wait for one another under different masks
void issue_product(unsigned long long a, unsigned long long b, const Site& site);  // all lanes together
void meet_warpgroup(const Site& site, void (*at_meeting)(unsigned first_thread, unsigned argument), unsigned argument);

// ---- asynchronous.cpp ----
void start_asynchronous();
bool land_one_copy();  // completes one tensor copy; false when none is under way
void check_all_waited_for(const Thread& thread);
void check_all_landed();

// ---- tensor_core.cpp ----
// `accumulators` has one pointer for each of the warpgroup's 128 threads.
void run_product(const PendingProduct& product, float* const* accumulators);

}  // namespace emulator
#endif
