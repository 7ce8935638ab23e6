//! Counted nouns, singular and plural, and large numbers.

/// `1 step`, `2 steps`, `0 steps`.
pub fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The verb for a count: `is` or `are`. For a part of a whole, the part counts: 1 of 3 rows is.
pub fn are(count: impl TryInto<u64>) -> &'static str {
    agreeing(count, "is", "are")
}

/// The form of a verb or noun for a count.
pub fn agreeing(count: impl TryInto<u64>, one: &'static str, others: &'static str) -> &'static str {
    if count.try_into().is_ok_and(|count| count == 1) { one } else { others }
}

/// A number with thousands separators: `1,234`.
pub fn grouped(number: impl TryInto<u64>) -> String {
    let digits = number.try_into().unwrap_or(u64::MAX).to_string();
    let first = digits.len() % 3;
    let mut groups: Vec<&str> = Vec::new();
    groups.extend((first > 0).then(|| &digits[..first]));
    groups.extend((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    groups.join(",")
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

    #[test]
    fn one_is_and_others_are() {
        assert_eq!([are(1_u32), are(0_usize), are(2_u64)], ["is", "are", "are"]);
        assert_eq!([1_u32, 0, 2].map(|count| agreeing(count, "has", "have")), ["has", "have", "have"]);
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0_u64, 999, 1_000, 12_345_678].map(grouped), ["0", "999", "1,000", "12,345,678"]);
    }
}
