//! The likelihood of given answers: the loss of supervised fine-tuning, and log-probabilities per token.
//!
//! Only positions that predict an answer token are looked at, and only there is the language-model head applied.
//! Logits are made in chunks of [`CHUNK_LOGITS`] numbers, and the gradient of a loss is formed chunk by chunk along with its
//! value, in the logits' own memory: no `[tokens, vocab]` tensor outlives its chunk, whatever the loss.

use foil_torch::autograd::with_gradients;
use foil_torch::ops::{log_prob_gradient, target_log_probs};
use tch::{Kind, Tensor, no_grad, with_grad};

use super::accumulation_kind;
use crate::model::PackedBatch;

type Result<T> = std::result::Result<T, foil_torch::Error>;

/// Logits that exist at one time: 64 MiB in fp32.
pub const CHUNK_LOGITS: usize = 1 << 24;

/// Where a packed batch predicts its answers' tokens.
///
/// The token at position t is predicted by the hidden state at t − 1, so an answer that starts at `a` in a sequence of n
/// tokens is read at positions a − 1 … n − 2. Positions come from lengths and offsets, never from token ids.
#[derive(Debug)]
pub struct AnswerPositions {
    /// Rows of the packed batch; `[tokens]`, int64.
    rows: Tensor,
    /// The tokens predicted there; `[tokens]`, int64.
    targets: Tensor,
    counts: Vec<i64>,
}

impl AnswerPositions {
    /// The positions of `sequences`, each a dialogue's tokens and the index of its answer's first token, in the order in which `batch`
    /// holds them.
    ///
    /// A sequence's first token has nothing before it that could predict it and is never a target.
    pub fn new(batch: &PackedBatch, sequences: &[(&[u32], usize)]) -> Self {
        let (mut rows, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, (ids, answer_start)) in sequences.iter().enumerate() {
            let answer = (*answer_start).max(1)..ids.len();
            counts.push(answer.len() as i64);
            for token in answer {
                rows.push(batch.row(sequence, token - 1));
                targets.push(i64::from(ids[token]));
            }
        }
        let device = batch.device();
        Self {
            rows: Tensor::from_slice(&rows).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
            counts,
        }
    }

    /// Answer tokens of all sequences.
    pub fn tokens(&self) -> i64 {
        self.counts.iter().sum()
    }

    /// Answer tokens of each sequence.
    pub fn counts(&self) -> &[i64] {
        &self.counts
    }

    /// The rows of the packed batch whose hidden states predict an answer token, sequence by sequence; `[tokens]`, int64.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// The tokens to be predicted, `[tokens]`, int64.
    pub fn targets(&self) -> &Tensor {
        &self.targets
    }

    /// Cuts `[tokens, …]` into one tensor per sequence.
    pub fn split(&self, per_token: &Tensor) -> Vec<Tensor> {
        per_token.split_with_sizes(&self.counts, 0)
    }
}

/// The tokens that a sequence of `length` tokens has to predict where its answer starts at `answer_start`.
pub fn answer_tokens(length: usize, answer_start: usize) -> usize {
    length.saturating_sub(answer_start.max(1))
}

/// Hidden states and the head that predict tokens.
#[derive(Debug, Clone, Copy)]
pub struct Prediction<'a> {
    /// `[tokens, hidden]`.
    pub hidden: &'a Tensor,
    /// `[tokens]`, int64.
    pub targets: &'a Tensor,
    /// The language-model head, `[vocab, hidden]`.
    pub head: &'a Tensor,
    /// The kind of the head's products; the rest is fp32 (fp64 for fp64 states).
    pub compute: Kind,
}

/// Σ over tokens of −log p(token), a scalar in fp32 (fp64 for fp64 states) that can be differentiated once.
///
/// # Errors
/// Errors of libtorch.
pub fn nll(prediction: &Prediction<'_>) -> Result<Tensor> {
    let spans: Vec<Span> = prediction.chunks().map(|(start, length)| Span { start, length }).collect();
    prediction.differentiate(&spans, &mut |_, log_probs| {
        Ok((-log_probs.sum(log_probs.kind()), Tensor::full_like(log_probs, -1.0)))
    })
}

/// Any loss of answers' log-probabilities, a scalar in fp32 (fp64 for fp64 states) that can be differentiated once.
///
/// The tokens are those of groups, `groups[i]` of them in group i, one after the other. `loss` is given a group's number and its
/// log-probabilities, `[tokens]`, which require gradients, and returns a scalar; the result is the sum over groups. It is called
/// once for each group, in order.
///
/// A group whose logits do not fit [`CHUNK_LOGITS`] has them made twice: its loss needs all its log-probabilities before
/// the first gradient.
///
/// # Errors
/// Errors of libtorch.
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
/// Errors of libtorch.
pub fn log_probs(prediction: &Prediction<'_>) -> Result<Tensor> {
    no_grad(|| {
        let head = prediction.head.to_kind(prediction.compute);
        let mut picked = vec![Tensor::zeros([0], (prediction.kind(), prediction.hidden.device()))];
        for (start, length) in prediction.chunks() {
            picked.push(prediction.piece(&head, start, length)?.log_probs);
        }
        Ok(Tensor::cat(&picked, 0))
    })
}

/// A stretch of tokens whose loss is taken at once.
struct Span {
    start: i64,
    length: i64,
}

/// Some tokens' logits, and what is read from them.
struct Piece {
    states: Tensor,
    targets: Tensor,
    logits: Tensor,
    log_probs: Tensor,
    log_sum_exp: Tensor,
}

/// From a span's number and its log-probabilities to its loss and the loss's gradient with respect to them.
type Weigh<'a> = &'a mut dyn FnMut(usize, &Tensor) -> Result<(Tensor, Tensor)>;

impl Prediction<'_> {
    fn kind(&self) -> Kind {
        accumulation_kind(self.hidden.kind())
    }

    fn chunks(&self) -> impl Iterator<Item = (i64, i64)> + use<> {
        chunks(self.hidden.size()[0], chunk_rows(self.head))
    }

    /// `head` is the matrix in the compute kind.
    fn piece(&self, head: &Tensor, start: i64, length: i64) -> Result<Piece> {
        let states = self.hidden.narrow(0, start, length).to_kind(self.compute);
        let targets = self.targets.narrow(0, start, length);
        let logits = states.matmul(&head.tr()); // [length, vocab]
        let (log_probs, log_sum_exp) = target_log_probs(&logits, &targets)?;
        Ok(Piece { states, targets, logits, log_probs, log_sum_exp })
    }

    /// The loss, with its gradients with respect to the states and the head made along with it.
    fn differentiate(&self, spans: &[Span], weigh: Weigh<'_>) -> Result<Tensor> {
        let differentiable = self.hidden.requires_grad() || self.head.requires_grad();
        let (loss, hidden_gradient, head_gradient) =
            no_grad(|| self.loss_and_gradients(spans, weigh, differentiable))?;
        if !differentiable {
            return Ok(loss);
        }
        with_gradients(&loss, (self.hidden, &hidden_gradient), (self.head, &head_gradient))
    }

    fn loss_and_gradients(
        &self,
        spans: &[Span],
        weigh: Weigh<'_>,
        differentiable: bool,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let options = (self.kind(), self.hidden.device());
        let head = self.head.to_kind(self.compute);
        let rows = chunk_rows(self.head);
        let mut loss = Tensor::zeros([], options);
        if !differentiable {
            for (index, span) in spans.iter().enumerate() {
                loss += weigh(index, &self.span_log_probs(&head, span, rows)?)?.0;
            }
            return Ok((loss, Tensor::new(), Tensor::new()));
        }
        // A frozen head, as under adapters, needs no gradient, which would cost as much as the states'.
        let trained = self.head.requires_grad();
        let mut gradients = Gradients {
            hidden: self.hidden.zeros_like(),
            head: trained.then(|| Tensor::zeros(self.head.size(), options)),
        };
        for (index, span) in spans.iter().enumerate() {
            if span.length <= rows {
                let piece = self.piece(&head, span.start, span.length)?;
                let (part, upstream) = weigh(index, &piece.log_probs)?;
                loss += part;
                gradients.add(piece, &head, span.start, &upstream)?;
                continue;
            }
            let (part, upstream) = weigh(index, &self.span_log_probs(&head, span, rows)?)?;
            loss += part;
            for (start, length) in chunks(span.length, rows) {
                let piece = self.piece(&head, span.start + start, length)?;
                gradients.add(piece, &head, span.start + start, &upstream.narrow(0, start, length))?;
            }
        }
        Ok((loss, gradients.hidden, gradients.head.unwrap_or_else(|| Tensor::zeros([0], options))))
    }

    fn span_log_probs(&self, head: &Tensor, span: &Span, rows: i64) -> Result<Tensor> {
        let pieces = chunks(span.length, rows)
            .map(|(start, length)| Ok(self.piece(head, span.start + start, length)?.log_probs));
        let mut pieces = pieces.collect::<Result<Vec<_>>>()?;
        Ok(match pieces.len() {
            0 => Tensor::zeros([0], (self.kind(), self.hidden.device())),
            1 => pieces.remove(0),
            _ => Tensor::cat(&pieces, 0),
        })
    }
}

/// With respect to all states, in their kind, and to the head where it is trained, in fp32 (fp64 for fp64 states).
struct Gradients {
    hidden: Tensor,
    head: Option<Tensor>,
}

impl Gradients {
    /// Adds a piece's part; its logits become their own gradient.
    fn add(&mut self, piece: Piece, head: &Tensor, start: i64, upstream: &Tensor) -> Result<()> {
        let Piece { states, targets, mut logits, log_sum_exp, .. } = piece;
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

/// Stretches of whole groups of at most `rows` tokens, or of one group that is longer, and the groups of each.
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

/// Rows of logits that fit [`CHUNK_LOGITS`].
pub(crate) fn chunk_rows(head: &Tensor) -> i64 {
    (CHUNK_LOGITS as i64 / head.size()[0].max(1)).max(1)
}

/// (start, length) of pieces of at most `rows`.
pub(crate) fn chunks(total: i64, rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..total).step_by(rows as usize).map(move |start| (start, rows.min(total - start)))
}

#[cfg(test)]
mod tests;
