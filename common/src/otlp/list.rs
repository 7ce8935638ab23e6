//! Lists of names and values, `key=value,key=value`, with values in percent-encoding.

/// Maximum number of pairs.
const PAIRS: usize = 128;
/// Size limit of a key and of a value.
pub(super) const TEXT_BYTES: usize = 4096;

/// The pairs of a list. Errors name a pair by its position and never show it.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.len() > PAIRS {
        return Err(format!("it has {} pairs; expected at most {PAIRS}", parts.len()));
    }
    (1..)
        .zip(parts)
        .map(|(number, part)| pair(part).map_err(|problem| format!("pair {number} {problem}")))
        .collect()
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("has no =; expected key=value,key=value")?;
    let (key, value) = (key.trim(), decoded(value.trim()).ok_or("is not well percent-encoded")?);
    match (key.is_empty(), key.len().max(value.len()) > TEXT_BYTES) {
        (true, _) => Err("has no key before its =".to_owned()),
        (_, true) => Err(format!("is too long; expected at most {TEXT_BYTES} bytes")),
        (false, false) => Ok((key.to_owned(), value)),
    }
}

/// Decodes `%20` and the like.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = behind.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &behind[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_trimmed_keys_and_decoded_values() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            pairs(" a = b%20c , d=e=f%3D,,g="),
            Ok(vec![pair("a", "b c"), pair("d", "e=f="), pair("g", "")])
        );
        assert_eq!(pairs(""), Ok(Vec::new()));
    }

    #[test]
    fn a_list_that_cannot_be_says_where() {
        for (text, problem) in
            [("a=b,c", "pair 2 has no ="), ("=b", "has no key"), ("a=%zz", "percent"), ("a=%ff", "percent")]
        {
            assert!(pairs(text).unwrap_err().contains(problem), "{text}");
        }
        assert!(pairs(&"a=b,".repeat(PAIRS + 1)).unwrap_err().contains("at most"));
        assert!(pairs(&format!("a={}", "b".repeat(TEXT_BYTES + 1))).unwrap_err().contains("too long"));
    }
}
