//! Limits on the cost of a rendering.

use super::Error;
use std::cell::Cell;

/// The budget of a rendering: steps for time, bytes of all values ever created for memory, and depth for the
/// stack. A dialogue of a thousand turns takes less than a hundredth of each.
#[derive(Debug)]
pub(super) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<usize>,
    depth: Cell<u32>,
}

const STEPS: u64 = 10_000_000;
const BYTES: usize = 64 << 20;
const DEPTH: u32 = 150;

impl Default for Budget {
    fn default() -> Self {
        Budget { steps: Cell::new(STEPS), bytes: Cell::new(BYTES), depth: Cell::new(DEPTH) }
    }
}

impl Budget {
    pub(super) fn steps(&self, count: usize) -> Result<(), Error> {
        let left = self.steps.get().checked_sub(count as u64);
        self.steps.set(left.ok_or_else(|| {
            Error::new(format!("rendering takes more than {STEPS} steps: a loop runs too long"))
        })?);
        Ok(())
    }

    /// Charges the size of a value before it is created.
    pub(super) fn bytes(&self, count: usize) -> Result<(), Error> {
        let left = self.bytes.get().checked_sub(count);
        self.bytes.set(left.ok_or_else(|| {
            Error::new(format!("rendering makes more than {} MiB of text and lists", BYTES >> 20))
        })?);
        Ok(())
    }

    /// Runs `work` one level deeper.
    pub(super) fn deeper<T>(&self, run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let Some(left) = self.depth.get().checked_sub(1) else {
            return Err(Error::new(format!("rendering nests deeper than {DEPTH} levels")));
        };
        self.depth.set(left);
        let result = run();
        self.depth.set(left + 1);
        result
    }
}
