//! Lets the worker's binaries and tests find libtorch where they were built.

fn main() {
    if let Ok(lib) = std::env::var("DEP_FOIL_C10D_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    }
}
