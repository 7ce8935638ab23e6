// The fallback for all operations of the CUDA key without an implementation here. Arguments are checked as CUDA's
// kernels check them, and the CPU's kernel computes on the same memory.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "memory.h"
#include "trace.h"

namespace fake_gpu {
namespace {

using Stack = torch::jit::Stack;

// An argument and the CPU tensor that shares its memory.
struct Alias {
  at::Tensor original, host;
};

// The arguments of one call, replaced by aliases; `of` contains the aliases of each argument.
class Arguments {
 public:
  Arguments(const c10::FunctionSchema& schema, Stack& stack)
      : schema_(schema), first_(stack.size() - schema.arguments().size()), of_(schema.arguments().size()) {
    for (std::size_t i = 0; i < of_.size(); ++i) {
      stack[first_ + i] = replaced(stack[first_ + i], i);
    }
  }

  const std::vector<Alias>& of(std::size_t argument) const { return of_[argument]; }

  template <typename Visit>
  void each(Visit&& visit) const {
    for (const auto& aliases : of_) {
      for (const auto& alias : aliases) {
        visit(alias);
      }
    }
  }

 private:
  c10::IValue replaced(const c10::IValue& value, std::size_t argument) {
    if (value.isTensor()) {
      return alias(value.toTensor(), argument);
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) {
        list.push_back(alias(tensor, argument));
      }
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        list.push_back(tensor ? std::optional(alias(*tensor, argument)) : std::nullopt);
      }
      return list;
    }
    return value.isDevice() ? c10::IValue(c10::Device(c10::kCPU)) : value;
  }

  at::Tensor alias(const at::Tensor& tensor, std::size_t argument) {
    if (!tensor.defined()) {
      return tensor;
    }
    if (!tensor.is_cuda()) {
      // A scalar on the host travels with the launch of an element-wise kernel; other host tensors are errors.
      if (tensor.dim() > 0) {
        refuse(c10::str(schema_.operator_name(), ": expected all tensors to be on the same device, but ",
                        schema_.arguments()[argument].name(), " ", tensor.sizes(), " is on ", tensor.device()));
      }
      return tensor;
    }
    of_[argument].push_back({tensor, on_host(tensor)});
    return of_[argument].back().host;
  }

  const c10::FunctionSchema& schema_;
  std::size_t first_;
  std::vector<std::vector<Alias>> of_;
};

std::string described(const c10::OperatorHandle& op, const Arguments& arguments) {
  const auto& name = op.operator_name();
  std::string text = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
  if (tracing()) {
    arguments.each([&](const Alias& alias) {
      text += c10::str(" ", alias.original.sizes(), c10::toString(alias.original.scalar_type()));
    });
  }
  return text;
}

// Updates an argument that the kernel resized to the memory and shape of its alias.
void follow(const Alias& alias) {
  if (alias.host.sizes() == alias.original.sizes() && alias.host.const_data_ptr() == alias.original.const_data_ptr()) {
    return;
  }
  const auto moved = to_device(alias.host);
  auto* original = alias.original.unsafeGetTensorImpl();
  original->set_storage_keep_dtype(moved.storage());
  original->set_sizes_and_strides(moved.sizes(), moved.strides(), 0);
}

// A result as a device tensor: a view of an argument if the kernel returned one, else a copy.
at::Tensor result_tensor(const at::Tensor& host, const Arguments& arguments) {
  if (!host.defined()) {
    return host;
  }
  at::Tensor view;
  arguments.each([&](const Alias& alias) {
    if (!view.defined() && host.numel() > 0 && host.storage().data() == alias.host.storage().data()) {
      view = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(alias.original.storage()),
                                                      c10::DispatchKeySet(c10::DispatchKey::CUDA), host.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  });
  return view.defined() ? view : to_device(host);
}

// The index of the argument that a written result aliases, according to the schema's alias annotations.
std::optional<std::size_t> written_argument(const c10::FunctionSchema& schema, const c10::Argument& result) {
  const auto* written = result.alias_info();
  if (written == nullptr || !written->isWrite()) {
    return std::nullopt;
  }
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto* argument = schema.arguments()[i].alias_info();
    if (argument != nullptr && argument->isWrite() && argument->beforeSets() == written->beforeSets()) {
      return i;
    }
  }
  return std::nullopt;
}

c10::IValue result_value(const c10::IValue& value, const Arguments& arguments, std::optional<std::size_t> written) {
  if (value.isTensor()) {
    return written ? arguments.of(*written).front().original : result_tensor(value.toTensor(), arguments);
  }
  if (!value.isTensorList()) {
    return value;
  }
  c10::List<at::Tensor> list;
  if (written) {
    for (const auto& alias : arguments.of(*written)) {
      list.push_back(alias.original);
    }
    return list;
  }
  for (const at::Tensor& tensor : value.toTensorVector()) {
    list.push_back(result_tensor(tensor, arguments));
  }
  return list;
}

void compute_on_host(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const Arguments arguments(schema, *stack);
  if (op.operator_name().name == "aten::_local_scalar_dense") {
    note("item", "");
  } else {
    launch(described(op, arguments));
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  arguments.each(follow);
  const auto& results = schema.returns();
  const std::size_t first = stack->size() - results.size();
  for (std::size_t i = 0; i < results.size(); ++i) {
    auto& value = (*stack)[first + i];
    value = result_value(value, arguments, written_argument(schema, results[i]));
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_host>()); }

// Fused kernels that exist on CUDA; the CPU has a loop over tensors instead.
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  for (const char* name : {"_foreach_add_.Scalar", "_foreach_mul_.Scalar", "_foreach_norm.Scalar", "_foreach_zero_"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&compute_on_host>());
  }
}

}  // namespace fake_gpu
