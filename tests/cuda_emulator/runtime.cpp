// Launches: blocks one after another, and within a block the fibres in turn, each until it waits or ends.
#include "runtime.h"

#include <sys/mman.h>

#include <cstdlib>

#include "fibres.h"
#include "reports.h"
#include "shadow.h"

namespace emulator {

emulator_launch_request launch;
Block block;
std::vector<Thread> threads;
Thread* current = nullptr;

namespace {

bool abandoned;
unsigned char* shared_memory;
constexpr size_t SHARED_ALIGNMENT = 1024, SHARED_CAPACITY = 256 * 1024;

void provide_shared_memory() {
    if (shared_memory) return;
    shared_memory = static_cast<unsigned char*>(std::aligned_alloc(SHARED_ALIGNMENT, SHARED_CAPACITY + BEYOND_SHARED));
    std::memset(shared_memory, 0xff, SHARED_CAPACITY + BEYOND_SHARED);  // unwritten floating numbers are NaN
}

void run_thread() {
    launch.entry(launch.argument);
    current->state = State::finished;
    ++block.finished;
    if (launch.checked) check_all_waited_for(*current);
    leave_warp(*current);
    suspend_fibre(current->number);
    std::abort();
}

void start_thread(unsigned number) {
    Thread& thread = threads[number];
    const uint3 size = launch.block;
    thread.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
    thread.number = number;
    thread.warp = number / WARP;
    thread.lane = number % WARP;
    thread.state = State::ready;
    thread.clock = 1;
    thread.fenced = false;
    thread.proxy_fence = 0;
    thread.copy_group = thread.product_group = 0;
    thread.copies.clear();
    thread.products.clear();
    start_fibre(number, run_thread);
}

void resume(Thread& thread) {
    current = &thread;
    order_enter(thread);
    resume_fibre(thread.number);
    current = nullptr;
}

bool run_ready_threads() {
    bool any = false;
    const unsigned count = unsigned(threads.size());
    for (unsigned i = 0; i < count && !abandoned; ++i) {
        Thread& thread = threads[launch.reverse ? count - 1 - i : i];
        if (thread.state != State::ready) continue;
        resume(thread);
        any = true;
    }
    return any;
}

void check_one_barrier_line() {
    const Thread* first = nullptr;
    for (Thread& thread : threads) {
        if (thread.state != State::at_block_barrier) continue;
        if (!first) first = &thread;
        if (same_line(first->waiting_at, thread.waiting_at)) continue;
        current = &thread;
        report("DIVERGENT_BARRIER", thread.waiting_at, "waits here while thread %u waits at %s:%d", first->number,
               first->waiting_at.file, first->waiting_at.line);
        current = nullptr;
        return;
    }
}

void release_block_barrier() {
    if (launch.checked) check_one_barrier_line();
    block.last_barrier_votes = block.barrier_votes;
    block.barrier_votes = block.at_barrier = 0;
    order_block_barrier();
    for (Thread& thread : threads)
        if (thread.state == State::at_block_barrier) thread.state = State::ready;
}

void report_deadlock() {
    static const char* const WHAT[] = {"", "__syncthreads", "a collective of its warp", "a barrier in shared memory",
                                       ""};
    if (explain_stuck_warps()) return;
    const Site* last = nullptr;
    for (Thread& thread : threads) {
        if (thread.state == State::finished || (last && same_line(*last, thread.waiting_at))) continue;
        current = &thread;
        report("DEADLOCK", thread.waiting_at, "waits for ever in %s", WHAT[int(thread.state)]);
        last = &thread.waiting_at;
    }
    current = nullptr;
}

void run_block(uint3 index) {
    block = Block{index, 0, 0, 0, 0};
    const unsigned count = unsigned(threads.size());
    for (unsigned number = 0; number < count; ++number) start_thread(number);
    start_warps();
    start_asynchronous();
    order_start_block();
    shadow_start_block(shared_memory, launch.shared_bytes);
    while (!abandoned) {
        const bool progress = run_ready_threads();
        if (abandoned || block.finished == count) break;
        if (block.at_barrier && block.finished + block.at_barrier == count)
            release_block_barrier();
        else if (!progress && !land_one_copy()) {
            report_deadlock();
            abandoned = true;
        }
    }
    if (!abandoned) check_all_landed();
}

void run_grid() {
    const uint3 grid = launch.grid;
    const unsigned long long count = 1ull * grid.x * grid.y * grid.z;
    for (unsigned long long i = 0; i < count && !abandoned; ++i) {
        const unsigned long long number = launch.reverse ? count - 1 - i : i;
        run_block({unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)});
    }
}

}  // namespace

void wait_here(State state, const Site& site) {
    Thread& self = *current;
    self.state = state;
    self.waiting_at = site;
    suspend_fibre(self.number);
}

void abandon_launch() {
    abandoned = true;
    if (!current) std::abort();
    suspend_fibre(current->number);
    std::abort();
}

}  // namespace emulator

using namespace emulator;

extern "C" {

void emulator_launch(const emulator_launch_request* request) {
    const auto memory_stays = hold_allocations();
    launch = *request;
    abandoned = false;
    const unsigned count = launch.block.x * launch.block.y * launch.block.z;
    threads.resize(count);
    provide_fibres(count);
    provide_shared_memory();
    start_reports();
    shadow_start_launch();
    order_start_launch();
    run_grid();
    shadow_end_launch();
    current = nullptr;
}

uint3 emulator_thread_index() { return current->index; }
uint3 emulator_block_index() { return block.index; }
uint3 emulator_block_size() { return launch.block; }
uint3 emulator_grid_size() { return launch.grid; }
unsigned emulator_lane() { return current->lane; }
unsigned char* emulator_shared_memory() { return shared_memory; }

int emulator_block_barrier(int predicate, EMULATOR_SITE_PARAMETERS) {
    ++block.at_barrier;
    block.barrier_votes += predicate != 0;
    wait_here(State::at_block_barrier, Site(file, line));
    return int(block.last_barrier_votes);
}

void emulator_trap(EMULATOR_SITE_PARAMETERS) {
    report("TRAP", Site(file, line), "the kernel stops itself");
    abandon_launch();
}
}
