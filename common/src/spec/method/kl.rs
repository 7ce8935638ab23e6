//! The KL penalty of policy gradients.

use super::super::SpecError;
use super::super::check::{Range, real};
use super::ReferencePolicy;

/// The penalty for diverging from a reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlPenalty {
    /// The penalty's weight, above 0.
    pub beta: f64,
    pub reference: ReferencePolicy,
}

impl KlPenalty {
    /// `None` if `beta` is 0.
    pub(super) fn parse(at: &str, beta: Option<f64>, reference: &str) -> Result<Option<Self>, SpecError> {
        let reference = ReferencePolicy::parse(at, "reference", reference)?;
        let beta = real(at, "beta", beta, 0.0, Range::NonNegative)?;
        Ok((beta > 0.0).then_some(Self { beta, reference }))
    }

    /// The wire form: `beta` and `reference`.
    pub(super) fn to_wire(penalty: Option<Self>) -> (Option<f64>, String) {
        match penalty {
            None => (Some(0.0), String::new()),
            Some(Self { beta, reference }) => (Some(beta), reference.to_string()),
        }
    }
}
