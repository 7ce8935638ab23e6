//! The token file: one token per line, with its principal.
//!
//! ```text
//! # name  tenant  role       hash of the token                 until
//! ada     vision  submitter  blake3:6c1f…(64 hex digits)       expires=2027-01-31
//! gpu-7   default agent      blake3:09aa…
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use super::principal::{Principal, Role, Source, check_name};
use super::token;
use crate::tenant::Tenant;

/// Maximum number of tokens in a file, since a presented token is compared with each of them.
const MAX_TOKENS: usize = 4096;
/// Maximum number of bad lines listed in an error.
const MAX_NAMED: usize = 20;
const HASH: &str = "blake3:";
const EXPIRES: &str = "expires=";

/// An unusable line of a token file. It shows no part of the hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    pub line: usize,
    pub problem: String,
}

/// All bad lines of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem(pub Vec<BadLine>);

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bad) in self.0.iter().take(MAX_NAMED).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}line {}: {}", bad.line, bad.problem)?;
        }
        match self.0.len().saturating_sub(MAX_NAMED) {
            0 => Ok(()),
            more => write!(formatter, "; and {more} more bad lines"),
        }
    }
}

/// Why a presented token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenFault {
    Unknown,
    Expired,
}

#[derive(Debug, Clone)]
struct Entry {
    hash: blake3::Hash,
    principal: Principal,
}

/// The tokens of a file.
#[derive(Debug, Clone, Default)]
pub struct TokenTable {
    entries: Vec<Entry>,
}

impl TokenTable {
    /// Reads all lines; the error lists the bad ones.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let (mut entries, mut bad) = (Vec::new(), Vec::new());
        let mut seen: BTreeMap<[u8; 32], usize> = BTreeMap::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.split('#').next().unwrap_or_default().trim();
            if text.is_empty() {
                continue;
            }
            match parse_line(text) {
                Ok(entry) => match seen.insert(*entry.hash.as_bytes(), line) {
                    Some(first) => {
                        let problem =
                            format!("it has the token of line {first}; give each principal its own");
                        bad.push(BadLine { line, problem });
                    }
                    None => entries.push(entry),
                },
                Err(problem) => bad.push(BadLine { line, problem }),
            }
        }
        if entries.len() > MAX_TOKENS {
            let problem =
                format!("there are {} tokens, more than the maximum of {MAX_TOKENS}", entries.len());
            bad.push(BadLine { line: 1, problem });
        }
        if bad.is_empty() { Ok(Self { entries }) } else { Err(Problem(bad)) }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The principal of a token. Takes the same time whether or not an entry matches, and whichever it is.
    pub(super) fn find(&self, presented: &str, now: SystemTime) -> Result<&Principal, TokenFault> {
        let hash = token::hash(presented);
        let mut found = None;
        for entry in &self.entries {
            // Hashes are compared in constant time.
            if entry.hash == hash {
                found = Some(entry);
            }
        }
        let entry = found.filter(|_| token::is_well_formed(presented)).ok_or(TokenFault::Unknown)?;
        match entry.principal.expires {
            Some(expires) if now >= expires => Err(TokenFault::Expired),
            _ => Ok(&entry.principal),
        }
    }
}

fn parse_line(text: &str) -> Result<Entry, String> {
    let mut fields = text.split_whitespace();
    let (Some(name), Some(tenant), Some(role), Some(hash)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(format!(
            "expected NAME TENANT ROLE {HASH}HASH [{EXPIRES}DATE]; `foil token create` prints such a line"
        ));
    };
    check_name(name)?;
    let (tenant, role): (Tenant, Role) = (tenant.parse()?, role.parse()?);
    let hash = hash.strip_prefix(HASH).and_then(|hex| blake3::Hash::from_hex(hex).ok()).ok_or_else(|| {
        format!(
            "the fourth field must be {HASH} and 64 hex digits, the BLAKE3 of a token, never the token itself"
        )
    })?;
    let expires = match fields.next() {
        None => None,
        Some(field) => {
            let date =
                field.strip_prefix(EXPIRES).ok_or_else(|| format!("expected {EXPIRES}DATE at the end"))?;
            Some(expiry(date)?)
        }
    };
    if fields.next().is_some() {
        return Err("it has more than five fields".to_owned());
    }
    let principal = Principal { name: name.to_owned(), tenant, role, source: Source::Token, expires };
    Ok(Entry { hash, principal })
}

/// A time given as `2027-01-31` (the start of that day) or `2027-01-31T12:00:00Z`, in UTC.
pub fn expiry(text: &str) -> Result<SystemTime, String> {
    let full = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00:00Z") };
    humantime::parse_rfc3339(&full)
        .map_err(|_| format!("{text:?} is no date; write 2027-01-31 or 2027-01-31T12:00:00Z (UTC)"))
}

/// The line of a token file for a new token.
pub fn entry_line(
    name: &str,
    tenant: &Tenant,
    role: Role,
    token: &token::Token,
    expires: Option<SystemTime>,
) -> String {
    let until = expires.map(|at| {
        // Whole seconds, which the file's reader accepts.
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(since);
        format!(" {EXPIRES}{}", humantime::format_rfc3339_seconds(at))
    });
    format!("{name} {tenant} {role} {HASH}{}{}", token.hash().to_hex(), until.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::auth::token::Token;

    fn day(text: &str) -> SystemTime {
        expiry(text).unwrap()
    }

    #[test]
    fn a_token_names_its_principal_until_it_expires() {
        let mut random = StdRng::seed_from_u64(7);
        let (lasting, brief) = (Token::generate(&mut random).unwrap(), Token::generate(&mut random).unwrap());
        let vision = "vision".parse().unwrap();
        let lines = [
            "# name tenant role hash".to_owned(),
            String::new(),
            entry_line("ada", &vision, Role::Submitter, &lasting, None),
            entry_line("bob", &vision, Role::Admin, &brief, Some(day("2027-01-31"))) + "  # leaves us",
        ];
        let table = TokenTable::parse(&lines.join("\n")).unwrap();
        assert_eq!(table.len(), 2);
        let ada = table.find(lasting.reveal(), day("2999-01-01")).unwrap();
        let (name, role, source) = ("ada".to_owned(), Role::Submitter, Source::Token);
        let expected = Principal { name, tenant: vision, role, source, expires: None };
        assert_eq!(*ada, expected);
        assert_eq!(table.find(brief.reveal(), day("2027-01-30T23:59:59Z")).unwrap().name, "bob");
        assert_eq!(table.find(brief.reveal(), day("2027-01-31")), Err(TokenFault::Expired));
        for wrong in ["", "foil_", &lasting.reveal()[..20], &format!("{}0", lasting.reveal())] {
            assert_eq!(table.find(wrong, day("2026-01-01")), Err(TokenFault::Unknown), "{wrong}");
        }
        // The hash is not a token.
        let hash = lasting.hash().to_hex().to_string();
        assert_eq!(table.find(&hash, day("2026-01-01")), Err(TokenFault::Unknown));
    }

    #[test]
    fn a_chosen_word_is_no_token_even_if_the_file_has_its_hash() {
        let line = format!("ada default admin {HASH}{}", token::hash("hunter2").to_hex());
        let table = TokenTable::parse(&line).unwrap();
        assert_eq!(table.find("hunter2", day("2026-01-01")), Err(TokenFault::Unknown));
    }

    #[test]
    fn every_bad_line_is_named_without_its_hash() {
        let hash = "ab".repeat(32);
        let good = format!("ada vision submitter {HASH}{hash}");
        let lines = [
            good.clone(),
            "ada vision".to_owned(),
            good.replace("submitter", "root"),
            good.replace("vision", "Vision"),
            good.replace(HASH, ""),
            format!("{good} until=2027-01-31"),
            format!("{good} {EXPIRES}tomorrow"),
            format!("{good} {EXPIRES}2027-01-31 more"),
            good.clone(),
        ];
        let problem = TokenTable::parse(&lines.join("\n")).unwrap_err();
        let found: Vec<usize> = problem.0.iter().map(|bad| bad.line).collect();
        assert_eq!(found, [2, 3, 4, 5, 6, 7, 8, 9]);
        let told = problem.to_string();
        for part in
            ["line 2: expected NAME", "line 3: \"root\" is no role", "line 9: it has the token of line 1"]
        {
            assert!(told.contains(part), "{told}");
        }
        assert!(!told.contains("abab"), "{told}");
    }

    #[test]
    fn a_file_has_bounds() {
        let line =
            |index: u32| format!("a default viewer {HASH}{}", blake3::hash(&index.to_be_bytes()).to_hex());
        let many: Vec<String> = (0..=4096).map(line).collect();
        TokenTable::parse(&many[1..].join("\n")).unwrap();
        assert!(TokenTable::parse(&many.join("\n")).unwrap_err().to_string().contains("maximum of 4096"));
        let bad = TokenTable::parse(&"x\n".repeat(30)).unwrap_err().to_string();
        assert!(bad.contains("line 20: ") && bad.ends_with("and 10 more bad lines"), "{bad}");
    }
}
