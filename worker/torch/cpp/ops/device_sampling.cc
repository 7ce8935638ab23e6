// Sampling on a GPU with a kernel of our own, which NVRTC compiles at its first launch.

#include <ATen/core/Tensor.h>
// The headers of a libtorch without CUDA lack this one.
#if __has_include(<ATen/cuda/CUDAConfig.h>)
#define FOIL_JITERATOR
#include <ATen/cuda/jiterator.h>

// Bound weakly, as NCCL is (see c10d/group.cc).
__asm__(
    ".weak "
    "_ZN2at4cuda22CompileAndLaunchKernelERKNSt7__cxx1112basic_stringIcSt11char_trait"
    "sIcESaIcEEES8_iRKN3c1011SmallVectorINS_6TensorELj6EEERKNSA_INS9_6ScalarELj1EEEb");
#endif

#include "foil-torch/cpp/bridge.h"

namespace foil {
namespace {

// ln(u)/p for one token, with p = exp((logit − maximum) / temperature) and u of SplitMix64's stream at `key`, whose 64
// bits come as a number of fp64. ATen's operations take many passes over the logits for the same.
[[maybe_unused]] constexpr const char* kExponentialRace = R"(
template <typename T>
T foil_exponential_race(T logit, T maximum, T key, T token, T temperature) {
  unsigned long long z = static_cast<unsigned long long>(__double_as_longlong(key)) +
                         (static_cast<unsigned long long>(token) + 1ull) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z = (z ^ (z >> 31)) >> 11;
  const double complement = (static_cast<double>(z) + 0.5) * 1.1102230246251565e-16;
  return log1p(-complement) / exp((logit - maximum) / temperature);
}
)";

}  // namespace

std::unique_ptr<at::Tensor> exponential_race([[maybe_unused]] const at::Tensor& logits,
                                             [[maybe_unused]] const at::Tensor& maxima,
                                             [[maybe_unused]] const at::Tensor& keys,
                                             [[maybe_unused]] const at::Tensor& tokens,
                                             [[maybe_unused]] double temperature) {
#ifdef FOIL_JITERATOR
  TORCH_CHECK(
      logits.is_cuda() && logits.dim() == 2 && maxima.dim() == 2 && keys.dim() == 1 && tokens.dim() == 1 &&
          keys.scalar_type() == at::kLong && tokens.scalar_type() == at::kDouble,
      "exponential_race expects logits [rows, vocab], maxima [rows, 1], keys [rows] and tokens [vocab] on a GPU");
  // All inputs become fp64, which a number of fp64 already is: the bits of the keys stay what they are.
  const auto bits = keys.unsqueeze(1).view(at::kDouble);
  auto results = at::cuda::CompileAndLaunchKernel(kExponentialRace, "foil_exponential_race", 1,
                                                  {logits, maxima, bits, tokens}, {at::Scalar(temperature)},
                                                  /*return_by_ref=*/false);
  return std::make_unique<at::Tensor>(std::move(results[0]));
#else
  TORCH_CHECK(false, "this libtorch has no CUDA");
#endif
}

}  // namespace foil
