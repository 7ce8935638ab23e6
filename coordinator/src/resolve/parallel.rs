//! Work on rows by several threads.

use std::num::NonZero;
use std::thread;

/// Minimum number of rows per thread.
const ROWS_PER_THREAD: usize = 256;

/// Applies a function to all rows on several threads; results are in row order.
pub fn map_in_parallel<T: Sync, R: Send>(rows: &[T], apply: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let rows_per_thread = rows.len().div_ceil(threads).max(ROWS_PER_THREAD);
    if rows.len() <= rows_per_thread {
        return rows.iter().map(apply).collect();
    }
    let apply = &apply;
    let parts: Vec<Vec<R>> = thread::scope(|scope| {
        let workers: Vec<_> = rows
            .chunks(rows_per_thread)
            .map(|rows| scope.spawn(move || rows.iter().map(apply).collect::<Vec<R>>()))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    parts.into_iter().flatten().collect()
}
