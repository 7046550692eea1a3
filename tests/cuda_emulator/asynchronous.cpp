// What happens behind the threads: cp.async, barriers in shared memory, tensor copies, and the products of warpgroups.
//
// All of it takes effect as late as the device may let it: a cp.async when it is waited for, a tensor copy when nobody
// can run without it, a product when it is waited for. A missing wait then shows as a wrong value or as a report.
#include <algorithm>
#include <deque>
#include <map>

#include "checker.h"
#include "order.h"
#include "reports.h"
#include "tensor_map.h"

namespace emulator {
namespace {

// ---- barriers in shared memory ----

struct TransactionBarrier {
    unsigned count, missing;  // arrivals a phase needs, and still needs
    long long bytes;          // that copies have yet to deliver in this phase
    unsigned phase;
    Stamp initialised;            // when
    Knowledge arriving, visible;  // what arrivals and copies made known, and of that what completed phases did
};
std::map<unsigned char*, TransactionBarrier> barriers;

struct TensorCopy {
    unsigned char* shared;
    std::vector<unsigned char> data;
    unsigned char* barrier;
    Knowledge knowledge;  // of the thread that asked for it, at that moment
    Site site;
};
std::deque<TensorCopy> copies;

void wake_waiting_threads() {
    for (Thread& thread : threads)
        if (thread.state == State::at_transaction_barrier) thread.state = State::ready;
}

void complete_phase_if_due(TransactionBarrier& barrier) {
    if (barrier.missing || barrier.bytes) return;
    ++barrier.phase;
    barrier.missing = barrier.count;
    barrier.visible = barrier.arriving;
    wake_waiting_threads();
}

TransactionBarrier& barrier_at(void* address, const Site& site) {
    auto* const key = static_cast<unsigned char*>(address);
    if (!launch.checked) return barriers[key];
    check_alignment(address, 8, site);
    const auto found = barriers.find(key);
    if (found == barriers.end() || unordered(found->second.initialised, true)) {
        report("BARRIER_MISUSE", site, "uses a barrier that nobody has initialised before");
        abandon_launch();
    }
    return found->second;
}

// ---- tensor copies ----

struct Coordinates {
    long long at[5];
};

const unsigned char* element_address(const TensorMapContents& map, const Coordinates& element) {
    long long offset = element.at[0] * map.element_bytes;
    for (int dimension = 0; dimension < map.rank; ++dimension) {
        if (element.at[dimension] < 0 || element.at[dimension] >= (long long)map.sizes[dimension]) return nullptr;
        if (dimension) offset += element.at[dimension] * (long long)map.strides[dimension - 1];
    }
    return reinterpret_cast<const unsigned char*>(map.address) + offset;
}

// Copies a run of elements along the innermost dimension, filling where it leaves the tensor.
void append_run(std::vector<unsigned char>& data, const TensorMapContents& map, Coordinates element, int count,
                const Site& site) {
    const size_t bytes = size_t(count) * map.element_bytes, end = data.size();
    const long long first = element.at[0], last = first + count, size = map.sizes[0];
    data.resize(end + bytes, map.nan_fill ? 0xff : 0);
    element.at[0] = std::max(first, 0LL);
    const unsigned char* source = element_address(map, element);
    if (!source || last <= element.at[0]) return;
    const long long present = std::min(last, size) - element.at[0];
    check_access(source, unsigned(present * map.element_bytes), Access::read, site);
    std::memcpy(data.data() + end + size_t(element.at[0] - first) * map.element_bytes, source,
                size_t(present) * map.element_bytes);
}

void gather_tile(std::vector<unsigned char>& data, const TensorMapContents& map, const Coordinates& start,
                 const Site& site) {
    int rows = 1;
    for (int dimension = 1; dimension < map.rank; ++dimension) rows *= map.box[dimension];
    for (int row = 0; row < rows; ++row) {
        Coordinates element = start;
        for (int dimension = 1, rest = row; dimension < map.rank; ++dimension) {
            element.at[dimension] += (long long)(rest % map.box[dimension]) * map.element_strides[dimension];
            rest /= map.box[dimension];
        }
        append_run(data, map, element, map.box[0], site);
    }
}

// Pixels walk through the box of pixels, width first, and on to the next image; the offsets shift what is read there.
void gather_im2col(std::vector<unsigned char>& data, const TensorMapContents& map, Coordinates pixel,
                   const unsigned short* offsets, const Site& site) {
    const int spatial = map.rank - 2;
    for (int i = 0; i < map.pixels; ++i) {
        Coordinates element = pixel;
        for (int axis = 0; axis < spatial; ++axis) element.at[axis + 1] += offsets[axis];
        append_run(data, map, element, map.channels, site);
        int axis = 0;
        for (; axis < spatial; ++axis) {
            pixel.at[axis + 1] += map.element_strides[axis + 1];
            if (pixel.at[axis + 1] < (long long)map.sizes[axis + 1] + map.upper[axis]) break;
            pixel.at[axis + 1] = map.lower[axis];
        }
        if (axis == spatial) ++pixel.at[spatial + 1];
    }
}

// The device permutes the 16-byte chunks of a row by bits of the address in shared memory.
size_t swizzled(size_t offset, unsigned swizzle_bytes) {
    if (!swizzle_bytes) return offset;
    return offset ^ ((offset >> 7 & (swizzle_bytes / 16 - 1)) << 4);
}

void check_request(const TensorMapContents& map, const void* shared, int rank, bool im2col, const Site& site) {
    if (map.magic != TENSOR_MAP_MAGIC) {
        report("TENSOR_COPY", site, "the tensor map was not made by tensor_map.py");
        abandon_launch();
    }
    if (map.rank != rank || bool(map.im2col) != im2col) {
        report("TENSOR_COPY", site, "a copy of rank %d, %s, by a map of rank %d, %s", rank, im2col ? "im2col" : "tiled",
               map.rank, map.im2col ? "im2col" : "tiled");
        abandon_launch();
    }
    check_alignment(shared, 128, site);
}

void land(TensorCopy copy) {
    std::memcpy(copy.shared, copy.data.data(), copy.data.size());
    end_flight(copy.shared, unsigned(copy.data.size()), true);
    TransactionBarrier& barrier = barriers[copy.barrier];
    barrier.bytes -= (long long)copy.data.size();
    join(barrier.arriving, copy.knowledge);
    complete_phase_if_due(barrier);
}

// ---- groups: what has been committed, but for the last few, is complete after a wait ----

template <class Item, class Finish>
void finish_groups(std::vector<Item>& items, unsigned committed, unsigned pending, Finish finish) {
    size_t kept = 0;
    for (Item& item : items)
        if (item.group + pending < committed)
            finish(item);
        else
            items[kept++] = item;
    items.resize(kept);
}

void finish_copy(const PendingCopy& copy, const Site& site) {
    end_flight(copy.shared, copy.bytes, false);
    check_access(copy.shared, copy.bytes, Access::write, site);
    std::memcpy(copy.shared, copy.data, copy.bytes);
}

// Carries out the due products of a warpgroup, whose threads issued them one by one, and each for its accumulators.
void finish_products(unsigned first, unsigned pending) {
    const std::vector<PendingProduct>& products = threads[first].products;
    float* accumulators[WARPGROUP];
    for (size_t i = 0; i < products.size() && products[i].group + pending < threads[first].product_group; ++i) {
        for (unsigned member = 0; member < WARPGROUP; ++member) {
            const std::vector<PendingProduct>& others = threads[first + member].products;
            if (i >= others.size() || others[i].a != products[i].a || others[i].b != products[i].b) {
                report("DIVERGENT_WARP", products[i].site, "the warps of a warpgroup issue different products");
                abandon_launch();
            }
            accumulators[member] = others[i].accumulators;
        }
        run_product(products[i], accumulators);
    }
    for (unsigned member = 0; member < WARPGROUP; ++member) {
        Thread& thread = threads[first + member];
        finish_groups(thread.products, thread.product_group, pending, [](const PendingProduct&) {});
    }
}

}  // namespace

void start_asynchronous() {
    barriers.clear();
    copies.clear();
}

bool land_one_copy() {
    if (copies.empty()) return false;
    // Copies may land in any order, so the reverse order of fibres takes the reverse order of copies too.
    TensorCopy copy = std::move(launch.reverse ? copies.back() : copies.front());
    if (launch.reverse)
        copies.pop_back();
    else
        copies.pop_front();
    land(std::move(copy));
    return true;
}

void check_all_waited_for(const Thread& thread) {
    if (!thread.copies.empty())
        report("ASYNC", thread.copies.front().site, "ends with %zu asynchronous copies that it never waited for",
               thread.copies.size());
    if (!thread.products.empty())
        report("ASYNC", thread.products.front().site, "ends with %zu products that it never waited for",
               thread.products.size());
}

void check_all_landed() {
    if (!copies.empty())
        report("ASYNC", copies.front().site, "the block ends and this tensor copy has not been waited for");
}

}  // namespace emulator

using namespace emulator;

extern "C" {

// ---- cp.async ----

void emulator_copy_async(void* shared, const void* global, unsigned bytes, int valid, EMULATOR_SITE_PARAMETERS) {
    const Site site(file, line);
    PendingCopy copy{static_cast<unsigned char*>(shared), bytes, current->copy_group, {}, site};
    if (launch.checked) {
        check_alignment(shared, bytes, site);
        if (valid) check_alignment(global, bytes, site);
        if (valid) check_access(global, bytes, Access::read, site);
        begin_flight(shared, bytes, site);
    }
    if (valid) std::memcpy(copy.data, global, bytes);
    std::memset(shared, 0xff, bytes);
    current->copies.push_back(copy);
}

void emulator_copy_async_commit() { ++current->copy_group; }

void emulator_copy_async_wait(unsigned pending, EMULATOR_SITE_PARAMETERS) {
    const Site site(file, line);
    finish_groups(current->copies, current->copy_group, pending,
                  [&](const PendingCopy& copy) { finish_copy(copy, site); });
}

// ---- barriers in shared memory ----

void emulator_barrier_init(void* address, unsigned count, EMULATOR_SITE_PARAMETERS) {
    const Site site(file, line);
    auto* barrier = static_cast<unsigned char*>(address);
    if (launch.checked) {
        check_alignment(address, 8, site);
        if (barriers.count(barrier)) report("BARRIER_MISUSE", site, "initialises a barrier a second time");
        if (count == 0 || count >= 1u << 20)
            report("BARRIER_MISUSE", site, "initialises a barrier with count %u", count);
        if (!within_shared_memory(address, 8)) {
            report("OUT_OF_BOUNDS", site, "initialises a barrier outside shared memory");
            abandon_launch();
        }
        if (!barriers.count(barrier)) check_access(address, 8, Access::write, site);
        mark_barrier(address);
    }
    barriers[barrier] = TransactionBarrier{count, count, 0, 0, own_stamp, {}, {}};
}

void emulator_barrier_arrive(void* address, unsigned expected_bytes, EMULATOR_SITE_PARAMETERS) {
    const Site site(file, line);
    TransactionBarrier& barrier = barrier_at(address, site);
    barrier.bytes += expected_bytes;
    if (barrier.missing == 0) {
        report("BARRIER_MISUSE", site, "arrives once more than the barrier's count of %u", barrier.count);
        abandon_launch();
    }
    --barrier.missing;
    if (launch.checked) release_to(barrier.arriving);
    complete_phase_if_due(barrier);
}

void emulator_barrier_wait(void* address, unsigned parity, EMULATOR_SITE_PARAMETERS) {
    const Site site(file, line);
    TransactionBarrier& barrier = barrier_at(address, site);
    while ((barrier.phase & 1) == (parity & 1)) wait_here(State::at_transaction_barrier, site);
    if (launch.checked) acquire_from(barrier.visible);
}

// ---- tensor copies ----

void emulator_tensor_copy(void* shared, const void* map_address, void* barrier, int rank, const int* coordinates,
                          const unsigned short* offsets, EMULATOR_SITE_PARAMETERS) {
    const Site site(file, line);
    TensorMapContents map;
    std::memcpy(&map, map_address, sizeof map);
    check_request(map, shared, rank, offsets != nullptr, site);
    barrier_at(barrier, site);
    Coordinates start{};
    std::copy(coordinates, coordinates + rank, start.at);
    std::vector<unsigned char> rows;
    if (offsets)
        gather_im2col(rows, map, start, offsets, site);
    else
        gather_tile(rows, map, start, site);
    if (map.swizzle_bytes && rows.size() % 128) {
        report("TENSOR_COPY", site, "a swizzled copy of %zu bytes, which are not lines of 128", rows.size());
        abandon_launch();
    }
    if (launch.checked) begin_flight(shared, unsigned(rows.size()), site);
    std::memset(shared, 0xff, rows.size());
    TensorCopy copy{static_cast<unsigned char*>(shared),
                    std::vector<unsigned char>(rows.size()),
                    static_cast<unsigned char*>(barrier),
                    {},
                    site};
    if (launch.checked) release_to(copy.knowledge);
    const size_t base = size_t(copy.shared - emulator_shared_memory());
    for (size_t chunk = 0; chunk < rows.size(); chunk += 16)
        std::memcpy(copy.data.data() + swizzled(base + chunk, map.swizzle_bytes) - base, rows.data() + chunk,
                    std::min<size_t>(16, rows.size() - chunk));
    copies.push_back(std::move(copy));
}

// ---- products of warpgroups ----

void emulator_wgmma(float* d, int columns, unsigned long long a, unsigned long long b, int transposed_b,
                    emulator_element element, EMULATOR_SITE_PARAMETERS) {
    const Site site(file, line);
    issue_product(a, b, site);
    current->products.push_back({d, columns, a, b, transposed_b != 0, element, current->product_group, site});
}

void emulator_wgmma_commit() { ++current->product_group; }

void emulator_wgmma_wait(unsigned pending, EMULATOR_SITE_PARAMETERS) {
    meet_warpgroup(Site(file, line), finish_products, pending);
}
}
