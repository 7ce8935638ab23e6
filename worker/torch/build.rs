//! Compiles the C++ side against libtorch and links libtorch, with its CUDA half where there is one.
//!
//! Dependents read `DEP_FOIL_TORCH_LIB` (where libtorch's libraries lie) and `DEP_FOIL_TORCH_CUDA` (`1` where
//! they include `libtorch_cuda.so`), to give their binaries the same rpath and the same libraries.

use std::path::{Path, PathBuf};

const SOURCES: [&str; 17] = [
    "cpp/bridge.cc",
    "cpp/memory.cc",
    "cpp/net.cc",
    "cpp/runtime.cc",
    "cpp/c10d/group.cc",
    "cpp/c10d/reducer.cc",
    "cpp/c10d/store.cc",
    "cpp/autograd/checkpoint.cc",
    "cpp/autograd/gradients.cc",
    "cpp/autograd/preset.cc",
    "cpp/ops/adamw.cc",
    "cpp/ops/attention.cc",
    "cpp/ops/kernels.cc",
    "cpp/ops/logits.cc",
    "cpp/ops/norm.cc",
    "cpp/ops/packed.cc",
    "cpp/ops/sampling.cc",
];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=cpp");
    let Ok(libtorch) = std::env::var("LIBTORCH") else {
        panic!(
            "LIBTORCH is not set: run scripts/setup, which installs libtorch where .cargo/config.toml points"
        );
    };
    let libtorch = PathBuf::from(libtorch);
    let lib = libtorch.join("lib");
    assert!(
        lib.join("libtorch_cpu.so").is_file(),
        "LIBTORCH names {}, which holds no lib/libtorch_cpu.so: run scripts/setup, or point LIBTORCH at a libtorch",
        libtorch.display()
    );
    let cuda = lib.join("libtorch_cuda.so").is_file();
    let nccl_headers = if cuda { nccl_headers(&libtorch) } else { None };
    if cuda && nccl_headers.is_none() {
        println!(
            "cargo:warning=CUDA's or NCCL's headers are not beside {}: building without NCCL",
            libtorch.display()
        );
    }
    compile(&libtorch, nccl_headers.as_deref());
    link(&lib, cuda);
}

/// Include directories that `ProcessGroupNCCL.hpp` needs, if all of them are there: those of the `nvidia`
/// packages installed beside the `torch` package.
fn nccl_headers(libtorch: &Path) -> Option<Vec<PathBuf>> {
    let nvidia = libtorch.parent()?.join("nvidia");
    let cuda = nvidia.join("cu13/include");
    let nccl = nvidia.join("nccl/include");
    let wanted = [
        cuda.join("cuda_runtime.h"),
        cuda.join("crt/host_config.h"),
        cuda.join("cccl/nv/target"),
        nccl.join("nccl.h"),
    ];
    if !wanted.iter().all(|header| header.is_file()) {
        return None;
    }
    Some(vec![cuda.clone(), cuda.join("cccl"), nccl])
}

fn compile(libtorch: &Path, nccl_headers: Option<&[PathBuf]>) {
    let mut build = cxx_build::bridge("src/ffi.rs");
    build
        .files(SOURCES)
        .std("c++20")
        // For c10d's headers, which include Gloo's.
        .include("cpp")
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        // libtorch's headers warn a lot, and their debug information is many times the size of this crate's.
        .warnings(false)
        // The kernels' loops, which say themselves where sums may be reordered; in debug builds too, as
        // libtorch's are.
        .opt_level(3)
        // at::parallel_for is a template over OpenMP: without this it compiles to a plain loop.
        .flag("-fopenmp")
        .flag("-fno-math-errno")
        .flag("-fno-trapping-math")
        .debug(false);
    println!("cargo:rustc-check-cfg=cfg(foil_nccl)");
    if let Some(headers) = nccl_headers {
        build.includes(headers).define("USE_C10D_NCCL", None).define("FOIL_NCCL", None);
        println!("cargo:rustc-cfg=foil_nccl");
    }
    build.compile("foil_torch_cpp");
}

fn link(lib: &Path, cuda: bool) {
    println!("cargo:lib={}", lib.display());
    println!("cargo:cuda={}", u8::from(cuda));
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // libtorch's own libgomp, of this very name, lies on the rpath: one pool of threads for both.
    for library in ["torch_cpu", "torch", "c10", "gomp"] {
        println!("cargo:rustc-link-lib={library}");
    }
    if cuda {
        for library in ["torch_cuda", "c10_cuda"] {
            println!("cargo:rustc-link-lib={library}");
        }
        // CUDA's kernels register themselves when their library is loaded; no symbol of it need be used.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,-lc10_cuda,--as-needed");
    }
}
