//! Counted nouns, singular and plural.

/// `1 step`, `2 steps`, `0 steps`.
pub fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        assert_eq!(
            [counted(1_u32, "rank"), counted(2_usize, "rank"), counted(0_u64, "rank")],
            ["1 rank", "2 ranks", "0 ranks"]
        );
    }
}
