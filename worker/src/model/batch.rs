//! Packed batches: sequences of different lengths in one forward pass, without padding and with shared
//! prefixes computed once.

use foil_torch::ops::Segments;
use foil_torch::{Numbers, Segment};
use tch::{Device, Tensor};

use super::ModelError;

/// Minimum length of a shared prefix. A shorter one is cheaper to recompute than to attend to separately.
const MIN_SHARED_PREFIX: usize = 8;

/// Concatenated sequences. The common prefix of a group is stored once, so a prompt is computed once for all
/// its completions.
///
/// The end of a sequence is determined by its length, never by a token id.
#[derive(Debug)]
pub struct PackedBatch {
    /// Token ids, `[rows]`, int64: one row per token that is computed.
    ids: Tensor,
    /// Position of each row in its sequence, `[rows]`, int64.
    positions: Tensor,
    /// The row of every sequence's last token, `[sequences]`, int64.
    last_rows: Tensor,
    segments: Segments,
    rows: BatchRows,
}

/// Positions of the tokens of a packed batch's sequences.
#[derive(Debug, Default)]
pub struct BatchRows {
    sequences: Vec<SequenceRows>,
}

/// The rows of a sequence: the first `shared` tokens start at row `first_shared`, the others at `first_own`.
#[derive(Debug, Clone, Copy)]
struct SequenceRows {
    first_shared: usize,
    shared: usize,
    first_own: usize,
    length: usize,
}

impl PackedBatch {
    /// Packs groups of sequences that may share a prefix. Sequences are numbered across groups.
    ///
    /// # Errors
    /// No sequences, or one without tokens.
    pub fn from_groups<G, S>(groups: &[G], device: Device) -> Result<Self, ModelError>
    where
        G: AsRef<[S]>,
        S: AsRef<[u32]>,
    {
        Ok(Self::with_numbers(groups, device, |_| Vec::new())?.0)
    }

    /// Packs groups like [`PackedBatch::from_groups`] and copies numbers that belong to the batch to the
    /// device in the same transfer.
    ///
    /// # Errors
    /// No sequences, or one without tokens.
    pub fn with_numbers<G, S>(
        groups: &[G],
        device: Device,
        numbers: impl FnOnce(&BatchRows) -> Vec<Numbers>,
    ) -> Result<(Self, Vec<Tensor>), ModelError>
    where
        G: AsRef<[S]>,
        S: AsRef<[u32]>,
    {
        let mut layout = Layout::default();
        for group in groups {
            let sequences: Vec<&[u32]> = group.as_ref().iter().map(AsRef::as_ref).collect();
            layout.add(&sequences)?;
        }
        let Layout { ids, positions, segments, rows } = layout;
        if rows.sequences.is_empty() {
            return Err(ModelError::Batch("it has no sequences".to_owned()));
        }
        let index = match device {
            Device::Cuda(_) => Segments::numbers(&segments),
            Device::Cpu | Device::Mps | Device::Vulkan => Vec::new(),
        };
        let indices = index.len();
        let mut parts =
            vec![Numbers::Int64(ids), Numbers::Int64(positions), Numbers::Int64(rows.last_rows())];
        parts.extend(index.into_iter().chain(numbers(&rows)));
        let mut tensors = foil_torch::upload(&parts, device)?.into_iter();
        let mut next = || tensors.next().unwrap_or_default();
        let (ids, positions, last_rows) = (next(), next(), next());
        let segments = Segments::new(&segments, (0..indices).map(|_| next()).collect());
        Ok((Self { ids, positions, last_rows, segments, rows }, tensors.collect()))
    }

    /// Packs sequences that share nothing.
    ///
    /// # Errors
    /// No sequences, or one without tokens.
    pub fn from_sequences<S: AsRef<[u32]>>(sequences: &[S], device: Device) -> Result<Self, ModelError> {
        let groups: Vec<[&[u32]; 1]> = sequences.iter().map(|sequence| [sequence.as_ref()]).collect();
        Self::from_groups(&groups, device)
    }

    /// Number of computed tokens, which is the cost of a forward pass.
    pub fn rows(&self) -> usize {
        self.ids.numel()
    }

    /// Number of tokens of all sequences; a shared prefix counts for each sequence.
    pub fn tokens(&self) -> usize {
        self.rows.sequences.iter().map(|sequence| sequence.length).sum()
    }

    pub fn sequences(&self) -> usize {
        self.rows.sequences.len()
    }

    pub fn length(&self, sequence: usize) -> usize {
        self.rows.sequences[sequence].length
    }

    pub fn device(&self) -> Device {
        self.ids.device()
    }

    /// The row of a sequence's token.
    pub fn row(&self, sequence: usize, token: usize) -> i64 {
        self.rows.row(sequence, token)
    }

    /// The row of every sequence's last token, `[sequences]`, int64.
    pub fn last_rows(&self) -> &Tensor {
        &self.last_rows
    }

    pub(super) fn ids(&self) -> &Tensor {
        &self.ids
    }

    pub(super) fn positions(&self) -> &Tensor {
        &self.positions
    }

    pub(super) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Length of the longest sequence.
    pub(super) fn max_len(&self) -> usize {
        self.rows.sequences.iter().map(|sequence| sequence.length).max().unwrap_or(0)
    }
}

impl BatchRows {
    /// The row of a sequence's token.
    pub fn row(&self, sequence: usize, token: usize) -> i64 {
        let rows = self.sequences[sequence];
        let row = match token.checked_sub(rows.shared) {
            None => rows.first_shared + token,
            Some(own) => rows.first_own + own,
        };
        row as i64
    }

    fn last_rows(&self) -> Vec<i64> {
        let rows = self.sequences.iter().enumerate();
        rows.map(|(sequence, rows)| self.row(sequence, rows.length - 1)).collect()
    }
}

/// Number of rows that a group takes in a batch: a shared prefix counts once.
pub fn packed_rows(sequences: &[impl AsRef<[u32]>]) -> usize {
    let shared = shared_prefix(sequences);
    let own: usize = sequences.iter().map(|sequence| sequence.as_ref().len() - shared).sum();
    shared + own
}

/// Length of the prefix that all sequences of a group share, or 0 if it is too short to pay off.
fn shared_prefix(sequences: &[impl AsRef<[u32]>]) -> usize {
    let Some((first, others)) = sequences.split_first() else { return 0 };
    if others.is_empty() {
        return 0;
    }
    let common = |other: &[u32]| first.as_ref().iter().zip(other).take_while(|(a, b)| a == b).count();
    let shared = others.iter().map(|other| common(other.as_ref())).min().unwrap_or(0);
    if shared < MIN_SHARED_PREFIX { 0 } else { shared }
}

#[derive(Default)]
struct Layout {
    ids: Vec<i64>,
    positions: Vec<i64>,
    segments: Vec<Segment>,
    rows: BatchRows,
}

impl Layout {
    fn add(&mut self, sequences: &[&[u32]]) -> Result<(), ModelError> {
        if let Some(empty) = sequences.iter().position(|sequence| sequence.is_empty()) {
            let number = self.rows.sequences.len() + empty;
            return Err(ModelError::Batch(format!("sequence {number} has no tokens")));
        }
        let shared = shared_prefix(sequences);
        let first_shared = self.ids.len();
        if shared > 0 {
            self.push_segment(&sequences[0][..shared], 0, (0, 0));
        }
        for sequence in sequences {
            let first_own = self.ids.len();
            if sequence.len() > shared {
                self.push_segment(&sequence[shared..], shared, (first_shared, shared));
            }
            self.rows.sequences.push(SequenceRows {
                first_shared,
                shared,
                first_own,
                length: sequence.len(),
            });
        }
        Ok(())
    }

    /// Appends a segment that begins at `position` of its sequence and follows a prefix of rows (start,
    /// length).
    fn push_segment(&mut self, tokens: &[u32], position: usize, prefix: (usize, usize)) {
        self.segments.push(Segment {
            start: self.ids.len() as i64,
            length: tokens.len() as i64,
            prefix_start: prefix.0 as i64,
            prefix_length: prefix.1 as i64,
        });
        self.ids.extend(tokens.iter().map(|&id| i64::from(id)));
        self.positions.extend((position as i64..).take(tokens.len()));
    }
}

#[cfg(test)]
mod tests {
    use foil_torch::Segment;
    use tch::Device;

    use super::{PackedBatch, packed_rows};

    fn segment(start: i64, length: i64, prefix_start: i64, prefix_length: i64) -> Segment {
        Segment { start, length, prefix_start, prefix_length }
    }

    #[test]
    fn the_shared_prefix_of_a_group_is_packed_once() {
        let prompt: Vec<u32> = (0..10).collect();
        let answer = |tokens: &[u32]| [prompt.as_slice(), tokens].concat();
        let groups = [vec![vec![7, 7]], vec![answer(&[50, 51]), answer(&[60]), prompt.clone()]];
        let batch = PackedBatch::from_groups(&groups, Device::Cpu).unwrap();
        assert_eq!(
            batch.segments().list(),
            [segment(0, 2, 0, 0), segment(2, 10, 0, 0), segment(12, 2, 2, 10), segment(14, 1, 2, 10)]
        );
        assert_eq!((batch.rows(), batch.tokens(), batch.sequences()), (15, 2 + 12 + 11 + 10, 4));
        assert_eq!(packed_rows(&groups[1]), 13);
        // If a sequence is all prefix, its last token is in the prefix.
        assert_eq!(Vec::<i64>::try_from(batch.last_rows()).unwrap(), [1, 13, 14, 11]);
        assert_eq!((batch.row(1, 9), batch.row(1, 10), batch.row(2, 10)), (11, 12, 14));
        assert_eq!(Vec::<i64>::try_from(batch.positions()).unwrap()[11..], [9, 10, 11, 10]);
    }

    #[test]
    fn a_short_shared_prefix_is_recomputed() {
        let batch = PackedBatch::from_groups(&[[[1, 2, 3], [1, 2, 4]]], Device::Cpu).unwrap();
        assert_eq!(batch.segments().list(), [segment(0, 3, 0, 0), segment(3, 3, 0, 0)]);
        assert_eq!(packed_rows(&[[1, 2, 3], [1, 2, 4]]), 6);
    }

    #[test]
    fn a_batch_needs_sequences_of_tokens() {
        assert!(PackedBatch::from_sequences::<Vec<u32>>(&[], Device::Cpu).is_err());
        let empty = PackedBatch::from_sequences(&[vec![1], vec![]], Device::Cpu).unwrap_err();
        assert!(empty.to_string().contains("sequence 1"), "{empty}");
    }
}
