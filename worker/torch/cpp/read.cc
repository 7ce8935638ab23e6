// Reads tensors from files.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "bridge.h"

namespace foil {
namespace {

// Threads share a read in multiples of this many bytes.
constexpr std::int64_t kPart = std::int64_t{4} << 20;
// Bytes that are copied to a GPU at a time. The parts of one piece are read by several threads.
constexpr std::int64_t kPiece = std::int64_t{32} << 20;

void read_part(std::int32_t file, std::int64_t offset, char* into, std::int64_t bytes) {
  while (bytes > 0) {
    const auto count = ::pread(file, into, static_cast<std::size_t>(bytes), static_cast<::off_t>(offset));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      throw std::system_error(errno, std::generic_category());
    }
    if (count == 0) {
      throw std::runtime_error("the file ends before the tensor does");
    }
    into += count;
    offset += count;
    bytes -= count;
  }
}

// Reads a contiguous tensor of the host on several threads: one alone is bound by the copy from the page cache, and by
// the faults of new memory.
void read_host(std::int32_t file, std::int64_t offset, const at::Tensor& into) {
  TORCH_CHECK(into.is_cpu() && into.is_contiguous(), "a file is read into contiguous tensors of the host alone");
  const auto bytes = static_cast<std::int64_t>(into.nbytes());
  auto* const memory = static_cast<char*>(into.mutable_data_ptr());
  at::parallel_for(0, (bytes + kPart - 1) / kPart, 1, [&](std::int64_t first, std::int64_t end) {
    read_part(file, offset + first * kPart, memory + first * kPart, std::min(end * kPart, bytes) - first * kPart);
  });
}

}  // namespace

// Pinned memory of the host, and the end of the last copy from it.
struct PinnedPiece {
  at::Tensor bytes = at::empty({kPiece}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  c10::Event copied{c10::kCUDA};
};

struct FileReader::Inner {
  // While one is copied to the GPU, the other is filled. None on the CPU.
  std::optional<std::array<PinnedPiece, 2>> pieces;
  std::size_t next = 0;
};
FileReader::FileReader() : inner(std::make_unique<Inner>()) {}
FileReader::~FileReader() = default;

void FileReader::read(std::int32_t file, std::uint64_t start, const at::Tensor& like, const at::Tensor& into) const {
  TORCH_CHECK(into.dim() == 1 && into.is_contiguous(), "a file is read into flat, contiguous tensors");
  const auto kind = like.scalar_type();
  const auto offset = static_cast<std::int64_t>(start);
  if (into.is_cpu()) {
    const auto stored = into.scalar_type() == kind ? into : at::empty(into.sizes(), into.options().dtype(kind));
    read_host(file, offset, stored);
    if (!stored.is_same(into)) {
      into.copy_(stored);
    }
    return;
  }
  TORCH_CHECK(inner->pieces, "this reader is one for tensors of the host");
  const auto stream = c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(into.device());
  const auto size = static_cast<std::int64_t>(like.element_size());
  const auto most = kPiece / size;
  for (std::int64_t at = 0; at < into.numel(); at += most) {
    const auto count = std::min(most, into.numel() - at);
    auto& pinned = (*inner->pieces)[inner->next++ % 2];
    pinned.copied.synchronize();
    const auto host = pinned.bytes.narrow(0, 0, count * size).view(kind);
    read_host(file, offset + at * size, host);
    // Converts on the GPU, if at all.
    into.narrow(0, at, count).copy_(host, /*non_blocking=*/true);
    pinned.copied.record(stream);
  }
}

std::unique_ptr<FileReader> new_file_reader(bool for_gpu) {
  auto reader = std::make_unique<FileReader>();
  if (for_gpu) {
    reader->inner->pieces.emplace();
  }
  return reader;
}

}  // namespace foil
