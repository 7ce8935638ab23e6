//! The parts that together make up a process's log from an offset on.

use foil_common::logs::Part;

/// The next piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// The bytes of a part, starting at an offset in the log.
    Part { part: Part, from: u64 },
    /// Bytes that are not in any remaining part.
    Gap { from: u64, to: u64 },
}

impl Piece {
    pub(super) fn start(&self) -> u64 {
        match self {
            Self::Part { from, .. } | Self::Gap { from, .. } => *from,
        }
    }
}

/// The pieces of one process's log from `offset` on, with as few parts as possible.
pub(super) fn pieces(parts: &[Part], offset: u64) -> Vec<Piece> {
    let (mut found, mut at) = (Vec::new(), offset);
    loop {
        let holds = parts.iter().filter(|part| part.start <= at && part.end > at);
        if let Some(part) = holds.max_by_key(|part| part.end) {
            found.push(Piece::Part { part: part.clone(), from: at });
            at = part.end;
            continue;
        }
        let Some(next) = parts.iter().map(|part| part.start).filter(|start| *start > at).min() else {
            return found;
        };
        found.push(Piece::Gap { from: at, to: next });
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use foil_common::logs::Process;

    use super::*;

    fn part(start: u64, end: u64) -> Part {
        let process = Process { attempt: 1, rank: 0, session: "s".into() };
        Part { process, start, end, is_last: false }
    }

    fn read(parts: &[(u64, u64)], offset: u64) -> Vec<(u64, u64, bool)> {
        let parts: Vec<Part> = parts.iter().map(|(start, end)| part(*start, *end)).collect();
        let range = |piece: Piece| match piece {
            Piece::Part { part, from } => (from, part.end, true),
            Piece::Gap { from, to } => (from, to, false),
        };
        pieces(&parts, offset).into_iter().map(range).collect()
    }

    #[test]
    fn each_byte_is_read_once_from_the_largest_part() {
        let parts = [(0, 10), (10, 20), (0, 30), (30, 35), (35, 40)];
        assert_eq!(read(&parts, 0), [(0, 30, true), (30, 35, true), (35, 40, true)]);
        assert_eq!(read(&parts, 12), [(12, 30, true), (30, 35, true), (35, 40, true)]);
        assert_eq!(read(&parts, 40), []);
        assert_eq!(read(&[(0, 0)], 0), [], "an empty last part");
    }

    #[test]
    fn missing_bytes_are_told() {
        assert_eq!(
            read(&[(20, 30), (50, 60)], 0),
            [(0, 20, false), (20, 30, true), (30, 50, false), (50, 60, true)]
        );
    }
}
