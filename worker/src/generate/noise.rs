//! Random numbers addressed by what they are for, so that no order of work can change them.

/// What a job draws samples for; two purposes of one round never share noise.
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
    /// The stream of one sample.
    pub fn sample(&self, prompt_id: u64, index: u32) -> SampleNoise {
        let mut hasher = blake3::Hasher::new_derive_key("foil 2026 sampling noise");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&self.round.to_le_bytes());
        hasher.update(&prompt_id.to_le_bytes());
        hasher.update(&index.to_le_bytes());
        hasher.update(self.purpose.as_bytes());
        let mut key = [0; 8];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        SampleNoise { key: u64::from_le_bytes(key) }
    }
}

/// The noise of one sample: a uniform number for each (step, token id).
#[derive(Clone, Copy, Debug)]
pub struct SampleNoise {
    key: u64,
}

impl SampleNoise {
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
    /// What [`foil_c10d::draw_tokens`] makes the same numbers from.
    pub(super) fn key(self) -> u64 {
        self.key
    }

    /// 1 − u in (0, 1), of 53 random bits, for u uniform. Its logarithm's counterpart −ln(u) is what [`super::sampler`] races.
    #[inline]
    pub fn complement(self, token: usize) -> f64 {
        const UNIT: f64 = 1.0 / (1_u64 << 53) as f64;
        let bits = mix(self.key.wrapping_add((token as u64 + 1).wrapping_mul(GOLDEN_GAMMA))) >> 11;
        (bits as f64 + 0.5) * UNIT
    }
}

/// SplitMix64's increment (Steele, Lea, Flood 2014); with [`mix`] a stream at any position costs one step.
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function.
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
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
            key.sample(prompt, index).step(step).complement(token)
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
    fn numbers_are_uniform_over_tokens_and_over_steps() {
        // Mean of N uniforms: 1/2 with standard deviation 1/sqrt(12 N); five of them bound it.
        const N: usize = 100_000;
        let sample = key().sample(0, 0);
        let bound = 5.0 / (12.0 * N as f64).sqrt();
        let over_tokens = (0..N).map(|t| sample.step(0).complement(t)).sum::<f64>() / N as f64;
        let over_steps = (0..N).map(|s| sample.step(s).complement(0)).sum::<f64>() / N as f64;
        assert!((over_tokens - 0.5).abs() < bound && (over_steps - 0.5).abs() < bound);
    }
}
