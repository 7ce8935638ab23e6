// Declaration of Gloo's rendezvous store for c10d's Gloo header: the functions that c10d's adapter overrides.
// The adapter is created only inside libtorch, so the layout here does not matter.
#pragma once
#include <chrono>
#include <string>
#include <vector>

namespace gloo::rendezvous {

class Store {
 public:
  using Bytes = std::vector<char>;
  using Keys = std::vector<std::string>;

  virtual ~Store();
  virtual void set(const std::string& key, const Bytes& value) = 0;
  virtual Bytes get(const std::string& key) = 0;
  virtual void wait(const Keys& keys) = 0;
  virtual void wait(const Keys& keys, const std::chrono::milliseconds& timeout) = 0;
};

}  // namespace gloo::rendezvous
