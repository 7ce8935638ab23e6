// What c10d's Gloo header needs of gloo::Context. The libtorch wheel holds Gloo's code but not its headers.
// Contexts are made and owned inside libtorch; this crate neither makes nor looks into one.
#pragma once
#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
