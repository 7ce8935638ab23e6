//! Token sequences of different lengths as one tensor.

use tch::{Device, Kind, Tensor};

use super::ModelError;

/// A right-padded batch.
///
/// What stands in the padding never matters: attention is causal, so no real token sees what is to its right, and
/// everything that reads a position does so by `lengths`, never by looking for a token id.
#[derive(Debug)]
pub struct TokenBatch {
    /// `[batch, seq]`, int64.
    pub ids: Tensor,
    /// Real tokens per row, at least 1, at most `seq`.
    pub lengths: Vec<i64>,
}

impl TokenBatch {
    /// Pads rows on the right to the longest.
    ///
    /// # Errors
    /// No rows, or a row without tokens.
    pub fn from_rows<R: AsRef<[u32]>>(rows: &[R], device: Device) -> Result<Self, ModelError> {
        let longest = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
        if let Some(empty) = rows.iter().position(|row| row.as_ref().is_empty()) {
            return Err(ModelError::Batch(format!("row {empty} of {} has no tokens", rows.len())));
        }
        if longest == 0 {
            return Err(ModelError::Batch("it has no rows".to_owned()));
        }
        let mut ids = vec![0_i64; rows.len() * longest];
        for (row, padded) in rows.iter().zip(ids.chunks_mut(longest)) {
            for (id, place) in row.as_ref().iter().zip(padded) {
                *place = i64::from(*id);
            }
        }
        let lengths = rows.iter().map(|row| row.as_ref().len() as i64).collect();
        let ids = Tensor::from_slice(&ids).view([rows.len() as i64, longest as i64]).to_device(device);
        Ok(Self { ids, lengths })
    }

    /// Rows.
    pub fn batch(&self) -> i64 {
        self.lengths.len() as i64
    }

    /// Padded length.
    pub fn seq(&self) -> i64 {
        self.ids.size().get(1).copied().unwrap_or(0)
    }

    /// Real tokens, padding not counted.
    pub fn tokens(&self) -> i64 {
        self.lengths.iter().sum()
    }

    /// Index of every row's last real token in a tensor whose first two axes are flattened to `[batch * seq]`.
    pub fn last_positions(&self) -> Tensor {
        let seq = self.seq();
        let flat: Vec<i64> =
            self.lengths.iter().enumerate().map(|(row, length)| row as i64 * seq + length - 1).collect();
        Tensor::from_slice(&flat).to_device(self.ids.device())
    }

    /// `[batch, seq]` bool, true at real tokens.
    pub fn mask(&self) -> Tensor {
        let device = self.ids.device();
        let lengths = Tensor::from_slice(&self.lengths).to_device(device).unsqueeze(1);
        Tensor::arange(self.seq(), (Kind::Int64, device)).unsqueeze(0).lt_tensor(&lengths)
    }
}
