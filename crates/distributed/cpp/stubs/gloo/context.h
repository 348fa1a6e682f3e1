// Stands in for Gloo's header. c10d holds contexts only behind pointers, and libtorch_cpu.so has the definitions.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

} // namespace gloo
