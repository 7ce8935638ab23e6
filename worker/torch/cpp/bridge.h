// The C++ side of this crate: thin, typed handles over libtorch's c10d, and ATen calls that tch does not bind.
// Every function may throw; the bridge turns any exception into an error value (see `describe_exception`).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "rust/cxx.h"

namespace foil {

// Describes the exception being handled: one character for its kind ('T' timeout, 'P' peer lost, 'O' other), then its
// message.
std::string describe_exception() noexcept;

// A list of tensors that share storage with those of the Rust side.
class TensorList {
 public:
  TensorList();
  ~TensorList();
  void push(const at::Tensor& tensor);
  std::size_t length() const;
  std::unique_ptr<at::Tensor> at(std::size_t index) const;
  struct Inner;
  std::unique_ptr<Inner> inner;
};
std::unique_ptr<TensorList> new_tensor_list();

class Store {
 public:
  Store();
  ~Store();
  std::uint16_t port() const;
  std::unique_ptr<Store> prefixed(rust::Str prefix) const;
  void set(rust::Str key, rust::Slice<const std::uint8_t> value) const;
  rust::Vec<std::uint8_t> get(rust::Str key) const;
  std::int64_t add(rust::Str key, std::int64_t amount) const;
  void wait(rust::Str key, std::uint64_t timeout_ms) const;
  struct Inner;
  std::unique_ptr<Inner> inner;
};
// Serves on `listener`, a bound and listening socket with port `port`, and takes ownership of the socket.
std::unique_ptr<Store> host_store(rust::Str host, std::uint16_t port, std::int32_t listener, std::uint64_t timeout_ms);
std::unique_ptr<Store> connect_store(rust::Str host, std::uint16_t port, std::uint64_t timeout_ms);

class Group {
 public:
  Group();
  ~Group();
  void all_reduce_sum(const at::Tensor& tensor) const;
  void all_reduce_sums(const at::Tensor& tensor, std::uint32_t times) const;
  void broadcast(const at::Tensor& tensor, std::int32_t root) const;
  void all_gather(const at::Tensor& output, const at::Tensor& input) const;
  void reduce_scatter_sum(const at::Tensor& output, const at::Tensor& input) const;
  void barrier() const;
  void shutdown() const;
  void abort() const;
  struct Inner;
  std::unique_ptr<Inner> inner;
};
// Gloo for CPU tensors; with `nccl`, also NCCL for CUDA tensors.
std::unique_ptr<Group> new_group(const Store& store, std::int32_t rank, std::int32_t world, rust::Str address,
                                 std::uint64_t timeout_ms, bool nccl);
std::uint64_t waited_nanoseconds();

class Reducer {
 public:
  Reducer();
  ~Reducer();
  void prepare() const;
  bool rebuild_buckets() const;
  void backward(const at::Tensor& loss) const;
  void check_finalized() const;
  void begin_trace(std::int64_t pause_at) const;
  rust::Vec<std::int64_t> end_trace() const;
  struct Inner;
  std::unique_ptr<Inner> inner;
};
std::unique_ptr<Reducer> new_reducer(const Group& group, const TensorList& parameters, std::size_t first_bucket_bytes,
                                     std::size_t bucket_bytes);

// Parameters sharded over the ranks of a group, in units that are gathered and freed together.
class ShardStore {
 public:
  ShardStore();
  ~ShardStore();
  std::size_t add_unit(const at::Tensor& shard, rust::Slice<const std::int64_t> offsets,
                       rust::Slice<const std::int64_t> dimensions, rust::Slice<const std::int64_t> sizes, bool bf16,
                       bool resident, TensorList& parameters) const;
  void connect(const Group& group) const;
  void disconnect() const;
  void watch_gradients() const;
  void gather(std::size_t unit, std::int64_t next) const;
  void gather_residents() const;
  void gather_in_backward(std::size_t unit, std::int64_t next, const TensorList& inputs, TensorList& results) const;
  std::int64_t finish_backward() const;
  void release() const;
  void discard_gradients() const;
  std::unique_ptr<at::Tensor> whole(std::size_t unit) const;
  std::int64_t gathered_bytes() const;
  struct Inner;
  std::shared_ptr<Inner> inner;
};
std::shared_ptr<ShardStore> new_shard_store(std::int64_t world);

// Whole parameters and their gradients, laid out flat in units; each rank updates a part.
class FlatParameters {
 public:
  FlatParameters();
  ~FlatParameters();
  void connect(const Group& group) const;
  std::unique_ptr<at::Tensor> add_unit(const TensorList& parameters, rust::Slice<const std::int64_t> offsets,
                                       std::int64_t length) const;
  void begin_reduction(bool has_rows) const;
  std::int64_t finish_reduction() const;
  void gather() const;
  void discard_gradients() const;
  void begin_trace(std::int64_t pause_at) const;
  rust::Vec<std::int64_t> end_trace() const;
  struct Inner;
  std::shared_ptr<Inner> inner;
};
std::unique_ptr<FlatParameters> new_flat_parameters(std::int64_t rank, std::int64_t world);

void run_backward(const at::Tensor& loss);
bool grad_enabled();

struct AdamW;
void fused_adamw(const TensorList& parameters, const TensorList& gradients, const TensorList& exp_avg,
                 const TensorList& exp_avg_sq, const TensorList& steps, const AdamW& options);
std::unique_ptr<at::Tensor> global_norm(const TensorList& tensors);
void scale(const TensorList& tensors, double factor);
void zero(const TensorList& tensors);
void set_deterministic(bool on);
bool is_deterministic();
void disable_cudnn_attention();
void use_cpu_kernels(bool on);
bool cpu_kernels_in_use();
void keep_freed_memory();
void clear_gradients(const TensorList& tensors);
std::unique_ptr<at::Tensor> upload(const at::Tensor& host, std::int32_t device);

// Reads files into flat tensors.
class FileReader {
 public:
  FileReader();
  ~FileReader();
  // Reads `into`, stored from byte `start` in the kind of `like`, whose elements do not matter.
  void read(std::int32_t file, std::uint64_t start, const at::Tensor& like, const at::Tensor& into) const;
  struct Inner;
  std::unique_ptr<Inner> inner;
};
// For tensors of a GPU and of the host, or of the host only.
std::unique_ptr<FileReader> new_file_reader(bool for_gpu);

// Copies to the host on a separate stream.
class Downloads {
 public:
  Downloads();
  ~Downloads();
  void copy(const at::Tensor& from, const at::Tensor& into) const;
  void wait() const;
  struct Inner;
  std::unique_ptr<Inner> inner;
};
// For the GPU `device`, or the CPU if it is negative.
std::unique_ptr<Downloads> new_downloads(std::int32_t device);
std::unique_ptr<at::Tensor> host_buffer(std::int64_t elements, bool pinned);

// ---- Operations: shapes and meaning are documented with their Rust callers in src/ops ----

struct TensorPair {
  std::unique_ptr<at::Tensor> one, two;
  std::unique_ptr<at::Tensor> first() { return std::move(one); }
  std::unique_ptr<at::Tensor> second() { return std::move(two); }
};
struct Segment;
std::unique_ptr<at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, bool bf16);
std::unique_ptr<TensorPair> add_rms_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight,
                                         double eps);
std::unique_ptr<at::Tensor> swiglu(const at::Tensor& gate, const at::Tensor& up);
std::unique_ptr<at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& cos, const at::Tensor& sin, rust::Slice<const Segment> segments,
                                      const TensorList& index);
std::unique_ptr<at::Tensor> wide_embedding(const at::Tensor& weight, const at::Tensor& ids);
std::unique_ptr<at::Tensor> gather_rows(const at::Tensor& x, const at::Tensor& rows);
std::unique_ptr<at::Tensor> rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
std::unique_ptr<at::Tensor> decode_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& keys,
                                             const at::Tensor& values, rust::Slice<const std::int64_t> slots,
                                             rust::Slice<const std::int64_t> positions);
std::unique_ptr<at::Tensor> decode_by_flash(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values,
                                            const TensorList& index);
std::unique_ptr<at::Tensor> pack_weight(const at::Tensor& weight, std::int64_t rows);
std::unique_ptr<at::Tensor> packed_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
std::unique_ptr<at::Tensor> linear_by_output(const at::Tensor& weight, const at::Tensor& x);
struct SampledToken;
rust::Vec<SampledToken> sample_tokens(const at::Tensor& logits, rust::Slice<const std::uint64_t> keys,
                                      double temperature);
std::unique_ptr<at::Tensor> exponential_race(const at::Tensor& logits, const at::Tensor& maxima, const at::Tensor& keys,
                                             const at::Tensor& tokens, double temperature);
std::unique_ptr<TensorPair> target_log_probs(const at::Tensor& logits, const at::Tensor& targets);
void log_prob_gradient(const at::Tensor& logits, const at::Tensor& log_sum_exp, const at::Tensor& targets,
                       const at::Tensor& upstream);
std::unique_ptr<at::Tensor> with_gradients(const at::Tensor& value, const at::Tensor& a, const at::Tensor& a_gradient,
                                           const at::Tensor& b, const at::Tensor& b_gradient);

struct Computation;
void checkpoint(rust::Box<Computation> computation, const TensorList& inputs, TensorList& results);

// Counts the bytes of CPU tensors that this thread allocates and frees during its lifetime.
class CpuMemory {
 public:
  CpuMemory();
  ~CpuMemory();
  std::int64_t current() const;
  std::int64_t peak() const;
  void reset_peak() const;
  struct Inner;
  std::unique_ptr<Inner> inner;
};
std::unique_ptr<CpuMemory> count_cpu_memory();

void release_cached_device_memory();
std::int64_t peak_device_memory();
std::int64_t total_device_memory();
std::int64_t cuda_runtime_version();

// The network interface with the (numeric) `address`, or an empty string.
rust::String network_interface(rust::Str address);

}  // namespace foil

namespace rust::behavior {

template <typename Try, typename Fail>
static void trycatch(Try&& attempt, Fail&& fail) noexcept {
  try {
    attempt();
  } catch (...) {
    fail(foil::describe_exception());
  }
}

}  // namespace rust::behavior
