//! The likelihood of given responses: the loss of supervised fine-tuning, and log-probabilities per token.
//!
//! The language-model head is applied only at positions that predict a response token. Logits are computed in
//! chunks of [`chunk_logits`] numbers. The gradient of a loss is computed chunk by chunk along with its
//! value, in the memory of the logits: no `[tokens, vocab]` tensor outlives its chunk, whatever the loss.

use foil_common::memory::chunk_logits;
use foil_common::spec::DeviceKind;
use foil_torch::Numbers;
use foil_torch::autograd::with_gradients;
use foil_torch::ops::{log_prob_gradient, target_log_probs};
use tch::{Device, Kind, Tensor, no_grad, with_grad};

use super::accumulation_kind;
use crate::model::{ModelError, PackedBatch};

type Result<T> = std::result::Result<T, foil_torch::Error>;

/// The positions of a packed batch that predict response tokens.
///
/// The hidden state at t − 1 predicts the token at t, so a response that starts at `a` in a sequence of n
/// tokens is predicted at positions a − 1 … n − 2. Positions follow from lengths and offsets, never from
/// token ids.
#[derive(Debug)]
pub struct ResponsePositions {
    /// Rows of the packed batch; `[tokens]`, int64.
    rows: Tensor,
    /// The tokens predicted there; `[tokens]`, int64.
    targets: Tensor,
    counts: Vec<i64>,
}

impl ResponsePositions {
    /// Packs `groups` of sequences and finds the positions that predict their responses. `sequences` contains
    /// the sequences of all groups in order, each with the index of its response's first token.
    ///
    /// A sequence's first token has no preceding position, so it is never a target.
    ///
    /// # Errors
    /// Those of [`PackedBatch::from_groups`].
    pub fn pack<G, S>(
        groups: &[G],
        sequences: &[(&[u32], usize)],
        device: Device,
    ) -> std::result::Result<(PackedBatch, Self), ModelError>
    where
        G: AsRef<[S]>,
        S: AsRef<[u32]>,
    {
        let mut counts = Vec::new();
        let (batch, tensors) = PackedBatch::with_numbers(groups, device, |packed| {
            let (mut rows, mut targets) = (Vec::new(), Vec::new());
            for (sequence, (ids, response_start)) in sequences.iter().enumerate() {
                let response = (*response_start).max(1)..ids.len();
                counts.push(response.len() as i64);
                for token in response {
                    rows.push(packed.row(sequence, token - 1));
                    targets.push(i64::from(ids[token]));
                }
            }
            vec![Numbers::Int64(rows), Numbers::Int64(targets)]
        })?;
        let mut tensors = tensors.into_iter();
        let (rows, targets) = (tensors.next().unwrap_or_default(), tensors.next().unwrap_or_default());
        Ok((batch, Self { rows, targets, counts }))
    }

    /// Number of response tokens of all sequences.
    pub fn tokens(&self) -> i64 {
        self.counts.iter().sum()
    }

    /// Number of response tokens of each sequence.
    pub fn counts(&self) -> &[i64] {
        &self.counts
    }

    /// The rows of the packed batch whose hidden states predict response tokens, in the order of sequences;
    /// `[tokens]`, int64.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// The response tokens, `[tokens]`, int64.
    pub fn targets(&self) -> &Tensor {
        &self.targets
    }

    /// Splits `[tokens, …]` into one tensor per sequence.
    pub fn split(&self, per_token: &Tensor) -> Vec<Tensor> {
        per_token.split_with_sizes(&self.counts, 0)
    }
}

/// The number of targets in a sequence of `length` tokens whose response starts at `response_start`.
pub fn response_tokens(length: usize, response_start: usize) -> usize {
    length.saturating_sub(response_start.max(1))
}

/// Hidden states, the tokens they predict, and the language-model head.
#[derive(Debug, Clone, Copy)]
pub struct Prediction<'a> {
    /// `[tokens, hidden]`.
    pub hidden: &'a Tensor,
    /// `[tokens]`, int64.
    pub targets: &'a Tensor,
    /// The language-model head, `[vocab, hidden]`.
    pub head: &'a Tensor,
    /// The kind of the head's matrix products; everything else is fp32 (fp64 for fp64 states).
    pub compute: Kind,
}

/// Σ over tokens of −log p(token), a scalar in fp32 (fp64 for fp64 states) that can be differentiated once.
///
/// # Errors
/// libtorch's errors.
pub fn nll(prediction: &Prediction<'_>) -> Result<Tensor> {
    let spans: Vec<Span> = prediction.chunks().map(|(start, length)| Span { start, length }).collect();
    prediction.differentiate(&spans, &mut |_, log_probs| {
        Ok((-log_probs.sum(log_probs.kind()), Tensor::full_like(log_probs, -1.0)))
    })
}

/// Any loss of responses' log-probabilities, a scalar in fp32 (fp64 for fp64 states) that can be
/// differentiated once.
///
/// Group i has the next `groups[i]` tokens. `loss` is called once for each group in order, with the group's
/// index and its log-probabilities, `[tokens]`, which require gradients, and returns a scalar. The result is
/// the sum over groups.
///
/// The logits of a group with more than [`chunk_logits`] are computed twice, because its loss needs all of
/// its log-probabilities before the first gradient.
///
/// # Errors
/// libtorch's errors.
pub fn grouped(
    prediction: &Prediction<'_>,
    groups: &[i64],
    loss: &mut dyn FnMut(usize, &Tensor) -> Tensor,
) -> Result<Tensor> {
    let (spans, members) = whole_groups(groups, chunk_rows(prediction.head));
    prediction.differentiate(&spans, &mut |span, log_probs| {
        with_grad(|| {
            let leaf = log_probs.detach().set_requires_grad(true);
            let parts = leaf.split_with_sizes(&groups[members[span].clone()], 0);
            let losses: Vec<Tensor> =
                members[span].clone().zip(&parts).map(|(group, part)| loss(group, part)).collect();
            let total = Tensor::stack(&losses, 0).sum(leaf.kind());
            let upstream = match total.requires_grad() {
                true => Tensor::run_backward(&[&total], &[&leaf], false, false).remove(0),
                false => leaf.zeros_like(),
            };
            Ok((total.detach(), upstream.detach()))
        })
    })
}

/// log p of each token, `[tokens]`, in fp32 (fp64 for fp64 states), without gradients.
///
/// # Errors
/// libtorch's errors.
pub fn log_probs(prediction: &Prediction<'_>) -> Result<Tensor> {
    no_grad(|| {
        let head = prediction.head.to_kind(prediction.compute);
        let mut picked = vec![Tensor::zeros([0], (prediction.kind(), prediction.hidden.device()))];
        for (start, length) in prediction.chunks() {
            picked.push(prediction.chunk(&head, start, length)?.log_probs);
        }
        Ok(Tensor::cat(&picked, 0))
    })
}

/// Consecutive tokens whose loss is computed together.
struct Span {
    start: i64,
    length: i64,
}

/// The logits of a chunk of tokens, with their log-probabilities.
struct Chunk {
    states: Tensor,
    targets: Tensor,
    logits: Tensor,
    log_probs: Tensor,
    log_sum_exp: Tensor,
}

/// Maps a span's index and log-probabilities to its loss and the loss's gradient with respect to them.
type SpanLoss<'a> = &'a mut dyn FnMut(usize, &Tensor) -> Result<(Tensor, Tensor)>;

impl Prediction<'_> {
    fn kind(&self) -> Kind {
        accumulation_kind(self.hidden.kind())
    }

    fn chunks(&self) -> impl Iterator<Item = (i64, i64)> + use<> {
        chunks(self.hidden.size()[0], chunk_rows(self.head))
    }

    /// Computes a chunk; `head` is the matrix in the compute kind.
    fn chunk(&self, head: &Tensor, start: i64, length: i64) -> Result<Chunk> {
        let states = self.hidden.narrow(0, start, length).to_kind(self.compute);
        let targets = self.targets.narrow(0, start, length);
        let logits = states.matmul(&head.tr()); // [length, vocab]
        let (log_probs, log_sum_exp) = target_log_probs(&logits, &targets)?;
        Ok(Chunk { states, targets, logits, log_probs, log_sum_exp })
    }

    /// The loss, with its gradients with respect to the states and the head computed at the same time.
    fn differentiate(&self, spans: &[Span], span_loss: SpanLoss<'_>) -> Result<Tensor> {
        let differentiable = self.hidden.requires_grad() || self.head.requires_grad();
        let (loss, hidden_gradient, head_gradient) =
            no_grad(|| self.loss_and_gradients(spans, span_loss, differentiable))?;
        if !differentiable {
            return Ok(loss);
        }
        with_gradients(&loss, (self.hidden, &hidden_gradient), (self.head, &head_gradient))
    }

    fn loss_and_gradients(
        &self,
        spans: &[Span],
        span_loss: SpanLoss<'_>,
        differentiable: bool,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let options = (self.kind(), self.hidden.device());
        let head = self.head.to_kind(self.compute);
        let rows = chunk_rows(self.head);
        let mut loss = Tensor::zeros([], options);
        if !differentiable {
            for (index, span) in spans.iter().enumerate() {
                loss += span_loss(index, &self.span_log_probs(&head, span, rows)?)?.0;
            }
            return Ok((loss, Tensor::new(), Tensor::new()));
        }
        // The head is frozen when adapters are trained. Its gradient would cost as much as that of the
        // states.
        let trained = self.head.requires_grad();
        let mut gradients = Gradients {
            hidden: self.hidden.zeros_like(),
            head: trained.then(|| Tensor::zeros(self.head.size(), options)),
        };
        for (index, span) in spans.iter().enumerate() {
            if span.length <= rows {
                let chunk = self.chunk(&head, span.start, span.length)?;
                let (part, upstream) = span_loss(index, &chunk.log_probs)?;
                loss += part;
                gradients.add(chunk, &head, span.start, &upstream)?;
                continue;
            }
            let (part, upstream) = span_loss(index, &self.span_log_probs(&head, span, rows)?)?;
            loss += part;
            for (start, length) in chunks(span.length, rows) {
                let chunk = self.chunk(&head, span.start + start, length)?;
                gradients.add(chunk, &head, span.start + start, &upstream.narrow(0, start, length))?;
            }
        }
        Ok((loss, gradients.hidden, gradients.head.unwrap_or_else(|| Tensor::zeros([0], options))))
    }

    fn span_log_probs(&self, head: &Tensor, span: &Span, rows: i64) -> Result<Tensor> {
        let parts = chunks(span.length, rows)
            .map(|(start, length)| Ok(self.chunk(head, span.start + start, length)?.log_probs));
        let mut parts = parts.collect::<Result<Vec<_>>>()?;
        Ok(match parts.len() {
            0 => Tensor::zeros([0], (self.kind(), self.hidden.device())),
            1 => parts.remove(0),
            _ => Tensor::cat(&parts, 0),
        })
    }
}

/// Gradients with respect to the states, in their kind, and to the head if it is trained, in fp32 (fp64 for
/// fp64 states).
struct Gradients {
    hidden: Tensor,
    head: Option<Tensor>,
}

impl Gradients {
    /// Adds a chunk's gradients, overwriting its logits with their gradient.
    fn add(&mut self, chunk: Chunk, head: &Tensor, start: i64, upstream: &Tensor) -> Result<()> {
        let Chunk { states, targets, mut logits, log_sum_exp, .. } = chunk;
        log_prob_gradient(&mut logits, &log_sum_exp, &targets, &upstream.contiguous())?;
        let error = logits;
        self.hidden.narrow(0, start, states.size()[0]).copy_(&error.matmul(head));
        if let Some(total) = &mut self.head {
            if error.kind() == total.kind() {
                let _ = total.addmm_(&error.tr(), &states);
            } else {
                *total += error.tr().matmul(&states);
            }
        }
        Ok(())
    }
}

/// Spans of whole groups, each with at most `rows` tokens unless a single group is longer, and the groups of
/// each span.
fn whole_groups(groups: &[i64], rows: i64) -> (Vec<Span>, Vec<std::ops::Range<usize>>) {
    let mut spans: Vec<Span> = Vec::new();
    let mut members: Vec<std::ops::Range<usize>> = Vec::new();
    let mut start = 0;
    for (group, &length) in groups.iter().enumerate() {
        match (spans.last_mut(), members.last_mut()) {
            (Some(span), Some(members)) if span.length + length <= rows => {
                span.length += length;
                members.end = group + 1;
            }
            _ => {
                spans.push(Span { start, length });
                members.push(group..group + 1);
            }
        }
        start += length;
    }
    (spans, members)
}

/// Number of rows of logits that fit in [`chunk_logits`].
pub(crate) fn chunk_rows(head: &Tensor) -> i64 {
    let device = match head.device() {
        Device::Cuda(_) => DeviceKind::Cuda,
        Device::Cpu | Device::Mps | Device::Vulkan => DeviceKind::Cpu,
    };
    (chunk_logits(device) as i64 / head.size()[0].max(1)).max(1)
}

/// (start, length) of chunks of at most `rows`.
pub(crate) fn chunks(total: i64, rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..total).step_by(rows as usize).map(move |start| (start, rows.min(total - start)))
}

#[cfg(test)]
mod tests;
