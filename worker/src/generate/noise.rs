//! Counter-based random numbers, addressed by prompt, index, step and token, so that the order of work cannot
//! change them.

use tch::{Kind, Tensor};

/// Identifies a phase's random numbers; two purposes in one round never share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoiseKey {
    /// The job's seed.
    pub seed: u32,
    /// The round of the phase.
    pub round: u32,
    /// The phase's kind, for example `policy.generate`.
    pub purpose: String,
}

impl NoiseKey {
    /// The stream of one completion.
    pub fn completion(&self, prompt_id: u64, index: u32) -> CompletionNoise {
        let mut hasher = blake3::Hasher::new_derive_key("foil 2026 sampling noise");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&self.round.to_le_bytes());
        hasher.update(&prompt_id.to_le_bytes());
        hasher.update(&index.to_le_bytes());
        hasher.update(self.purpose.as_bytes());
        let mut key = [0; 8];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        CompletionNoise { key: u64::from_le_bytes(key) }
    }
}

/// The noise of one completion: a uniform number for each (step, token id).
#[derive(Clone, Copy, Debug)]
pub struct CompletionNoise {
    key: u64,
}

impl CompletionNoise {
    /// The key from which [`step_keys`] derives the noise of all steps.
    pub(super) fn key(self) -> u64 {
        self.key
    }

    /// The noise of one decoding step.
    #[inline]
    pub fn step(self, step: usize) -> StepNoise {
        StepNoise { key: mix(self.key ^ mix((step as u64).wrapping_mul(GOLDEN_GAMMA))) }
    }
}

/// One number for each token id.
#[derive(Clone, Copy, Debug)]
pub struct StepNoise {
    key: u64,
}

impl StepNoise {
    /// The key from which [`foil_torch::ops::sample_tokens`] derives the same numbers.
    pub(super) fn key(self) -> u64 {
        self.key
    }

    /// 1 − u in (0, 1) with 53 random bits, for u uniform; −ln(u) is the arrival time in [`super::sampler`].
    #[inline]
    pub fn complement(self, token: usize) -> f64 {
        let bits = mix(self.key.wrapping_add((token as u64 + 1).wrapping_mul(GOLDEN_GAMMA))) >> 11;
        (bits as f64 + 0.5) * UNIT
    }
}

/// The keys of [`CompletionNoise::step`] for steps 0, 1, … of the completions with these `keys`, `[rows]`,
/// int64: `[rows, steps]`, int64.
pub(super) fn step_keys(keys: &Tensor, steps: i64) -> Tensor {
    let steps = Tensor::arange(steps, (Kind::Int64, keys.device())) * GOLDEN_GAMMA.cast_signed();
    mix_tensor(&keys.unsqueeze(1).bitwise_xor_tensor(&mix_tensor(&steps)))
}

/// The negative of [`StepNoise::complement`] for the first `vocab_size` token ids of the rows with these
/// `keys`, `[rows]`, int64: `[rows, vocab_size]`, fp64.
pub(super) fn negative_complements(keys: &Tensor, vocab_size: i64) -> Tensor {
    let tokens = Tensor::arange_start(1, vocab_size + 1, (Kind::Int64, keys.device()));
    let bits = keys.unsqueeze(1) + tokens * GOLDEN_GAMMA.cast_signed();
    let bits = shift_right(&mix_tensor(&bits), 11);
    // Adding a zero-dimensional fp64 tensor converts the bits within the same kernel.
    (bits + Tensor::from(0.5_f64)) * -UNIT
}

/// [`mix`] of each number; signed multiplication wraps to the same bits.
fn mix_tensor(numbers: &Tensor) -> Tensor {
    let folded = |z: &Tensor, by: i64| z.bitwise_xor_tensor(&shift_right(z, by));
    let z = folded(numbers, 30) * MIX_1.cast_signed();
    let z = folded(&z, 27) * MIX_2.cast_signed();
    folded(&z, 31)
}

/// A logical shift, which fills with zeros from the left.
fn shift_right(numbers: &Tensor, by: i64) -> Tensor {
    numbers.bitwise_right_shift_tensor_scalar(by).bitwise_and(i64::MAX >> (by - 1))
}

/// SplitMix64's increment (Steele, Lea, Flood 2014). With [`mix`], the stream at any position costs one step.
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's multipliers.
const MIX_1: u64 = 0xBF58_476D_1CE4_E5B9;
const MIX_2: u64 = 0x94D0_49BB_1331_11EB;
/// The weight of the lowest of 53 bits.
const UNIT: f64 = 1.0 / (1_u64 << 53) as f64;

/// SplitMix64's output function.
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(MIX_1);
    z = (z ^ (z >> 27)).wrapping_mul(MIX_2);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> NoiseKey {
        NoiseKey { seed: 7, round: 2, purpose: "policy.generate".into() }
    }

    #[test]
    fn every_part_of_the_address_matters() {
        let at = |key: &NoiseKey, prompt, index, step, token| {
            key.completion(prompt, index).step(step).complement(token)
        };
        let base = at(&key(), 1, 2, 3, 4);
        assert_eq!(base, at(&key(), 1, 2, 3, 4));
        let others = [
            at(&NoiseKey { seed: 8, ..key() }, 1, 2, 3, 4),
            at(&NoiseKey { round: 3, ..key() }, 1, 2, 3, 4),
            at(&NoiseKey { purpose: "policy.evaluate".into(), ..key() }, 1, 2, 3, 4),
            at(&key(), 2, 2, 3, 4),
            at(&key(), 1, 3, 3, 4),
            at(&key(), 1, 2, 4, 4),
            at(&key(), 1, 2, 3, 5),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn a_tensor_of_noise_holds_the_same_numbers() {
        let completions: Vec<_> = (0..40).map(|index| key().completion(3, index)).collect();
        let keys: Vec<i64> = completions.iter().map(|noise| noise.key().cast_signed()).collect();
        let keys = step_keys(&Tensor::from_slice(&keys), 9);
        for step in 0..9 {
            let tensor = negative_complements(&keys.select(1, step), 700);
            let numbers = Vec::<f64>::try_from(-tensor.view(-1)).unwrap();
            let noise = completions.iter().map(|noise| noise.step(step as usize));
            let expected = noise.flat_map(|noise| (0..700).map(move |token| noise.complement(token)));
            assert!(numbers.into_iter().eq(expected));
        }
    }

    #[test]
    fn numbers_are_uniform_over_tokens_and_over_steps() {
        // Mean of N uniforms: 1/2 with standard deviation 1/sqrt(12 N); five of them bound it.
        const N: usize = 100_000;
        let stream = key().completion(0, 0);
        let bound = 5.0 / (12.0 * N as f64).sqrt();
        let over_tokens = (0..N).map(|t| stream.step(0).complement(t)).sum::<f64>() / N as f64;
        let over_steps = (0..N).map(|s| stream.step(s).complement(0)).sum::<f64>() / N as f64;
        assert!((over_tokens - 0.5).abs() < bound && (over_steps - 0.5).abs() < bound);
    }
}
