// Declaration of gloo::Context for c10d's Gloo header. The libtorch wheel contains Gloo's code but not its headers.
// Contexts are created and owned inside libtorch; this crate never accesses one.
#pragma once
#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
