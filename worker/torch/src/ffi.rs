//! The bridge to the C++ side and its conversions. Apart from `Send` implementations, all unsafe code of this
//! crate is here.

// The bridge generates public items, but this module is private.
#![allow(unreachable_pub)]

mod computation;

pub(crate) use computation::Computation;

pub(crate) use bridge::*;
pub use bridge::{AdamW, SampledToken, Segment};

#[cxx::bridge(namespace = "foil")]
mod bridge {
    /// Hyperparameters of AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019).
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct AdamW {
        /// Step size, after any schedule.
        pub learning_rate: f64,
        /// Decay rate of the mean of gradients.
        pub beta1: f64,
        /// Decay rate of the mean of squared gradients.
        pub beta2: f64,
        /// Added to the root of the mean of squared gradients.
        pub epsilon: f64,
        /// Decoupled decay: each step first multiplies parameters by `1 - learning_rate * weight_decay`.
        pub weight_decay: f64,
    }

    /// A range of rows in a packed batch. Each row attends to itself, to earlier rows of the range, and to
    /// all rows of an earlier segment, the shared prefix. All fields count rows.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Segment {
        /// First row of the segment.
        pub start: i64,
        pub length: i64,
        /// First row of the shared prefix.
        pub prefix_start: i64,
        /// Number of rows of the shared prefix; 0 if there is none.
        pub prefix_length: i64,
    }

    /// A token sampled from a row of logits.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct SampledToken {
        pub token: u32,
        /// The token's logit.
        pub logit: f32,
        /// log Σ exp of the row: `logit − log_sum_exp` is log softmax(logits) at the token, at any
        /// temperature.
        pub log_sum_exp: f64,
    }

    unsafe extern "C++" {
        include!("foil-torch/cpp/bridge.h");

        #[namespace = "at"]
        type Tensor;

        type TensorList;
        fn new_tensor_list() -> UniquePtr<TensorList>;
        fn push(self: Pin<&mut TensorList>, tensor: &Tensor);
        fn length(self: &TensorList) -> usize;
        fn at(self: &TensorList, index: usize) -> UniquePtr<Tensor>;

        type Store;
        fn host_store(host: &str, port: u16, listener: i32, timeout_ms: u64) -> Result<UniquePtr<Store>>;
        fn connect_store(host: &str, port: u16, timeout_ms: u64) -> Result<UniquePtr<Store>>;
        fn port(self: &Store) -> u16;
        fn prefixed(self: &Store, prefix: &str) -> Result<UniquePtr<Store>>;
        fn set(self: &Store, key: &str, value: &[u8]) -> Result<()>;
        fn get(self: &Store, key: &str) -> Result<Vec<u8>>;
        fn add(self: &Store, key: &str, amount: i64) -> Result<i64>;
        fn wait(self: &Store, key: &str, timeout_ms: u64) -> Result<()>;

        type Group;
        fn new_group(
            store: &Store,
            rank: i32,
            world: i32,
            address: &str,
            timeout_ms: u64,
            nccl: bool,
        ) -> Result<UniquePtr<Group>>;
        fn all_reduce_sum(self: &Group, tensor: &Tensor) -> Result<()>;
        fn all_reduce_sums(self: &Group, tensor: &Tensor, times: u32) -> Result<()>;
        fn broadcast(self: &Group, tensor: &Tensor, root: i32) -> Result<()>;
        fn all_gather(self: &Group, output: &Tensor, input: &Tensor) -> Result<()>;
        fn reduce_scatter_sum(self: &Group, output: &Tensor, input: &Tensor) -> Result<()>;
        fn barrier(self: &Group) -> Result<()>;
        fn shutdown(self: &Group) -> Result<()>;
        fn abort(self: &Group) -> Result<()>;
        fn waited_nanoseconds() -> u64;

        type Reducer;
        fn new_reducer(
            group: &Group,
            parameters: &TensorList,
            first_bucket_bytes: usize,
            bucket_bytes: usize,
        ) -> Result<UniquePtr<Reducer>>;
        fn prepare(self: &Reducer) -> Result<()>;
        fn rebuild_buckets(self: &Reducer) -> Result<bool>;
        fn backward(self: &Reducer, loss: &Tensor) -> Result<()>;
        fn check_finalized(self: &Reducer) -> Result<()>;
        fn begin_trace(self: &Reducer, pause_at: i64) -> Result<()>;
        fn end_trace(self: &Reducer) -> Result<Vec<i64>>;

        type ShardStore;
        fn new_shard_store(world: i64) -> Result<SharedPtr<ShardStore>>;
        #[allow(clippy::too_many_arguments)]
        fn add_unit(
            self: &ShardStore,
            shard: &Tensor,
            offsets: &[i64],
            dimensions: &[i64],
            sizes: &[i64],
            bf16: bool,
            resident: bool,
            parameters: Pin<&mut TensorList>,
        ) -> Result<usize>;
        fn connect(self: &ShardStore, group: &Group);
        fn disconnect(self: &ShardStore);
        fn watch_gradients(self: &ShardStore) -> Result<()>;
        fn gather(self: &ShardStore, unit: usize, next: i64) -> Result<()>;
        fn gather_residents(self: &ShardStore) -> Result<()>;
        fn gather_in_backward(
            self: &ShardStore,
            unit: usize,
            next: i64,
            inputs: &TensorList,
            results: Pin<&mut TensorList>,
        ) -> Result<()>;
        fn finish_backward(self: &ShardStore) -> Result<i64>;
        fn release(self: &ShardStore) -> Result<()>;
        fn discard_gradients(self: &ShardStore) -> Result<()>;
        fn whole(self: &ShardStore, unit: usize) -> Result<UniquePtr<Tensor>>;
        fn gathered_bytes(self: &ShardStore) -> i64;

        type FlatParameters;
        fn new_flat_parameters(rank: i64, world: i64) -> Result<UniquePtr<FlatParameters>>;
        fn connect(self: &FlatParameters, group: &Group);
        fn add_unit(
            self: &FlatParameters,
            parameters: &TensorList,
            offsets: &[i64],
            length: i64,
        ) -> Result<UniquePtr<Tensor>>;
        fn begin_reduction(self: &FlatParameters, has_rows: bool) -> Result<()>;
        fn finish_reduction(self: &FlatParameters) -> Result<i64>;
        fn gather(self: &FlatParameters) -> Result<()>;
        fn discard_gradients(self: &FlatParameters) -> Result<()>;
        fn begin_trace(self: &FlatParameters, pause_at: i64) -> Result<()>;
        fn end_trace(self: &FlatParameters) -> Result<Vec<i64>>;

        fn run_backward(loss: &Tensor) -> Result<()>;
        fn grad_enabled() -> bool;
        fn fused_adamw(
            parameters: &TensorList,
            gradients: &TensorList,
            exp_avg: &TensorList,
            exp_avg_sq: &TensorList,
            steps: &TensorList,
            options: &AdamW,
        ) -> Result<()>;
        fn global_norm(tensors: &TensorList) -> Result<UniquePtr<Tensor>>;
        fn scale(tensors: &TensorList, factor: f64) -> Result<()>;
        fn zero(tensors: &TensorList) -> Result<()>;
        fn set_deterministic(on: bool) -> Result<()>;
        fn is_deterministic() -> bool;
        fn disable_cudnn_attention();
        fn use_cpu_kernels(on: bool);
        fn cpu_kernels_in_use() -> bool;
        fn keep_freed_memory();
        fn clear_gradients(tensors: &TensorList) -> Result<()>;
        fn upload(host: &Tensor, device: i32) -> Result<UniquePtr<Tensor>>;

        type FileReader;
        fn new_file_reader(for_gpu: bool) -> Result<UniquePtr<FileReader>>;
        fn read(self: &FileReader, file: i32, start: u64, like: &Tensor, into: &Tensor) -> Result<()>;

        type Downloads;
        fn new_downloads(device: i32) -> Result<UniquePtr<Downloads>>;
        fn copy(self: &Downloads, from: &Tensor, into: &Tensor) -> Result<()>;
        fn wait(self: &Downloads) -> Result<()>;
        fn host_buffer(elements: i64, pinned: bool) -> Result<UniquePtr<Tensor>>;

        type TensorPair;
        fn first(self: Pin<&mut TensorPair>) -> UniquePtr<Tensor>;
        fn second(self: Pin<&mut TensorPair>) -> UniquePtr<Tensor>;
        fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, bf16: bool) -> Result<UniquePtr<Tensor>>;
        fn add_rms_norm(
            x: &Tensor,
            delta: &Tensor,
            weight: &Tensor,
            eps: f64,
        ) -> Result<UniquePtr<TensorPair>>;
        fn swiglu(gate: &Tensor, up: &Tensor) -> Result<UniquePtr<Tensor>>;
        #[allow(clippy::too_many_arguments)]
        fn attention(
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            cos: &Tensor,
            sin: &Tensor,
            segments: &[Segment],
            index: &TensorList,
        ) -> Result<UniquePtr<Tensor>>;
        fn wide_embedding(weight: &Tensor, ids: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn gather_rows(x: &Tensor, rows: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<UniquePtr<Tensor>>;
        #[allow(clippy::too_many_arguments)]
        fn decode_attention(
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            cos: &Tensor,
            sin: &Tensor,
            keys: &Tensor,
            values: &Tensor,
            slots: &[i64],
            positions: &[i64],
        ) -> Result<UniquePtr<Tensor>>;
        fn decode_by_flash(
            q: &Tensor,
            keys: &Tensor,
            values: &Tensor,
            index: &TensorList,
        ) -> Result<UniquePtr<Tensor>>;
        fn pack_weight(weight: &Tensor, rows: i64) -> Result<UniquePtr<Tensor>>;
        fn packed_linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn linear_by_output(weight: &Tensor, x: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn sample_tokens(logits: &Tensor, keys: &[u64], temperature: f64) -> Result<Vec<SampledToken>>;
        fn exponential_race(
            logits: &Tensor,
            maxima: &Tensor,
            keys: &Tensor,
            tokens: &Tensor,
            temperature: f64,
        ) -> Result<UniquePtr<Tensor>>;
        fn target_log_probs(logits: &Tensor, targets: &Tensor) -> Result<UniquePtr<TensorPair>>;
        fn log_prob_gradient(
            logits: &Tensor,
            log_sum_exp: &Tensor,
            targets: &Tensor,
            upstream: &Tensor,
        ) -> Result<()>;
        fn with_gradients(
            value: &Tensor,
            a: &Tensor,
            a_gradient: &Tensor,
            b: &Tensor,
            b_gradient: &Tensor,
        ) -> Result<UniquePtr<Tensor>>;
        fn checkpoint(
            computation: Box<Computation>,
            inputs: &TensorList,
            results: Pin<&mut TensorList>,
        ) -> Result<()>;
        type CpuMemory;
        fn count_cpu_memory() -> Result<UniquePtr<CpuMemory>>;
        fn current(self: &CpuMemory) -> i64;
        fn peak(self: &CpuMemory) -> i64;
        fn reset_peak(self: &CpuMemory);
        fn release_cached_device_memory() -> Result<()>;
        fn peak_device_memory() -> Result<i64>;
        fn total_device_memory() -> Result<i64>;
        fn cuda_runtime_version() -> i64;
        fn network_interface(address: &str) -> Result<String>;
    }

    extern "Rust" {
        type Computation;
        fn run(self: &Computation, inputs: &TensorList, results: Pin<&mut TensorList>) -> Result<()>;
    }
}

/// Views the same tensor as the C++ type.
pub(crate) fn native(tensor: &tch::Tensor) -> &Tensor {
    // SAFETY: a tch tensor owns a live, non-null, heap-held `at::Tensor` at `as_ptr`, which stays in place
    // while `tensor` is borrowed, as the returned reference is; `at::Tensor` counts its references
    // atomically.
    unsafe { &*tensor.as_ptr().cast::<Tensor>() }
}

/// The same tensors, sharing storage, as a list for the C++ side.
pub(crate) fn list<'a>(tensors: impl IntoIterator<Item = &'a tch::Tensor>) -> cxx::UniquePtr<TensorList> {
    let mut list = new_tensor_list();
    for tensor in tensors {
        list.pin_mut().push(native(tensor));
    }
    list
}

/// Takes ownership of a tensor that the C++ side created.
pub(crate) fn owned(tensor: cxx::UniquePtr<Tensor>) -> tch::Tensor {
    // SAFETY: the pointer is to an `at::Tensor` from `new`, not null since every function that returns one
    // throws instead, and its ownership moves here; tch deletes it.
    unsafe { tch::Tensor::from_ptr(tensor.into_raw().cast()) }
}

/// The tensors of a list, sharing storage with it.
pub(crate) fn tensors(list: &TensorList) -> Vec<tch::Tensor> {
    (0..list.length()).map(|index| owned(list.at(index))).collect()
}
