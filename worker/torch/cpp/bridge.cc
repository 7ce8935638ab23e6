#include "bridge.h"

#include <torch/csrc/distributed/c10d/exception.h>

#include <algorithm>
#include <cctype>

#include "tensor_list.h"

namespace foil {

namespace {

bool contains(const std::string& text, std::initializer_list<const char*> needles) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return std::any_of(needles.begin(), needles.end(),
                     [&](const char* needle) { return lower.find(needle) != std::string::npos; });
}

// Gloo reports timeouts and lost peers as plain runtime errors that differ only in their text.
std::string with_kind(const std::string& message) {
  if (contains(message, {"timed out", "timeout"})) {
    return "T" + message;
  }
  // The last three are NCCL's messages for a failing network.
  if (contains(message, {"connection closed", "connection reset", "connection refused", "broken pipe",
                         "remote process exited", "unhandled system error", "remote error"})) {
    return "P" + message;
  }
  return "O" + message;
}

}  // namespace

std::string describe_exception() noexcept {
  try {
    throw;
  } catch (const c10d::TimeoutError& error) {
    return std::string("T") + error.what_without_backtrace();
  } catch (const c10d::SocketError& error) {
    return std::string("P") + error.what_without_backtrace();
  } catch (const c10::Error& error) {
    return with_kind(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return with_kind(error.what());
  } catch (...) {
    return "Oan exception of unknown type";
  }
}

TensorList::TensorList() : inner(std::make_unique<Inner>()) {}
TensorList::~TensorList() = default;
void TensorList::push(const at::Tensor& tensor) { inner->tensors.push_back(tensor); }
std::size_t TensorList::length() const { return inner->tensors.size(); }
std::unique_ptr<at::Tensor> TensorList::at(std::size_t index) const {
  return std::make_unique<at::Tensor>(inner->tensors.at(index));
}
std::unique_ptr<TensorList> new_tensor_list() { return std::make_unique<TensorList>(); }

}  // namespace foil
