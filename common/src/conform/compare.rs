//! Comparison of Foil's results with transformers'.

use serde_json::Value;

use super::peer::PeerResult;
use super::{Finding, Kind, Measured, Probe, check};
use crate::plural::counted;

/// Maximum relative distance ‖a − b‖ / ‖b‖ of logits in fp32.
const LOGITS: f64 = 1e-4;
/// Maximum difference of two scores, as a fraction of the scores' standard deviation. Scores read at padding
/// exceed it by far.
const SCORES: f64 = 1e-3;
/// Two tokens whose logits are this close are a tie.
const TIE: f64 = 1e-3;

/// The names of all checks that need transformers, for a directory of this kind.
pub fn names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Policy => {
            &[check::PEER_LOADS, check::PEER_TOKENS, check::PEER_TEMPLATE, check::LOGITS, check::GREEDY]
        }
        Kind::Reward => {
            &[check::PEER_LOADS, check::PEER_TOKENS, check::PEER_TEMPLATE, check::SCORES, check::BATCHES]
        }
    }
}

/// Findings that none of these checks could run, and why.
pub fn unchecked(kind: Kind, why: &str) -> Vec<Finding> {
    names(kind).iter().map(|name| Finding::unchecked(name, why)).collect()
}

/// Compares what transformers computed for `probe` with Foil's `own` results.
pub fn findings(probe: &Probe, own: &Measured, peer: &PeerResult) -> Vec<Finding> {
    if let Some(error) = &peer.error {
        let mut all = unchecked(probe.kind, "transformers could not load or run the directory");
        all[0] = Finding::failed(check::PEER_LOADS, error.clone());
        return all;
    }
    let mut all = vec![loads(peer), tokens(probe, peer), template(probe, peer)];
    match probe.kind {
        Kind::Policy => all.extend([logits(own, peer), greedy(own, peer)]),
        Kind::Reward => all.extend([scores(own, peer), batches(peer)]),
    }
    all
}

fn loads(peer: &PeerResult) -> Finding {
    let faults: Vec<String> =
        peer.loading_faults.iter().map(|(fault, names)| format!("{fault}: {}", names.join(", "))).collect();
    Finding::of(check::PEER_LOADS, &faults, format!("transformers {} takes every tensor", peer.version))
}

fn tokens(probe: &Probe, peer: &PeerResult) -> Finding {
    let mut faults = Vec::new();
    let ends = &peer.tokenizer.eos;
    if ends.first() != probe.eos.first() {
        faults.push(format!("its tokenizer ends texts with {ends:?}, Foil with {:?}", probe.eos));
    }
    if probe.kind == Kind::Policy && peer.generation_eos != probe.eos {
        faults.push(format!("it would end generation at {:?}, Foil at {:?}", peer.generation_eos, probe.eos));
    }
    if probe.kind == Kind::Reward && peer.tokenizer.pad.is_empty() {
        faults.push("its tokenizer has no pad token, so that batches cannot be made".to_owned());
    }
    let shown = format!("EOS {ends:?}, BOS {:?}, pad {:?}", peer.tokenizer.bos, peer.tokenizer.pad);
    Finding::of(check::PEER_TOKENS, &faults, shown)
}

fn template(probe: &Probe, peer: &PeerResult) -> Finding {
    if !peer.has_template {
        return Finding::failed(check::PEER_TEMPLATE, "transformers finds no chat template");
    }
    if probe.prompts.is_empty() {
        return Finding::unchecked(check::PEER_TEMPLATE, "the tokenizer reads none of the probe's prompts");
    }
    let differing = |((theirs, ours), dialogue): ((&Vec<u32>, &Vec<u32>), &Value)| {
        (theirs != ours).then(|| format!("{dialogue} becomes {theirs:?} there, {ours:?} in Foil"))
    };
    let pairs = peer.prompts.iter().zip(&probe.prompts).zip(&probe.dialogues);
    let faults: Vec<String> = pairs.filter_map(differing).collect();
    Finding::of(
        check::PEER_TEMPLATE,
        &faults,
        format!("the same tokens of {}", counted(probe.prompts.len(), "prompt")),
    )
}

fn logits(own: &Measured, peer: &PeerResult) -> Finding {
    if own.logits.is_empty() {
        return Finding::unchecked(check::LOGITS, "Foil's own are missing");
    }
    let ours: Vec<usize> = own.logits.iter().map(Vec::len).collect();
    let theirs: Vec<usize> = peer.logits.iter().map(Vec::len).collect();
    if ours != theirs {
        return Finding::failed(check::LOGITS, format!("shapes {ours:?} against {theirs:?}"));
    }
    let pairs = || own.logits.iter().flatten().zip(peer.logits.iter().flatten());
    let distance: f64 = pairs().map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt();
    let norm: f64 = pairs().map(|(_, b)| b.powi(2)).sum::<f64>().sqrt();
    let relative = distance / norm;
    let shown = format!("relative distance {relative:.1e} over {} rows", ours.len());
    // A NaN is not within bounds.
    if relative <= LOGITS {
        Finding::passed(check::LOGITS, shown)
    } else {
        Finding::failed(check::LOGITS, format!("{shown}, more than {LOGITS:.0e}"))
    }
}

fn greedy(own: &Measured, peer: &PeerResult) -> Finding {
    if own.greedy.is_empty() {
        return Finding::unchecked(check::GREEDY, "Foil's own is missing");
    }
    let mut ties = 0;
    let mut faults = Vec::new();
    for (ours, theirs) in own.greedy.iter().zip(&peer.greedy) {
        let parting = ours.iter().zip(&theirs.ids).position(|(a, b)| a != b);
        match parting {
            Some(at) if theirs.leads.get(at).is_some_and(|lead| *lead <= TIE) => ties += 1,
            None if ours.len() == theirs.ids.len() => {}
            _ => faults.push(format!("{:?} there, {ours:?} in Foil", theirs.ids)),
        }
    }
    let same = own.greedy.len() - ties;
    let shown = match ties {
        0 => format!("{same} continuations are the same, their ends too"),
        _ => format!("{same} continuations are the same; {ties} diverge at two tokens of equal logits"),
    };
    Finding::of(check::GREEDY, &faults, shown)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn scores(own: &Measured, peer: &PeerResult) -> Finding {
    let Some((how, theirs)) = peer.scores.iter().next() else {
        return Finding::unchecked(check::SCORES, "transformers gave none");
    };
    if own.scores.is_empty() {
        return Finding::unchecked(check::SCORES, "Foil's own are missing");
    }
    close(check::SCORES, &own.scores, &[(how.as_str(), numbers(theirs))])
}

/// Checks that scores do not depend on batching and padding.
fn batches(peer: &PeerResult) -> Finding {
    let all: Vec<(&str, Vec<f64>)> =
        peer.scores.iter().map(|(how, scores)| (how.as_str(), numbers(scores))).collect();
    match all.split_first() {
        Some(((_, alone), others)) if !others.is_empty() => close(check::BATCHES, alone, others),
        _ => Finding::unchecked(check::BATCHES, "transformers gave no scores"),
    }
}

fn close(check: &str, expected: &[f64], others: &[(&str, Vec<f64>)]) -> Finding {
    let bound = SCORES * deviation(expected).max(f64::EPSILON);
    let mut largest: f64 = 0.0;
    let mut faults = Vec::new();
    for (how, found) in others {
        if found.len() != expected.len() {
            faults.push(format!("{how}: {} scores for {} rows", found.len(), expected.len()));
            continue;
        }
        let distance = |(row, (a, b)): (usize, (&f64, &f64))| (row, (a - b).abs());
        let worst = expected.iter().zip(found).enumerate().map(distance).max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((row, difference)) = worst else { continue };
        largest = largest.max(difference);
        // A NaN is not within bounds.
        if difference.is_nan() || difference > bound {
            let (found, expected) = (found[row], expected[row]);
            faults.push(format!("{how}: row {row} has {found:.5}, expected {expected:.5}"));
        }
    }
    let shown = format!("{} rows, largest difference {largest:.1e}", expected.len());
    Finding::of(check, &faults, shown)
}

fn deviation(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
}
