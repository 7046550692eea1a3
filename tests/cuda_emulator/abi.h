// What a compiled kernel asks of the emulator: C names only, so every kernel library links to the one runtime library.
//
// Included by the kernels (through device.h) and by the runtime, and free of standard headers: parsing them would cost
// more than compiling most kernels.
#ifndef XPCONV_EMULATOR_ABI_H
#define XPCONV_EMULATOR_ABI_H

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// Where in the kernel's source a request comes from; a default argument is evaluated at the call.
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATOR_SITE_PARAMETERS const char *file, int line

enum emulator_element { EMULATOR_HALF, EMULATOR_BFLOAT, EMULATOR_TF32 };

// One launch, filled in part by module.py (which mirrors this layout) and in part by the kernel library.
struct emulator_launch_request {
    uint3 grid, block;
    unsigned long long shared_bytes;
    int checked;
    int reverse;
    void (*entry)(void*);
    void* argument;
    const char *library_begin, *library_end;
};

extern "C" {
void emulator_launch(const emulator_launch_request* request);

// The values of one activation of a kernel never change, hence the attribute: the compiler may keep them in registers.
uint3 emulator_thread_index() __attribute__((const));
uint3 emulator_block_index() __attribute__((const));
uint3 emulator_block_size() __attribute__((const));
uint3 emulator_grid_size() __attribute__((const));
unsigned emulator_lane() __attribute__((const));
unsigned char* emulator_shared_memory() __attribute__((const));

// Returns how many threads of the block arrived with a predicate that holds.
int emulator_block_barrier(int predicate, EMULATOR_SITE_PARAMETERS);
void emulator_fence();
void emulator_trap(EMULATOR_SITE_PARAMETERS);

void emulator_warp_barrier(unsigned mask, EMULATOR_SITE_PARAMETERS);
void emulator_shuffle(unsigned mask, void* value, unsigned bytes, int source_lane, EMULATOR_SITE_PARAMETERS);
unsigned emulator_ballot(unsigned mask, int predicate, EMULATOR_SITE_PARAMETERS);
unsigned emulator_match_any(unsigned mask, unsigned long long value, EMULATOR_SITE_PARAMETERS);
void emulator_atomic_access(const void* address, unsigned bytes, EMULATOR_SITE_PARAMETERS);

void emulator_copy_async(void* shared, const void* global, unsigned bytes, int valid, EMULATOR_SITE_PARAMETERS);
void emulator_copy_async_commit();
void emulator_copy_async_wait(unsigned pending, EMULATOR_SITE_PARAMETERS);
void emulator_load_matrix(unsigned* registers, const void* row, int matrices, int transposed, EMULATOR_SITE_PARAMETERS);
void emulator_mma(float* d, const unsigned* a, const unsigned* b, emulator_element element, EMULATOR_SITE_PARAMETERS);

void emulator_barrier_init(void* barrier, unsigned count, EMULATOR_SITE_PARAMETERS);
void emulator_barrier_arrive(void* barrier, unsigned expected_bytes, EMULATOR_SITE_PARAMETERS);
void emulator_barrier_wait(void* barrier, unsigned parity, EMULATOR_SITE_PARAMETERS);
// Coordinates and offsets start at the innermost dimension; `offsets` is null for a tiled copy.
void emulator_tensor_copy(void* shared, const void* map, void* barrier, int rank, const int* coordinates,
                          const unsigned short* offsets, EMULATOR_SITE_PARAMETERS);
void emulator_wgmma(float* d, int columns, unsigned long long a, unsigned long long b, int transposed_b,
                    emulator_element element, EMULATOR_SITE_PARAMETERS);
void emulator_fence_async_proxy();
void emulator_wgmma_commit();
void emulator_wgmma_wait(unsigned pending, EMULATOR_SITE_PARAMETERS);
}

#endif
