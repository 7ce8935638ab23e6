//! The bound on the memory that the rows of a job take.

use crate::data::rows::Row;

/// What is left of the memory that a job's rows may take. One budget pays for all of a job's sets: what a small compressed file
/// unpacks to is refused before it fills the memory.
#[derive(Clone, Debug)]
pub struct Budget {
    left: u64,
}

impl Budget {
    pub const BYTES: u64 = 2 << 30;

    /// About what a row takes beside its texts: its keys for duplicates and places, and what is unused in buffers that grow.
    const PER_ROW: u64 = 256;
    const PER_MESSAGE: u64 = 48;

    /// Pays for rows; false where that exceeds what is left.
    pub(super) fn pay<T: Row>(&mut self, rows: &[T]) -> bool {
        let cost: u64 = rows.iter().map(Self::cost).sum();
        let enough = cost <= self.left;
        self.left = self.left.saturating_sub(cost);
        enough
    }

    fn cost<T: Row>(row: &T) -> u64 {
        let messages = &row.prompt().messages;
        let texts = messages.iter().map(|message| message.content.len()).sum::<usize>()
            + row.answers().iter().map(|answer| answer.len()).sum::<usize>();
        texts as u64 + Self::PER_MESSAGE * messages.len() as u64 + Self::PER_ROW
    }

    #[cfg(test)]
    pub(super) fn of(left: u64) -> Self {
        Budget { left }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget { left: Self::BYTES }
    }
}
