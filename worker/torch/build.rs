//! Compiles the C++ side against libtorch and links libtorch, including its CUDA libraries if they exist.
//!
//! Dependents read `DEP_FOIL_TORCH_LIB` (the directory of libtorch's libraries) and `DEP_FOIL_TORCH_CUDA`
//! (`1` if they include `libtorch_cuda.so`), to link their binaries with the same rpath and libraries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 25] = [
    "cpp/bridge.cc",
    "cpp/download.cc",
    "cpp/memory.cc",
    "cpp/net.cc",
    "cpp/read.cc",
    "cpp/runtime.cc",
    "cpp/upload.cc",
    "cpp/c10d/flat.cc",
    "cpp/c10d/group.cc",
    "cpp/c10d/reducer.cc",
    "cpp/c10d/shards.cc",
    "cpp/c10d/store.cc",
    "cpp/autograd/checkpoint.cc",
    "cpp/autograd/gradients.cc",
    "cpp/autograd/preset.cc",
    "cpp/ops/adamw.cc",
    "cpp/ops/attention.cc",
    "cpp/ops/device_attention.cc",
    "cpp/ops/device_sampling.cc",
    "cpp/ops/embedding.cc",
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
    println!("cargo:rerun-if-env-changed=FOIL_WITHOUT_NCCL");
    let without = std::env::var("FOIL_WITHOUT_NCCL").is_ok_and(|value| value == "1");
    let nccl_headers = if cuda && !without { nccl_headers(&libtorch) } else { None };
    assert!(
        !cuda || without || nccl_headers.is_some(),
        "{} has CUDA, but the headers of CUDA or NCCL are not beside it: run scripts/setup, or set FOIL_WITHOUT_NCCL=1 \
         to build without NCCL, for one GPU per job",
        libtorch.display()
    );
    compile(&libtorch, nccl_headers.as_deref());
    link(&lib, cuda);
}

/// Include directories that `ProcessGroupNCCL.hpp` needs, if all of them exist. They belong to the `nvidia`
/// packages installed next to the `torch` package, in the layout of CUDA 13 or of CUDA 12.
fn nccl_headers(libtorch: &Path) -> Option<Vec<PathBuf>> {
    const WANTED: [&str; 7] = [
        "cuda_runtime.h",
        "crt/host_config.h",
        "nv/target",
        "nccl.h",
        "cusparse.h",
        "cublas_v2.h",
        "cusolverDn.h",
    ];
    const LAYOUTS: [&[&str]; 2] = [
        &["cu13/include", "cu13/include/cccl", "nccl/include"],
        &[
            "cuda_runtime/include",
            "cuda_nvcc/include",
            "cuda_cccl/include",
            "cusparse/include",
            "cublas/include",
            "cusolver/include",
            "nccl/include",
        ],
    ];
    let nvidia = libtorch.parent()?.join("nvidia");
    let folders = |layout: &&[&str]| layout.iter().map(|folder| nvidia.join(folder)).collect::<Vec<_>>();
    let is_complete = |folders: &Vec<PathBuf>| {
        WANTED.iter().all(|header| folders.iter().any(|folder| folder.join(header).is_file()))
    };
    LAYOUTS.iter().map(folders).find(is_complete)
}

fn compile(libtorch: &Path, nccl_headers: Option<&[PathBuf]>) {
    let mut build = cxx_build::bridge("src/ffi.rs");
    build
        .files(units())
        .std("c++20")
        // For c10d's headers, which include Gloo's.
        .include("cpp")
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        // libtorch's headers warn a lot, and their debug information is many times the size of this crate's.
        .warnings(false)
        // Optimizes the kernels' loops, which state themselves where sums may be reordered. Also in debug
        // builds, since libtorch is optimized there too.
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

/// One file per source folder that includes the folder's sources. libtorch's headers take most of the compile
/// time and are then read a few times instead of twenty. The loops of kernels.cc include none of them, so
/// they stay separate.
fn units() -> Vec<PathBuf> {
    const ALONE: &str = "cpp/ops/kernels.cc";
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let root = std::env::current_dir().unwrap_or_default();
    let mut folders: BTreeMap<&Path, String> = BTreeMap::new();
    for source in SOURCES.iter().filter(|source| **source != ALONE) {
        let folder = Path::new(source).parent().unwrap_or(Path::new(""));
        let include = format!("#include \"{}\"\n", root.join(source).display());
        folders.entry(folder).or_default().push_str(&include);
    }
    let unit = |(folder, includes): (&Path, String)| {
        let name = folder.to_string_lossy().replace('/', "_");
        let file = out.join(format!("{name}.cc"));
        std::fs::write(&file, includes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        file
    };
    folders.into_iter().map(unit).chain([PathBuf::from(ALONE)]).collect()
}

fn link(lib: &Path, cuda: bool) {
    println!("cargo:lib={}", lib.display());
    println!("cargo:cuda={}", u8::from(cuda));
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // The rpath contains libtorch's own libgomp, which has the same name: both share one thread pool.
    for library in ["torch_cpu", "torch", "c10", "gomp"] {
        println!("cargo:rustc-link-lib={library}");
    }
    if cuda {
        for library in ["torch_cuda", "c10_cuda"] {
            println!("cargo:rustc-link-lib={library}");
        }
        // CUDA's kernels register themselves when their library is loaded; it must be linked although no
        // symbol is used.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,-lc10_cuda,--as-needed");
    }
}
