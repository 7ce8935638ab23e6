//! Sets the rpath for libtorch of this package's binaries and tests. It is searched in `LD_LIBRARY_PATH`, in
//! `lib` next to the binary's folder, and in its location at build time, in this order.

fn main() {
    let Ok(lib) = std::env::var("DEP_FOIL_TORCH_LIB") else { return };
    // The first serves an unpacked package; scripts/package removes the second.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if std::env::var("DEP_FOIL_TORCH_CUDA").as_deref() == Ok("1") {
        // CUDA's kernels register themselves when their library is loaded; it must be linked although no
        // symbol is used.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,-lc10_cuda,--as-needed");
    }
}
