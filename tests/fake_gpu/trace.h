// What the stand-in device did: counters, and one line per event.
#pragma once

#include <cstdint>
#include <string>

namespace fake_gpu {

// One line of the trace: `KIND<tab>text`.
//   kernel    an operation that a GPU would launch, with the shapes and kinds of its tensors
//   h2d, d2h  a copy between host and device: `sync` or `async`, and its bytes
//   item      a scalar that the host waits for
//   nccl      a collective, with its elements
//   memory    `live peak`, in bytes, after each copy to the host; the peak is that since the line before
//   trouble   what a GPU would not do
void note(const char* kind, const std::string& text);

// Whether there is a trace; texts that are expensive to make are made only then.
bool tracing();

// Records what a GPU would not do, and throws.
[[noreturn]] void refuse(const std::string& what);

// Counts the launch of a kernel. Once the device is broken (FAKE_GPU_BREAK), every launch fails as CUDA's do after a
// device-side assertion.
void launch(const std::string& operation);

struct Memory {
  std::int64_t live = 0, peak = 0;
};
// Bytes of tensors, and their maximum since the last call with `reset`.
Memory memory(bool reset);
// Adds to the live bytes; throws CUDA's error if they exceed FAKE_GPU_BYTES.
void allocated(std::int64_t bytes);
void freed(std::int64_t bytes);

}  // namespace fake_gpu
