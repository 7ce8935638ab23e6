//! Dialogues to tokens: `cargo bench -p foil-common`.

// A benchmark that cannot set itself up has failed.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use divan::Bencher;
use divan::counter::BytesCount;
use foil_common::data::rows::Prompt;
use foil_common::spec::{Job, file};
use foil_common::test_models;
use foil_common::text::{Encoder, Limits, Response};

fn main() {
    divan::main();
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn encoder(model: &Path, template: &str) -> Encoder {
    let settings = [format!("text.template={template}")];
    let job = file::load(&repository().join("deploy/jobs/letters.yaml"), &settings).unwrap();
    Encoder::load(model, &Job::try_from(job).unwrap().text).unwrap()
}

fn measure(bencher: Bencher<'_, '_>, encoder: &Encoder, prompt: &str, response: &str) {
    let prompt = Prompt::user(prompt);
    let limits = Limits::shared(4096);
    let bytes = BytesCount::new(prompt.last_text().len() + response.len());
    bencher.counter(bytes).bench(|| encoder.dialogue(&prompt, Response::finished(response), limits).unwrap());
}

/// The tokenizer of deploy/jobs/letters.yaml: one token per letter.
#[divan::bench]
fn letters(bencher: Bencher<'_, '_>) {
    let encoder = encoder(&repository().join("deploy/jobs/letters"), "chat");
    measure(bencher, &encoder, "abcde", "abcdefgh!!");
}

/// A sentence-piece tokenizer on running text.
#[divan::bench]
fn running_text(bencher: Bencher<'_, '_>) {
    let Some(model) = test_models::path("models/stories260K") else { return };
    let encoder = encoder(&model, "plain");
    // Its space comes first: no token may reach from a prompt into its response.
    let story =
        " Once upon a time, a little girl had a red ball. She went to the park to play with it every day.";
    measure(bencher, &encoder, &story.repeat(4), &story.repeat(8));
}
