use super::diagnosis::Observation;

/// Losses of ranks since the last progress.
#[derive(Debug, Default)]
pub(super) struct LossBudget {
    pub(super) count: u32,
    /// The last loss that was an agent's fault, and is not counted.
    pub(super) uncharged: Option<Observation>,
}

impl LossBudget {
    /// There was progress.
    pub(super) fn reset(&mut self) {
        self.count = 0;
    }
}
