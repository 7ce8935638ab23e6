//! Sorting with comparisons that may fail.

use super::Error;
use std::cmp::Ordering;

/// A stable sort whose comparison may fail.
pub(super) fn merge_sort<T: Clone>(
    items: &mut Vec<T>,
    order: impl Fn(&T, &T) -> Result<Option<Ordering>, Error>,
) -> Result<(), Error> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        for run in items.chunks(2 * width) {
            let (mut left, mut right) = run.split_at(width.min(run.len()));
            while let (Some(a), Some(b)) = (left.first(), right.first()) {
                if order(b, a)? == Some(Ordering::Less) {
                    merged.push(b.clone());
                    right = &right[1..];
                } else {
                    merged.push(a.clone());
                    left = &left[1..];
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        *items = merged;
        width *= 2;
    }
    Ok(())
}
