//! An object store in memory, for tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use foil_common::storage::object::Digest;

use super::artifact_cache::{ObjectError, ObjectStore};
use crate::task::Object;

#[derive(Clone, Default)]
pub(crate) struct MemoryObjectStore(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    bytes: BTreeMap<String, Vec<u8>>,
    downloads: usize,
}

impl MemoryObjectStore {
    pub(crate) fn put(&self, key: &str, bytes: &[u8], path: &str) -> Object {
        self.0.lock().unwrap().bytes.insert(key.to_owned(), bytes.to_vec());
        describe(key, bytes, path)
    }

    pub(crate) fn downloads(&self) -> usize {
        self.0.lock().unwrap().downloads
    }

    pub(crate) fn bytes(&self, key: &str) -> Vec<u8> {
        self.0.lock().unwrap().bytes[key].clone()
    }
}

fn describe(key: &str, bytes: &[u8], path: &str) -> Object {
    Object {
        key: key.to_owned(),
        size: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_hex().to_string(),
        path: path.to_owned(),
    }
}

impl ObjectStore for MemoryObjectStore {
    fn share(&self) -> Box<dyn ObjectStore> {
        Box::new(self.clone())
    }

    fn download(&self, object: &Object, file: &Path) -> Result<(), ObjectError> {
        let mut inner = self.0.lock().unwrap();
        inner.downloads += 1;
        let missing = || ObjectError::Damaged { key: object.key.clone(), message: "not found".to_owned() };
        let bytes = inner.bytes.get(&object.key).ok_or_else(missing)?;
        fs::write(file, bytes).map_err(|source| ObjectError::Disk { path: file.to_owned(), source })
    }

    fn upload(&self, key: &str, bytes: Vec<u8>) -> Result<Object, ObjectError> {
        Ok(self.put(key, &bytes, ""))
    }

    fn upload_file(&self, key: &str, file: &Path, _: &Digest) -> Result<Object, ObjectError> {
        Ok(self.put(key, &fs::read(file).unwrap(), ""))
    }
}
