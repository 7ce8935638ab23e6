// Kernels that are compiled at run time. They are compiled for the host and, if NVRTC is there, also for a GPU, to find
// errors in them.

#include <ATen/cuda/jiterator.h>
#include <ATen/ops/broadcast_tensors.h>
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

#include "memory.h"
#include "trace.h"

namespace fake_gpu {
namespace {

// Computes `count` results of fp64 from as many elements of each input.
using Kernel = void (*)(std::int64_t count, const double* const* inputs, const double* extra, double* results);

// The call of `function` for element `i`.
std::string call(const std::string& function, std::size_t inputs, std::size_t extra) {
  std::string arguments;
  for (std::size_t input = 0; input < inputs; ++input) {
    arguments += c10::str(arguments.empty() ? "" : ", ", "inputs[", input, "][i]");
  }
  for (std::size_t number = 0; number < extra; ++number) {
    arguments += c10::str(", extra[", number, "]");
  }
  return function + "<double>(" + arguments + ")";
}

Kernel compile_for_host(const std::string& code, const std::string& result) {
  char folder[] = "/tmp/fake_gpu_kernel.XXXXXX";
  if (mkdtemp(folder) == nullptr) {
    throw std::runtime_error("no temporary folder for a kernel");
  }
  const auto at = [&](const char* name) { return std::string(folder) + name; };
  std::ofstream(at("/kernel.cc"))
      << "#include <cmath>\n#include <cstdint>\n#include <cstring>\n"
         "static long long __double_as_longlong(double x) { long long bits; std::memcpy(&bits, &x, 8); return bits; }\n"
      << code
      << "extern \"C\" void run(std::int64_t count, const double* const* inputs, const double* extra, double* results) "
         "{\n"
         "  for (std::int64_t i = 0; i < count; ++i) results[i] = "
      << result << ";\n}\n";
  const auto command = "g++ -std=c++17 -O1 -fPIC -shared -o " + at("/kernel.so") + " " + at("/kernel.cc");
  const bool compiled = std::system(command.c_str()) == 0;
  void* library = compiled ? dlopen(at("/kernel.so").c_str(), RTLD_NOW) : nullptr;
  std::filesystem::remove_all(folder);
  if (library == nullptr) {
    refuse("a kernel does not compile: " + code);
  }
  return reinterpret_cast<Kernel>(dlsym(library, "run"));
}

// Compiles with the options of libtorch's jiterator.
void compile_for_gpu(const std::string& code, const std::string& result) {
  void* nvrtc = dlopen("libfake_nvrtc.so", RTLD_NOW);
  if (nvrtc == nullptr) {
    return;
  }
  using Program = void*;
  const auto create =
      reinterpret_cast<int (*)(Program*, const char*, const char*, int, const char* const*, const char* const*)>(
          dlsym(nvrtc, "nvrtcCreateProgram"));
  const auto compile = reinterpret_cast<int (*)(Program, int, const char* const*)>(dlsym(nvrtc, "nvrtcCompileProgram"));
  const auto log_size = reinterpret_cast<int (*)(Program, std::size_t*)>(dlsym(nvrtc, "nvrtcGetProgramLogSize"));
  const auto log_text = reinterpret_cast<int (*)(Program, char*)>(dlsym(nvrtc, "nvrtcGetProgramLog"));
  const auto source =
      code +
      "extern \"C\" __global__ void run(const double* const* inputs, const double* extra, double* results) "
      "{\n  const int i = blockIdx.x * blockDim.x + threadIdx.x;\n  results[i] = " +
      result + ";\n}\n";
  Program program = nullptr;
  const char* options[] = {"--std=c++17", "--gpu-architecture=compute_90", "-default-device"};
  if (create(&program, source.c_str(), nullptr, 0, nullptr, nullptr) != 0 || compile(program, 3, options) != 0) {
    std::size_t size = 0;
    log_size(program, &size);
    std::string log(size, '\0');
    log_text(program, log.data());
    refuse("NVRTC does not compile a kernel: " + log);
  }
  note("nvrtc", result);
}

Kernel compiled(const std::string& code, const std::string& result) {
  static std::mutex mutex;
  static std::map<std::string, Kernel> kernels;
  const std::lock_guard lock(mutex);
  auto& kernel = kernels[code];
  if (kernel == nullptr) {
    compile_for_gpu(code, result);
    kernel = compile_for_host(code, result);
  }
  return kernel;
}

}  // namespace
}  // namespace fake_gpu

namespace at::cuda {

c10::SmallVector<at::Tensor> CompileAndLaunchKernel(const std::string& code, const std::string& name, const int outputs,
                                                    const c10::SmallVector<at::Tensor>& tensors,
                                                    const c10::SmallVector<at::Scalar>& extra, bool by_reference) {
  using namespace fake_gpu;
  TORCH_CHECK(std::getenv("FAKE_GPU_WITHOUT_NVRTC") == nullptr, "cannot load libnvrtc");
  std::vector<at::Tensor> inputs;
  auto kind = tensors[0].scalar_type();
  std::string described = "jit " + name;
  for (const auto& tensor : tensors) {
    if (!tensor.is_cuda()) {
      refuse(name + ": an input is not on the device");
    }
    kind = c10::promoteTypes(kind, tensor.scalar_type());
    described += c10::str(" ", tensor.sizes(), c10::toString(tensor.scalar_type()));
    inputs.push_back(on_host(tensor));
  }
  if (outputs != 1 || by_reference || kind != at::kDouble) {
    refuse(name + ": the stand-in runs kernels with one result of fp64");
  }
  launch(described);
  for (auto& input : inputs) {
    input = input.to(at::kDouble);
  }
  inputs = at::broadcast_tensors(inputs);
  std::vector<const double*> elements;
  for (auto& input : inputs) {
    input = input.contiguous();
    elements.push_back(input.const_data_ptr<double>());
  }
  std::vector<double> numbers;
  for (const auto& number : extra) {
    numbers.push_back(number.toDouble());
  }
  const auto results = at::empty(inputs[0].sizes(), at::kDouble);
  const auto kernel = compiled(code, call(name, inputs.size(), numbers.size()));
  kernel(results.numel(), elements.data(), numbers.data(), results.mutable_data_ptr<double>());
  return {to_device(results)};
}

}  // namespace at::cuda
