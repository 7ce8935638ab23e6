//! Supervised fine-tuning on demonstrations.

use super::{MicroBatchLoss, Objective, RowShape, TrainError};
use crate::model::{LanguageModel, Precision};
use crate::objective::likelihood::{Prediction, ResponsePositions, nll, response_tokens};
use crate::objective::metrics::MetricSums;

/// A dialogue as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Demonstration {
    /// The row's id in its data set.
    pub id: u64,
    /// Prompt and response, with EOS at the end if the response is complete.
    pub ids: Vec<u32>,
    /// The index of the response's first token, from which the loss is computed.
    pub response_start: usize,
}

/// The mean negative log-likelihood of the global batch's response tokens. Every token has the same weight,
/// regardless of the length of its response and of its rank or micro-batch.
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
            weight: response_tokens(length, row.response_start) as f64,
        }
    }

    fn row_name(&self, row: usize) -> String {
        format!("demonstration {}", self.rows[row].id)
    }

    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError> {
        let dialogues = rows.iter().map(|&row| &self.rows[row]);
        let dialogues: Vec<(&[u32], usize)> =
            dialogues.map(|row| (row.ids.as_slice(), row.response_start)).collect();
        let sequences: Vec<[&[u32]; 1]> = dialogues.iter().map(|(ids, _)| [*ids]).collect();
        let (batch, positions) = ResponsePositions::pack(&sequences, &dialogues, self.model.device())?;
        let hidden = self.model.forward(&batch, positions.rows(), self.precision)?; // [tokens, hidden]
        let loss = nll(&Prediction {
            hidden: &hidden,
            targets: positions.targets(),
            head: self.model.lm_head(),
            compute: self.precision.kind(),
        })?;
        Ok(MicroBatchLoss { loss, metrics: MetricSums::zeros(self.metrics(), self.model.device()) })
    }
}
