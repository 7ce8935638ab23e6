//! Environment variables of processes that compute on a device.

use std::process::Command;

use foil_proto::v1;

/// Defaults, each with the user's variables that override it.
const DEFAULTS: [(&[&str], &str); 2] = [
    // Micro-batches differ in size: growing segments avoid fragmentation into pieces that fit none. The
    // second name is the older one.
    (&["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"], "expandable_segments:True"),
    // NCCL connects and allocates its memory when a group is created rather than on first use of an
    // algorithm.
    (&["NCCL_RUNTIME_CONNECT"], "0"),
];

/// Sets the variables of libtorch, CUDA and NCCL for a process that computes on `device` alone, as a rank
/// does.
pub fn set_compute_environment(command: &mut Command, device: &v1::Device) {
    command
        // The process sees only its own device, cuda:0.
        .env("CUDA_VISIBLE_DEVICES", if device.kind == "cuda" { &device.id } else { "" })
        // cuBLAS is deterministic only with a fixed workspace.
        .env("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        // cuDNN compiles a plan for each new shape of a decoding step, which takes tenths of a second each
        // time.
        .env("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
        // The coordinator ends an attempt that hangs, so NCCL's watchdog need not write a dump that nobody
        // reads, nor resolve all of libtorch's symbols before it ends the process.
        .env("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
        .env("TORCH_NCCL_LOG_CPP_STACK_ON_UNCLEAN_SHUTDOWN", "0")
        .envs(unset_defaults());
}

/// The [`DEFAULTS`] that the user has not overridden.
fn unset_defaults() -> impl Iterator<Item = (&'static str, &'static str)> {
    let is_unset = |names: &[&str]| names.iter().all(|name| std::env::var_os(name).is_none());
    DEFAULTS.into_iter().filter(move |(names, _)| is_unset(names)).map(|(names, value)| (names[0], value))
}
