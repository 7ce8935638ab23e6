// The trace of the stand-in device: counters, and one line per event.
#pragma once

#include <cstdint>
#include <string>

namespace fake_gpu {

// One line of the trace: `KIND<tab>text`.
//   kernel    an operation that a GPU would launch, with the shapes and kinds of its tensors
//   h2d, d2h  a copy between host and device: `sync` or `async`, and its bytes
//   item      a scalar that the host waits for
//   wait      the host waits for a `stream`, an `event` or the `device`
//   nccl      a collective, with its elements
//   nvrtc     a kernel that NVRTC has compiled
//   memory    `live peak`, in bytes, after each copy to the host; the peak is that since the line before
//   trouble   what a GPU would not do
void note(const char* kind, const std::string& text);

// Whether there is a trace. Texts that are expensive to produce are produced only then.
bool tracing();

// Records an operation that a GPU would not perform, and throws.
[[noreturn]] void refuse(const std::string& what);

// Counts a kernel launch. Once the device is broken (FAKE_GPU_BREAK), every launch fails like CUDA's after a
// device-side assertion.
void launch(const std::string& operation);

// The memory of the board, in bytes.
constexpr std::int64_t kBoardBytes = std::int64_t{80} << 30;

struct Memory {
  std::int64_t live = 0, peak = 0;
};
// Live bytes of tensors, and their maximum since the last call with `reset`.
Memory memory(bool reset);
// Adds to the live bytes. Throws CUDA's error if they exceed FAKE_GPU_BYTES, or those of the board.
void allocated(std::int64_t bytes);
void freed(std::int64_t bytes);

}  // namespace fake_gpu
