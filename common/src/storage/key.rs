//! Validation of keys. They come from clients and ranks, so they are checked before they reach a store.

use super::StoreError;

/// Maximum length of a key in bytes: S3 allows 1024, which includes the store's prefix and a sidecar's
/// suffix.
pub const MAX_KEY_BYTES: usize = 800;

/// Maximum length of a part between slashes in bytes: file systems allow 255, which includes a sidecar's
/// suffix.
pub const MAX_PART_BYTES: usize = 240;

/// Checks a key: parts of letters, digits and `.`, `_`, `@`, `-`, joined by single slashes, none of them `.`
/// or `..`.
pub fn validate(key: &str) -> Result<(), StoreError> {
    match problem(key) {
        None => Ok(()),
        Some(reason) => Err(StoreError::BadKey { key: shortened(key), reason }),
    }
}

fn problem(key: &str) -> Option<&'static str> {
    if key.is_empty() {
        return Some("it is empty");
    }
    if key.len() > MAX_KEY_BYTES {
        return Some("it is longer than 800 bytes");
    }
    if key.starts_with('/') {
        return Some("it starts with '/'");
    }
    key.split('/').find_map(part_problem)
}

fn part_problem(part: &str) -> Option<&'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    match part {
        "" => Some("it has an empty part between slashes"),
        "." | ".." => Some("it has a part '.' or '..'"),
        _ if part.len() > MAX_PART_BYTES => Some("one of its parts is longer than 240 bytes"),
        _ if !part.bytes().all(allowed) => {
            Some("it has a character other than A-Z, a-z, 0-9, '.', '_', '@', '-'")
        }
        _ => None,
    }
}

fn shortened(key: &str) -> String {
    key.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::validate;

    #[test]
    fn keys_of_every_kind_pass() {
        for key in [
            "inputs/ab12",
            "jobs/j-1/phases/r00.sft/a1/model.safetensors",
            "meta/log/00000000000000000001",
            "policy@2",
        ] {
            validate(key).unwrap();
        }
    }

    #[test]
    fn keys_that_could_escape_the_store_are_refused() {
        let long = "a".repeat(801);
        let part = format!("a/{}", "b".repeat(241));
        for key in [
            "",
            "/etc/passwd",
            "a//b",
            "a/",
            "a/../b",
            "..",
            "a/./b",
            "a b",
            "a\\b",
            "é",
            "a#1",
            "a%2e",
            &long,
            &part,
        ] {
            assert!(validate(key).is_err(), "{key:?} passed");
        }
    }
}
