//! The sampler of [`super::sampler`] as tensor operations on all rows together, without the host.

use std::sync::OnceLock;

use foil_common::memory::MAX_SAMPLED_LOGITS;
use foil_common::spec::Sampling;
use foil_torch::{Numbers, ops};
use tch::{Device, Kind, Tensor};

use super::noise::negative_complements;
use super::sampler::Sampler;
use super::sequence::Active;
use super::{GenerateError, GenerationConfig, Token};

/// What sampling needs of each row in addition to its logits, on their device.
#[derive(Clone, Copy)]
pub(super) struct SamplerRows<'a> {
    /// Key of the noise of the token to sample, `[rows]`, int64.
    pub(super) noise_keys: &'a Tensor,
    /// Number of the completion's tokens, `[rows]`, int64.
    pub(super) counts: &'a Tensor,
    /// The ids to which a repetition penalty applies, `[rows, width]`, int64; see
    /// [`DeviceSampler::padded_ids`].
    pub(super) seen: Option<&'a Tensor>,
}

/// The settings of a generation, on a device.
///
/// It samples the same tokens as the host's sampler, unless two candidates are within fp64 rounding of each
/// other.
pub(super) struct DeviceSampler<'a> {
    sampling: &'a Sampling,
    /// Only ids below this are sampled.
    candidates: i64,
    /// True at the tokens that end a completion, `[candidates]`; unset without a minimum length.
    eos: Option<Tensor>,
    race: Race,
}

/// Computes when each token would arrive.
enum Race {
    /// By libtorch's operations.
    Aten,
    /// By one kernel, which takes the ids of the candidates, `[candidates]`, fp64.
    Fused(Tensor),
}

impl<'a> DeviceSampler<'a> {
    /// A sampler for logits of `vocab_size` ids on `device`.
    pub(super) fn new(
        config: &GenerationConfig<'a>,
        vocab_size: usize,
        device: Device,
    ) -> Result<Self, GenerateError> {
        let sampler = Sampler::new(config.sampling).with_vocab_size(config.vocab_size);
        let candidates = sampler.candidates(vocab_size);
        let eos = (config.sampling.min_new_tokens > 0).then(|| {
            let is_eos = |id| u8::from(config.eos.contains(&id));
            let mask: Vec<u8> = (0..candidates as u32).map(is_eos).collect();
            Tensor::from_slice(&mask).to_device(device).to_kind(Kind::Bool)
        });
        let candidates = candidates as i64;
        Ok(Self { sampling: config.sampling, candidates, eos, race: Race::new(candidates, device) })
    }

    /// The ids of the sequences so far, as [`SamplerRows::seen`] with this number of rows and width: padded
    /// with the first id that is not sampled, which also stands for all others that are not.
    pub(super) fn padded_ids(&self, sequences: &[Active<'_>], [rows, width]: [usize; 2]) -> Numbers {
        let mut padded = vec![self.candidates; rows * width];
        for (row, sequence) in padded.chunks_mut(width).zip(sequences) {
            for (padded, &id) in row.iter_mut().zip(sequence.prompt.iter().chain(&sequence.tokens)) {
                *padded = self.candidates.min(id.into());
            }
        }
        Numbers::Int64(padded)
    }

    /// Samples one token for each row. `logits`: `[rows, vocab]`, fp32. Returns what [`tokens_of`] reads:
    /// ids, and the bits of log-probabilities in fp64, `[2, rows]`, int64.
    pub(super) fn sample(&self, logits: &Tensor, rows: &SamplerRows<'_>) -> Result<Tensor, GenerateError> {
        let (all, vocab_size) = (logits.size()[0], logits.size()[1].max(1));
        let part = (MAX_SAMPLED_LOGITS as i64 / vocab_size).max(1);
        let parts = (0..all)
            .step_by(part as usize)
            .map(|start| {
                let of_part = |tensor: &Tensor| tensor.narrow(0, start, part.min(all - start));
                let (noise_keys, counts) = (of_part(rows.noise_keys), of_part(rows.counts));
                let seen = rows.seen.map(of_part);
                let rows = SamplerRows { noise_keys: &noise_keys, counts: &counts, seen: seen.as_ref() };
                self.sample_part(&of_part(logits), &rows)
            })
            .collect::<Result<Vec<Tensor>, GenerateError>>()?;
        Ok(match &parts[..] {
            [part] => part.shallow_clone(),
            _ => Tensor::cat(&parts, 1),
        })
    }

    fn sample_part(&self, logits: &Tensor, rows: &SamplerRows<'_>) -> Result<Tensor, GenerateError> {
        let penalized = self.apply_penalties(&logits.narrow(1, 0, self.candidates), rows);
        let ids = self.choose(&penalized, rows.noise_keys)?;
        let log_probs = logits.log_softmax(1, Kind::Float).gather(1, &ids.unsqueeze(1), false).squeeze_dim(1);
        Ok(Tensor::stack(&[ids, log_probs.to_kind(Kind::Double).view_dtype(Kind::Int64)], 0))
    }

    /// The token of each row, `[rows]`: argmax of the logits at temperature 0, else argmin of −ln(u)/p, as in
    /// [`super::sampler`].
    fn choose(&self, logits: &Tensor, noise_keys: &Tensor) -> Result<Tensor, GenerateError> {
        let Sampling { temperature, top_k, top_p, .. } = *self.sampling;
        if temperature == 0.0 {
            // Takes the first of equal logits, as on the host.
            return Ok(logits.argmax(1, false));
        }
        let maxima = logits.amax([1], true);
        let logits = keep_top_p(keep_top_k(logits, top_k as i64), &maxima, temperature, top_p);
        Ok(self.race.run(&logits, &maxima, noise_keys, temperature)?.argmax(1, false))
    }

    /// The logits after repetition penalty and minimum length.
    fn apply_penalties(&self, logits: &Tensor, rows: &SamplerRows<'_>) -> Tensor {
        let mut logits = logits.shallow_clone();
        if let Some(seen) = rows.seen {
            let penalty = self.sampling.repetition_penalty;
            // The extra column receives the padding.
            let size = [seen.size()[0], self.candidates + 1];
            let mask = Tensor::zeros(size, (Kind::Bool, logits.device())).scatter_value(1, seen, 1);
            let penalized = logits.where_self(&logits.ge(0.0), &(&logits * penalty));
            let penalized = penalized.where_self(&logits.lt(0.0), &(&logits / penalty));
            logits = penalized.where_self(&mask.narrow(1, 0, self.candidates), &logits);
        }
        if let Some(eos) = &self.eos {
            let too_short = rows.counts.lt(self.sampling.min_new_tokens as i64).unsqueeze(1);
            logits = logits.masked_fill(&too_short.logical_and(eos), f64::NEG_INFINITY);
        }
        logits
    }
}

/// The tokens of [`DeviceSampler::sample`], which the host has read. `numbers`: `[2, rows]`, int64.
pub(super) fn tokens_of(numbers: &Tensor) -> Result<Vec<Token>, GenerateError> {
    let numbers = Vec::<i64>::try_from(numbers.view(-1))?;
    let (ids, log_probs) = numbers.split_at(numbers.len() / 2);
    let token = |(&id, &bits): (&i64, &i64)| Token {
        id: id as u32,
        log_prob: f64::from_bits(bits.cast_unsigned()) as f32,
    };
    Ok(ids.iter().zip(log_probs).map(token).collect())
}

impl Race {
    fn new(candidates: i64, device: Device) -> Self {
        match device.is_cuda() && fused_race_works(device) {
            true => Self::Fused(Tensor::arange(candidates, (Kind::Double, device))),
            false => Self::Aten,
        }
    }

    /// ln(u)/p of each token, `[rows, candidates]`, fp64: the negative of its arrival time, −∞ at probability
    /// 0.
    fn run(
        &self,
        logits: &Tensor,
        maxima: &Tensor,
        noise_keys: &Tensor,
        temperature: f64,
    ) -> Result<Tensor, foil_torch::Error> {
        match self {
            Self::Fused(tokens) => ops::exponential_race(logits, maxima, noise_keys, tokens, temperature),
            Self::Aten => {
                let weights = weights(logits, maxima, temperature);
                Ok(negative_complements(noise_keys, logits.size()[1]).log1p_() / weights)
            }
        }
    }
}

/// Whether the fused kernel compiles on this process's GPU and gives what libtorch's operations give. The
/// process tries it once.
fn fused_race_works(device: Device) -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let error = match compare_races(device) {
            Ok(true) => return true,
            Ok(false) => "its results differ from libtorch's".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(error, "cannot use the compiled sampling kernel; sampling will be slower");
        false
    })
}

fn compare_races(device: Device) -> Result<bool, foil_torch::Error> {
    const ROWS: i64 = 4;
    const CANDIDATES: i64 = 1000;
    let options = (Kind::Float, device);
    let logits = Tensor::arange(ROWS * CANDIDATES, options).sin().view([ROWS, CANDIDATES]) * 20.0;
    let maxima = logits.amax([1], true);
    // Keys whose bits are a quiet and a signaling NaN, a subnormal number and a negative one in fp64.
    let keys = Tensor::from_slice(&[-1_i64, (0x7ff << 52) | 1, 77, i64::MIN | 1 << 61]).to_device(device);
    let fused = Race::Fused(Tensor::arange(CANDIDATES, (Kind::Double, device)));
    let [fused, aten] = [fused, Race::Aten].map(|race| race.run(&logits, &maxima, &keys, 0.7));
    Ok(fused?.allclose(&aten?, 1e-12, 0.0, false))
}

/// exp((logit − maximum) / temperature), `[rows, candidates]`, fp64.
fn weights(logits: &Tensor, maxima: &Tensor, temperature: f64) -> Tensor {
    // A difference of fp32 and fp64 is computed in fp64, without a copy of the logits.
    let mut scaled = logits - maxima.to_kind(Kind::Double);
    if temperature != 1.0 {
        scaled /= temperature;
    }
    scaled.exp_()
}

/// Keeps the k largest logits of each row and any that equal the k-th. Others become −∞.
fn keep_top_k(logits: &Tensor, k: i64) -> Tensor {
    if !(1..logits.size()[1]).contains(&k) {
        return logits.shallow_clone();
    }
    let (top, _) = logits.topk(k, 1, true, true);
    logits.masked_fill(&logits.lt_tensor(&top.narrow(1, k - 1, 1)), f64::NEG_INFINITY)
}

/// Drops the least likely tokens while their sum stays within 1 − p; of equals, the lower ids go first. One
/// token always remains.
fn keep_top_p(logits: Tensor, maxima: &Tensor, temperature: f64, p: f64) -> Tensor {
    if p >= 1.0 {
        return logits;
    }
    let weights = weights(&logits, maxima, temperature);
    let vocab_size = weights.size()[1];
    let (ascending, order) = weights.sort_stable(true, 1, false);
    let sums = ascending.cumsum(1, Kind::Double);
    let spare = sums.narrow(1, vocab_size - 1, 1) * (1.0 - p);
    let dropped = sums.le_tensor(&spare);
    let _ = dropped.narrow(1, vocab_size - 1, 1).fill_(0);
    let dropped = dropped.zeros_like().scatter(1, &order, &dropped);
    logits.masked_fill(&dropped, f64::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use foil_common::memory::sampling_memory;
    use foil_common::spec::Sampling;
    use tch::{Device, Kind, Tensor};

    use super::super::host_runner::sample_each;
    use super::super::noise::{CompletionNoise, NoiseKey, StepNoise};
    use super::super::sampler::{Context, Sampler};
    use super::super::sequence::{Active, Queued};
    use super::super::{GenerationConfig, Token};
    use super::{DeviceSampler, SamplerRows, tokens_of};

    const VOCAB_SIZE: i64 = 3001;
    /// The last ids are padding of the embeddings.
    const CANDIDATES: usize = 2990;
    const ROWS: usize = 23;
    const EOS: [u32; 3] = [5, 2999, 4000];

    fn completion_noise(rows: usize) -> Vec<CompletionNoise> {
        let noise = NoiseKey { seed: 5, round: 1, purpose: "test".to_owned() };
        (0..rows as u32).map(|row| noise.completion(2, row)).collect()
    }

    fn sample(
        logits: &Tensor,
        vocab_size: usize,
        sampling: &Sampling,
        sequences: &[Active<'_>],
        noise: &[StepNoise],
    ) -> Vec<Token> {
        let config = GenerationConfig {
            sampling,
            eos: &EOS,
            vocab_size,
            noise: &NoiseKey { seed: 0, round: 0, purpose: String::new() },
            max_num_seqs: 1,
            detokenize: &|_| String::new(),
        };
        let sampler = DeviceSampler::new(&config, logits.size()[1] as usize, Device::Cpu).unwrap();
        let keys: Vec<i64> = noise.iter().map(|noise| noise.key().cast_signed()).collect();
        let counts: Vec<i64> = sequences.iter().map(|sequence| sequence.tokens.len() as i64).collect();
        let width =
            sequences.iter().map(|sequence| sequence.prompt.len() + sequence.tokens.len()).max().unwrap();
        let seen = sampler.padded_ids(sequences, [sequences.len(), width + 3]);
        let seen = foil_torch::upload(&[seen], Device::Cpu).unwrap().remove(0);
        let seen = seen.view([sequences.len() as i64, -1]);
        let rows = SamplerRows {
            noise_keys: &Tensor::from_slice(&keys),
            counts: &Tensor::from_slice(&counts),
            seen: (sampling.repetition_penalty != 1.0).then_some(&seen),
        };
        tokens_of(&sampler.sample(logits, &rows).unwrap()).unwrap()
    }

    /// Sequences with 0, 1, … tokens.
    fn sequences<'a>(prompt: &'a [u32], noise: &[CompletionNoise]) -> Vec<Active<'a>> {
        let sequence = |(row, noise): (usize, &CompletionNoise)| {
            let queued = Queued { request: 0, index: 0, output_index: 0 };
            let mut sequence = Active::new(queued, prompt, *noise);
            sequence.tokens.extend(prompt.iter().take(row).map(|token| token / 2));
            sequence
        };
        noise.iter().enumerate().map(sequence).collect()
    }

    /// Logits with ties and tokens of probability 0.
    fn logits() -> Tensor {
        let logits = Tensor::randn([ROWS as i64, VOCAB_SIZE], (Kind::Float, Device::Cpu)) * 3.0;
        let _ = logits.narrow(1, 100, 7).fill_(f64::NEG_INFINITY);
        logits.narrow(1, 2000, 500).copy_(&logits.narrow(1, 500, 500));
        logits
    }

    #[test]
    fn the_device_sampler_gives_the_tokens_of_the_host_sampler() {
        tch::manual_seed(21);
        let prompt: Vec<u32> = (0..400).map(|token| token * 11).collect();
        let noise = completion_noise(ROWS);
        let sequences = sequences(&prompt, &noise);
        let contexts: Vec<_> = sequences.iter().map(|sequence| sequence.context(&EOS)).collect();
        let plain = Sampling::default();
        let cases = [
            plain.clone(),
            Sampling { min_new_tokens: 12, ..plain.clone() },
            Sampling { repetition_penalty: 1.7, ..plain.clone() },
            Sampling { top_k: 1, ..plain.clone() },
            Sampling { top_k: 40, ..plain.clone() },
            Sampling { top_k: 90_000, ..plain.clone() },
            Sampling { top_p: 0.9, ..plain.clone() },
            Sampling { top_p: 1e-9, ..plain.clone() },
            Sampling { top_k: 900, top_p: 0.95, repetition_penalty: 0.8, min_new_tokens: 12, ..plain },
        ];
        for case in cases {
            for temperature in [0.0, 0.3, 1.0, 1.7] {
                let sampling = Sampling { temperature, ..case.clone() };
                let mut host = Sampler::new(&sampling).with_vocab_size(CANDIDATES);
                for step in 0..5 {
                    let noise: Vec<_> = noise.iter().map(|noise| noise.step(step)).collect();
                    let logits = logits();
                    let expected = sample_each(&logits, &mut host, &contexts, &noise).unwrap();
                    let sampled = sample(&logits, CANDIDATES, &sampling, &sequences, &noise);
                    for (sampled, expected) in sampled.iter().zip(&expected) {
                        assert_eq!(sampled.id, expected.id, "{sampling:?}");
                        assert!((sampled.id as usize) < CANDIDATES, "{sampling:?}");
                        assert!((sampled.log_prob - expected.log_prob).abs() < 1e-5, "{sampling:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn sampling_takes_no_more_memory_than_is_estimated() {
        let sampling = Sampling { top_k: 900, top_p: 0.9, ..Sampling::default() };
        let logits = logits();
        let noise = completion_noise(ROWS);
        let sequences = sequences(&[], &noise);
        let noise: Vec<_> = noise.iter().map(|noise| noise.step(0)).collect();
        let memory = foil_torch::CpuMemory::count().unwrap();
        sample(&logits, VOCAB_SIZE as usize, &sampling, &sequences, &noise);
        let (peak, estimate) = (memory.peak(), sampling_memory(logits.numel() as u64));
        assert!(peak <= estimate && peak * 10 >= estimate * 7, "{peak} of {estimate} bytes");
    }

    #[test]
    fn rows_of_a_large_vocabulary_are_sampled_in_parts() {
        const LARGE: i64 = 1 << 21;
        tch::manual_seed(22);
        let sampling = Sampling::default();
        let logits = Tensor::randn([6, LARGE], (Kind::Float, Device::Cpu));
        let noise = completion_noise(6);
        let sequences = sequences(&[], &noise);
        let noise: Vec<_> = noise.iter().map(|noise| noise.step(0)).collect();
        let contexts = vec![Context { prompt: &[], completion: &[], eos: &[] }; 6];
        let expected = sample_each(&logits, &mut Sampler::new(&sampling), &contexts, &noise).unwrap();
        let sampled = sample(&logits, LARGE as usize, &sampling, &sequences, &noise);
        let ids = |tokens: &[Token]| tokens.iter().map(|token| token.id).collect::<Vec<_>>();
        assert_eq!(ids(&sampled), ids(&expected));
    }
}
