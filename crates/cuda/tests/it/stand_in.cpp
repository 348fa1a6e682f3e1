// Stands in for CUDA's driver, for tests. The functions have the names and types of cuda.h. A cubin is the path of a
// library of twins, and a launch runs the twin on the CPU before it returns. What a real driver would refuse is an
// error. There are three devices, of two architectures.

#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

typedef enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_LAUNCH_FAILED = 719
} CUresult;

typedef int CUdevice;
typedef int CUdevice_attribute;

struct CUctx_st {
    CUdevice device;
    bool is_active;
    int users;
};
typedef CUctx_st *CUcontext;

struct CUmod_st {
    CUcontext context;
    void *library;
};
typedef CUmod_st *CUmodule;

typedef void (*Twin)(unsigned, unsigned, void *const *);
struct CUfunc_st {
    CUmodule module;
    Twin twin;
};
typedef CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;

static const int DEVICES = 3;
static const int CAPABILITIES[DEVICES][2] = {{9, 0}, {9, 0}, {10, 3}};

// The primary contexts. One user is libtorch.
static CUctx_st contexts[DEVICES] = {{0, true, 1}, {1, true, 1}, {2, true, 1}};
static thread_local std::vector<CUcontext> stack;
static std::mutex one;
static std::vector<std::unique_ptr<CUmod_st>> modules;
static std::vector<std::unique_ptr<CUfunc_st>> functions;
static std::set<CUstream> streams[DEVICES];
static std::map<CUstream, unsigned> launches;
static std::map<std::string, unsigned> calls;
static std::map<std::string, CUresult> failures;

// Counts a call, and returns the result that a test has set for it.
static CUresult called(const char *function) {
    std::lock_guard<std::mutex> alone(one);
    calls[function]++;
    auto failure = failures.find(function);
    if (failure == failures.end()) return CUDA_SUCCESS;
    CUresult result = failure->second;
    failures.erase(failure);
    return result;
}

#define CALLED()                                                                                                       \
    if (CUresult result = called(__func__)) return result

static CUcontext current() { return stack.empty() ? nullptr : stack.back(); }

static bool is_device(CUdevice device) { return device >= 0 && device < DEVICES; }

template <class T>
static bool is_one_of(const std::vector<std::unique_ptr<T>> &all, const T *wanted) {
    for (const std::unique_ptr<T> &each : all) {
        if (each.get() == wanted) return true;
    }
    return false;
}

// Makes a device's context the only one of the calling thread; none if the number is negative.
EXPORT void stand_in_use(CUdevice device) {
    stack.clear();
    if (device >= 0) stack.push_back(&contexts[device]);
}

// Whether libtorch has used a device.
EXPORT void stand_in_activate(CUdevice device, int is_active) { contexts[device].is_active = is_active; }

// How often the device's context is retained.
EXPORT int stand_in_users(CUdevice device) { return contexts[device].users; }

// Adds a stream to a device.
EXPORT void stand_in_stream(CUdevice device, CUstream stream) { streams[device].insert(stream); }

// How many kernels ran on a stream.
EXPORT unsigned stand_in_launches(CUstream stream) {
    std::lock_guard<std::mutex> alone(one);
    return launches[stream];
}

// Makes the next call of a function fail.
EXPORT void stand_in_fail(const char *function, CUresult result) {
    std::lock_guard<std::mutex> alone(one);
    failures[function] = result;
}

// How often a function was called.
EXPORT unsigned stand_in_calls(const char *function) {
    std::lock_guard<std::mutex> alone(one);
    return calls[function];
}

EXPORT CUresult cuGetErrorName(CUresult error, const char **text) {
    switch (error) {
#define NAME(name)                                                                                                     \
    case name: *text = #name; return CUDA_SUCCESS;
        NAME(CUDA_ERROR_INVALID_VALUE)
        NAME(CUDA_ERROR_OUT_OF_MEMORY)
        NAME(CUDA_ERROR_INVALID_DEVICE)
        NAME(CUDA_ERROR_INVALID_IMAGE)
        NAME(CUDA_ERROR_INVALID_CONTEXT)
        NAME(CUDA_ERROR_INVALID_HANDLE)
        NAME(CUDA_ERROR_NOT_FOUND)
        NAME(CUDA_ERROR_LAUNCH_FAILED)
    default: *text = nullptr; return CUDA_ERROR_INVALID_VALUE;
    }
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    const char *name;
    CUresult result = cuGetErrorName(error, &name);
    *text = result == CUDA_SUCCESS ? "the stand-in says so" : nullptr;
    return result;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    CALLED();
    *context = current();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    CALLED();
    if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
    *device = current()->device;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    CALLED();
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    if (attribute != 75 && attribute != 76) return CUDA_ERROR_INVALID_VALUE;
    *value = CAPABILITIES[device][attribute - 75];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *is_active) {
    CALLED();
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *flags = 0;
    *is_active = contexts[device].is_active;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CALLED();
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    contexts[device].users++;
    *context = &contexts[device];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    CALLED();
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    contexts[device].users--;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
    CALLED();
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    stack.push_back(context);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    CALLED();
    if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *context = stack.back();
    stack.pop_back();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    CALLED();
    if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
    void *library = dlopen(static_cast<const char *>(image), RTLD_NOW | RTLD_LOCAL);
    if (!library) return CUDA_ERROR_INVALID_IMAGE;
    std::lock_guard<std::mutex> alone(one);
    modules.emplace_back(new CUmod_st{current(), library});
    *module = modules.back().get();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    CALLED();
    std::lock_guard<std::mutex> alone(one);
    if (!is_one_of(modules, module)) return CUDA_ERROR_INVALID_HANDLE;
    void *twin = dlsym(module->library, (std::string("twin_") + name).c_str());
    if (!twin) return CUDA_ERROR_NOT_FOUND;
    functions.emplace_back(new CUfunc_st{module, reinterpret_cast<Twin>(twin)});
    *function = functions.back().get();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned grid_y, unsigned grid_z, unsigned threads,
                               unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **arguments,
                               void **extra) {
    CALLED();
    {
        std::lock_guard<std::mutex> alone(one);
        if (!is_one_of(functions, function)) return CUDA_ERROR_INVALID_HANDLE;
        if (!current() || function->module->context != current()) return CUDA_ERROR_INVALID_CONTEXT;
        if (stream && !streams[current()->device].count(stream)) return CUDA_ERROR_INVALID_HANDLE;
    }
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1) return CUDA_ERROR_INVALID_VALUE;
    if (blocks == 0 || threads == 0 || threads > 1024) return CUDA_ERROR_INVALID_VALUE;
    if (shared != 0 || !arguments || extra) return CUDA_ERROR_INVALID_VALUE;
    function->twin(blocks, threads, arguments);
    std::lock_guard<std::mutex> alone(one);
    launches[stream]++;
    return CUDA_SUCCESS;
}
