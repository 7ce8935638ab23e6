//! Frames that detect damage: 8 bytes of magic, the CRC-32 of the rest (4 bytes, little-endian), then a
//! protobuf message. Protobuf allows later versions to add fields.

use bytes::{Bytes, BytesMut};
use object_store::PutPayload;
use prost::Message;

const MAGIC: usize = 8;
const HEADER: usize = MAGIC + 4;

/// The fault of a damaged frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("it does not start with {expected}")]
    NotOne { expected: &'static str },
    #[error("its checksum is {found:08x}, not {expected:08x}")]
    Checksum { expected: u32, found: u32 },
    #[error(
        "its checksum holds but its content cannot be read: {0}; a newer version of Foil may have written it"
    )]
    Unreadable(String),
}

pub(super) fn encode(magic: &'static str, message: &impl Message) -> Bytes {
    let mut framed = BytesMut::with_capacity(HEADER + message.encoded_len());
    framed.extend_from_slice(magic.as_bytes());
    framed.extend_from_slice(&[0; 4]);
    // Memory grows as it must.
    let _ = message.encode(&mut framed);
    let checksum = crc32fast::hash(&framed[HEADER..]);
    framed[MAGIC..HEADER].copy_from_slice(&checksum.to_le_bytes());
    framed.freeze()
}

/// The frame of a message that is encoded in parts.
pub(super) fn join(magic: &'static str, body: Vec<Bytes>) -> PutPayload {
    let mut checksum = crc32fast::Hasher::new();
    body.iter().for_each(|part| checksum.update(part));
    let checksum = Bytes::copy_from_slice(&checksum.finalize().to_le_bytes());
    [Bytes::from_static(magic.as_bytes()), checksum].into_iter().chain(body).collect()
}

pub(super) fn encode_body(magic: &'static str, body: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(HEADER + body.len());
    framed.extend_from_slice(magic.as_bytes());
    framed.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    framed.extend_from_slice(body);
    framed.into()
}

pub(super) fn decode<M: Message + Default>(magic: &'static str, bytes: &Bytes) -> Result<M, FrameError> {
    let checksum = bytes
        .strip_prefix(magic.as_bytes())
        .and_then(|rest| rest.first_chunk::<4>())
        .ok_or(FrameError::NotOne { expected: magic })?;
    let body = bytes.slice(HEADER..);
    let (expected, found) = (u32::from_le_bytes(*checksum), crc32fast::hash(&body));
    if expected != found {
        return Err(FrameError::Checksum { expected, found });
    }
    M::decode(body).map_err(|error| FrameError::Unreadable(error.to_string()))
}
