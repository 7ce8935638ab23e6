//! Sets the rpath of this package's binaries and tests to libtorch's location at build time.

fn main() {
    let Ok(lib) = std::env::var("DEP_FOIL_TORCH_LIB") else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if std::env::var("DEP_FOIL_TORCH_CUDA").as_deref() == Ok("1") {
        // CUDA's kernels register themselves when their library is loaded; it must be linked although no
        // symbol is used.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,-lc10_cuda,--as-needed");
    }
}
