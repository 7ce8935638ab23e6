// Reads tensors from files.

#include <ATen/core/Tensor.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "bridge.h"

namespace foil {

void read_into(std::int32_t file, std::uint64_t offset, const at::Tensor& into) {
  constexpr std::size_t kMostOfACall = std::size_t{1} << 30;
  TORCH_CHECK(into.is_cpu() && into.is_contiguous(), "a file is read into contiguous tensors of the host alone");
  auto* next = static_cast<char*>(into.mutable_data_ptr());
  auto position = static_cast<::off_t>(offset);
  for (std::size_t left = into.nbytes(); left > 0;) {
    const auto count = ::pread(file, next, std::min(left, kMostOfACall), position);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      throw std::system_error(errno, std::generic_category());
    }
    if (count == 0) {
      throw std::runtime_error("the file ends before the tensor does");
    }
    next += count;
    position += count;
    left -= static_cast<std::size_t>(count);
  }
}

}  // namespace foil
