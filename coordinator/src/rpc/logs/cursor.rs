//! How far each log has been read, as a token from which a stream can continue.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use foil_common::logs::Process;

/// Size limit of a token.
pub(super) const MAX_TOKEN_BYTES: usize = 256 << 10;

/// Offsets of the next bytes to read. As a token: `attempt.rank.session=offset`, separated by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    offsets: BTreeMap<Process, u64>,
}

/// A token that no stream issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadToken;

impl Cursor {
    pub(super) fn offset(&self, process: &Process) -> u64 {
        self.offsets.get(process).copied().unwrap_or_default()
    }

    /// Logs of attempts before this one have been read to their ends.
    pub(super) fn first_attempt(&self) -> u32 {
        self.offsets.keys().next().map_or(0, |process| process.attempt)
    }

    pub(super) fn advance(&mut self, process: &Process, offset: u64) {
        match self.offsets.get_mut(process) {
            Some(known) => *known = offset,
            None => {
                self.offsets.insert(process.clone(), offset);
            }
        }
    }

    /// Drops the attempts before this one, which have been read to their ends.
    pub(super) fn forget_before(&mut self, attempt: u32) {
        self.offsets.retain(|process, _| process.attempt >= attempt);
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (Process { attempt, rank, session }, offset)) in self.offsets.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{attempt}.{rank}.{session}={offset}")?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = BadToken;

    fn from_str(token: &str) -> Result<Self, BadToken> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(BadToken);
        }
        let one = |text: &str| {
            let (process, offset) = text.split_once('=')?;
            let (attempt, rest) = process.split_once('.')?;
            let (rank, session) = rest.split_once('.')?;
            let process = Process {
                attempt: attempt.parse().ok()?,
                rank: rank.parse().ok()?,
                session: session.to_owned(),
            };
            Some((process, offset.parse().ok()?))
        };
        let offsets = token.split(',').filter(|text| !text.is_empty()).map(one).collect::<Option<_>>();
        Ok(Self { offsets: offsets.ok_or(BadToken)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back() {
        let mut cursor = Cursor::default();
        assert_eq!((cursor.to_string().as_str(), "".parse()), ("", Ok(Cursor::default())));
        let process =
            |attempt, rank| Process { attempt, rank, session: format!("j1-a{attempt}-r{rank}-t1-9") };
        cursor.advance(&process(2, 0), 7);
        cursor.advance(&process(2, 1), 1 << 40);
        cursor.advance(&process(3, 0), 0);
        cursor.advance(&process(2, 0), 9);
        assert_eq!(cursor.to_string().parse(), Ok(cursor.clone()));
        assert_eq!((cursor.offset(&process(2, 0)), cursor.offset(&process(9, 9))), (9, 0));
        cursor.forget_before(3);
        assert_eq!(cursor.to_string(), "3.0.j1-a3-r0-t1-9=0");
        assert_eq!(cursor.first_attempt(), 3);
        for wrong in ["x", "1.2=3", "1.2.s=x", "1.x.s=3", "-1.2.s=3", &"1.1.s=1,".repeat(100_000)] {
            assert_eq!(wrong.parse::<Cursor>(), Err(BadToken));
        }
    }
}
