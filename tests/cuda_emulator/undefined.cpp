// Hooks of -fsanitize=undefined, by the layouts that the compiler emits; its own library is not linked.
#include "checker.h"
#include "reports.h"

using namespace emulator;

namespace {

struct Data {  // what all of them begin with
    const char* file;
    uint32_t line, column;
};
struct TypeMismatch {
    Data where;
    const void* type;
    unsigned char log_alignment, kind;
};

Site site_of(const Data& data) { return Site(data.file, int(data.line)); }

}  // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) {
    check_alignment(reinterpret_cast<void*>(pointer), 1u << data->log_alignment, site_of(data->where));
}

void __ubsan_handle_out_of_bounds(Data* data, uintptr_t index) {
    report("OUT_OF_BOUNDS", site_of(*data), "index %lld is outside its array", (long long)index);
    abandon_launch();
}

void __ubsan_handle_divrem_overflow(Data* data, uintptr_t, uintptr_t) {
    report("ARITHMETIC", site_of(*data), "division by zero, or of the least integer by -1");
    abandon_launch();
}

void __ubsan_handle_add_overflow(Data* data, uintptr_t, uintptr_t) {
    report("ARITHMETIC", site_of(*data), "signed overflow in an addition");
}

void __ubsan_handle_sub_overflow(Data* data, uintptr_t, uintptr_t) {
    report("ARITHMETIC", site_of(*data), "signed overflow in a subtraction");
}

void __ubsan_handle_mul_overflow(Data* data, uintptr_t, uintptr_t) {
    report("ARITHMETIC", site_of(*data), "signed overflow in a multiplication");
}

void __ubsan_handle_negate_overflow(Data* data, uintptr_t) {
    report("ARITHMETIC", site_of(*data), "signed overflow in a negation");
}

void __ubsan_handle_shift_out_of_bounds(Data* data, uintptr_t, uintptr_t) {
    report("ARITHMETIC", site_of(*data), "shift by a count outside the type's bits");
}
}
