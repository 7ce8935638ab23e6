//! Checks that transformers loads exported models and computes the same logits and scores.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests to a reader, not to clippy

mod model_support;

use std::path::{Path, PathBuf};
use std::process::Command;

use foil_worker::model::{LanguageModel, PackedBatch, Precision, RewardModel, SaveDtype};
use model_support::{Fixture, peers, repository};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Rows of several lengths, one ending with the end-of-text id 2 and one with the pad id's neighbor.
fn rows() -> Vec<Vec<u32>> {
    vec![vec![1, 9, 30, 2], vec![1, 44, 12, 13, 5, 6, 7, 8, 2], vec![1], vec![1, 4, 4]]
}

fn batch() -> PackedBatch {
    PackedBatch::from_sequences(&rows(), Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

fn logits(model: &LanguageModel) -> Value {
    let hidden = model.forward(&batch(), batch().last_rows(), Precision::Fp32).unwrap();
    let logits = model.logits(&hidden);
    let rows: Vec<Vec<f64>> = (0..batch().sequences()).map(|row| numbers(&logits.get(row as i64))).collect();
    json!({ "rows": self::rows(), "logits": rows })
}

fn scores(model: &RewardModel) -> Value {
    json!({ "rows": rows(), "scores": numbers(&model.scores(&batch(), Precision::Fp32).unwrap()) })
}

/// Exports each fixture's models in both dtypes, and returns the arguments of the check.
fn export_all(root: &Path) -> Vec<PathBuf> {
    let mut arguments = Vec::new();
    let mut add = |name: String, save: &dyn Fn(&Path) -> Value| {
        let dir = root.join(name);
        let expected = save(&dir);
        let file = dir.with_extension("json");
        std::fs::write(&file, expected.to_string()).unwrap();
        arguments.extend([dir, file]);
    };
    for fixture in Fixture::language_models() {
        let model = LanguageModel::load(&fixture.dir, Device::Cpu).unwrap();
        add(format!("{}-lm", fixture.name), &|dir| {
            model.save(dir, SaveDtype::Fp32).unwrap();
            logits(&model)
        });
        let reward = RewardModel::from_language_model(&fixture.dir, 3, Device::Cpu).unwrap();
        add(format!("{}-reward", fixture.name), &|dir| {
            reward.save(dir, SaveDtype::Fp32, 0).unwrap();
            scores(&reward)
        });
        add(format!("{}-bf16", fixture.name), &|dir| {
            model.save(dir, SaveDtype::Bf16).unwrap();
            logits(&LanguageModel::load(dir, Device::Cpu).unwrap())
        });
    }
    for fixture in Fixture::rewards() {
        let reward = RewardModel::load(&fixture.dir, Device::Cpu).unwrap();
        add(fixture.name.clone(), &|dir| {
            reward.save(dir, SaveDtype::Bf16, 0).unwrap();
            scores(&RewardModel::load(dir, Device::Cpu).unwrap())
        });
    }
    arguments
}

#[test]
fn transformers_loads_every_export_with_the_same_results() {
    let Some(python) = peers("exports read by transformers") else { return };
    let root = tempfile::tempdir().unwrap();
    let arguments = export_all(root.path());
    let output = Command::new(python)
        .arg(repository().join("scripts/fixtures/check_export.py"))
        .args(&arguments)
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    println!("{report}");
    assert!(output.status.success(), "{report}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(report.matches(", within").count() * 2, arguments.len());
}
