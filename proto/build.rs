//! Compiles the protobuf files in pure Rust: no protoc is needed.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost::Message;

const FILES: [&str; 9] = [
    "foil/v1/access.proto",
    "foil/v1/agents.proto",
    "foil/v1/artifacts.proto",
    "foil/v1/jobs.proto",
    "foil/v1/results.proto",
    "foil/v1/storage.proto",
    "foil/v1/tenants.proto",
    "foil/v1/trackers.proto",
    "foil/v1/workers.proto",
];

/// Messages that hold a secret: `Debug` is written by hand, so that no log line shows it.
const SECRET: [&str; 4] =
    [".foil.v1.AgentRegister", ".foil.v1.StartRank", ".foil.v1.RankHello", ".foil.v1.PutBegin"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=foil");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let encoded = descriptors.encode_to_vec();
    fs::write(out.join("descriptors.bin"), &encoded)?;
    tonic_prost_build::configure()
        .extern_path(".google.protobuf.Timestamp", "::pbjson_types::Timestamp")
        .bytes(".foil.v1")
        // Hashes of encoded messages must not depend on the order of a map.
        .btree_map(".")
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .preserve_proto_field_names()
        .btree_map([".foil.v1"])
        .build(&[".foil.v1"])?;
    Ok(())
}
