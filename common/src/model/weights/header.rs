//! A safetensors header, read without a JSON tree in memory: a header may come from an untrusted source, and
//! a tree takes about thirty times its size.

use std::collections::{HashMap, HashSet};
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Maximum number of dimensions of a tensor, as in torch.
const MAX_DIMENSIONS: usize = 64;

/// Reads a header and checks that its tensors follow one another without a gap.
///
/// # Errors
/// A header that violates the format, that names a tensor twice, or whose offsets do not match its shapes.
pub(super) fn parse(header: &[u8]) -> Result<Metadata, serde_json::Error> {
    let Header { metadata, mut tensors } = serde_json::from_slice(header)?;
    // The format does not specify the order of names.
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    Metadata::new(metadata, tensors).map_err(serde_json::Error::custom)
}

struct Header {
    metadata: Option<HashMap<String, String>>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Header;

            fn expecting(&self, to: &mut fmt::Formatter) -> fmt::Result {
                to.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Header, A::Error> {
                let mut header = Header { metadata: None, tensors: Vec::new() };
                let mut names = HashSet::new();
                while let Some(name) = fields.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = fields.next_value()?;
                        continue;
                    }
                    if names.contains(&name) {
                        return Err(A::Error::custom(format_args!("tensor {name} is there twice")));
                    }
                    let Entry { dtype, shape: Shape(shape), data_offsets } = fields.next_value()?;
                    names.insert(name.clone());
                    header.tensors.push((name, TensorInfo { dtype, shape, data_offsets }));
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (usize, usize),
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, to: &mut fmt::Formatter) -> fmt::Result {
                write!(to, "a list of at most {MAX_DIMENSIONS} sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = list.next_element()? {
                    if sizes.len() == MAX_DIMENSIONS {
                        return Err(A::Error::invalid_length(MAX_DIMENSIONS + 1, &self));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}
