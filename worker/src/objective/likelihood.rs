//! The likelihood of given answers: the loss of supervised fine-tuning, and log-probabilities per token.
//!
//! Only positions that predict an answer token are looked at, and only there is the language-model head applied.
//! Logits are made in chunks of [`CHUNK_LOGITS`] numbers, so that a long batch over a large vocabulary needs no
//! `[tokens, vocab]` tensor, neither in the forward nor in the backward pass.

use tch::{Device, Kind, Tensor, no_grad};

use super::accumulation_kind;

/// Logits that exist at one time: 64 MiB in fp32.
pub const CHUNK_LOGITS: usize = 1 << 24;

/// Where a padded batch `[batch, seq]` predicts its answers' tokens.
///
/// The token at position t is predicted by the hidden state at t − 1, so an answer that starts at `a` in a row of n
/// tokens is read at positions a − 1 … n − 2. Positions come from lengths and offsets, never from token ids.
#[derive(Debug)]
pub struct AnswerPositions {
    /// Into hidden states flattened to `[batch · seq, hidden]`; `[tokens]`, int64.
    positions: Tensor,
    /// The tokens predicted there; `[tokens]`, int64.
    targets: Tensor,
    counts: Vec<i64>,
}

impl AnswerPositions {
    /// Of `rows`, each a dialogue's tokens and the index of its answer's first token, padded on the right to `seq`.
    ///
    /// A row's first token has nothing before it that could predict it and is never a target.
    pub fn new(rows: &[(&[u32], usize)], seq: i64, device: Device) -> Self {
        let (mut positions, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (ids, answer_start)) in rows.iter().enumerate() {
            let answer = (*answer_start).max(1)..ids.len();
            counts.push(answer.len() as i64);
            for token in answer {
                positions.push(row as i64 * seq + token as i64 - 1);
                targets.push(i64::from(ids[token]));
            }
        }
        Self {
            positions: Tensor::from_slice(&positions).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
            counts,
        }
    }

    /// Answer tokens of all rows.
    pub fn tokens(&self) -> i64 {
        self.counts.iter().sum()
    }

    /// Answer tokens of each row.
    pub fn counts(&self) -> &[i64] {
        &self.counts
    }

    /// The tokens to be predicted, `[tokens]`, int64.
    pub fn targets(&self) -> &Tensor {
        &self.targets
    }

    /// From `[batch, seq, hidden]` the states that predict an answer token, `[tokens, hidden]`, rows in order.
    pub fn select(&self, hidden: &Tensor) -> Tensor {
        hidden.flatten(0, 1).index_select(0, &self.positions)
    }

    /// Cuts `[tokens, …]` into one tensor per row.
    pub fn split(&self, per_token: &Tensor) -> Vec<Tensor> {
        per_token.split_with_sizes(&self.counts, 0)
    }
}

/// The tokens that a row of `length` tokens has to predict where its answer starts at `answer_start`.
pub fn answer_tokens(length: usize, answer_start: usize) -> usize {
    length.saturating_sub(answer_start.max(1))
}

/// Σ over tokens of −log p(token), a scalar in fp32 (fp64 for fp64 states) that can be differentiated once.
///
/// `hidden` is `[tokens, hidden]`, `targets` `[tokens]` int64, `head` `[vocab, hidden]`. The head's products are computed
/// in `compute`; log-softmax in fp32. The gradient with respect to the logits z, softmax(z) − onehot(target), is
/// formed chunk by chunk along with the loss, so no chunk's logits outlive it.
pub fn nll(hidden: &Tensor, targets: &Tensor, head: &Tensor, compute: Kind) -> Tensor {
    nll_in_chunks(hidden, targets, head, compute, chunk_rows(head))
}

fn nll_in_chunks(hidden: &Tensor, targets: &Tensor, head: &Tensor, compute: Kind, rows: i64) -> Tensor {
    let kind = accumulation_kind(hidden.kind());
    let differentiable = hidden.requires_grad() || head.requires_grad();
    let (mut loss, hidden_gradient, head_gradient) =
        no_grad(|| loss_and_gradients(hidden, targets, head, compute, rows, differentiable));
    // A function with the loss's value whose gradient is the one just computed.
    for (leaf, gradient) in [(hidden, hidden_gradient), (head, head_gradient)] {
        if leaf.requires_grad() {
            let linear = (leaf.to_kind(kind) * gradient).sum(kind);
            loss += &linear - linear.detach();
        }
    }
    loss
}

/// The summed loss and its gradients with respect to `hidden` and `head`.
fn loss_and_gradients(
    hidden: &Tensor,
    targets: &Tensor,
    head: &Tensor,
    compute: Kind,
    rows: i64,
    differentiable: bool,
) -> (Tensor, Tensor, Tensor) {
    let kind = accumulation_kind(hidden.kind());
    let weight = head.to_kind(compute);
    let mut loss = Tensor::zeros([], (kind, hidden.device()));
    let mut head_gradient = Tensor::zeros(head.size(), (kind, hidden.device()));
    let hidden_gradient = Tensor::zeros(hidden.size(), (kind, hidden.device()));
    for (start, length) in chunks(hidden.size()[0], rows) {
        let states = hidden.narrow(0, start, length).to_kind(compute);
        let target = targets.narrow(0, start, length).unsqueeze(1);
        let mut log_p = states.matmul(&weight.tr()).log_softmax(-1, kind); // [length, vocab]
        loss -= log_p.gather(1, &target, false).sum(kind);
        if !differentiable {
            continue;
        }
        let mut error = log_p.exp_();
        let _ = error.scatter_add_(1, &target, &Tensor::full_like(&target, -1).to_kind(kind));
        let error = error.to_kind(compute);
        hidden_gradient.narrow(0, start, length).copy_(&error.matmul(&weight));
        head_gradient += error.tr().matmul(&states);
    }
    (loss, hidden_gradient, head_gradient)
}

/// log p of each given token, `[tokens]`, in fp32 (fp64 for fp64 states). Arguments as [`nll`]'s.
///
/// Under `no_grad` memory is bounded as there; where gradients are wanted, autograd keeps every chunk's logits.
pub fn log_probs(hidden: &Tensor, targets: &Tensor, head: &Tensor, compute: Kind) -> Tensor {
    let kind = accumulation_kind(hidden.kind());
    let weight = head.to_kind(compute);
    let picked: Vec<Tensor> = chunks(hidden.size()[0], chunk_rows(head))
        .map(|(start, length)| {
            let states = hidden.narrow(0, start, length).to_kind(compute);
            let target = targets.narrow(0, start, length).unsqueeze(1);
            states.matmul(&weight.tr()).log_softmax(-1, kind).gather(1, &target, false).squeeze_dim(1)
        })
        .collect();
    if picked.is_empty() { Tensor::zeros([0], (kind, hidden.device())) } else { Tensor::cat(&picked, 0) }
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
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{AnswerPositions, log_probs, nll, nll_in_chunks};

    fn problem(kind: Kind) -> (Tensor, Tensor, Tensor) {
        tch::manual_seed(3);
        let hidden =
            Tensor::randn([11, 6], (Kind::Double, Device::Cpu)).to_kind(kind).set_requires_grad(true);
        let head = Tensor::randn([9, 6], (Kind::Double, Device::Cpu)).to_kind(kind).set_requires_grad(true);
        let targets = Tensor::randint(9, [11], (Kind::Int64, Device::Cpu));
        (hidden, targets, head)
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn chunks_have_autograds_loss_and_gradients() {
        let (hidden, targets, head) = problem(Kind::Double);
        let logits = hidden.matmul(&head.tr());
        let expected = logits.cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::Sum, -100, 0.0);
        let gradients = Tensor::run_backward(&[&(&expected * 0.3)], &[&hidden, &head], false, false);
        for rows in [1, 4, 11, 100] {
            let loss = nll_in_chunks(&hidden, &targets, &head, Kind::Double, rows);
            assert!((loss.double_value(&[]) - expected.double_value(&[])).abs() < 1e-9);
            let found = Tensor::run_backward(&[&(loss * 0.3)], &[&hidden, &head], false, false);
            assert!(distance(&found[0], &gradients[0]) < 1e-12);
            assert!(distance(&found[1], &gradients[1]) < 1e-12);
        }
    }

    #[test]
    fn log_probs_sum_to_the_loss() {
        let (hidden, targets, head) = problem(Kind::Double);
        let sum = -log_probs(&hidden, &targets, &head, Kind::Double).sum(Kind::Double);
        assert!(distance(&sum, &nll(&hidden, &targets, &head, Kind::Double)) < 1e-12);
    }

    #[test]
    fn bf16_stays_near_fp32() {
        let (hidden, targets, head) = problem(Kind::Float);
        let exact = nll(&hidden, &targets, &head, Kind::Float);
        let coarse = nll(&hidden, &targets, &head, Kind::BFloat16);
        assert_eq!(coarse.kind(), Kind::Float);
        assert!(distance(&exact, &coarse) / exact.double_value(&[]) < 0.02);
        coarse.backward();
        assert_eq!(head.grad().kind(), Kind::Float);
    }

    #[test]
    fn no_answer_tokens_is_a_zero_loss() {
        let (hidden, targets, head) = problem(Kind::Float);
        let none = nll(&hidden.narrow(0, 0, 0), &targets.narrow(0, 0, 0), &head, Kind::Float);
        none.backward();
        assert_eq!(none.double_value(&[]), 0.0);
        assert_eq!(head.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
    }

    #[test]
    fn answers_are_read_one_position_earlier() {
        let rows: [(&[u32], usize); 3] = [(&[5, 6, 7, 8], 2), (&[5, 6], 2), (&[4, 3, 2], 0)];
        let answers = AnswerPositions::new(&rows, 4, Device::Cpu);
        assert_eq!(Vec::<i64>::try_from(&answers.positions).unwrap(), [1, 2, 8, 9]);
        assert_eq!(Vec::<i64>::try_from(answers.targets()).unwrap(), [7, 8, 3, 2]);
        assert_eq!(answers.counts(), [2, 0, 2]);
        assert_eq!(answers.tokens(), 4);
        let hidden = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([3, 4, 1]);
        let picked = answers.select(&hidden).view(-1);
        assert_eq!(Vec::<f32>::try_from(&picked).unwrap(), [1.0, 2.0, 8.0, 9.0]);
        assert_eq!(answers.split(&picked)[2].size(), [2]);
    }
}
