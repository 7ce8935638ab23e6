//! Foil's wire types and gRPC services, generated from the files under `foil/v1`.

/// Package `foil.v1`: messages with prost encoding and protobuf's JSON mapping (in proto field names),
/// clients and servers.
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("foil.v1");
    include!(concat!(env!("OUT_DIR"), "/foil.v1.serde.rs"));
}

mod secret;

/// The encoded `FileDescriptorSet` of the package, for reflection and for the test that guards field numbers.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
