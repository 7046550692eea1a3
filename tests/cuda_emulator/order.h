// What happened before what: stamps of accesses, and what each thread knows of the others' progress.
//
// An access's stamp holds the barrier interval (a number that grows with every block, and with every __syncthreads of
// a block), the thread, and the thread's clock within the interval. It happened before what the current thread does now
// when its interval is an earlier one of the same block, when the thread is the same, or when the current thread has
// learnt of that clock: through __syncwarp, a shuffle or a vote, or a barrier in shared memory. Between the blocks of
// a launch there is no order, but for what an atomic after __threadfence tells a later block.
#ifndef XPCONV_EMULATOR_ORDER_H
#define XPCONV_EMULATOR_ORDER_H
#include "runtime.h"

namespace emulator HIDDEN {

// ---- stamps: interval:32 clock:17 thread:10 atomic:1 bytes:4 ----
using Stamp = uint64_t;
constexpr unsigned ATOMIC_SHIFT = 4, THREAD_SHIFT = 5, CLOCK_SHIFT = 15, INTERVAL_SHIFT = 32;
constexpr Stamp ATOMIC = 1u << ATOMIC_SHIFT, BYTES = ATOMIC - 1;
constexpr unsigned LAST_CLOCK = (1u << (INTERVAL_SHIFT - CLOCK_SHIFT)) - 1;
inline unsigned interval_of(Stamp stamp) { return unsigned(stamp >> INTERVAL_SHIFT); }
inline unsigned clock_of(Stamp stamp) { return unsigned(stamp >> CLOCK_SHIFT) & LAST_CLOCK; }
inline unsigned thread_of(Stamp stamp) { return unsigned(stamp >> THREAD_SHIFT) & (MAX_THREADS - 1); }
inline bool same_moment(Stamp a, Stamp b) { return (a ^ b) >> THREAD_SHIFT == 0; }

extern unsigned launch_interval, block_interval, interval;  // the first of the launch, of the block, and now
extern Stamp own_stamp;                                     // the current thread's, without bytes
extern const unsigned* own_row;  // the clocks it has learnt of in this interval, by thread; null when none

bool learnt_of_block(unsigned other_interval);

// Whether an access may come after what the current thread does now, or at the same time.
inline bool unordered(Stamp stamp, bool shared_memory) {
    const unsigned then = interval_of(stamp);
    if (then == interval) {
        const unsigned thread = thread_of(stamp);
        return thread != thread_of(own_stamp) && (!own_row || own_row[thread] < clock_of(stamp));
    }
    if (then >= block_interval || shared_memory) return false;
    return then >= launch_interval && !learnt_of_block(then);
}

// ---- progress ----
bool intervals_exhausted();
void restart_intervals();  // once every stamp has been forgotten
void order_start_launch();
void order_start_block();
void order_block_barrier();
void order_enter(const Thread& thread);  // the fibre that runs from now on
void tick(Thread& thread);               // what it does from now on is later than what it did

// ---- knowledge ----
struct Knowledge {
    unsigned interval = 0;  // the one that it is about
    std::vector<unsigned> clocks;
};
void synchronise(unsigned first_warp, unsigned last_warp, unsigned lanes);  // those lanes of each of these warps
void join(Knowledge& knowledge, const Knowledge& more);
void release_to(Knowledge& knowledge);          // what the current thread did and knows
void acquire_from(const Knowledge& knowledge);  // to the current thread
void meet_atomically(const void* address);      // an atomic on global memory: learns, and tells if it has fenced

}  // namespace emulator
#endif
