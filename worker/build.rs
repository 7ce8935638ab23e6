//! Lets this package's binaries and tests find libtorch: in `LD_LIBRARY_PATH`, in `lib` beside the folder
//! they are in, and where they were built, in this order.

fn main() {
    let Ok(lib) = std::env::var("DEP_FOIL_TORCH_LIB") else { return };
    // An unpacked package is found by the first; scripts/package takes the second out.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if std::env::var("DEP_FOIL_TORCH_CUDA").as_deref() == Ok("1") {
        // CUDA's kernels register themselves when their library is loaded; no symbol of it need be used.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,-lc10_cuda,--as-needed");
    }
}
