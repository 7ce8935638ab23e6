//! The index of a sharded model, read without a JSON tree in memory, like the headers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

#[derive(Deserialize)]
pub(super) struct Index {
    pub(super) weight_map: WeightMap,
}

/// Tensor name → name of the file, next to the index, that holds it.
pub(super) struct WeightMap(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Files;
        impl<'de> Visitor<'de> for Files {
            type Value = WeightMap;

            fn expecting(&self, to: &mut fmt::Formatter) -> fmt::Result {
                to.write_str("an object of file names by tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<WeightMap, A::Error> {
                let mut files = BTreeMap::new();
                while let Some(tensor) = fields.next_key::<String>()? {
                    let named =
                        |error: A::Error| A::Error::custom(format_args!("weight_map.{tensor}: {error}"));
                    let file: String = fields.next_value().map_err(named)?;
                    if !is_plain(&file) {
                        return Err(A::Error::custom(format_args!(
                            "weight_map.{tensor}: found {file:?}, expected the name of a file beside it"
                        )));
                    }
                    files.insert(tensor, file);
                }
                Ok(WeightMap(files))
            }
        }
        deserializer.deserialize_map(Files)
    }
}

fn is_plain(file: &str) -> bool {
    !file.is_empty() && Path::new(file).file_name() == Some(file.as_ref())
}
