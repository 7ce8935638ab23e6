//! Tells this crate and, as `DEP_FOIL_C10D_LIB`, its dependents where libtorch's libraries lie.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(libtorch) = std::env::var("LIBTORCH") else {
        panic!(
            "LIBTORCH is not set: run scripts/setup, which installs libtorch where .cargo/config.toml points"
        );
    };
    let lib = PathBuf::from(libtorch).join("lib");
    println!("cargo:lib={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
