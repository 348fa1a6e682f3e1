// Runs kernels on the CPU, for tests: defines CUDA's keywords, so that a kernel's file compiles as C++. Each thread of a
// block is a thread, and a barrier makes them wait for each other. Blocks run one after another.

#include <barrier>
#include <cmath>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#define __device__
#define __global__
// Blocks do not run at the same time, so one array serves all of them.
#define __shared__ static

typedef unsigned short uint16;

struct Index {
    unsigned x;
};

static thread_local Index threadIdx, blockIdx;
static Index blockDim, gridDim;
static std::barrier<> *of_block;

static void __syncthreads() { of_block->arrive_and_wait(); }

// Runs a kernel on a grid. Block sizes are powers of two. Any thread may call it. One grid runs at a time.
static void launch(unsigned blocks, unsigned threads, const std::function<void()> &kernel) {
    static std::mutex one;
    std::lock_guard<std::mutex> alone(one);
    std::barrier<> barrier(threads);
    of_block = &barrier;
    blockDim.x = threads;
    gridDim.x = blocks;
    std::vector<std::thread> all;
    for (unsigned thread = 0; thread < threads; thread++) {
        all.emplace_back([=, &kernel, &barrier] {
            for (unsigned block = 0; block < blocks; block++) {
                threadIdx.x = thread;
                blockIdx.x = block;
                kernel();
                // The next block uses the same arrays.
                barrier.arrive_and_wait();
            }
        });
    }
    for (std::thread &thread : all) thread.join();
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void *const *arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(arguments[I])...);
}

template <class... A>
static void launch(void (*kernel)(A...), unsigned blocks, unsigned threads, void *const *arguments) {
    launch(blocks, threads, [=] { call(kernel, arguments, std::index_sequence_for<A...>()); });
}

using std::min;

// Exports a kernel. The arguments are those of CUDA's cuLaunchKernel. The library exports nothing else: otherwise the
// loader would give the static arrays of one library to others that have arrays of the same name.
#define TWIN(name)                                                                                                     \
    extern "C" __attribute__((visibility("default"))) void twin_##name(unsigned blocks, unsigned threads,              \
                                                                       void *const *arguments) {                       \
        launch(name, blocks, threads, arguments);                                                                      \
    }
