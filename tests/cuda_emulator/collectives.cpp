// Instructions that the lanes of a warp execute together: the last lane to arrive computes for all.

#include "checker.h"
#include "order.h"
#include "reports.h"
#include "tensor_core.h"

namespace emulator {
namespace {

constexpr unsigned SLOT_BYTES = 64;
using Slots = unsigned char[WARP][SLOT_BYTES];

// A collective that some lanes of a warp have called; disjoint sets of lanes may be in different ones.
struct Collective {
    unsigned mask;  // the lanes that it is for, of which those that have ended count as arrived
    unsigned arrived;
    const char* name;
    void (*compute)(Collective&);
    bool ordering;  // whether it also orders memory accesses
    Site site;
    struct Warp* warp;
};

struct Warp {
    Slots slots;     // each lane's operand, and afterwards its result
    unsigned alive;  // lanes that have not ended
    std::vector<Collective> open;
};
std::vector<Warp> warps;

unsigned arrived_of_warpgroup[MAX_THREADS / WARPGROUP];

bool everyone_arrived(const Collective& open) { return open.arrived == (open.mask & open.warp->alive); }

Thread& thread_of(const Collective& open, unsigned lane) {
    return threads[size_t(open.warp - warps.data()) * WARP + lane];
}

template <class F>
void for_each_lane(const Collective& open, F function) {
    for (unsigned lane = 0; lane < WARP; ++lane)
        if (open.arrived >> lane & 1) function(lane);
}

template <class T>
T& slot(Collective& open, unsigned lane) {
    return *reinterpret_cast<T*>(open.warp->slots[lane]);
}

void complete(Collective& open) {
    Thread* const caller = current;
    open.compute(open);
    current = caller;
    const auto number = unsigned(open.warp - warps.data());
    if (open.ordering && launch.checked) synchronise(number, number, open.arrived);
    for_each_lane(open, [&](unsigned lane) { thread_of(open, lane).state = State::ready; });
    std::vector<Collective>& all = open.warp->open;
    all.erase(all.begin() + (&open - all.data()));
}

// The collective of this mask that is under way, or a new one. Whoever names another mask waits in another.
Collective& find_or_open(Warp& warp, const Thread& thread, const Collective& wanted) {
    if (!(wanted.mask >> thread.lane & 1)) {
        report("WARP_MASK", wanted.site, "lane %u calls %s with mask %#010x, which does not name it", thread.lane,
               wanted.name, wanted.mask);
        abandon_launch();
    }
    for (Collective& open : warp.open) {
        if (open.mask != wanted.mask) continue;
        if (open.name == wanted.name && same_line(open.site, wanted.site)) return open;
        report("DIVERGENT_WARP", wanted.site, "lane %u calls %s while others of its warp are in %s of %s:%d,",
               thread.lane, wanted.name, open.name, open.site.file, open.site.line);
        abandon_launch();
    }
    warp.open.push_back(wanted);
    return warp.open.back();
}

// Joins the collective with an operand, and replaces it by this lane's result.
void collective(const char* name, unsigned mask, void* value, unsigned bytes, unsigned result_bytes,
                void (*compute)(Collective&), bool ordering, const Site& site) {
    Thread& self = *current;
    Warp& warp = warps[self.warp];
    Collective& open = find_or_open(warp, self, {mask, 0, name, compute, ordering, site, &warp});
    std::memcpy(warp.slots[self.lane], value, bytes);
    open.arrived |= 1u << self.lane;
    if (everyone_arrived(open))
        complete(open);
    else
        wait_here(State::in_collective, site);
    std::memcpy(value, warp.slots[self.lane], result_bytes);
}

void nothing(Collective&) {}

// ---- shuffles and votes ----

struct Shuffle {
    unsigned char value[16];
    int source;
};
void shuffle(Collective& open) {
    unsigned char results[WARP][16];
    for_each_lane(open, [&](unsigned lane) {
        const int source = slot<Shuffle>(open, lane).source & 31;
        if (!(open.arrived >> source & 1)) {
            current = &thread_of(open, lane);
            report("WARP_MASK", open.site, "lane %u reads from lane %d, which takes no part", lane, source);
            std::memset(results[lane], 0xff, 16);
            return;
        }
        std::memcpy(results[lane], slot<Shuffle>(open, unsigned(source)).value, 16);
    });
    for_each_lane(open, [&](unsigned lane) { std::memcpy(open.warp->slots[lane], results[lane], 16); });
}

void ballot(Collective& open) {
    unsigned votes = 0;
    for_each_lane(open, [&](unsigned lane) { votes |= slot<unsigned>(open, lane) << lane; });
    for_each_lane(open, [&](unsigned lane) { slot<unsigned>(open, lane) = votes; });
}

void match_any(Collective& open) {
    unsigned results[WARP];
    for_each_lane(open, [&](unsigned lane) {
        results[lane] = 0;
        for_each_lane(open, [&](unsigned other) {
            const bool equal = slot<uint64_t>(open, lane) == slot<uint64_t>(open, other);
            results[lane] |= unsigned(equal) << other;
        });
    });
    for_each_lane(open, [&](unsigned lane) { slot<unsigned>(open, lane) = results[lane]; });
}

// ---- fragments ----

// Lane 8 m + r names row r of 8 by 8 matrix m. A lane receives, of each matrix, two neighbours of row lane / 4 - or of
// column lane / 4 when transposed.
template <bool TRANSPOSED, int MATRICES>
void load_matrix(Collective& open) {
    const unsigned char* rows[WARP];
    for (unsigned lane = 0; lane < WARP; ++lane) rows[lane] = slot<const unsigned char*>(open, lane);
    for (unsigned lane = 0; lane < WARP; ++lane)
        for (int matrix = 0; matrix < MATRICES; ++matrix) {
            const unsigned outer = lane / 4, inner = lane % 4 * 2;
            const unsigned char* const* row = rows + 8 * matrix;
            unsigned char* result = open.warp->slots[lane] + 4 * matrix;
            if (TRANSPOSED) {
                std::memcpy(result, row[inner] + 2 * outer, 2);
                std::memcpy(result + 2, row[inner + 1] + 2 * outer, 2);
            } else
                std::memcpy(result, row[outer] + 2 * inner, 4);
        }
}

struct Fragments {
    float d[4];
    unsigned a[4], b[2];
};
static_assert(sizeof(Fragments) <= SLOT_BYTES, "a fragment must fit a slot");

template <emulator_element ELEMENT>
void multiply(Collective& open) {
    float (*d[WARP])[4];
    const unsigned *a[WARP], *b[WARP];
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto& fragments = slot<Fragments>(open, lane);
        d[lane] = &fragments.d;
        a[lane] = fragments.a;
        b[lane] = fragments.b;
    }
    multiply_fragments(d, a, b, ELEMENT);
}

// A product's descriptors are those of one instruction, so no lane may have its own.
struct Descriptors {
    unsigned long long a, b;
};
void compare_descriptors(Collective& open) {
    const auto& first = slot<Descriptors>(open, 0);
    for (unsigned lane = 1; lane < WARP; ++lane) {
        const auto& other = slot<Descriptors>(open, lane);
        if (other.a == first.a && other.b == first.b) continue;
        report("DIVERGENT_WARP", open.site, "lanes 0 and %u give different descriptors to one product", lane);
        return;
    }
}

}  // namespace

void issue_product(unsigned long long a, unsigned long long b, const Site& site) {
    Descriptors descriptors{a, b};
    collective("wgmma", ~0u, &descriptors, sizeof descriptors, 0, compare_descriptors, false, site);
}

// The four warps of a warpgroup advance through their products together, so that one thread may tell of all.
void meet_warpgroup(const Site& site, void (*at_meeting)(unsigned first_thread, unsigned argument), unsigned argument) {
    const unsigned group = current->number / WARPGROUP, first = group * WARPGROUP;
    if (first + WARPGROUP > threads.size()) {
        report("DIVERGENT_WARP", site, "waits for products in a warpgroup of less than 128 threads");
        abandon_launch();
    }
    if (++arrived_of_warpgroup[group] < WARPGROUP) {
        wait_here(State::in_collective, site);
        return;
    }
    arrived_of_warpgroup[group] = 0;
    at_meeting(first, argument);
    if (launch.checked) synchronise(first / WARP, first / WARP + 3, ~0u);
    for (unsigned number = first; number < first + WARPGROUP; ++number) threads[number].state = State::ready;
}

void start_warps() {
    std::memset(arrived_of_warpgroup, 0, sizeof arrived_of_warpgroup);
    warps.resize((threads.size() + WARP - 1) / WARP);
    for (Warp& warp : warps) {
        warp.open.clear();
        const size_t lanes = threads.size() - size_t(&warp - warps.data()) * WARP;
        warp.alive = lanes >= WARP ? ~0u : (1u << lanes) - 1;
    }
}

void leave_warp(const Thread& thread) {
    Warp& warp = warps[thread.warp];
    warp.alive &= ~(1u << thread.lane);
    for (size_t i = warp.open.size(); i-- > 0;)
        if (everyone_arrived(warp.open[i])) complete(warp.open[i]);
}

bool explain_stuck_warps() {
    for (const Warp& warp : warps)
        for (const Collective& open : warp.open)
            for (const Collective& other : warp.open) {
                if (&open == &other || !(open.mask & other.arrived)) continue;
                current = &thread_of(open, unsigned(__builtin_ctz(open.arrived)));
                report("WARP_MASK", open.site,
                       "names mask %#010x in %s while others of its warp name %#010x in %s of %s:%d,", open.mask,
                       open.name, other.mask, other.name, other.site.file, other.site.line);
                current = nullptr;
                return true;
            }
    return false;
}

}  // namespace emulator

using namespace emulator;

extern "C" {

void emulator_warp_barrier(unsigned mask, EMULATOR_SITE_PARAMETERS) {
    unsigned none = 0;
    collective("__syncwarp", mask, &none, 0, 0, nothing, true, Site(file, line));
}

void emulator_shuffle(unsigned mask, void* value, unsigned bytes, int source_lane, EMULATOR_SITE_PARAMETERS) {
    Shuffle operand{};
    std::memcpy(operand.value, value, bytes);
    operand.source = source_lane;
    collective("a shuffle", mask, &operand, sizeof operand, 16, shuffle, true, Site(file, line));
    std::memcpy(value, operand.value, bytes);
}

unsigned emulator_ballot(unsigned mask, int predicate, EMULATOR_SITE_PARAMETERS) {
    unsigned vote = predicate != 0;
    collective("a vote", mask, &vote, sizeof vote, sizeof vote, ballot, true, Site(file, line));
    return vote;
}

unsigned emulator_match_any(unsigned mask, unsigned long long value, EMULATOR_SITE_PARAMETERS) {
    collective("a match", mask, &value, sizeof value, sizeof(unsigned), match_any, true, Site(file, line));
    return unsigned(value);
}

void emulator_load_matrix(unsigned* registers, const void* row, int matrices, int transposed,
                          EMULATOR_SITE_PARAMETERS) {
    const Site site(file, line);
    const bool names_a_row = current->lane < 8u * unsigned(matrices);  // the other lanes' addresses are not used
    if (launch.checked && names_a_row) {
        check_alignment(row, 16, site);
        if (!within_shared_memory(row, 16)) {
            report("OUT_OF_BOUNDS", site, "loads a matrix row that is not in shared memory");
            abandon_launch();
        }
        check_access(row, 16, Access::read, site);
    }
    void (*const compute)(Collective&) = matrices == 4 ? (transposed ? load_matrix<true, 4> : load_matrix<false, 4>)
                                                       : (transposed ? load_matrix<true, 2> : load_matrix<false, 2>);
    unsigned results[4];
    std::memcpy(results, &row, sizeof row);
    collective("ldmatrix", ~0u, results, sizeof row, sizeof results, compute, false, site);
    std::memcpy(registers, results, sizeof(unsigned) * size_t(matrices));
}

void emulator_mma(float* d, const unsigned* a, const unsigned* b, emulator_element element, EMULATOR_SITE_PARAMETERS) {
    static void (*const COMPUTE[])(Collective&) = {multiply<EMULATOR_HALF>, multiply<EMULATOR_BFLOAT>,
                                                   multiply<EMULATOR_TF32>};
    Fragments operand;
    std::memcpy(operand.d, d, sizeof operand.d);
    std::memcpy(operand.a, a, sizeof operand.a);
    std::memcpy(operand.b, b, sizeof operand.b);
    collective("mma", ~0u, &operand, sizeof operand, sizeof operand.d, COMPUTE[element], false, Site(file, line));
    std::memcpy(d, operand.d, sizeof operand.d);
}
}
