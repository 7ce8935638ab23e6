//! Trying the largest micro-batch of a phase before its first step, so that memory runs out at the start or not at all.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use foil_common::oom;

use super::{Objective, RowShape, StepPlan, TrainError, Trainer};

/// The global batches of a phase and how they are cut.
pub(super) struct Cut<'a> {
    pub(super) batches: &'a [Vec<usize>],
    pub(super) shapes: &'a [RowShape],
    /// Tokens per micro-batch and rank.
    pub(super) budget: usize,
}

impl Cut<'_> {
    /// This rank's micro-batch that reads the most tokens, and how many those are. Empty where it never has rows.
    fn largest(&self, trainer: &Trainer<'_>) -> (Vec<usize>, usize) {
        let plans = self.batches.iter();
        let plans = plans.map(|rows| StepPlan::new(rows, self.shapes, trainer.share(), self.budget));
        let cost = |rows: &[usize]| rows.iter().map(|&row| self.shapes[row].cost).sum::<usize>();
        let micro_batches = plans.flat_map(|plan| plan.micro_batches);
        let largest = micro_batches.map(|rows| (cost(&rows), rows)).max_by_key(|(cost, _)| *cost);
        largest.map_or((Vec::new(), 0), |(cost, rows)| (rows, cost))
    }
}

/// Halves the budget until every rank's largest micro-batch goes forward and backward in its memory, beside the
/// optimizer's state and the reducer's buckets; leaves no gradients. All ranks call it, and get the same budget.
///
/// # Errors
/// [`TrainError::OutOfMemory`] where a single row is too large for a rank; those of the objective and of the gang.
pub(super) fn fit(
    objective: &dyn Objective,
    trainer: &mut Trainer<'_>,
    mut cut: Cut<'_>,
) -> Result<usize, TrainError> {
    loop {
        let (rows, tokens) = cut.largest(trainer);
        let refused = refusal(|| trainer.rehearse(objective, &rows))?;
        trainer.forget()?;
        // Whether any rank has too little memory, and whether any of those has nothing left to cut.
        let stuck = refused.is_some() && rows.len() == 1;
        let mut ranks = [f64::from(u8::from(refused.is_some())), f64::from(u8::from(stuck))];
        trainer.gang().sum(&mut ranks)?;
        if ranks[0] == 0.0 {
            return Ok(cut.budget);
        }
        if ranks[1] > 0.0 {
            let row = rows.first().map(|&row| objective.row_name(row)).unwrap_or_default();
            let detail = refused.unwrap_or_else(|| "on another rank".to_owned());
            return Err(TrainError::OutOfMemory { row, tokens, detail });
        }
        let smaller = (cut.budget.min(tokens.max(2)) / 2).max(1);
        tracing::warn!(
            micro_batch_tokens = smaller,
            before = cut.budget,
            detail = refused,
            "memory is too small for the largest micro-batch: cutting batches finer, which changes how sums round"
        );
        cut.budget = smaller;
    }
}

/// What libtorch says where `work` fails for want of memory. Some of tch's calls panic with its words.
fn refusal(work: impl FnOnce() -> Result<(), TrainError>) -> Result<Option<String>, TrainError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => Ok(None),
        Ok(Err(error)) => match memory_words(&error.to_string()) {
            Some(words) => Ok(Some(words)),
            None => Err(error),
        },
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            memory_words(text).map(Some).ok_or(()).or_else(|()| resume_unwind(panic))
        }
    }
}

/// The sentence of an error that speaks of exhausted memory.
fn memory_words(error: &str) -> Option<String> {
    error.lines().find(|line| oom::parse(line).is_some()).map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::memory_words;

    #[test]
    fn exhausted_memory_is_known_by_libtorchs_words() {
        let device =
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB";
        let host = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried \
                    to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)";
        assert_eq!(memory_words(&format!("{device}\nException raised from malloc")).unwrap(), device);
        assert_eq!(memory_words(host).unwrap(), host);
        assert_eq!(memory_words("mat1 and mat2 shapes cannot be multiplied"), None);
    }
}
