use foil_proto::v1;

use super::SpecError;
use super::check::{Range, count, path, real, unknown_choice};
use super::choice::choices;

/// Low-rank adapters (arXiv 2106.09685): W + alpha / rank · B·A instead of W, with only A and B trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// At least 1.
    pub rank: u32,
    pub alpha: f64,
    /// Not empty, without duplicates, in the order of [`LoraTarget::NAMES`].
    pub target_modules: Vec<LoraTarget>,
}

choices! {
    /// A matrix of every decoder layer.
    #[derive(PartialOrd, Ord)]
    LoraTarget:
    #[default]
    QProj = "q_proj",
    KProj = "k_proj",
    VProj = "v_proj",
    OProj = "o_proj",
    GateProj = "gate_proj",
    UpProj = "up_proj",
    DownProj = "down_proj",
}

impl Lora {
    /// Parses the block `{at}.lora`.
    pub(crate) fn parse(at: &str, wire: &v1::LoraSpec) -> Result<Self, SpecError> {
        let at = &path(at, "lora");
        let rank = count(at, "rank", wire.rank, 16, 1)?;
        let named = if wire.target_modules.is_empty() { LoraTarget::NAMES } else { &[] };
        let names = wire.target_modules.iter().map(String::as_str).chain(named.iter().copied());
        let target = |name: &str| match name {
            "" => Err(unknown_choice(at, "target_modules", name, LoraTarget::NAMES)),
            name => LoraTarget::parse(at, "target_modules", name),
        };
        let mut target_modules = names.map(target).collect::<Result<Vec<_>, _>>()?;
        target_modules.sort_unstable();
        target_modules.dedup();
        Ok(Self {
            rank,
            alpha: real(at, "alpha", wire.alpha, 2.0 * f64::from(rank), Range::Positive)?,
            target_modules,
        })
    }
}

impl From<&Lora> for v1::LoraSpec {
    fn from(lora: &Lora) -> Self {
        Self {
            rank: Some(lora.rank),
            alpha: Some(lora.alpha),
            target_modules: lora.target_modules.iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_gets_its_defaults_and_reads_back() {
        let all = Lora::parse("policy_step", &v1::LoraSpec::default()).unwrap();
        assert_eq!((all.rank, all.alpha, all.target_modules.len()), (16, 32.0, 7));
        let wire = v1::LoraSpec {
            rank: Some(4),
            alpha: Some(4.0),
            target_modules: ["v_proj", "q_proj", "v_proj"].map(str::to_owned).into(),
        };
        let some = Lora::parse("policy_step", &wire).unwrap();
        assert_eq!(some.target_modules, [LoraTarget::QProj, LoraTarget::VProj]);
        for lora in [all, some] {
            assert_eq!(Lora::parse("policy_step", &(&lora).into()).unwrap(), lora);
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let message = |wire| Lora::parse("reward_step", &wire).unwrap_err().to_string();
        let target = message(v1::LoraSpec { target_modules: vec!["qproj".into()], ..Default::default() });
        assert!(
            target.starts_with("reward_step.lora.target_modules: found qproj, expected q_proj, "),
            "{target}"
        );
        assert!(target.ends_with("did you mean q_proj?"), "{target}");
        let rank = message(v1::LoraSpec { rank: Some(0), ..Default::default() });
        assert_eq!(rank, "reward_step.lora.rank: found 0, expected at least 1");
    }
}
