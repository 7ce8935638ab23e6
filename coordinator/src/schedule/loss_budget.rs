use super::diagnosis::Observation;

/// Number of rank losses since the last progress.
#[derive(Debug, Default)]
pub(super) struct LossBudget {
    pub(super) count: u32,
    /// The last loss that was an agent's fault and is therefore not counted.
    pub(super) uncharged: Option<Observation>,
}

impl LossBudget {
    /// Resets the budget after progress.
    pub(super) fn reset(&mut self) {
        self.count = 0;
    }
}
