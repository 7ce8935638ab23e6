//! Token sequences of different lengths in one forward pass, without padding and without reading a shared beginning twice.

use foil_torch::Segment;
use tch::{Device, Tensor};

use super::ModelError;

/// Fewer tokens in common are cheaper to read again than to attend to apart.
const LEAST_SHARED: usize = 8;

/// Sequences laid end to end. Those of one group hold what they all begin with once: a prompt is read once for all its
/// answers.
///
/// Where a sequence ends is known by its length, never by a token id.
#[derive(Debug)]
pub struct PackedBatch {
    /// `[rows]`, int64: rows are the tokens that are read.
    ids: Tensor,
    /// `[rows]`, int64: each row's position in its sequence.
    positions: Tensor,
    segments: Vec<Segment>,
    places: Vec<Place>,
    longest: usize,
}

/// Where a sequence's tokens lie: the first `shared` from row `first_shared` on, the others from `first_own` on.
#[derive(Debug, Clone, Copy)]
struct Place {
    first_shared: usize,
    shared: usize,
    first_own: usize,
    length: usize,
}

impl PackedBatch {
    /// Of groups of sequences. Sequences are numbered through the groups.
    ///
    /// # Errors
    /// No sequences, or one without tokens.
    pub fn of_groups<G, S>(groups: &[G], device: Device) -> Result<Self, ModelError>
    where
        G: AsRef<[S]>,
        S: AsRef<[u32]>,
    {
        let mut layout = Layout::default();
        for group in groups {
            let sequences: Vec<&[u32]> = group.as_ref().iter().map(AsRef::as_ref).collect();
            layout.add(&sequences)?;
        }
        if layout.places.is_empty() {
            return Err(ModelError::Batch("it has no sequences".to_owned()));
        }
        let longest = layout.places.iter().map(|place| place.length).max().unwrap_or(0);
        Ok(Self {
            ids: Tensor::from_slice(&layout.ids).to_device(device),
            positions: Tensor::from_slice(&layout.positions).to_device(device),
            segments: layout.segments,
            places: layout.places,
            longest,
        })
    }

    /// Of sequences that share nothing.
    ///
    /// # Errors
    /// No sequences, or one without tokens.
    pub fn of_sequences<S: AsRef<[u32]>>(sequences: &[S], device: Device) -> Result<Self, ModelError> {
        let groups: Vec<[&[u32]; 1]> = sequences.iter().map(|sequence| [sequence.as_ref()]).collect();
        Self::of_groups(&groups, device)
    }

    /// Tokens that are read: what a forward pass costs.
    pub fn rows(&self) -> usize {
        self.ids.numel()
    }

    /// Tokens of all sequences, those in common counted for each.
    pub fn tokens(&self) -> usize {
        self.places.iter().map(|place| place.length).sum()
    }

    pub fn sequences(&self) -> usize {
        self.places.len()
    }

    pub fn length(&self, sequence: usize) -> usize {
        self.places[sequence].length
    }

    pub fn device(&self) -> Device {
        self.ids.device()
    }

    /// The row of a sequence's token.
    pub fn row(&self, sequence: usize, token: usize) -> i64 {
        let place = self.places[sequence];
        let row = match token.checked_sub(place.shared) {
            None => place.first_shared + token,
            Some(own) => place.first_own + own,
        };
        row as i64
    }

    /// The row of every sequence's last token, `[sequences]`, int64.
    pub fn last_rows(&self) -> Tensor {
        let rows: Vec<i64> =
            self.places.iter().enumerate().map(|(index, place)| self.row(index, place.length - 1)).collect();
        Tensor::from_slice(&rows).to_device(self.device())
    }

    pub(super) fn ids(&self) -> &Tensor {
        &self.ids
    }

    pub(super) fn positions(&self) -> &Tensor {
        &self.positions
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Tokens of the longest sequence.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

/// Tokens that a group costs: what its sequences begin with counts once.
pub fn rows_of_group(sequences: &[impl AsRef<[u32]>]) -> usize {
    let shared = shared_beginning(sequences);
    let own: usize = sequences.iter().map(|sequence| sequence.as_ref().len() - shared).sum();
    shared + own
}

/// How many tokens all sequences of a group begin with and read together.
fn shared_beginning(sequences: &[impl AsRef<[u32]>]) -> usize {
    let Some((first, others)) = sequences.split_first() else { return 0 };
    if others.is_empty() {
        return 0;
    }
    let common = |other: &[u32]| first.as_ref().iter().zip(other).take_while(|(a, b)| a == b).count();
    let shared = others.iter().map(|other| common(other.as_ref())).min().unwrap_or(0);
    if shared < LEAST_SHARED { 0 } else { shared }
}

#[derive(Default)]
struct Layout {
    ids: Vec<i64>,
    positions: Vec<i64>,
    segments: Vec<Segment>,
    places: Vec<Place>,
}

impl Layout {
    fn add(&mut self, sequences: &[&[u32]]) -> Result<(), ModelError> {
        if let Some(empty) = sequences.iter().position(|sequence| sequence.is_empty()) {
            let number = self.places.len() + empty;
            return Err(ModelError::Batch(format!("sequence {number} has no tokens")));
        }
        let shared = shared_beginning(sequences);
        let first_shared = self.ids.len();
        if shared > 0 {
            self.lay(&sequences[0][..shared], 0, (0, 0));
        }
        for sequence in sequences {
            let first_own = self.ids.len();
            if sequence.len() > shared {
                self.lay(&sequence[shared..], shared, (first_shared, shared));
            }
            self.places.push(Place { first_shared, shared, first_own, length: sequence.len() });
        }
        Ok(())
    }

    /// Appends a segment whose first token stands at `position` of its sequence, after a prefix of rows (start, length).
    fn lay(&mut self, tokens: &[u32], position: usize, prefix: (usize, usize)) {
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

    use super::{PackedBatch, rows_of_group};

    fn segment(start: i64, length: i64, prefix_start: i64, prefix_length: i64) -> Segment {
        Segment { start, length, prefix_start, prefix_length }
    }

    #[test]
    fn a_groups_beginning_is_laid_once() {
        let prompt: Vec<u32> = (0..10).collect();
        let answer = |tokens: &[u32]| [prompt.as_slice(), tokens].concat();
        let groups = [vec![vec![7, 7]], vec![answer(&[50, 51]), answer(&[60]), prompt.clone()]];
        let batch = PackedBatch::of_groups(&groups, Device::Cpu).unwrap();
        assert_eq!(
            batch.segments(),
            [segment(0, 2, 0, 0), segment(2, 10, 0, 0), segment(12, 2, 2, 10), segment(14, 1, 2, 10)]
        );
        assert_eq!((batch.rows(), batch.tokens(), batch.sequences()), (15, 2 + 12 + 11 + 10, 4));
        assert_eq!(rows_of_group(&groups[1]), 13);
        // The last token of a sequence that is all beginning lies in the beginning.
        assert_eq!(Vec::<i64>::try_from(batch.last_rows()).unwrap(), [1, 13, 14, 11]);
        assert_eq!((batch.row(1, 9), batch.row(1, 10), batch.row(2, 10)), (11, 12, 14));
        assert_eq!(Vec::<i64>::try_from(batch.positions()).unwrap()[11..], [9, 10, 11, 10]);
    }

    #[test]
    fn a_short_beginning_is_read_again() {
        let batch = PackedBatch::of_groups(&[[[1, 2, 3], [1, 2, 4]]], Device::Cpu).unwrap();
        assert_eq!(batch.segments(), [segment(0, 3, 0, 0), segment(3, 3, 0, 0)]);
        assert_eq!(rows_of_group(&[[1, 2, 3], [1, 2, 4]]), 6);
    }

    #[test]
    fn a_batch_needs_sequences_of_tokens() {
        assert!(PackedBatch::of_sequences::<Vec<u32>>(&[], Device::Cpu).is_err());
        let empty = PackedBatch::of_sequences(&[vec![1], vec![]], Device::Cpu).unwrap_err();
        assert!(empty.to_string().contains("sequence 1"), "{empty}");
    }
}
