//! The bound on the size of a job's rows.

use crate::data::rows::Row;

/// The size that is left for a job's rows, about the memory that they take in a rank. All sets of a job share
/// one budget, so that a small compressed file that unpacks to a huge one is refused before it fills a disk.
#[derive(Clone, Debug)]
pub struct Budget {
    left: u64,
}

impl Budget {
    pub const BYTES: u64 = 2 << 30;

    /// Approximate overhead of a row: its places, and the unused part of growing buffers.
    const PER_ROW: u64 = 208;
    /// Memory of a row's key, which tells whether a later row equals it.
    const PER_KEY: u64 = 48;
    const PER_MESSAGE: u64 = 48;

    /// Charges a row to the budget; false if it exceeds it.
    pub(super) fn charge<T: Row>(&mut self, row: &T) -> bool {
        self.charge_bytes(u64::from(Self::cost(row)) + Self::PER_KEY)
    }

    /// Returns the charge of a row that is not kept. Its key stays.
    pub(super) fn refund(&mut self, cost: u32) {
        self.left += u64::from(cost);
    }

    /// Charges other memory that is taken for each row; false if it exceeds the budget.
    pub fn charge_bytes(&mut self, bytes: u64) -> bool {
        let enough = bytes <= self.left;
        self.left = self.left.saturating_sub(bytes);
        enough
    }

    /// The charge of a row without its key; a row of more than 4 GiB exceeds every budget anyway.
    pub(super) fn cost<T: Row>(row: &T) -> u32 {
        let messages = &row.prompt().messages;
        let texts = messages.iter().map(|message| message.content.len()).sum::<usize>()
            + row.responses().iter().map(|response| response.len()).sum::<usize>();
        let cost = texts as u64 + Self::PER_MESSAGE * messages.len() as u64 + Self::PER_ROW;
        u32::try_from(cost).unwrap_or(u32::MAX)
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
