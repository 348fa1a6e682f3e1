// A C interface to the parts of c10d that this crate uses. src/shim.rs declares the same functions for Rust.
//
// Each function returns null on success, and otherwise the text of the error, which the caller gives to
// ddk_c10d_free. No exception leaves a function.

#define USE_C10D_GLOO

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

// The stub headers stand in for Gloo's, which libtorch does not ship. If another release changes the class, this
// fails instead of corrupting memory.
#if defined(__x86_64__) && defined(__linux__)
static_assert(sizeof(c10d::ProcessGroupGloo) == 488, "the stub headers do not fit this libtorch: use 2.11.0");
#endif

namespace {

using std::chrono::milliseconds;
using Bytes = std::vector<uint8_t>;

// Returned if there is no memory for a text.
char out_of_memory[] = "out of memory";

char* copy_of(const char* text) {
  char* copy = strdup(text);
  return copy ? copy : out_of_memory;
}

// Runs the function and turns its exceptions into a text.
template <class Function>
char* guarded(Function function) {
  try {
    function();
    return nullptr;
  } catch (const c10::Error& error) {
    return copy_of(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return copy_of(error.what());
  } catch (...) {
    return copy_of("an exception of unknown type");
  }
}

// Bytes that outlive the call. The caller takes them.
uint8_t* kept(const Bytes& bytes) {
  auto* copy = static_cast<uint8_t*>(std::malloc(bytes.empty() ? 1 : bytes.size()));
  if (!copy) {
    throw std::bad_alloc();
  }
  std::memcpy(copy, bytes.data(), bytes.size());
  return copy;
}

at::Tensor view(const uint8_t* data, size_t size) {
  // from_blob takes no const pointer. send only reads.
  return at::from_blob(const_cast<uint8_t*>(data), {static_cast<int64_t>(size)}, at::kByte);
}

} // namespace

extern "C" {

struct DdkStore {
  c10::intrusive_ptr<c10d::Store> store;
};

struct DdkGroup {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
};

void ddk_c10d_free(void* memory) {
  if (memory != out_of_memory) {
    std::free(memory);
  }
}

// Connects to the store at host:port, and serves it first if `serves`. Waits for no other process.
char* ddk_store_connect(
    const char* host, uint16_t port, bool serves, int64_t timeout_ms, const char* prefix, DdkStore** store) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
    *store = new DdkStore{c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), std::move(tcp))};
  });
}

// Another connection to the same store, with its own timeout and a further prefix. A connection serves one call at
// a time, so a long wait on this one delays nobody else. It must not outlive the store that it came from.
char* ddk_store_branch(DdkStore* of, int64_t timeout_ms, const char* prefix, DdkStore** store) {
  return guarded([&] {
    auto copy = of->store->clone();
    copy->setTimeout(milliseconds(timeout_ms));
    *store = new DdkStore{c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), std::move(copy))};
  });
}

void ddk_store_free(DdkStore* store) {
  guarded([&] { delete store; });
}

char* ddk_store_set(DdkStore* store, const char* key, const uint8_t* data, size_t size) {
  return guarded([&] { store->store->set(std::string(key), Bytes(data, data + size)); });
}

// Adds to a counter, which starts at 0, and returns the sum.
char* ddk_store_add(DdkStore* store, const char* key, int64_t amount, int64_t* sum) {
  return guarded([&] { *sum = store->store->add(std::string(key), amount); });
}

char* ddk_store_has(DdkStore* store, const char* key, bool* present) {
  return guarded([&] { *present = store->store->check({std::string(key)}); });
}

// The value of a key. Waits for it as long as the store's timeout. The caller frees `data`.
char* ddk_store_get(DdkStore* store, const char* key, uint8_t** data, size_t* size) {
  return guarded([&] {
    const Bytes value = store->store->get(std::string(key));
    *data = kept(value);
    *size = value.size();
  });
}

// Connects all ranks of a group with each other. `names` are the interfaces to use, or one address of this machine.
// Sets `listens` before the other ranks matter.
char* ddk_group_connect(
    DdkStore* store,
    size_t rank,
    size_t size,
    int64_t timeout_ms,
    const char* const* names,
    size_t count,
    bool are_interfaces,
    bool* listens,
    DdkGroup** group) {
  return guarded([&] {
    using c10d::ProcessGroupGloo;
    auto options = ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    for (size_t index = 0; index < count; index++) {
      options->devices.push_back(
          are_interfaces ? ProcessGroupGloo::createDeviceForInterface(names[index])
                         : ProcessGroupGloo::createDeviceForHostname(names[index]));
    }
    *listens = true;
    // These threads run Gloo's own collectives, which the shim does not use.
    options->threads = 1;
    *group = new DdkGroup{c10::make_intrusive<ProcessGroupGloo>(
        store->store, static_cast<int>(rank), static_cast<int>(size), options)};
  });
}

// Closes the connections, which the other ranks notice.
void ddk_group_free(DdkGroup* group) {
  guarded([&] { delete group; });
}

// Sends to each rank `in_size` bytes, beginning at `in + rank * in_step`, and receives from each rank its share of
// `out`, which holds the ranks' `out_sizes` one after the other. The tag must be the same on all ranks, and differ
// from that of other transfers in progress. A failed transfer leaves the group unusable.
char* ddk_group_transfer(
    DdkGroup* group,
    int tag,
    uint8_t* out,
    const size_t* out_sizes,
    const uint8_t* in,
    size_t in_size,
    size_t in_step) {
  return guarded([&] {
    auto& gloo = *group->gloo;
    const size_t rank = static_cast<size_t>(gloo.getRank());
    const size_t size = static_cast<size_t>(gloo.getSize());
    std::vector<uint8_t*> shares(size);
    for (size_t from = 0; from < size; from++) {
      shares[from] = out;
      out += out_sizes[from];
    }
    std::vector<c10::intrusive_ptr<c10d::Work>> works;
    // All ranks begin with different partners, so that no rank has to serve all others at once.
    for (size_t distance = 1; distance < size; distance++) {
      const size_t from = (rank + size - distance) % size;
      if (out_sizes[from] > 0) {
        std::vector<at::Tensor> share{view(shares[from], out_sizes[from])};
        works.push_back(gloo.recv(share, static_cast<int>(from), tag));
      }
    }
    for (size_t distance = 1; distance < size; distance++) {
      const size_t to = (rank + distance) % size;
      if (in_size > 0) {
        std::vector<at::Tensor> share{view(in + to * in_step, in_size)};
        works.push_back(gloo.send(share, static_cast<int>(to), tag));
      }
    }
    if (in_size > 0) {
      std::memcpy(shares[rank], in + rank * in_step, in_size);
    }
    for (auto& work : works) {
      work->wait();
    }
  });
}

} // extern "C"
