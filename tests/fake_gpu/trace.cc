#include "trace.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace fake_gpu {
namespace {

std::mutex mutex;
Memory bytes;
std::int64_t all_time_peak = 0;
std::int64_t launches = 0;
bool broken = false;

// The trace of this process, in the folder FAKE_GPU_TRACE; null if that is not set.
FILE* trace() {
  static FILE* file = [] {
    const char* folder = std::getenv("FAKE_GPU_TRACE");
    if (folder == nullptr) {
      return static_cast<FILE*>(nullptr);
    }
    return std::fopen((std::string(folder) + "/trace." + std::to_string(getpid())).c_str(), "w");
  }();
  return file;
}

std::int64_t limit() {
  static const std::int64_t bytes = [] {
    const char* text = std::getenv("FAKE_GPU_BYTES");
    return text == nullptr ? kBoardBytes : std::strtoll(text, nullptr, 10);
  }();
  return bytes;
}

// Whether the device breaks at this launch. FAKE_GPU_BREAK is `N FILE`: the device breaks at launch N of the process
// that creates FILE.
bool breaks() {
  static const std::string text = [] {
    const char* set = std::getenv("FAKE_GPU_BREAK");
    return std::string(set == nullptr ? "" : set);
  }();
  const auto space = text.find(' ');
  if (space == std::string::npos || launches < std::strtoll(text.c_str(), nullptr, 10)) {
    return false;
  }
  const int file = open(text.c_str() + space + 1, O_CREAT | O_EXCL | O_WRONLY, 0600);
  if (file >= 0) {
    close(file);
  }
  return file >= 0;
}

// Written when the process exits; lost if it is killed.
struct Ending {
  ~Ending() {
    if (FILE* file = trace()) {
      std::fprintf(file, "memory\t%ld %ld\n", bytes.live, bytes.peak);
      std::fprintf(file, "end\tlaunches %ld peak %ld\n", launches, all_time_peak);
      std::fflush(file);
    }
  }
} ending;

}  // namespace

bool tracing() { return trace() != nullptr; }

void note(const char* kind, const std::string& text) {
  if (FILE* file = trace()) {
    const std::lock_guard lock(mutex);
    std::fprintf(file, "%s\t%s\n", kind, text.c_str());
    // Flushes what the host has seen, since the process may be killed.
    if (kind[0] == 'd' || kind[0] == 't' || kind[0] == 'i') {
      std::fprintf(file, "memory\t%ld %ld\n", bytes.live, bytes.peak);
      bytes.peak = bytes.live;
      std::fflush(file);
    }
  }
}

void refuse(const std::string& what) {
  note("trouble", what);
  std::fprintf(stderr, "fake GPU: %s\n", what.c_str());
  TORCH_CHECK(false, what);
}

void launch(const std::string& operation) {
  {
    const std::lock_guard lock(mutex);
    ++launches;
    broken = broken || breaks();
    // Same format as at::cuda's checks.
    TORCH_CHECK(!broken, "CUDA error: device-side assert triggered");
  }
  note("kernel", operation);
}

Memory memory(bool reset) {
  const std::lock_guard lock(mutex);
  const Memory found{bytes.live, all_time_peak};
  if (reset) {
    all_time_peak = bytes.live;
  }
  return found;
}

void allocated(std::int64_t more) {
  const std::lock_guard lock(mutex);
  TORCH_CHECK_WITH(OutOfMemoryError, bytes.live + more <= limit(), "CUDA out of memory. Tried to allocate ",
                   static_cast<double>(more) / (1 << 20), " MiB. GPU 0 has a total capacity of ",
                   static_cast<double>(limit()) / (1 << 20), " MiB of which ",
                   static_cast<double>(limit() - bytes.live) / (1 << 20), " MiB is free.");
  bytes.live += more;
  bytes.peak = std::max(bytes.peak, bytes.live);
  all_time_peak = std::max(all_time_peak, bytes.live);
}

void freed(std::int64_t less) {
  const std::lock_guard lock(mutex);
  bytes.live -= less;
}

}  // namespace fake_gpu
