//! Out-of-memory errors: recognizing them in the output of programs, and describing them.

use std::fmt;

use foil_proto::v1::MemoryShortage;

/// The memory that ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    Host,
    Device,
}

impl MemoryKind {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Device => "device",
        }
    }
}

/// A shortage without sizes.
pub fn of_unknown_size(kind: MemoryKind) -> MemoryShortage {
    MemoryShortage { place: kind.name().to_owned(), ..MemoryShortage::default() }
}

/// Recognizes an out-of-memory error of libtorch's allocators, C++ or Rust in a text; `None` if it reports
/// something else.
pub fn parse(text: &str) -> Option<MemoryShortage> {
    let lower = text.to_ascii_lowercase();
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| lower.contains(phrase));
    let device = ["cuda out of memory", "cuda error: out of memory", "cuda driver error: out of memory"];
    let libraries =
        ["cublas_status_alloc_failed", "cudnn_status_alloc_failed", "cusolver_status_alloc_failed"];
    // NCCL allocates on the device, but its messages do not say so.
    let nccl =
        lower.contains("nccl") && says(&["out of memory", "cuda failure 2", "cuda failure 'out of memory'"]);
    if says(&device) || says(&libraries) || nccl {
        return Some(MemoryShortage {
            requested_bytes: size_after(&lower, "tried to allocate "),
            peak_bytes: size_after(&lower, "this process has "),
            limit_bytes: size_after(&lower, "total capacity of "),
            free_bytes: size_after(&lower, " of which "),
            ..of_unknown_size(MemoryKind::Device)
        });
    }
    let aborted = lower.contains("memory allocation of ") && lower.contains(" bytes failed");
    let phrases = ["out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory"];
    if aborted || says(&phrases) || says(&["bad_alloc"]) {
        let requested = ["tried to allocate ", "trying to allocate ", "memory allocation of "];
        return Some(MemoryShortage {
            requested_bytes: requested.iter().find_map(|lead| size_after(&lower, lead)),
            ..of_unknown_size(MemoryKind::Host)
        });
    }
    None
}

/// The size after `lead`: a number and its unit; without a unit it is in bytes.
fn size_after(lower: &str, lead: &str) -> Option<u64> {
    let (_, rest) = lower.split_once(lead)?;
    let mut words = rest.split_whitespace();
    let number: f64 = words.next()?.trim_end_matches(['.', ',']).parse().ok()?;
    let unit: f64 = match words.next().unwrap_or_default().trim_end_matches(['.', ',']) {
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => 1.0,
    };
    let bytes = number * unit;
    (0.0..1e18).contains(&bytes).then_some(bytes as u64)
}

/// The message for users: `out of device memory: 20.0 MiB requested, …`.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a>(pub &'a MemoryShortage);

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryShortage { place, requested_bytes, peak_bytes, limit_bytes, free_bytes } = self.0;
        let parts = [
            requested_bytes.map(|bytes| format!("{} requested", Bytes(bytes))),
            peak_bytes.map(|bytes| format!("the rank held {}", Bytes(bytes))),
            limit_bytes.map(|bytes| format!("the limit is {}", Bytes(bytes))),
            free_bytes.map(|bytes| format!("{} free", Bytes(bytes))),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        write!(f, "out of {place} memory")?;
        if parts.is_empty() { Ok(()) } else { write!(f, ": {}", parts.join(", ")) }
    }
}

/// A size for readers: `1.5 GiB`.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(bits, _)| self.0 >> bits > 0) {
            Some((bits, unit)) => write!(f, "{:.1} {unit}", self.0 as f64 / (1u64 << bits) as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn torch_on_a_gpu_reports_all_sizes() {
        let message = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.00 GiB of which 15.50 MiB \
                    is free. Including non-PyTorch memory, this process has 78.50 GiB memory in use. Of the allocated memory \
                    78.00 GiB is allocated by PyTorch, and 12.00 MiB is reserved by PyTorch but unallocated.";
        let found = parse(message).unwrap();
        assert_eq!(found.place, "device");
        assert_eq!((found.requested_bytes, found.limit_bytes), (Some(20 * MIB), Some(79 * 1024 * MIB)));
        assert_eq!((found.peak_bytes, found.free_bytes), (Some(157 * 512 * MIB), Some(31 * MIB / 2)));
        let text = Message(&found).to_string();
        assert_eq!(
            text,
            "out of device memory: 20.0 MiB requested, the rank held 78.5 GiB, the limit is 79.0 GiB, 15.5 MiB free"
        );
        for message in [
            "CUDA error: out of memory",
            "CUDA driver error: out of memory",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error, NCCL version 2.28.9\nncclUnhandledCudaError: \
             Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc async 2432 bytes: Cuda failure 2 'out of memory'",
        ] {
            assert_eq!(parse(message).unwrap(), of_unknown_size(MemoryKind::Device), "{message}");
        }
    }

    #[test]
    fn host_memory_errors_of_libtorch_cpp_and_rust_are_recognized() {
        let torch = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
                     allocate 17179869184 bytes. Error code 12 (Cannot allocate memory)";
        for (message, requested) in [
            (torch, Some(16 << 30)),
            ("memory allocation of 4096 bytes failed", Some(4096)),
            ("terminate called after throwing an instance of 'std::bad_alloc'", None),
            ("std::bad_alloc", None),
            ("Cannot allocate memory (os error 12)", None),
        ] {
            let found = parse(message).unwrap();
            assert_eq!((found.place.as_str(), found.requested_bytes), ("host", requested), "{message}");
        }
    }

    #[test]
    fn other_texts_are_not_out_of_memory_errors() {
        for message in ["index out of range", "the memory of a rank", "memory allocation of the plan", ""] {
            assert_eq!(parse(message), None, "{message}");
        }
    }
}
