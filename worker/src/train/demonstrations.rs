//! Supervised fine-tuning on demonstrations.

use super::{MicroBatchLoss, Objective, RowShape, TrainError};
use crate::model::{LanguageModel, PackedBatch, Precision};
use crate::objective::likelihood::{AnswerPositions, Prediction, answer_tokens, nll};
use crate::objective::metrics::MetricSums;

/// One dialogue, as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Demonstration {
    /// The id of the row in its data set.
    pub id: u64,
    /// Prompt and answer; EOS at the end where the answer is finished.
    pub ids: Vec<u32>,
    /// The index of the answer's first token. Loss is taken from there on.
    pub answer_start: usize,
}

/// The negative log-likelihood of answers, Σ over answer tokens / answer tokens of the global batch: every token counts
/// the same, whatever the length of its answer, and whichever rank or micro-batch it falls to.
#[derive(Debug)]
pub struct Demonstrations<'a> {
    model: &'a LanguageModel,
    rows: &'a [Demonstration],
    precision: Precision,
}

impl<'a> Demonstrations<'a> {
    pub fn new(model: &'a LanguageModel, rows: &'a [Demonstration], precision: Precision) -> Self {
        Self { model, rows, precision }
    }
}

impl Objective for Demonstrations<'_> {
    fn sets(&self) -> Vec<usize> {
        vec![self.rows.len()]
    }

    fn shape(&self, row: usize) -> RowShape {
        let row = &self.rows[row];
        let length = row.ids.len();
        RowShape {
            cost: length,
            tokens: length,
            items: 1,
            weight: answer_tokens(length, row.answer_start) as f64,
        }
    }

    fn row_name(&self, row: usize) -> String {
        format!("demonstration {}", self.rows[row].id)
    }

    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError> {
        let dialogues = rows.iter().map(|&row| &self.rows[row]);
        let dialogues: Vec<(&[u32], usize)> =
            dialogues.map(|row| (row.ids.as_slice(), row.answer_start)).collect();
        let sequences: Vec<&[u32]> = dialogues.iter().map(|(ids, _)| *ids).collect();
        let batch = PackedBatch::of_sequences(&sequences, self.model.device())?;
        let answers = AnswerPositions::new(&batch, &dialogues);
        let hidden = self.model.forward(&batch, answers.rows(), self.precision)?; // [tokens, hidden]
        let loss = nll(&Prediction {
            hidden: &hidden,
            targets: answers.targets(),
            head: self.model.lm_head(),
            compute: self.precision.kind(),
        })?;
        Ok(MicroBatchLoss { loss, metrics: MetricSums::zeros(self.metrics(), self.model.device()) })
    }
}
