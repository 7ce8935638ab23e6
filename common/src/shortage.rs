//! Memory that ran out: how programs say so, and the sizes that go with it.

use std::fmt;

use foil_proto::v1::MemoryShortage;

/// Where the memory was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Host,
    Device,
}

impl Place {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Device => "device",
        }
    }
}

/// A shortage of which no size is known.
pub fn shortage(place: Place) -> MemoryShortage {
    MemoryShortage { place: place.name().to_owned(), ..MemoryShortage::default() }
}

/// What a text says of memory that ran out, as libtorch's allocators, C++ and Rust word it; none where it is of something else.
pub fn parse(text: &str) -> Option<MemoryShortage> {
    let lower = text.to_ascii_lowercase();
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| lower.contains(phrase));
    if says(&["cuda out of memory", "cuda error: out of memory", "cublas_status_alloc_failed"]) {
        return Some(MemoryShortage {
            requested_bytes: size_after(&lower, "tried to allocate "),
            peak_bytes: size_after(&lower, "this process has "),
            limit_bytes: size_after(&lower, "total capacity of "),
            free_bytes: size_after(&lower, " of which "),
            ..shortage(Place::Device)
        });
    }
    let aborted = lower.contains("memory allocation of ") && lower.contains(" bytes failed");
    let phrases = ["out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory"];
    if aborted || says(&phrases) || says(&["bad_alloc"]) {
        let requested = ["tried to allocate ", "trying to allocate ", "memory allocation of "];
        return Some(MemoryShortage {
            requested_bytes: requested.iter().find_map(|lead| size_after(&lower, lead)),
            ..shortage(Place::Host)
        });
    }
    None
}

/// The size behind `lead`: a number and its unit, in which a bare number counts bytes.
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

/// A shortage in words: `out of device memory: 20.0 MiB were asked for, …`.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a>(pub &'a MemoryShortage);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryShortage { place, requested_bytes, peak_bytes, limit_bytes, free_bytes } = self.0;
        let parts = [
            requested_bytes.map(|bytes| format!("{} were asked for", Bytes(bytes))),
            peak_bytes.map(|bytes| format!("the rank held {}", Bytes(bytes))),
            limit_bytes.map(|bytes| format!("the limit is {}", Bytes(bytes))),
            free_bytes.map(|bytes| format!("{} were free", Bytes(bytes))),
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
    fn torch_on_a_gpu_tells_all_sizes() {
        let said = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.00 GiB of which 15.50 MiB \
                    is free. Including non-PyTorch memory, this process has 78.50 GiB memory in use. Of the allocated memory \
                    78.00 GiB is allocated by PyTorch, and 12.00 MiB is reserved by PyTorch but unallocated.";
        let found = parse(said).unwrap();
        assert_eq!(found.place, "device");
        assert_eq!((found.requested_bytes, found.limit_bytes), (Some(20 * MIB), Some(79 * 1024 * MIB)));
        assert_eq!((found.peak_bytes, found.free_bytes), (Some(157 * 512 * MIB), Some(31 * MIB / 2)));
        let text = Described(&found).to_string();
        assert_eq!(
            text,
            "out of device memory: 20.0 MiB were asked for, the rank held 78.5 GiB, the limit is 79.0 GiB, 15.5 MiB were free"
        );
        assert_eq!(parse("CUDA error: out of memory").unwrap(), shortage(Place::Device));
    }

    #[test]
    fn the_host_runs_out_in_three_languages() {
        let torch = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
                     allocate 17179869184 bytes. Error code 12 (Cannot allocate memory)";
        for (said, requested) in [
            (torch, Some(16 << 30)),
            ("memory allocation of 4096 bytes failed", Some(4096)),
            ("terminate called after throwing an instance of 'std::bad_alloc'", None),
            ("std::bad_alloc", None),
            ("Cannot allocate memory (os error 12)", None),
        ] {
            let found = parse(said).unwrap();
            assert_eq!((found.place.as_str(), found.requested_bytes), ("host", requested), "{said}");
        }
    }

    #[test]
    fn other_texts_are_of_something_else() {
        for said in ["index out of range", "the memory of a rank", "memory allocation of the plan", ""] {
            assert_eq!(parse(said), None, "{said}");
        }
    }
}
