//! The sampler on the host: one row of logits in, one token out.
//!
//! The order is Hugging Face's: repetition penalty, minimum length, temperature, top-k, top-p. Sampling is
//! Gumbel-max in fp64: argmax over tokens of ln p + G with G = −ln(−ln u), which selects the same token as
//! argmin of −ln(u)/p.

use foil_common::spec::Sampling;

use super::noise::StepNoise;

/// Samples tokens and keeps the buffers for a row of a large vocabulary.
#[derive(Debug)]
pub struct Sampler<'a> {
    sampling: &'a Sampling,
    /// Only ids below this are sampled.
    vocab_size: usize,
    /// Unnormalized probability of each token; 0 if it is filtered out.
    weights: Vec<f64>,
    order: Vec<u32>,
}

/// The sequence so far, which penalties and the minimum length depend on.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub prompt: &'a [u32],
    /// The tokens generated so far.
    pub completion: &'a [u32],
    /// The tokens that end a completion.
    pub eos: &'a [u32],
}

impl<'a> Sampler<'a> {
    pub fn new(sampling: &'a Sampling) -> Self {
        Self { sampling, vocab_size: usize::MAX, weights: Vec::new(), order: Vec::new() }
    }

    /// Samples only ids below `vocab_size`: embeddings may be padded with rows that belong to no token.
    #[must_use]
    pub fn with_vocab_size(mut self, vocab_size: usize) -> Self {
        self.vocab_size = vocab_size;
        self
    }

    /// Samples from a row of logits `[vocab]`, which the penalties change in place. At temperature 0, the
    /// first of equal logits is chosen.
    pub fn sample(&mut self, logits: &mut [f32], context: Context<'_>, noise: StepNoise) -> u32 {
        let candidates = self.candidates(logits.len());
        let logits = &mut logits[..candidates];
        self.apply_penalties(logits, context);
        if self.sampling.temperature == 0.0 {
            return argmax(logits);
        }
        if !self.has_filters(logits.len()) {
            let (max, inverse) = (max_logit(logits), 1.0 / self.sampling.temperature);
            let exponent = |token: usize| (f64::from(logits[token]) - f64::from(max)) * inverse;
            return exponential_race(
                logits.len(),
                |token| exp_bound(exponent(token)),
                |token| exponent(token).exp(),
                noise,
            );
        }
        self.compute_weights(logits);
        exponential_race(self.weights.len(), |token| self.weights[token], |token| self.weights[token], noise)
    }

    /// Whether sampling depends only on the logits, a temperature and a mask.
    pub(super) fn is_unfiltered(&self, vocab_size: usize) -> bool {
        self.sampling.repetition_penalty == 1.0
            && (self.sampling.temperature == 0.0 || !self.has_filters(vocab_size))
    }

    /// How many of a model's `rows` ids may be sampled, counted from 0.
    pub(super) fn candidates(&self, rows: usize) -> usize {
        rows.min(self.vocab_size.max(1))
    }

    pub(super) fn sampling(&self) -> &'a Sampling {
        self.sampling
    }

    /// Whether a completion of `length` tokens is too short to end.
    pub(super) fn forbids_eos(&self, length: usize) -> bool {
        length < self.sampling.min_new_tokens
    }

    /// Whether top-k or top-p is on.
    fn has_filters(&self, vocab_size: usize) -> bool {
        (1..vocab_size).contains(&self.sampling.top_k) || self.sampling.top_p < 1.0
    }

    /// The probability of each token after all filters, in fp64; sums to 1.
    pub fn distribution(&mut self, logits: &mut [f32], context: Context<'_>) -> Vec<f64> {
        self.apply_penalties(logits, context);
        self.compute_weights(logits);
        let total: f64 = self.weights.iter().sum();
        self.weights.iter().map(|weight| weight / total).collect()
    }

    fn apply_penalties(&self, logits: &mut [f32], context: Context<'_>) {
        let penalty = self.sampling.repetition_penalty as f32;
        if penalty != 1.0 {
            let mut seen: Vec<u32> = context.prompt.iter().chain(context.completion).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for logit in seen.into_iter().map(|token| token as usize) {
                let Some(logit) = logits.get_mut(logit) else { continue };
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
        if self.forbids_eos(context.completion.len()) {
            for token in context.eos {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn compute_weights(&mut self, logits: &[f32]) {
        let max = max_logit(logits);
        let inverse = 1.0 / self.sampling.temperature;
        self.weights.clear();
        self.weights
            .extend(logits.iter().map(|logit| ((f64::from(*logit) - f64::from(max)) * inverse).exp()));
        let top_k = self.sampling.top_k;
        if top_k > 0 && top_k < logits.len() {
            self.keep_top_k(logits, top_k);
        }
        if self.sampling.top_p < 1.0 {
            self.keep_top_p();
        }
    }

    /// Keeps the k largest logits and any that equal the k-th.
    fn keep_top_k(&mut self, logits: &[f32], k: usize) {
        let mut ordered = logits.to_vec();
        let (_, kth, _) = ordered.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let kth = *kth;
        for (weight, logit) in self.weights.iter_mut().zip(logits) {
            if *logit < kth {
                *weight = 0.0;
            }
        }
    }

    /// Drops the least likely tokens while their sum stays within 1 − p; of equals, the lower ids go first.
    /// One token always remains.
    fn keep_top_p(&mut self) {
        let weights = &mut self.weights;
        self.order.clear();
        self.order.extend((0..weights.len() as u32).filter(|token| weights[*token as usize] > 0.0));
        self.order.sort_by(|a, b| weights[*a as usize].total_cmp(&weights[*b as usize]));
        let total: f64 = self.order.iter().map(|token| weights[*token as usize]).sum();
        let spare = (1.0 - self.sampling.top_p) * total;
        let mut dropped = 0.0;
        let Some((_, candidates)) = self.order.split_last() else { return };
        for token in candidates {
            let weight = &mut weights[*token as usize];
            dropped += *weight;
            if dropped > spare {
                break;
            }
            *weight = 0.0;
        }
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

fn max_logit(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The token with the smallest −ln(u)/p: the first arrival among exponential clocks with rates p. `bound` is
/// an upper bound of p.
///
/// A logarithm and an exponential for each token of a vocabulary would cost more than the model. Since 1 − u
/// ≤ −ln(u), a token loses if its (1 − u)/p is not below the best −ln(u)/p so far. A bound on p suffices to
/// rule out most tokens.
fn exponential_race(
    count: usize,
    bound: impl Fn(usize) -> f64,
    p: impl Fn(usize) -> f64,
    noise: StepNoise,
) -> u32 {
    let mut best = f64::INFINITY;
    let mut winner = 0;
    for token in 0..count {
        let (complement, bound) = (noise.complement(token), bound(token));
        if bound > 0.0 && complement < best * bound {
            let time = -(-complement).ln_1p() / p(token);
            if time < best {
                best = time;
                winner = token;
            }
        }
    }
    winner as u32
}

/// An upper bound of eˣ for x ≤ 0, at most 6.2 % above it: between integer exponents, the line 1 + f lies
/// above 2ᶠ, and a float's bits form such lines.
#[inline]
fn exp_bound(x: f64) -> f64 {
    const MANTISSA: f64 = (1_u64 << 52) as f64;
    const BIAS: f64 = 1023.0;
    // Close to the smallest normal number. −∞ (a masked token) stays at 0.
    if x < -700.0 {
        return if x == f64::NEG_INFINITY { 0.0 } else { 1e-303 };
    }
    let bits = (x.mul_add(std::f64::consts::LOG2_E, BIAS) * MANTISSA) as u64;
    // The product's rounding error is far below this margin.
    f64::from_bits(bits) * (1.0 + 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::NoiseKey;

    const EMPTY: Context<'_> = Context { prompt: &[], completion: &[], eos: &[] };

    fn sampling() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            max_new_tokens: 8,
            min_new_tokens: 0,
            stop: Vec::new(),
        }
    }

    fn noise(index: u32) -> StepNoise {
        NoiseKey { seed: 1, round: 0, purpose: "test".into() }.completion(3, index).step(0)
    }

    fn logits(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 / 10.0).sin() * 4.0).collect()
    }

    /// Gumbel-max as in textbooks.
    fn gumbel_max(p: &[f64], noise: StepNoise) -> u32 {
        let value = |token: usize| p[token].ln() - (-(-noise.complement(token)).ln_1p()).ln();
        (0..p.len()).max_by(|a, b| value(*a).total_cmp(&value(*b))).map_or(0, |token| token as u32)
    }

    #[test]
    fn the_exponential_race_is_gumbel_max() {
        for temperature in [0.3, 1.0, 1.7] {
            let sampling = Sampling { temperature, ..sampling() };
            let mut sampler = Sampler::new(&sampling);
            let p = sampler.distribution(&mut logits(300), EMPTY);
            for index in 0..500 {
                assert_eq!(
                    sampler.sample(&mut logits(300), EMPTY, noise(index)),
                    gumbel_max(&p, noise(index))
                );
            }
        }
    }

    #[test]
    fn the_bound_is_above_the_exponential_and_close() {
        for i in 0..200_000 {
            let x = -f64::from(i) * 0.0035;
            let ratio = exp_bound(x) / x.exp();
            assert!((1.0..1.0625).contains(&ratio), "{x}: {ratio}");
        }
        assert_eq!(exp_bound(f64::NEG_INFINITY), 0.0);
    }

    #[test]
    fn samples_follow_the_filtered_distribution() {
        // χ² over the tokens that remain has mean k − 1 and variance 2(k − 1); the bound is six standard
        // deviations.
        for sampling in [
            sampling(),
            Sampling { temperature: 0.7, ..sampling() },
            Sampling { top_k: 5, ..sampling() },
            Sampling { top_p: 0.8, ..sampling() },
            Sampling { temperature: 1.3, top_k: 12, top_p: 0.9, ..sampling() },
        ] {
            const SAMPLES: u32 = 40_000;
            let mut sampler = Sampler::new(&sampling);
            let p = sampler.distribution(&mut logits(20), EMPTY);
            let mut counts = [0_u32; 20];
            for index in 0..SAMPLES {
                counts[sampler.sample(&mut logits(20), EMPTY, noise(index)) as usize] += 1;
            }
            let mut chi_squared = 0.0;
            let mut kept = 0;
            for (count, p) in counts.iter().zip(&p) {
                let expected = p * f64::from(SAMPLES);
                if *p == 0.0 {
                    assert_eq!(*count, 0, "a filtered token was sampled");
                } else if expected > 5.0 {
                    kept += 1;
                    chi_squared += (f64::from(*count) - expected).powi(2) / expected;
                }
            }
            let freedom = f64::from(kept - 1);
            assert!(
                chi_squared < freedom + 6.0 * (2.0 * freedom).sqrt(),
                "χ² {chi_squared} at {freedom} degrees"
            );
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equal_maxima() {
        let sampling = Sampling { temperature: 0.0, ..sampling() };
        assert_eq!(Sampler::new(&sampling).sample(&mut [0.0, 2.0, 2.0], EMPTY, noise(0)), 1);
    }

    #[test]
    fn a_completion_does_not_end_before_its_minimum_length() {
        let sampling = Sampling { min_new_tokens: 2, temperature: 0.0, ..sampling() };
        let mut sampler = Sampler::new(&sampling);
        let sample = |sampler: &mut Sampler<'_>, completion| {
            sampler.sample(&mut [0.0, 9.0, 1.0], Context { prompt: &[], completion, eos: &[1] }, noise(0))
        };
        assert_eq!(sample(&mut sampler, &[0]), 2);
        assert_eq!(sample(&mut sampler, &[0, 0]), 1);
    }

    #[test]
    fn oracle_transformers_logits_processors_leave_the_same_distribution() {
        #[derive(serde::Deserialize)]
        struct Case {
            sampling: serde_json::Value,
            eos: u32,
            prompt: Vec<u32>,
            answer: Vec<u32>,
            logits: Vec<f32>,
            probabilities: Vec<f64>,
        }
        let fixture = include_str!("../../../tests/fixtures/sampling/filters.json");
        let cases: Vec<Case> = serde_json::from_str(fixture).unwrap();
        for case in cases {
            let number = |name: &str, default: f64| case.sampling[name].as_f64().unwrap_or(default);
            let sampling = Sampling {
                temperature: number("temperature", 1.0),
                top_k: number("top_k", 0.0) as usize,
                top_p: number("top_p", 1.0),
                repetition_penalty: number("repetition_penalty", 1.0),
                min_new_tokens: number("min_new_tokens", 0.0) as usize,
                ..sampling()
            };
            let context = Context { prompt: &case.prompt, completion: &case.answer, eos: &[case.eos] };
            let ours = Sampler::new(&sampling).distribution(&mut case.logits.clone(), context);
            for (ours, theirs) in ours.iter().zip(&case.probabilities) {
                assert!((ours - theirs).abs() <= 1e-6, "{}: {ours} against {theirs}", case.sampling);
            }
        }
    }
}
