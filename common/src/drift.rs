//! Drift between sampler and trainer: the mismatch of their log-probabilities under one policy.
//!
//! The sampler decodes token by token from a KV cache, the trainer reads whole sequences packed end to end;
//! both compute the same policy with different kernels and batch shapes. Their log-probabilities of the same
//! tokens may differ by rounding and by nothing else. So whenever a policy reads its own completions, Δ = log
//! p(trainer) − log p(sampler) of each token is measured, both at temperature 1, before penalties and
//! filters.

use foil_proto::v1;

use crate::spec::Precision;

/// Mean |Δ| in nats per token; its maximum is `drift_max`.
pub const MEAN: &str = "drift_mean";
/// Mean of e^Δ − 1 − Δ, which estimates KL(sampler ‖ trainer) in nats per token if completions are sampled at
/// temperature 1 without filters (Schulman's k3).
pub const KL: &str = "drift_kl";

/// Mean |Δ| in nats per token above which a phase warns.
///
/// On CPUs, rounding alone gave 6e-7 (260 thousand parameters) and 7e-6 (15 million) in fp32, 0.023 and 0.017
/// in bf16, whose logits have eight bits. The bounds leave room for larger models and other devices. In bf16
/// they reveal only gross errors, in fp32 small ones too.
pub const fn bound(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => 1e-3,
        Precision::Bf16 => 0.1,
    }
}

/// The warning about a phase whose drift exceeds the bound.
pub fn warning(phase: &str, metrics: &[v1::Metric], precision: Precision) -> Option<String> {
    let (mean, bound) = (metrics.iter().find(|metric| metric.name == MEAN)?.value, bound(precision));
    (mean > bound).then(|| {
        format!(
            "drift alarm: in {phase} the policy's log-probabilities of tokens that it drew itself are {mean:.2e} nats per token \
             from those it drew them by, and rounding in {precision} explains {bound:.0e}: sampler or trainer computes \
             another policy. Distrust what was trained on these samples, and report this with the job's settings"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_warns_above_its_precisions_bound() {
        let metrics = |value| [v1::Metric { name: MEAN.to_owned(), value, se: None }];
        let warned = warning("r01.policy.evaluate", &metrics(0.05), Precision::Fp32).unwrap();
        assert!(warned.contains("in r01.policy.evaluate") && warned.contains("5.00e-2"), "{warned}");
        assert_eq!(warning("p", &metrics(0.05), Precision::Bf16), None);
        assert_eq!(warning("p", &metrics(1e-5), Precision::Fp32), None);
        assert_eq!(warning("p", &[], Precision::Fp32), None);
    }
}
