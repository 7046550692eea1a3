#include "order.h"

#include <algorithm>
#include <map>

namespace emulator {

unsigned launch_interval = 1, block_interval = 1, interval = 1;
Stamp own_stamp;
const unsigned* own_row;

namespace {

constexpr unsigned LAST_INTERVAL = 0xf0000000u;

// known[thread][other] is the other's latest clock that happened before, in this interval ----
std::vector<unsigned> known;
std::vector<unsigned> known_interval;  // the interval for which a thread's row holds
bool beyond_warps;                     // whether clocks travel from warp to warp within an interval of this block

unsigned* row_of(unsigned thread) {
    unsigned* row = known.data() + size_t(thread) * threads.size();
    if (known_interval[thread] != interval) {
        std::fill(row, row + threads.size(), 0u);
        known_interval[thread] = interval;
    }
    return row;
}

// Blocks of this launch that told of themselves through an atomic, by its address; and those that this one learnt of.
struct Told {
    unsigned first, last;  // intervals
};
std::map<const void*, std::vector<Told>> told;
std::vector<Told> learnt;

}  // namespace

bool learnt_of_block(unsigned other_interval) {
    for (const Told& block : learnt)
        if (other_interval >= block.first && other_interval <= block.last) return true;
    return false;
}

// ---- progress ----

bool intervals_exhausted() { return interval >= LAST_INTERVAL; }
void restart_intervals() { interval = 1; }

void order_start_launch() {
    launch_interval = ++interval;
    told.clear();
}

void order_start_block() {
    block_interval = ++interval;
    learnt.clear();
    beyond_warps = false;
    if (known.size() != threads.size() * threads.size()) known.assign(threads.size() * threads.size(), 0);
    known_interval.assign(threads.size(), 0);
}

void order_block_barrier() {
    ++interval;
    for (Thread& thread : threads) thread.clock = 1;
}

void order_enter(const Thread& thread) {
    own_stamp =
        Stamp(interval) << INTERVAL_SHIFT | Stamp(thread.clock) << CLOCK_SHIFT | Stamp(thread.number) << THREAD_SHIFT;
    own_row = known_interval[thread.number] == interval ? row_of(thread.number) : nullptr;
}

void tick(Thread& thread) {
    if (thread.clock < LAST_CLOCK) ++thread.clock;
    if (&thread == current) order_enter(thread);
}

// ---- knowledge ----

void synchronise(unsigned first_warp, unsigned last_warp, unsigned lanes) {
    const unsigned begin = first_warp * WARP, count = unsigned(threads.size()),
                   end = std::min((last_warp + 1) * WARP, count);
    // Unless barriers in shared memory have been used, nobody knows of threads in other warps.
    const unsigned first = beyond_warps ? 0 : begin, last = beyond_warps ? count : end;
    static unsigned joined[MAX_THREADS];
    std::fill(joined + first, joined + last, 0u);
    for (unsigned thread = begin; thread < end; ++thread) {
        if (!(lanes >> thread % WARP & 1)) continue;
        if (known_interval[thread] == interval) {
            const unsigned* row = row_of(thread);
            for (unsigned i = first; i < last; ++i) joined[i] = std::max(joined[i], row[i]);
        }
        joined[thread] = std::max(joined[thread], threads[thread].clock);
    }
    for (unsigned thread = begin; thread < end; ++thread) {
        if (!(lanes >> thread % WARP & 1)) continue;
        std::copy(joined + first, joined + last, row_of(thread) + first);
        tick(threads[thread]);
    }
}

void join(Knowledge& knowledge, const Knowledge& more) {
    if (more.interval != interval) return;  // older, so a barrier of the block has told everyone
    if (knowledge.interval != interval) {
        knowledge = more;
        return;
    }
    for (size_t i = 0; i < knowledge.clocks.size(); ++i)
        knowledge.clocks[i] = std::max(knowledge.clocks[i], more.clocks[i]);
}

void release_to(Knowledge& knowledge) {
    beyond_warps = true;
    const unsigned own = current->number, *row = row_of(own);
    Knowledge released{interval, std::vector<unsigned>(row, row + threads.size())};
    released.clocks[own] = current->clock;
    join(knowledge, released);
    tick(*current);
}

void acquire_from(const Knowledge& knowledge) {
    if (knowledge.interval != interval) return;
    unsigned* row = row_of(current->number);
    for (size_t i = 0; i < knowledge.clocks.size(); ++i) row[i] = std::max(row[i], knowledge.clocks[i]);
    order_enter(*current);
}

void meet_atomically(const void* address) {
    std::vector<Told>& list = told[address];
    for (const Told& other : list)
        if (other.last < block_interval) learnt.push_back(other);
    if (current->fenced && (list.empty() || list.back().last != interval)) list.push_back({block_interval, interval});
}

}  // namespace emulator

extern "C" void emulator_fence() { emulator::current->fenced = true; }
