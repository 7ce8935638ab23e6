//! Probes memory with a phase's largest micro-batch before the first step, so that a phase that runs out of
//! memory does so at the start.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use foil_common::oom;
use tch::Tensor;

use super::{Objective, RowShape, StepPlan, TrainError, Trainer};

/// The global batches of a phase and how they are split into micro-batches.
pub(super) struct MicroBatching<'a> {
    pub(super) batches: &'a [Vec<usize>],
    pub(super) shapes: &'a [RowShape],
    /// Maximum number of tokens of a micro-batch.
    pub(super) budget: usize,
}

impl MicroBatching<'_> {
    /// This rank's micro-batch with the most tokens, and their number; empty if the rank never has rows.
    fn largest(&self, trainer: &Trainer<'_>) -> (Vec<usize>, usize) {
        let plans = self.batches.iter();
        let plans = plans.map(|rows| StepPlan::new(rows, self.shapes, trainer.rank_info(), self.budget));
        let cost = |rows: &[usize]| rows.iter().map(|&row| self.shapes[row].cost).sum::<usize>();
        let micro_batches = plans.flat_map(|plan| plan.micro_batches);
        let largest = micro_batches.map(|rows| (cost(&rows), rows)).max_by_key(|(cost, _)| *cost);
        largest.map_or((Vec::new(), 0), |(cost, rows)| (rows, cost))
    }
}

/// Halves the token budget until a forward and backward pass of each rank's largest micro-batch fits in
/// memory, in addition to the optimizer's state and the reducer's buckets. Gradients are zero afterwards. All
/// ranks must call it and get the same budget.
///
/// # Errors
/// [`TrainError::OutOfMemory`] if a single row does not fit; those of the objective and of the gang.
pub(super) fn find_micro_batch_tokens(
    objective: &dyn Objective,
    trainer: &mut Trainer<'_>,
    mut batching: MicroBatching<'_>,
) -> Result<usize, TrainError> {
    loop {
        let (rows, tokens) = batching.largest(trainer);
        let shortage = out_of_memory(|| trainer.probe(objective, &rows))?;
        trainer.end_probe()?;
        // Whether any rank is short of memory, and whether any of those cannot reduce its batch further.
        let is_single = shortage.is_some() && rows.len() == 1;
        let mut ranks = [f64::from(u8::from(shortage.is_some())), f64::from(u8::from(is_single))];
        trainer.gang().all_reduce_values(&mut ranks)?;
        if ranks[0] == 0.0 {
            return Ok(batching.budget);
        }
        // The trial leaves cached blocks that smaller micro-batches do not fill.
        foil_torch::device_memory::release_cached()?;
        if ranks[1] > 0.0 {
            let row = rows.first().map(|&row| objective.row_name(row)).unwrap_or_default();
            let detail = shortage.unwrap_or_else(|| "on another rank".to_owned());
            return Err(TrainError::OutOfMemory { row, tokens, detail });
        }
        // Ranks with different plans would run different numbers of micro-batches.
        let most = trainer.gang().all_gather(&Tensor::from_slice(&[tokens as i64]))?.max();
        let most = most.int64_value(&[]).max(2) as usize;
        let smaller = (batching.budget.min(most) / 2).max(1);
        tracing::warn!(
            micro_batch_tokens = smaller,
            before = batching.budget,
            detail = shortage,
            "the largest micro-batch does not fit in memory: using smaller micro-batches, which changes how sums round"
        );
        batching.budget = smaller;
    }
}

/// libtorch's message if `work` runs out of memory. Some functions of tch panic with that message.
fn out_of_memory(work: impl FnOnce() -> Result<(), TrainError>) -> Result<Option<String>, TrainError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => Ok(None),
        Ok(Err(error)) => match memory_message(&error.to_string()) {
            Some(message) => Ok(Some(message)),
            None => Err(error),
        },
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            memory_message(text).map(Some).ok_or(()).or_else(|()| resume_unwind(panic))
        }
    }
}

/// The line of an error that reports exhausted memory.
fn memory_message(error: &str) -> Option<String> {
    error.lines().find(|line| oom::parse(line).is_some()).map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::memory_message;

    #[test]
    fn libtorchs_out_of_memory_messages_are_recognized() {
        let device =
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB";
        let host = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried \
                    to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)";
        assert_eq!(memory_message(&format!("{device}\nException raised from malloc")).unwrap(), device);
        assert_eq!(memory_message(host).unwrap(), host);
        assert_eq!(memory_message("mat1 and mat2 shapes cannot be multiplied"), None);
    }
}
