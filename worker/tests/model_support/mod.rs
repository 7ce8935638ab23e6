//! Helpers of the model tests: fixtures, distances, and the Python interpreter of the oracles.
#![allow(dead_code, unreachable_pub)] // each test file uses its own part

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The Python interpreter with transformers. If it is missing, prints which test is skipped.
pub fn peers(skipped: &str) -> Option<PathBuf> {
    let python = repository().join(".venv-peers/bin/python");
    if python.is_file() {
        return Some(python);
    }
    println!("skipped: {skipped} (needs .venv-peers; run scripts/fixtures/setup-peers)");
    None
}

/// One folder of `tests/fixtures/model`.
pub struct Fixture {
    pub name: String,
    pub dir: PathBuf,
    tensors: Vec<(String, Tensor)>,
}

impl Fixture {
    pub fn all() -> Vec<Self> {
        let root = repository().join("tests/fixtures/model");
        let mut names: Vec<_> = std::fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 9, "{} is incomplete", root.display());
        names.into_iter().map(|name| Self::open(&root, name)).collect()
    }

    pub fn language_models() -> Vec<Self> {
        Self::all().into_iter().filter(|fixture| !fixture.is_reward()).collect()
    }

    pub fn rewards() -> Vec<Self> {
        Self::all().into_iter().filter(Self::is_reward).collect()
    }

    fn open(root: &Path, name: String) -> Self {
        let dir = root.join(&name);
        let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .iter()
            .map(|(key, view)| {
                let kind = match view.dtype() {
                    safetensors::Dtype::I64 => Kind::Int64,
                    safetensors::Dtype::F32 => Kind::Float,
                    other => panic!("{key}: {other}"),
                };
                let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
                (key.to_owned(), Tensor::from_data_size(view.data(), &shape, kind))
            })
            .collect();
        Self { name, dir, tensors }
    }

    pub fn is_reward(&self) -> bool {
        self.name.ends_with("-reward")
    }

    pub fn get(&self, key: &str) -> &Tensor {
        &self
            .tensors
            .iter()
            .find(|(name, _)| name == key)
            .unwrap_or_else(|| panic!("{} has no {key}", self.name))
            .1
    }

    pub fn ids(&self, key: &str) -> Vec<Vec<u32>> {
        let rows: Vec<Vec<i64>> = Vec::try_from(self.get(key)).unwrap();
        rows.into_iter().map(|row| row.into_iter().map(|id| id as u32).collect()).collect()
    }

    /// The first tokens of every row, as many as the tensor `lengths` specifies.
    pub fn rows(&self, lengths: &str) -> Vec<Vec<u32>> {
        let lengths: Vec<i64> = Vec::try_from(self.get(lengths)).unwrap();
        let mut rows = self.ids("tokens");
        for (row, length) in rows.iter_mut().zip(lengths) {
            row.truncate(length as usize);
        }
        rows
    }
}

/// ‖a − b‖ / ‖b‖.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let double = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
    ((double(a) - double(b)).norm() / double(b).norm()).double_value(&[])
}
