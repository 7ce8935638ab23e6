//! Decoding one step ahead gives the completions of decoding on the host.

use std::collections::BTreeSet;

use foil_common::spec::Sampling;
use foil_torch::runtime::use_cpu_kernels;

use super::super::device_runner::padded_rows;
use super::{Completion, EOS, Generation, model, requests, run_until, sampling};

/// A generation on the device path, which runs on any device without this project's loops.
fn run_on_device(work: impl FnOnce() -> Generation) -> Generation {
    use_cpu_kernels(false);
    let generation = work();
    use_cpu_kernels(true);
    generation
}

/// Equality up to the rounding of log-probabilities by other kernels.
fn agree(found: &Completion, expected: &Completion) -> bool {
    let near = found
        .log_probs
        .iter()
        .zip(&expected.log_probs)
        .all(|(found, expected)| (found - expected).abs() < 1e-4);
    let whole = |c: &Completion| (c.prompt_id, c.index, c.tokens.clone(), c.finished, c.log_probs.len());
    near && whole(found) == whole(expected)
}

/// Runs both paths with 21 sequences and checks that they agree. Returns the completions' lengths.
#[track_caller]
fn assert_same(seed: u64, eos: &[u32], sampling: &Sampling, slots: usize) -> Vec<usize> {
    let requests = requests(7, 3);
    let generate = || run_until(eos, &model(seed), &requests, sampling, slots);
    let (expected, found) = (generate(), run_on_device(generate));
    assert_eq!(found.completions.len(), 21);
    for (found, expected) in found.completions.iter().zip(&expected.completions) {
        assert!(agree(found, expected), "{found:?} not {expected:?} by {sampling:?} in {slots} slots");
    }
    assert_eq!(found.stats.prompt_tokens, expected.stats.prompt_tokens);
    assert_eq!(found.stats.decoded_rows, expected.stats.decoded_rows);
    found.completions.iter().map(|completion| completion.tokens.len()).collect()
}

#[test]
fn every_setting_gives_the_completions_of_the_host() {
    let settings = [
        sampling(),
        Sampling { temperature: 0.0, ..sampling() },
        Sampling { temperature: 1.4, min_new_tokens: 4, ..sampling() },
        Sampling { repetition_penalty: 1.6, min_new_tokens: 2, ..sampling() },
        Sampling { temperature: 0.8, top_k: 7, top_p: 0.9, repetition_penalty: 0.8, ..sampling() },
        Sampling { stop: vec!["ab".into(), "h".into()], ..sampling() },
        Sampling { stop: vec!["d".into()], min_new_tokens: 5, repetition_penalty: 1.2, ..sampling() },
    ];
    for (seed, sampling) in (0..).zip(settings) {
        let of = |slots| assert_same(seed, &[EOS], &sampling, slots);
        let lengths: BTreeSet<_> = [1, 3, 9, 32].into_iter().flat_map(of).collect();
        assert!(lengths.len() > 4, "the lengths are not mixed: {lengths:?} by {sampling:?}");
    }
}

#[test]
fn sequences_may_end_at_any_step() {
    let all: Vec<u32> = (0..13).collect();
    let lengths = |eos: &[u32], max_new_tokens| {
        let sampling = Sampling { max_new_tokens, ..sampling() };
        let of = |slots| assert_same(11, eos, &sampling, slots);
        [1, 2, 5, 21, 40].into_iter().flat_map(of).collect::<BTreeSet<_>>()
    };
    // All at once: with the first token, and with the last one.
    assert_eq!(lengths(&all, 12), BTreeSet::from([1]));
    assert_eq!(lengths(&[], 1), BTreeSet::from([1]));
    assert_eq!(lengths(&[], 2), BTreeSet::from([2]));
    assert_eq!(lengths(&[], 12), BTreeSet::from([12]));
    // Some in every step.
    assert!(lengths(&all[..6], 12).len() > 4);
}

#[test]
fn steps_have_few_numbers_of_rows() {
    for max in 1..300 {
        let padded: Vec<usize> = (1..=max).map(|rows| padded_rows(rows, max)).collect();
        for (rows, &padded) in (1..=max).zip(&padded) {
            assert!((rows..=max).contains(&padded) && padded < 2 * rows && padded < rows + 8);
        }
        let shapes: BTreeSet<_> = padded.into_iter().collect();
        assert!(shapes.len() <= 4 + max / 8, "{shapes:?}");
    }
}
